"""Archives restore the very same bytes, whole or in part, on any machine, at any moment."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.archive_cases import CODECS, GOLDEN, blocks_of, pack_all, tree, waves, zoo
from ups_data import archive, files
from ups_data.archive import __main__ as command
from ups_data.archive import format as layout
from ups_data.archive import reader
from ups_data.archive.blocks import decode, encode, encode_by_order
from ups_data.archive.format import Coding
from ups_data.archive.index import index_and_footer
from ups_data.archive.numbers import page_sizes
from ups_data.errors import UpsDataError
from ups_data.staging import staging

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
    coding = Coding("pcodec", dtype, tuple(shape), tuple(order))
    for blocks in (encode(raw, coding), encode_by_order(raw, coding)):
        restored, offset = np.empty(count, np.uint8), 0
        for packed, block in blocks:
            decode(packed, block, restored[offset : offset + block.size], "test")
            offset += block.size
        assert restored.tobytes() == raw
        assert sum(len(packed) for packed, _ in blocks) <= len(raw)


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
    overhead = 100 + 20 * len(contents) if codec == "pcodec" else 2500 + 1200 * len(contents)
    assert (root / "packed").stat().st_size <= sum(map(len, contents)) + overhead


def test_an_index_that_does_not_list_what_was_packed_is_found_out_at_once(animals, tmp_path, monkeypatch):
    def forget(members, seals, blocks):
        return index_and_footer([replace(members[0], path="another"), *members[1:]], seals, blocks)

    monkeypatch.setattr("ups_data.archive.writer.index_and_footer", forget)
    with pytest.raises(UpsDataError, match=r"^packing: the index does not list what was packed"):
        pack_all(animals, tmp_path / "x.upk")
    assert not list(tmp_path.glob("*.upk*"))


def test_an_index_that_needs_more_memory_than_there_is_is_a_sentence(tmp_path, monkeypatch, capsys):
    def none_left(_):
        raise MemoryError

    monkeypatch.setattr(reader, "members", none_left)
    assert command.main(["list", "x.upk"]) == 1
    assert capsys.readouterr().err == "ups_data.archive: x.upk: its index needs more memory than there is; refused\n"


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
    archive.pack({"a.h5": tmp_path / "a.h5"}, tmp_path / "a.upk")
    assert {b.coding.order for b in blocks_of(tmp_path / "a.upk") if len(b.coding.shape) == 2} == {(1, 0)}


def test_each_part_of_a_sample_takes_the_differences_that_suit_it(tmp_path):
    """Smooth rows and rough rows of one array are packed apart, and pages never run over the end of a sample."""
    rough = np.random.default_rng(0).normal(size=(64, 1024)).astype("f4")
    smooth = np.sin(np.linspace(0, 9, 64 * 1024, dtype="f4")).reshape(64, 1024)
    samples = np.stack([np.concatenate([smooth, rough])] * 70)  # 36 MB
    np.save(tmp_path / "a.npy", samples)
    archive.pack({"a.npy": tmp_path / "a.npy"}, tmp_path / "a.upk")
    numbers = [block for block in blocks_of(tmp_path / "a.upk") if block.coding.dtype]
    assert {block.size for block in numbers} == {rough.nbytes}
    assert page_sizes([3, 100_000]) == [50_000] * 6
    assert page_sizes([5, 30_000]) == [60_000, 60_000, 30_000]
    assert sum(page_sizes([7, 11, 65_537])) == 7 * 11 * 65_537


def test_nothing_is_larger_than_tar_makes_it(animals, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "noise.npy", rng.normal(size=50_000).astype("f4"))
    np.save(tmp_path / "small.npy", rng.integers(0, 50, 50_000))
    np.save(tmp_path / "decimals.npy", np.round(rng.normal(size=50_000), 2))
    np.save(tmp_path / "few.npy", rng.normal(size=20))
    (tmp_path / "random.bin").write_bytes(rng.bytes(300_000))
    (tmp_path / "words.txt").write_text("".join(f"{n} bottles, " for n in range(30_000)))
    (tmp_path / "tiny").write_text("x\n")
    (tmp_path / "zeros").write_bytes(bytes(8 << 20))
    (tmp_path / "picture_amid_text").write_bytes(b"some words " * 1000 + rng.bytes(80_000) + b"and more " * 1000)
    partly = rng.normal(size=300_000).astype("f4")
    partly[60_000:90_000] = np.tile(partly[:1000], 30)
    np.save(tmp_path / "partly_again.npy", partly)
    np.save(tmp_path / "every_third_again.npy", np.repeat(rng.normal(size=(100, 1000)), [1, 2] * 50, axis=0))
    np.save(tmp_path / "few_values.npy", rng.normal(size=200)[rng.integers(0, 200, 50_000)])
    (tmp_path / "seven_bits").write_bytes((np.frombuffer(rng.bytes(200_000), "u1") & 0x7F).tobytes())
    with h5py.File(tmp_path / "groups.h5", "w") as file:
        for i in range(40):
            file[f"{i:04}/noise"], file[f"{i:04}/x"] = rng.normal(size=1000), partly[:2000]
    for folder, numbers in (("same", partly[:2000]), ("unlike", None)):
        (tmp_path / folder).mkdir()
        for i in range(50):
            own = rng.integers(0, 1 << 32, 2000, dtype="u4") if numbers is None else numbers
            np.save(tmp_path / folder / f"{i}.npy", own)
    files = [*animals.iterdir(), *tmp_path.iterdir(), GOLDEN.parent]
    for file in files:
        subprocess.run(["tar", "-czf", tmp_path / "a.tgz", "-C", file.parent, file.name], check=True)
        archive.pack(archive.collect(file.parent, [file.name]), tmp_path / "a.upk")
        assert (tmp_path / "a.upk").stat().st_size <= (tmp_path / "a.tgz").stat().st_size, file


@pytest.mark.parametrize("count", [1, 50, 400])
@pytest.mark.parametrize("size", [0, 10, 100, 1000])
@pytest.mark.parametrize("kind", ["text", "random"])
def test_no_folder_of_tiny_files_is_larger_than_tar_makes_it(tmp_path, count, size, kind):
    rng, text = random.Random(count + size), Path(__file__).read_bytes()
    for number in range(count):
        path = tmp_path / "in" / rng.choice(["a", rng.randbytes(30).hex()]) / f"{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        start = rng.randrange(len(text) - size)
        path.write_bytes(text[start : start + size] if kind == "text" else rng.randbytes(size))
    subprocess.run(["tar", "-czf", tmp_path / "a.tgz", "-C", tmp_path, "in"], check=True)
    members = archive.pack(archive.collect(tmp_path, ["in"]), tmp_path / "a.upk")
    assert (tmp_path / "a.upk").stat().st_size <= (tmp_path / "a.tgz").stat().st_size
    assert archive.members(tmp_path / "a.upk") == members
    assert all(m.sha256 == hashlib.sha256((tmp_path / m.path).read_bytes()).hexdigest() for m in members)


def test_small_files_share_a_block_and_come_out_alone(tmp_path):
    """Files of one suffix stand together, whatever their folder; what is asked for is all that is written."""
    texts = {f"{i % 3}/{i}.{'txt' if i % 2 else 'json'}": f"viscosity {i}\n" * 5 for i in range(300)}
    for path, text in texts.items():
        (tmp_path / "in" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / path).write_text(text)
    pack_all(tmp_path / "in", tmp_path / "a.upk")
    with open(tmp_path / "a.upk", "rb") as file:
        contents = reader.read_index(file, "a.upk")
    assert len(contents.blocks) == 1
    order = [member.path for member in contents.members]
    assert order == sorted(order, key=lambda path: (path.endswith("txt"), path))
    archive.extract(tmp_path / "a.upk", tmp_path / "out", only=["1/7.txt", "2"])
    assert tree(tmp_path / "out") == {p: t.encode() for p, t in texts.items() if p == "1/7.txt" or p[0] == "2"}


def test_a_file_that_changes_while_it_is_packed_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", waves(200))

    def change(_: int) -> None:
        os.truncate(tmp_path / "a.npy", 1000)

    with pytest.raises(UpsDataError, match=r"a.npy changed while it was being packed"):
        archive.pack({"a.npy": tmp_path / "a.npy"}, tmp_path / "a.upk", workers=1, advance=change)


def test_numbers_that_recur_are_packed_as_bytes(tmp_path):
    """A little of them, and a mask of large cells whose rows are packed apart."""
    rng = np.random.default_rng(0)
    mask = np.kron(rng.integers(0, 2, (100, 20)), np.ones((10, 500))).astype("f4")  # 40 MB
    for numbers in (np.tile(rng.normal(size=1000).astype("f4"), 500), mask):
        np.save(tmp_path / "a.npy", numbers)
        archive.pack({"a.npy": tmp_path / "a.npy"}, tmp_path / "a.upk")
        assert {b.coding.method for b in blocks_of(tmp_path / "a.upk") if b.size > 4096} <= {"deflate", "lzma"}


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_files(tmp_path):
    """Peak memory of a process that packs and unpacks 240 MB is that of one that does 96 MB."""
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from ups_data import archive\n"
        "archive.pack({'a': Path(sys.argv[1])}, sys.argv[1] + '.upk', workers=2)\n"
        "archive.extract(sys.argv[1] + '.upk', sys.argv[1] + '.out', workers=2)\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    peaks = []
    for megabytes in (96, 240):
        file = tmp_path / f"{megabytes}.npy"
        np.save(file, np.random.default_rng(0).standard_normal((megabytes, 1 << 18), dtype="f4"))
        command = [sys.executable, "-c", code, file]
        turns = [
            subprocess.run(command, capture_output=True, text=True, cwd=GOLDEN.parents[1], check=True) for _ in range(3)
        ]
        peaks.append(min(int(done.stdout) for done in turns) / 1024)  # how many blocks are at work at once varies
    assert peaks[1] < peaks[0] + 32


# --- a part of it --------------------------------------------------------------------------------


def test_one_member_is_restored_without_reading_the_others(tmp_path):
    for name in ("a_test.npy", "b_train.npy"):
        np.save(tmp_path / name, waves(4))
    packed = tmp_path / "two.upk"
    archive.pack(archive.collect(tmp_path, ["a_test.npy", "b_train.npy"]), packed)
    with open(packed, "r+b") as file:  # damage every byte of the other member
        contents = reader.read_index(file, "two.upk")
        start, end = contents.offsets[contents.span(contents.seals[1])[0]], contents.offsets[-1]
        file.seek(start)
        file.write(bytes(end - start))
    archive.extract(packed, tmp_path / "out", only=["a_test.npy"])
    assert tree(tmp_path / "out") == {"a_test.npy": (tmp_path / "a_test.npy").read_bytes()}
    with pytest.raises(UpsDataError, match="does not unpack"):
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


def test_an_extraction_that_is_killed_while_it_cleans_up_is_swept_by_the_next(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", waves(4))
    archive.pack({"a.npy": tmp_path / "a.npy"}, tmp_path / "a.upk")

    def die(folder):
        if folder.is_dir():
            for path in sorted(folder.rglob("*"), reverse=True)[:1]:
                path.unlink()
        raise KeyboardInterrupt

    (tmp_path / "out").mkdir()
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(files, "remove", die)
        with staging(tmp_path / "out") as folder:
            (folder / "half").write_bytes(b"half")
    assert [p.name[:5] for p in (tmp_path / "out").iterdir()] == [".upk-"]
    archive.extract(tmp_path / "a.upk", tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.npy"]


@pytest.mark.parametrize("call", [(os, "fsync"), (fcntl, "flock")], ids=["flush", "lock"])
def test_a_disk_that_fails_while_a_file_is_on_its_way_to_it_publishes_nothing(tmp_path, monkeypatch, call):
    np.save(tmp_path / "a.npy", waves(4))
    archive.pack({"a.npy": tmp_path / "a.npy"}, tmp_path / "a.upk")

    def fail(*_):
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(*call, fail)
    with pytest.raises(OSError, match="the disk is broken"):
        archive.extract(tmp_path / "a.upk", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_signal_between_two_files_is_heard_when_all_of_them_are_there(animals, tmp_path, monkeypatch):
    pack_all(animals, tmp_path / "zoo")
    publish = files.publish

    def publish_and_interrupt(*places):
        publish(*places)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(files, "publish", publish_and_interrupt)
    with pytest.raises(KeyboardInterrupt):
        archive.extract(tmp_path / "zoo", tmp_path / "out")
    assert tree(tmp_path / "out") == tree(animals)


def test_two_processes_that_unpack_into_one_folder_both_succeed(animals, tmp_path):
    pack_all(animals, tmp_path / "zoo.upk")
    command = [sys.executable, "-m", "ups_data.archive", "extract", tmp_path / "zoo.upk", tmp_path / "out"]
    both = [subprocess.Popen(command, cwd=GOLDEN.parents[1], stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert tree(tmp_path / "out") == tree(animals)


def test_a_folder_where_one_file_is_to_appear_stops_all_of_them(animals, tmp_path):
    members = pack_all(animals, tmp_path / "zoo.upk")
    last = max(member.path for member in members if "/" not in member.path)
    (tmp_path / "out" / last / "mine").mkdir(parents=True)
    with pytest.raises(UpsDataError, match=f"{last} is a folder, and a file is to be written there"):
        archive.extract(tmp_path / "zoo.upk", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [last]


def test_what_the_command_cannot_read_or_write_is_a_sentence(animals, tmp_path, capsys, monkeypatch):
    pack_all(animals, tmp_path / "zoo.upk")
    (tmp_path / "out").write_text("mine")
    assert command.main(["extract", str(tmp_path / "zoo.upk"), str(tmp_path / "out")]) == 1
    assert f"ups_data.archive: {tmp_path / 'out'}: File exists; name another" in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(reader, "verify", stop)
    assert command.main(["verify", str(tmp_path / "zoo.upk")]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_list_whose_reader_goes_away_ends_quietly(animals, tmp_path):
    pack_all(animals, tmp_path / "zoo.upk")
    arguments = [sys.executable, "-m", "ups_data.archive", "list", tmp_path / "zoo.upk"]
    listing = subprocess.Popen(arguments, cwd=GOLDEN.parents[1], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    listing.stdout.close()
    assert (listing.stderr.read(), listing.wait()) == (b"", 128 + signal.SIGPIPE)
    listing.stderr.close()


def test_a_failed_packing_leaves_the_old_archive(tmp_path):
    (tmp_path / "x.upk").write_bytes(b"old")
    with pytest.raises(UpsDataError, match="is missing"):
        archive.pack(archive.collect(tmp_path, ["absent.h5"]), tmp_path / "x.upk")
    with pytest.raises(OSError):
        archive.pack({"a": tmp_path / "absent"}, tmp_path / "x.upk")
    assert tree(tmp_path) == {"x.upk": b"old"}
