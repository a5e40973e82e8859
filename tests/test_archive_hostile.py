"""A hostile or damaged archive is refused with a sentence; nothing is written outside or left behind."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from tests.archive_cases import CODECS, GOLDEN, tree
from ups_data import archive, files
from ups_data.archive import format as layout
from ups_data.archive import numbers, reader
from ups_data.archive.blocks import DEFLATE, encode
from ups_data.archive.format import Block, Coding, Member
from ups_data.errors import UpsDataError


def refused(path: Path, target: Path, message: str, **more) -> None:
    """The archive is refused with that message, and the target folder holds what it held before."""
    target.mkdir(exist_ok=True)
    (target / "mine").write_bytes(b"mine")
    before = tree(target.parent)
    with pytest.raises(UpsDataError, match=message):
        archive.extract(path, target, **more)
    assert tree(target.parent) == before
    assert [p.name for p in target.iterdir()] == ["mine"]


# --- .upk ----------------------------------------------------------------------------------------


def forge(path: Path, members: list[Member], blocks: bytes = b"") -> Path:
    """An archive whose index says what we like, with right checksums."""
    body = layout.header() + blocks
    path.write_bytes(body + layout.index_and_footer(members, len(body)))
    return path


def honest(path: str, data: bytes) -> tuple[Member, bytes]:
    packed, block = encode(data, DEFLATE)
    return Member(path, len(data), hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest(), (block,)), packed


BAD_PATHS = [
    "/etc/x",
    "../x",
    "a/../../x",
    "a\\..\\x",
    "C:/x",
    "C:x",
    "",
    ".",
    "a//b",
    "a/",
    "a\0b",
    "a\nb",
    "x" * 1025,
]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_a_path_that_is_not_plain_and_relative_is_refused(tmp_path, path):
    member, packed = honest(path, b"x" * 100)
    refused(forge(tmp_path / "bad.upk", [member], packed), tmp_path / "out", "not a plain relative path")


@pytest.mark.parametrize("pair", [("a", "a"), ("a", "a/b")])
def test_two_members_of_one_name_are_refused(tmp_path, pair):
    members, packed = zip(*(honest(path, b"x" * 100) for path in pair), strict=True)
    message = "stands in it twice|both a file and a folder"
    refused(forge(tmp_path / "bad.upk", list(members), b"".join(packed)), tmp_path / "out", message)


def test_a_manifest_that_lies_is_refused(tmp_path):
    member, packed = honest("a", b"x" * 1000)
    block = member.blocks[0]
    numbers = Coding("pcodec", "f4", (250,), (0,))
    lies = {
        "SHA-256": replace(member, sha256="0" * 64),
        "has no sha256": replace(member, sha256="../../../x"),
        "do not add up": replace(member, size=999),
        "has the size": replace(member, size=-1),
        "blocks end at byte": replace(member, blocks=(replace(block, packed=block.packed - 1),)),
        "size it claims": replace(member, size=2000, blocks=(replace(block, size=2000),)),
        "checksum is wrong": replace(member, blocks=(replace(block, crc32=1),)),
        "a block of": replace(member, size=1 << 30, blocks=(replace(block, size=1 << 30),)),
        "does not unpack": replace(member, blocks=(replace(block, coding=numbers),)),
        "raw block changes size": replace(member, blocks=(replace(block, coding=Coding("raw")),)),
        "unknown coding": replace(member, blocks=(replace(block, coding=Coding("pickle")),)),
        "does not match": replace(member, blocks=(replace(block, coding=Coding("pcodec", "f4", (3,), (0,))),)),
        "larger than": replace(member, blocks=(replace(block, coding=Coding("pcodec", "f4", (1 << 40,), (0,))),)),
    }
    for message, lie in lies.items():
        refused(forge(tmp_path / "bad.upk", [lie], packed), tmp_path / "out", message)


def test_a_wrong_member_takes_the_right_ones_with_it(tmp_path):
    (good, first), (bad, second) = honest("a", b"x" * 1000), honest("b", b"y" * 1000)
    forged = forge(tmp_path / "bad.upk", [good, replace(bad, sha256="0" * 64)], first + second)
    refused(forged, tmp_path / "out", "b: the unpacked bytes have SHA-256")


def test_bombs_are_refused_before_they_go_off(tmp_path, monkeypatch):
    huge = Block(10, 16 << 20, 0, DEFLATE)
    bomb = Member("bomb", 4096 * huge.size, "0" * 64, "0" * 32, (huge,) * 4096)  # 64 GiB out of 40 kB
    forged = forge(tmp_path / "bad.upk", [bomb], bytes(40960))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10 << 30}))
    refused(forged, tmp_path / "out", r"needs 68.74 GB but .* has 10.74 GB free")
    body = layout.header() + zlib.compress(bytes(1 << 20))
    numbers = (16, len(body) - 16, layout.INDEX_LIMIT + 1)
    digest = layout._index_digest(body[16:], numbers)
    forged.write_bytes(body + layout.FOOTER.pack(*numbers, digest, layout.END_MAGIC))
    refused(forged, tmp_path / "out", "its index claims")


def test_a_block_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
    """Whatever it is packed by: no more memory is taken than the index claims, and the index is bounded."""
    data, said, long, short = bytes(1 << 20), 4000, *(Coding("pcodec", "f4", (n,), (0,)) for n in (1 << 18, 1000))
    for packed, lying in ((zlib.compress(data), DEFLATE), (numbers.pack(data, long), short)):
        assert len(packed) < said
        block = Block(len(packed), said, zlib.crc32(packed), lying)
        member = Member("a", said, hashlib.sha256(data[:said]).hexdigest(), "0" * 32, (block,))
        refused(forge(tmp_path / "bad.upk", [member], packed), tmp_path / "out", "the size it claims")


def test_an_unknown_version_is_a_sentence(tmp_path):
    data = bytearray((GOLDEN / "tiny.upk").read_bytes())
    data[8:12] = struct.pack("<I", 2)
    (tmp_path / "new.upk").write_bytes(data)
    refused(tmp_path / "new.upk", tmp_path / "out", "format version 2, this program reads version 1")


def test_a_cut_or_extended_or_foreign_file_is_refused(tmp_path):
    data = (GOLDEN / "tiny.upk").read_bytes()
    for spoilt in (data[:-1], data[: len(data) // 2], data[:16], data + b"x", b"PK\3\4" + data, b""):
        (tmp_path / "bad.upk").write_bytes(spoilt)
        refused(tmp_path / "bad.upk", tmp_path / "out", "cut short|bytes after its end|neither a .upk")


def test_no_single_damaged_byte_goes_unseen(tmp_path):
    for suffix in CODECS.values():
        data = (GOLDEN / f"tiny{suffix}").read_bytes()
        # The operating system in a gzip header means nothing; every other byte counts.
        for position in [p for p in range(0, len(data), 41 if suffix == ".upk" else 17) if suffix == ".upk" or p >= 10]:
            spoilt = bytearray(data)
            spoilt[position] ^= 0x10
            (tmp_path / "bad").write_bytes(spoilt)
            with pytest.raises(UpsDataError):
                reader.verify(tmp_path / "bad")


# --- .tar.gz -------------------------------------------------------------------------------------


def gzipped(path: Path, add) -> Path:
    """A tar.gz whose manifest lists the file `a` (b"x"), and whose other members `add` puts in."""
    row = {"path": "a", "size": 1, "sha256": hashlib.sha256(b"x").hexdigest(), "md5": hashlib.md5(b"x").hexdigest()}
    manifest = json.dumps({"format": "ups-data/archive-manifest", "version": 1, "members": [row]}).encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        add(tar, manifest)
    path.write_bytes(zlib.compress(buffer.getvalue(), wbits=31))
    return path


def put(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in {"mode": 0o644, **fields}.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


HOSTILE = {
    "link": {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
    "hard link": {"type": tarfile.LNKTYPE, "linkname": "/etc/passwd"},
    "device": {"type": tarfile.CHRTYPE, "devmajor": 1},
    "fifo": {"type": tarfile.FIFOTYPE},
    "folder": {"type": tarfile.DIRTYPE},
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_tar_gz_with_anything_but_plain_files_is_refused(tmp_path, kind):
    def add(tar, manifest):
        put(tar, "MANIFEST.json", manifest)
        put(tar, "a", **HOSTILE[kind])

    refused(gzipped(tmp_path / "bad.tar.gz", add), tmp_path / "out", "expected the plain file 'a'")


def test_a_tar_gz_that_disagrees_with_its_manifest_is_refused(tmp_path):
    members = {
        "expected the plain file 'MANIFEST.json'": [("../x", b"x")],
        "expected the plain file 'a'": [("MANIFEST.json", None), ("../a", b"x")],
        "has 2 bytes, the manifest says 1": [("MANIFEST.json", None), ("a", b"xx")],
        "the unpacked bytes have SHA-256": [("MANIFEST.json", None), ("a", b"y")],
        "members that its manifest does not list": [("MANIFEST.json", None), ("a", b"x"), ("b", b"x")],
        "not one this program reads": [("MANIFEST.json", b"{}"), ("a", b"x")],
    }
    for message, rows in members.items():

        def add(tar, manifest, rows=rows):
            for name, data in rows:
                put(tar, name, manifest if data is None else data)

        refused(gzipped(tmp_path / "bad.tar.gz", add), tmp_path / "out", message)
    good = (GOLDEN / "tiny.tar.gz").read_bytes()
    for spoilt in (good[:-1], good[:-9], good[: len(good) // 2], good + b"x", good + good):
        (tmp_path / "bad.tar.gz").write_bytes(spoilt)
        refused(tmp_path / "bad.tar.gz", tmp_path / "out", "cut short|bytes after its end|does not unpack")


def test_a_tar_gz_bomb_is_refused_by_what_its_manifest_claims(tmp_path, monkeypatch):
    huge = {"path": "a", "size": 1 << 40, "sha256": "0" * 64, "md5": "0" * 32}
    manifest = json.dumps({"format": "ups-data/archive-manifest", "version": 1, "members": [huge]}).encode()
    bomb = gzipped(tmp_path / "bad.tar.gz", lambda tar, _: (put(tar, "MANIFEST.json", manifest), put(tar, "a", b"x")))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10 << 30}))
    refused(bomb, tmp_path / "out", "needs 1099")


def test_nothing_is_written_through_a_link_in_the_target(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "folder").symlink_to(tmp_path / "outside")
    with pytest.raises(UpsDataError, match="is a link"):
        archive.extract(GOLDEN / "tiny.upk", tmp_path / "out", only=["folder/indices.npy"])
    archive.extract(GOLDEN / "tiny.upk", tmp_path / "out")  # a whole folder takes the place of the link itself
    assert not (tmp_path / "out" / "folder").is_symlink()
    assert list((tmp_path / "outside").iterdir()) == []
