"""Plain `.tar.gz`, readable by any tar: written by a parallel deflate, read back with nothing taken on trust.

The first member, MANIFEST.json, lists size and checksums of the others. Only what this module writes is
read: regular files in ustar headers, in the order of the manifest.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import BinaryIO

from ups_data import files
from ups_data.archive.format import Member, check_members
from ups_data.errors import UpsDataError
from ups_data.execution import in_order

MAGIC = b"\x1f\x8b"
# Deflate; no flags, no time, no system: nothing that differs between two runs.
GZIP_HEADER = MAGIC + b"\x08\x00\x00\x00\x00\x00\x00\xff"
MANIFEST = "MANIFEST.json"
MANIFEST_LIMIT = 64 << 20
FORMAT, VERSION = "ups-data/archive-manifest", 1
RECORD = 512  # bytes: the unit of tar
END = 2 * RECORD  # zero bytes that end a tar
TRAILING = 20 * RECORD  # GNU tar fills its last 10 KB with zeros
PIECE = 1 << 20  # bytes deflated by one worker at a time
WINDOW = 32 << 10  # bytes of the piece before that deflate refers to
LEVEL = 6


# --- writing -------------------------------------------------------------------------------------


def pack_gzip(
    sources: Mapping[str, Path], archive: Path, pool: Executor, ahead: int, advance: Callable[[int], None]
) -> list[Member]:
    """Write sorted `sources` (member path -> file) as a tar.gz; returns the members."""
    if MANIFEST in sources:
        raise UpsDataError(f"{archive}: the name {MANIFEST} is the archive's own; rename that file")
    members = [member for _, member in in_order(pool, _member, sources.items(), ahead)]
    pieces = _pieces(_tar(sources, members))
    crc, size = 0, 0
    with open(archive, "wb") as out:
        out.write(GZIP_HEADER)
        for (data, _, _), packed in in_order(pool, _deflate, pieces, ahead):
            out.write(packed)
            crc, size = zlib.crc32(data, crc), size + len(data)
            advance(len(data))
        out.write(struct.pack("<II", crc, size & 0xFFFFFFFF))
    return members


def _member(source: tuple[str, Path]) -> Member:
    path, file = source
    sha256, md5, size = hashlib.sha256(), hashlib.md5(), 0
    with open(file, "rb") as opened:
        while data := opened.read(files.HASH_BLOCK):
            sha256.update(data)
            md5.update(data)
            size += len(data)
    return Member(path, size, sha256.hexdigest(), md5.hexdigest())


def _tar(sources: Mapping[str, Path], members: Sequence[Member]) -> Iterator[bytes]:
    """The bytes of the tar; a file that changes after it was hashed is refused."""
    rows = [{"path": m.path, "size": m.size, "sha256": m.sha256, "md5": m.md5} for m in members]
    manifest = files.to_json({"format": FORMAT, "version": VERSION, "members": rows}).encode()
    yield tar_header(MANIFEST, len(manifest)) + manifest + bytes(-len(manifest) % RECORD)
    for member, (path, source) in zip(members, sources.items(), strict=True):
        yield tar_header(path, member.size)
        digest, left = hashlib.sha256(), member.size
        with open(source, "rb") as file:
            while left and (data := file.read(min(PIECE, left))):
                digest.update(data)
                left -= len(data)
                yield data
        if digest.hexdigest() != member.sha256:
            raise UpsDataError(f"{source} changed while it was being packed; pack it when nothing writes it")
        yield bytes(-member.size % RECORD)
    yield bytes(END)


def tar_header(path: str, size: int) -> bytes:
    """A ustar header of a regular file: mode 0644, owner 0, time 0; sizes from 8 GiB as GNU tar writes them."""
    name, prefix = path.encode(), b""
    while len(name) > 100:
        if b"/" not in name:
            raise UpsDataError(f"the member path {path!r} is too long for a tar; use codec pcodec or shorter names")
        head, _, name = name.partition(b"/")
        prefix = prefix + b"/" + head if prefix else head
    if len(prefix) > 155:
        raise UpsDataError(f"the member path {path!r} is too long for a tar; use codec pcodec or shorter names")
    octal = b"%011o\0" % size if size < 8 << 30 else b"\x80" + size.to_bytes(11, "big")
    fields = (name, b"0000644\0", b"0000000\0", b"0000000\0", octal, b"00000000000\0", b" " * 8, b"0")
    block = struct.pack("100s8s8s8s12s12s8s1s100s8s80x155s12x", *fields, b"", b"ustar\x0000", prefix)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _pieces(stream: Iterator[bytes]) -> Iterator[tuple[bytes, bytes, bool]]:
    """The stream in pieces of PIECE bytes: (piece, window before it, whether it is the last)."""
    window, buffer = b"", bytearray()
    for data in stream:
        buffer += data
        while len(buffer) > PIECE:
            piece = bytes(buffer[:PIECE])
            del buffer[:PIECE]
            yield piece, window, False
            window = piece[-WINDOW:]
    yield bytes(buffer), window, True


def _deflate(task: tuple[bytes, bytes, bool]) -> bytes:
    data, window, last = task
    # A piece starts with the window of the one before, so that the joined pieces are one deflate stream.
    stream = zlib.compressobj(LEVEL, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, *([window] if window else []))
    return stream.compress(data) + stream.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


# --- reading -------------------------------------------------------------------------------------


class Inflated:
    """Reads the inside of one gzip stream, never more at once than asked for."""

    def __init__(self, file: BinaryIO, name: str):
        self.file, self.name = file, name
        self.stream, self.input = zlib.decompressobj(31), b""

    def some(self, limit: int) -> bytes:
        """Between 1 and `limit` bytes, or none at the end of the stream."""
        while not self.stream.eof:
            self.input = self.stream.unconsumed_tail or self.file.read(PIECE)
            try:
                data = self.stream.decompress(self.input, limit)
            except zlib.error as error:
                raise UpsDataError(f"{self.name} does not unpack ({error}); fetch it again") from None
            if data:
                return data
            if not self.input and not self.stream.eof:
                raise UpsDataError(f"{self.name} is cut short; fetch it again")
        return b""

    def exactly(self, size: int) -> bytes:
        """`size` bytes; a stream that ends before is refused."""
        data = bytearray()
        while len(data) < size:
            if not (more := self.some(size - len(data))):
                raise UpsDataError(f"{self.name} is cut short; fetch it again")
            data += more
        return bytes(data)

    def end(self) -> None:
        """Refuse anything but zeros up to the end of the stream, and anything after it."""
        size = 0
        while data := self.some(RECORD):
            size += len(data)
            if data.count(0) != len(data) or size > TRAILING:
                raise UpsDataError(f"{self.name} has bytes after the last member; refused")
        if self.stream.unused_data or self.file.read(1):
            raise UpsDataError(f"{self.name} has bytes after its end; refused")


def open_gzip(file: BinaryIO, name: str) -> tuple[list[Member], Inflated]:
    """The members by the manifest, and the stream behind it; nothing but the manifest is read."""
    stream = Inflated(file, name)
    size = _file_header(stream, MANIFEST)
    if size > MANIFEST_LIMIT:
        raise UpsDataError(f"{name}: {MANIFEST} claims {size} bytes, the limit is {MANIFEST_LIMIT}; refused")
    text = stream.exactly(size)
    stream.exactly(-size % RECORD)
    try:
        tree = json.loads(text)
        if tree["format"] != FORMAT or tree["version"] != VERSION:
            raise ValueError(f"it has format {tree['format']!r} version {tree['version']!r}")
        members = [Member(**{key: row[key] for key in ("path", "size", "sha256", "md5")}) for row in tree["members"]]
        check_members(members, name)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UpsDataError(f"{name}: {MANIFEST} is not one this program reads ({error}); refused") from None
    return members, stream


def gzip_contents(stream: Inflated, members: Sequence[Member]) -> Iterator[tuple[Member, Iterator[bytes]]]:
    """Each member with its bytes in pieces, which must be used up in turn; headers must say what the manifest says."""
    for member in members:
        size = _file_header(stream, member.path)
        if size != member.size:
            raise UpsDataError(
                f"{stream.name}: {member.path!r} has {size} bytes, the manifest says {member.size}; refused"
            )
        yield member, _content(stream, size)
        stream.exactly(-size % RECORD)
    if any(stream.exactly(END)):
        raise UpsDataError(f"{stream.name} has members that its manifest does not list; refused")
    stream.end()


def _content(stream: Inflated, size: int) -> Iterator[bytes]:
    while size:
        if not (data := stream.some(min(size, PIECE))):
            raise UpsDataError(f"{stream.name} is cut short; fetch it again")
        size -= len(data)
        yield data


def _file_header(stream: Inflated, path: str) -> int:
    """Read the header of the regular file `path`: its size. Links, devices and surprises are refused."""
    block = stream.exactly(RECORD)
    octal = block[124:136]
    try:
        size = int.from_bytes(octal[1:], "big") if octal[0] == 0x80 else int(octal.strip(b"\0 "), 8)
        expected = tar_header(path, size)
    except (ValueError, UnicodeEncodeError, struct.error):
        expected = b""
    if block != expected:
        raise UpsDataError(
            f"{stream.name}: expected the plain file {path!r} next, got something else "
            f"(a link, a device, another name, or a tar that `package` did not write); refused"
        )
    return size
