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

from tests.archive_cases import GOLDEN, VERSIONS, golden_files, tree
from ups_data import archive, files
from ups_data.archive import index, numbers, reader
from ups_data.archive.blocks import DEFLATE, encode_bytes
from ups_data.archive.format import INDEX_LIMIT, Block, Coding, Member, Seal
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


def forge(
    path: Path, members: list[Member], blocks: list[Block], packed: bytes = b"", seals: list[Seal] | None = None
) -> Path:
    """An archive whose index says what we like, with right checksums; each member has its own seal if none is given."""
    seals = seals or [Seal(range(i, i + 1), member.sha256) for i, member in enumerate(members)]
    path.write_bytes(index.HEADER + packed + index.index_and_footer(members, seals, blocks))
    return path


def honest(path: str, data: bytes) -> tuple[Member, Block, bytes]:
    packed, block = encode_bytes(data, patient=False)
    member = Member(path, len(data), hashlib.sha256(data).hexdigest(), hashlib.md5(data).hexdigest())
    return member, block, packed


EMPTY = hashlib.sha256().hexdigest()
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
    member, block, packed = honest(path, b"x" * 100)
    message = "not a plain relative path|more bytes than it lists"
    refused(forge(tmp_path / "bad.upk", [member], [block], packed), tmp_path / "out", message)


@pytest.mark.parametrize("pair", [("a", "a"), ("a", "a/b")])
def test_two_members_of_one_name_are_refused(tmp_path, pair):
    members, blocks, packed = zip(*(honest(path, b"x" * 100) for path in pair), strict=True)
    message = "stands in it twice|both a file and a folder"
    refused(forge(tmp_path / "bad.upk", list(members), list(blocks), b"".join(packed)), tmp_path / "out", message)


def test_a_manifest_that_lies_about_a_block_is_refused(tmp_path):
    member, block, packed = honest("a", b"x" * 1000)
    lies = {
        "blocks end at byte": replace(block, packed=block.packed - 1),
        "its blocks have 2000 bytes, its members 1000": replace(block, size=2000),
        "a block of": replace(block, size=1 << 30),
        "does not unpack": replace(block, coding=Coding("pcodec", "f4", (250,), (0,))),
        "does not unpack|size it claims": replace(block, coding=Coding("lzma")),
        "raw block changes size": replace(block, coding=Coding("raw")),
        "does not match": replace(block, coding=Coding("pcodec", "f4", (3,), (0,))),
        "unknown numbers": replace(block, coding=Coding("pcodec", "O4", (250,), (0,))),
        "larger than": replace(block, coding=Coding("pcodec", "f4", (1 << 40,), (0,))),
    }
    for message, lie in lies.items():
        refused(forge(tmp_path / "bad.upk", [member], [lie], packed), tmp_path / "out", message)


def test_a_manifest_that_lies_about_a_member_is_refused(tmp_path):
    member, block, packed = honest("a", b"x" * 1000)
    empty = Member("b", 0, "0" * 64, "0" * 32)
    lies = {
        "a: the unpacked bytes have SHA-256": [replace(member, sha256="0" * 64)],
        "its blocks have 1000 bytes, its members 999": [replace(member, size=999)],
        "members 1001": [member, replace(member, path="b", size=1)],
        "b: the unpacked bytes have SHA-256": [member, empty],
        "members 0": [empty],
    }
    for message, lie in lies.items():
        refused(forge(tmp_path / "bad.upk", lie, [block], packed), tmp_path / "out", message)


