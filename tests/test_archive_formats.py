"""Archives and what others read and write: tar, gzip, earlier versions of ours, a reader without this project."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import tarfile

import pytest

from tests.archive_cases import GOLDEN, VERSIONS, blocks_of, golden_files, pack_all, tree
from ups_data import archive
from ups_data.archive import reader, targz
from ups_data.errors import UpsDataError


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


@pytest.mark.parametrize("golden", VERSIONS)
def test_archives_of_every_version_open_whole_and_in_part(tmp_path, golden):
    archive.extract(GOLDEN / golden, tmp_path / "out")
    files = tree(golden_files(tmp_path / "in", VERSIONS[golden]))
    assert tree(tmp_path / "out") == files
    archive.extract(GOLDEN / golden, tmp_path / "part", only=["folder", "empty"])
    assert tree(tmp_path / "part") == {path: files[path] for path in ("empty", "folder/indices.npy")}
    assert [m.path for m in reader.verify(GOLDEN / golden)] == sorted(files)


@pytest.mark.parametrize("version", [2, 3])
def test_the_golden_archives_have_every_coding(version):
    golden = GOLDEN / f"tiny-v{version}.upk"
    found = blocks_of(golden)
    assert golden.read_bytes()[8:12] == struct.pack("<I", version)
    assert {block.coding.method for block in found} == {"raw", "deflate", "lzma", "pcodec"}
    assert {block.coding.order for block in found} >= {(), (0,), (1, 0)}


def test_the_golden_archive_of_version_3_seals_tiny_members_together():
    with open(GOLDEN / "tiny-v3.upk", "rb") as file:
        sizes = [len(seal.members) for seal in reader.read_index(file, "tiny-v3.upk").seals]
    assert max(sizes) > 1 and 1 in sizes


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
    for golden in ("tiny.upk", "tiny-v2.upk", "tiny-v3.upk"):
        command = [sys.executable, "-c", code, "extract", GOLDEN / golden, tmp_path]
        done = subprocess.run(command, capture_output=True, text=True, cwd=GOLDEN.parents[1])
        assert done.returncode == 0, done.stderr
        assert "files" in done.stdout
