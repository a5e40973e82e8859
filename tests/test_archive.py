"""Archives restore the very same bytes, whole or in part, on any machine, at any moment."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.archive_cases import CODECS, GOLDEN, golden_files, pack_all, tree, waves, zoo
from ups_data import archive
from ups_data.archive import format as layout
from ups_data.archive import targz
from ups_data.archive.blocks import decode, encode
from ups_data.archive.format import Coding
from ups_data.archive.layout import regions
from ups_data.errors import UpsDataError


@pytest.fixture(scope="session")
def animals(tmp_path_factory) -> Path:
    return zoo(tmp_path_factory.mktemp("zoo") / "files")


# --- the same bytes ------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_every_kind_of_file_comes_back_byte_for_byte(animals, tmp_path, codec):
    packed = tmp_path / "zoo"
    members = pack_all(animals, packed, codec=codec)
    archive.extract(packed, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(animals)
    for member in members:
        data = (animals / member.path).read_bytes()
        assert (member.size, member.sha256) == (len(data), hashlib.sha256(data).hexdigest())
        assert member.md5 == hashlib.md5(data).hexdigest()
    assert [(m.path, m.size, m.sha256, m.md5) for m in archive.members(packed)] == [
        (m.path, m.size, m.sha256, m.md5) for m in members
    ]


@pytest.mark.parametrize("codec", CODECS)
def test_the_bytes_of_an_archive_do_not_depend_on_workers_places_or_times(animals, tmp_path, codec):
    pack_all(animals, tmp_path / "one", codec=codec, workers=1)
    copy = zoo(tmp_path / "elsewhere")
    os.utime(copy / "text.json", (0, 0))
    (copy / "text.json").chmod(0o600)
    pack_all(copy, tmp_path / "five", codec=codec, workers=5)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "five").read_bytes()


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(layout.DTYPES),
    st.lists(st.integers(1, 7), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.data(),
)
def test_a_block_of_any_bit_pattern_in_any_order_of_axes_comes_back(dtype, shape, random, data):
    order = data.draw(st.permutations(range(len(shape))))
    count = int(np.prod(shape)) * int(dtype[1])
    raw = random.randbytes(count) if data.draw(st.booleans()) else bytes(count)  # NaN payloads, -0.0, denormals
    packed, block = encode(raw, Coding("pcodec", dtype, tuple(shape), tuple(order)))
    assert bytes(decode(packed, block, "test")) == raw
    assert len(packed) <= len(raw)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.binary(max_size=20_000) | st.integers(0, 300_000).map(bytes), max_size=4),
    st.sampled_from(sorted(CODECS)),
)
def test_any_bytes_come_back_and_never_grow_by_more_than_the_index(tmp_path_factory, contents, codec):
    root = tmp_path_factory.mktemp("any")
    (root / "in").mkdir()
    for i, data in enumerate(contents):
        (root / "in" / f"{i}.bin").write_bytes(data)
    pack_all(root / "in", root / "packed", codec=codec)
    archive.extract(root / "packed", root / "out")
    assert tree(root / "out") == tree(root / "in")
    overhead = 16 + 64 + 100 + 150 * len(contents) if codec == "pcodec" else 2500 + 1200 * len(contents)
    assert (root / "packed").stat().st_size <= sum(map(len, contents)) + overhead


def test_numbers_are_found_where_hdf5_zarr_safetensors_and_npy_keep_them(animals):
    sizes = {p: sum(r.size for r in regions(animals / p)) / max(1, len(data)) for p, data in tree(animals).items()}
    shards = [p for p in sizes if p.startswith("mesh.zarr/fields/c")]
    assert len(shards) == 3
    assert all(sizes[p] > 0.9 for p in ["model.safetensors", "array.npy", *shards])
    assert 0.5 < sizes["grid.h5"] < 1  # the filtered dataset stays as it is
    assert sizes["broken.h5"] == sizes["random.bin"] == sizes["empty"] == 0


def test_smooth_fields_pack_to_a_fraction_of_what_deflate_makes_of_them(tmp_path):
    np.save(tmp_path / "waves.npy", waves(16))
    sizes = {}
    for codec in CODECS:
        archive.pack({"waves.npy": tmp_path / "waves.npy"}, tmp_path / codec, codec=codec)
        sizes[codec] = (tmp_path / codec).stat().st_size
    assert sizes["pcodec"] < 0.6 * sizes["gzip"]


def test_data_smooth_in_time_alone_is_packed_along_time(tmp_path):
    noise = np.random.default_rng(0).normal(size=(1, 512)).astype("f4")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = (noise + np.linspace(0, 1, 500, dtype="f4")[:, None])[None]
    (member,) = archive.pack({"a.h5": tmp_path / "a.h5"}, tmp_path / "a.upk")
    assert {b.coding.order for b in member.blocks if len(b.coding.shape) == 2} == {(1, 0)}


# --- what others read and write ------------------------------------------------------------------


def test_tar_and_gzip_read_the_tar_gz(animals, tmp_path):
    pack_all(animals, tmp_path / "zoo.tar.gz", codec="gzip")
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-xzf", tmp_path / "zoo.tar.gz", "-C", tmp_path / "out"], check=True)
    manifest = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    (tmp_path / "out" / "MANIFEST.json").unlink()
    assert tree(tmp_path / "out") == tree(animals)
    assert [row["path"] for row in manifest["members"]] == sorted(tree(animals))
    with tarfile.open(tmp_path / "zoo.tar.gz") as tar:
        assert {(m.mtime, m.uid, m.uname, m.mode) for m in tar} == {(0, 0, "", 0o644)}


def test_a_tar_header_holds_long_names_and_sizes_beyond_8_gib():
    path, size = f"{'d' * 90}/{'e' * 60}/{'f' * 100}", 20 << 30
    info = tarfile.TarInfo.frombuf(targz.tar_header(path, size), "utf-8", "strict")
    assert (info.name, info.size, info.isreg()) == (path, size, True)
    with pytest.raises(UpsDataError, match="too long for a tar"):
        targz.tar_header("f" * 101, 1)


@pytest.mark.parametrize("suffix", CODECS.values())
def test_archives_of_version_1_open(tmp_path, suffix):
    archive.extract(GOLDEN / f"tiny{suffix}", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(golden_files(tmp_path / "in"))


def test_the_reader_needs_numpy_and_pcodec_alone(tmp_path):
    code = (
        "import sys, runpy\n"
        "class Absent:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name in {'h5py','zarr','torch','pydantic','yaml','tqdm','safetensors','dvc','scipy','numcodecs'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "sys.argv[0] = 'archive'\n"
        "runpy.run_module('ups_data.archive', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, "extract", GOLDEN / "tiny.upk", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=GOLDEN.parents[1])
    assert done.returncode == 0, done.stderr
    assert "4 files" in done.stdout


# --- a part of it --------------------------------------------------------------------------------


def test_one_member_is_restored_without_reading_the_others(tmp_path):
    for name in ("a_test.npy", "b_train.npy"):
        np.save(tmp_path / name, waves(4))
    packed = tmp_path / "two.upk"
    first, second = archive.pack(archive.collect(tmp_path, ["a_test.npy", "b_train.npy"]), packed)
    start = 16 + sum(b.packed for b in first.blocks)
    with open(packed, "r+b") as file:  # damage every byte of the other member
        file.seek(start)
        file.write(bytes(sum(b.packed for b in second.blocks)))
    archive.extract(packed, tmp_path / "out", only=["a_test.npy"])
    assert tree(tmp_path / "out") == {"a_test.npy": (tmp_path / "a_test.npy").read_bytes()}
    with pytest.raises(UpsDataError, match="checksum is wrong"):
        archive.extract(packed, tmp_path / "all")


@pytest.mark.parametrize("codec", CODECS)
def test_a_folder_is_restored_alone_and_takes_the_place_of_the_old_one(animals, tmp_path, codec):
    pack_all(animals, tmp_path / "zoo", codec=codec)
    stale = tmp_path / "out" / "mesh.zarr" / "stale"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    archive.extract(tmp_path / "zoo", tmp_path / "out", only=["mesh.zarr/"])
    assert tree(tmp_path / "out") == {k: v for k, v in tree(animals).items() if k.startswith("mesh.zarr/")}
    with pytest.raises(UpsDataError, match=r"holds no 'train.h5'; it holds .*array.npy"):
        archive.extract(tmp_path / "zoo", tmp_path / "out", only=["train.h5"])


# --- at any moment -------------------------------------------------------------------------------


def test_a_killed_extraction_leaves_nothing_visible_and_the_next_sweeps_up(tmp_path):
    for name in ("a.npy", "b.npy"):
        np.save(tmp_path / name, waves(16))
    archive.pack(archive.collect(tmp_path, ["a.npy", "b.npy"]), tmp_path / "two.upk")
    code = (
        "import sys, time\n"
        "from ups_data import archive\n"
        "def hang(_):\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
        f"archive.extract({str(tmp_path / 'two.upk')!r}, {str(tmp_path / 'out')!r}, advance=hang)\n"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=GOLDEN.parents[1])
    try:
        assert process.stdout.readline() == b"half\n"
        archive.extract(tmp_path / "two.upk", tmp_path / "other")  # a live run's folder is left alone
        assert [p.name[:5] for p in (tmp_path / "out").iterdir()] == [".upk-"]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert [p for p in (tmp_path / "out").iterdir() if not p.name.startswith(".")] == []
    archive.extract(tmp_path / "two.upk", tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.npy", "b.npy"]


def test_a_failed_packing_leaves_the_old_archive(tmp_path):
    (tmp_path / "x.upk").write_bytes(b"old")
    with pytest.raises(UpsDataError, match="is missing"):
        archive.pack(archive.collect(tmp_path, ["absent.h5"]), tmp_path / "x.upk")
    with pytest.raises(OSError):
        archive.pack({"a": tmp_path / "absent"}, tmp_path / "x.upk")
    assert tree(tmp_path) == {"x.upk": b"old"}