INDEXES = {  # counts of members, seals, blocks, bytes of paths and of codings; then what they count, and digests
    "nothing": (b"", b""),
    "numbers of nine bytes": (b"\x09" + bytes(99), b""),
    "more members than bytes": (b"\x08" + b"\xff" * 40, b""),
    "a column that is cut short": (b"\x01" + bytes([1, 1, 0, 1, 0]) + b"\x08\1", b""),
    "a path that is not UTF-8": (b"\x01" + bytes([1, 1, 0, 1, 0]) + b"\1\0\0\0\0\0" + b"\xff", bytes(48)),
    "codings that are not JSON": (b"\x01" + bytes([0, 0, 0, 0, 2]) + b"\0\0\0\0\0" + b"{]", b""),
    "codings that are no list": (b"\x01" + bytes([0, 0, 0, 0, 1]) + b"\0\0\0\0\0" + b"5", b""),
    "bytes to spare": (b"\x01" + bytes(5) + b"\0\0\0\0\0" + b"x", b""),
    "a member without a seal": (b"\x01" + bytes([1, 0, 0, 1, 0]) + b"\0\0\0\0\0" + b"a", b""),
    "a seal without a member": (b"\x01" + bytes([0, 1, 0, 0, 0]) + b"\0\0\0\0\0" + b"a", bytes(48)),
    "a seal of more members": (b"\x01" + bytes([1, 1, 0, 1, 0]) + b"\0\1\1\0\0\0" + b"a", bytes(32)),
    "too few digests": (b"\x01" + bytes([1, 1, 0, 1, 0]) + b"\0\0\0\0\0" + b"a", bytes(47)),
    "too many digests": (b"\x01" + bytes([1, 1, 0, 1, 0]) + b"\0\0\0\0\0" + b"a", bytes(49)),
}


@pytest.mark.parametrize("kind", INDEXES)
def test_an_index_that_no_writer_writes_is_refused(tmp_path, kind):
    text, digests = INDEXES[kind]
    end = digests + text + index.footer(digests, text, len(text), "raw")
    (tmp_path / "bad.upk").write_bytes(index.HEADER + end)
    refused(tmp_path / "bad.upk", tmp_path / "out", "its index contradicts itself")


def test_a_wrong_byte_under_a_seal_of_several_members_takes_them_all_with_it(tmp_path):
    """Also where only another of them is asked for, or listed: nothing is believed that is not verified."""
    texts = {f"{i}.txt": b"%d apples\n" % i for i in range(3)}
    data = b"".join(texts.values())
    members = [Member(path, len(text)) for path, text in texts.items()]
    block = Block(len(data), len(data), Coding("raw"))
    right, wrong = (Seal(range(3), hashlib.sha256(text).hexdigest()) for text in (data, b"x" + data[1:]))
    forge(tmp_path / "good.upk", members, [block], data, [right])
    archive.extract(tmp_path / "good.upk", tmp_path / "good", only=["1.txt"])
    assert tree(tmp_path / "good") == {"1.txt": texts["1.txt"]}
    forge(tmp_path / "bad.upk", members, [block], data, [wrong])
    message = r"2.txt and 2 beside it: the unpacked bytes have SHA-256"
    for only in ([], ["1.txt"]):
        refused(tmp_path / "bad.upk", tmp_path / "out", message, only=only)
    for look in (archive.members, reader.verify):
        with pytest.raises(UpsDataError, match=message):
            look(tmp_path / "bad.upk")


def test_members_without_bytes_are_refused_under_a_wrong_seal(tmp_path):
    members = [Member("a", 0), Member("b", 0)]
    archive.extract(forge(tmp_path / "good.upk", members, [], b"", [Seal(range(2), EMPTY)]), tmp_path / "good")
    assert tree(tmp_path / "good") == {"a": b"", "b": b""}
    forged = forge(tmp_path / "bad.upk", members, [], b"", [Seal(range(2), "0" * 64)])
    refused(forged, tmp_path / "out", "a: the unpacked bytes have SHA-256")


def test_members_that_a_reader_refuses_are_not_published(tmp_path):
    """`accept` sees checksums that are not stored, of bytes that are verified and not yet visible."""
    files = golden_files(tmp_path / "in", 3)
    archive.pack(archive.collect(files, ["notes.txt", "squares.txt"]), tmp_path / "a.upk")

    def accept(members: list[Member]) -> None:
        assert [m.sha256 for m in members] == [
            hashlib.sha256((files / m.path).read_bytes()).hexdigest() for m in members
        ]
        raise UpsDataError("not these")

    refused(tmp_path / "a.upk", tmp_path / "out", "not these", accept=accept)


def test_a_wrong_member_takes_the_right_ones_with_it(tmp_path):
    (good, *first), (bad, *second) = honest("a", b"x" * 1000), honest("b", b"y" * 1000)
    blocks, packed = zip(first, second, strict=True)
    forged = forge(tmp_path / "bad.upk", [good, replace(bad, sha256="0" * 64)], list(blocks), b"".join(packed))
    refused(forged, tmp_path / "out", "b: the unpacked bytes have SHA-256")


def test_bombs_are_refused_before_they_go_off(tmp_path, monkeypatch):
    huge = Block(10, 16 << 20, DEFLATE)
    bomb = Member("bomb", 4096 * huge.size, "0" * 64, "0" * 32)  # 64 GiB out of 40 kB
    forged = forge(tmp_path / "bad.upk", [bomb], [huge] * 4096, bytes(40960))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10 << 30}))
    refused(forged, tmp_path / "out", r"needs 68.7 GB but .* has 10.7 GB free")
    packed = zlib.compress(bytes(1 << 20))
    forged.write_bytes(index.HEADER + packed + index.footer(b"", packed, INDEX_LIMIT + 1, "deflate"))
    refused(forged, tmp_path / "out", "its index claims")


def test_a_block_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
    """Whatever it is packed by: no more memory is taken than the index claims, and the index is bounded."""
    data, said, long, short = bytes(1 << 20), 4000, *(Coding("pcodec", "f4", (n,), (0,)) for n in (1 << 18, 1000))
    by_lzma, block = encode_bytes(data, patient=True)
    lies = ((zlib.compress(data), DEFLATE), (by_lzma, block.coding), (numbers.pack(data, long), short))
    for packed, lying in lies:
        assert len(packed) < said
        block = Block(len(packed), said, lying)
        member = Member("a", said, hashlib.sha256(data[:said]).hexdigest(), "0" * 32)
        message = "the size it claims|does not unpack"
        refused(forge(tmp_path / "bad.upk", [member], [block], packed), tmp_path / "out", message)


def test_an_unknown_version_is_a_sentence(tmp_path):
    data = bytearray((GOLDEN / "tiny-v2.upk").read_bytes())
    data[8:12] = struct.pack("<I", 4)
    (tmp_path / "new.upk").write_bytes(data)
    refused(tmp_path / "new.upk", tmp_path / "out", "format version 4, this program reads versions 1 to 3")


@pytest.mark.parametrize("golden", ["tiny.upk", "tiny-v2.upk", "tiny-v3.upk"])
def test_a_cut_or_extended_or_foreign_file_is_refused(tmp_path, golden):
    data = (GOLDEN / golden).read_bytes()
    for spoilt in (data[:-1], data[: len(data) // 2], data[:16], data + b"x", b"PK\3\4" + data, b""):
        (tmp_path / "bad.upk").write_bytes(spoilt)
        refused(tmp_path / "bad.upk", tmp_path / "out", "cut short|bytes after its end|neither a .upk")


@pytest.mark.parametrize("golden", VERSIONS)
def test_no_single_damaged_byte_changes_what_comes_back(tmp_path, golden):
    """Version 1 and gzip refuse every one; a byte that no decoder uses may pass in later ones, the content is right."""
    data, files = (GOLDEN / golden).read_bytes(), tree(golden_files(tmp_path / "in", VERSIONS[golden]))
    # The operating system in a gzip header means nothing.
    for position in range(10, len(data), 17) if golden == "tiny.tar.gz" else range(0, len(data), 89):
        spoilt = bytearray(data)
        spoilt[position] ^= 0x10
        (tmp_path / "bad").write_bytes(spoilt)
        try:
            reader.verify(tmp_path / "bad")
        except UpsDataError:
            continue
        assert VERSIONS[golden] > 1
        archive.extract(tmp_path / "bad", tmp_path / "out")
        assert tree(tmp_path / "out") == files


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
    refused(bomb, tmp_path / "out", "needs 1.1 TB")


def test_nothing_is_written_through_a_link_in_the_target(tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "folder").symlink_to(tmp_path / "outside")
    with pytest.raises(UpsDataError, match="is a link"):
        archive.extract(GOLDEN / "tiny.upk", tmp_path / "out", only=["folder/indices.npy"])
    archive.extract(GOLDEN / "tiny.upk", tmp_path / "out")  # a whole folder takes the place of the link itself
    assert not (tmp_path / "out" / "folder").is_symlink()
    assert list((tmp_path / "outside").iterdir()) == []
