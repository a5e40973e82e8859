"""The groups of thousands of small samples, looked at all at once instead of asking HDF5 object by object.

One program writes such a file, so what HDF5 stores of one sample differs from what it stores of the next in addresses
alone. The structures of the first group are taken apart; those of the others are compared with them byte by byte, which
gives what may differ: where the numbers are, and the text of the attribute `config`. This knows no more than what h5py
writes by default, and takes nothing on trust: a group that is in any way different is left to HDF5, and so is a file
with anything else in its first group.

The structures are those of the HDF5 File Format Specification 3.0: superblock (II.A, version 0), version 1 B-trees
(III.A.1), group symbol table nodes (III.B), symbol table entries (III.C), local heaps (III.D), global heaps (III.E),
version 1 object headers (IV.A.1.a) and the header messages named below (IV.A.2). Numbers are little-endian, addresses
and lengths of eight bytes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from struct import error, unpack_from

import h5py
import numpy as np

from ups_data.sources.stored import Stored, chunk_type, sample_of, samples_of

SUPERBLOCK = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0])  # all of version 0, 8 bytes an address and a length
NOWHERE = b"\xff" * 8  # the address that means none
REFERENCE = np.dtype([("size", "<u4"), ("heap", "<u8"), ("index", "<u4")])  # of a text of any length
SAME = {0x01, 0x03, 0x04, 0x05, 0x0B}  # messages without an address: dataspace, datatype, fill values, filters
UNREAD = {0x00, 0x12}  # an empty one, the time of the last change
LAYOUT, ATTRIBUTE, CONTINUATION, SYMBOL_TABLE = 0x08, 0x0C, 0x10, 0x11
POINTS = ("grid/t", "grid/x", "grid/y")  # equal in all groups
FOLLOWED = ("data", "grid", *POINTS)  # of the others it counts that they are there
LARGEST = 1 << 16  # bytes of a structure, or of the texts that share a heap: ten times what they take


class Unknown(Exception):
    """Something that this reader does not know: the file is left to HDF5."""


@dataclass
class Part:
    """A structure of the first group: what others have in its place, and where to go on from it."""

    content: np.ndarray  # uint8
    same: np.ndarray  # bool: the bytes that may not differ
    parts: list[tuple[int, Part]] = field(default_factory=list)  # the byte that an address stands at, what is there
    taken: list[tuple[int, int, str]] = field(default_factory=list)  # bytes from .. to .., and what they are

    @classmethod
    def of(cls, content: bytes) -> Part:
        return cls(np.frombuffer(content, np.uint8), np.ones(len(content), bool))

    def free(self, at: int, size: int = 8) -> None:
        self.same[at : at + size] = False

    def leads(self, at: int, part: Part) -> None:
        self.free(at)
        self.parts.append((at, part))

    def takes(self, name: str, at: int, size: int = 8) -> None:
        """Those bytes are `name`; where a name is taken twice they must be equal."""
        self.free(at, size)
        self.taken.append((at, at + size, name))


def look_alike(
    path: Path, file: h5py.File, first: str, names: Sequence[str], order: tuple[int, ...]
) -> list[tuple[str, Stored | None] | None]:
    """The configuration of groups and where their data are; None for one that is in any way unlike the first one.

    What is found of the first one has to be what HDF5 finds. `order`: the axes of data that are channel, time, x, ..
    """
    addresses = [_address(file, name) for name in (first, *names)]
    data = file[f"{first}/data"].id
    with open(path, "rb", buffering=0) as plain:
        pattern = _pattern_of(plain.fileno(), addresses[0])
        if pattern is None:
            return [None] * len(names)
        taken: dict[str, np.ndarray] = {}
        ok = _follow(plain.fileno(), path.stat().st_size, pattern, np.array(addresses), taken)
        texts = _texts(plain.fileno(), taken["config"], ok) if "config" in taken else [""] * len(ok)
    starts, chunks = taken.get("start"), taken.get("chunks")
    stored = samples_of(
        data,
        order,
        None if starts is None else starts.view(np.int64)[:, 0],
        None if chunks is None else chunks.view(chunk_type(data.rank + 1)),
    )
    found = list(zip(texts, stored, strict=True))
    if not ok[0] or not _equal(found[0], (file[first].attrs.get("config", ""), sample_of(data, order))):
        return [None] * len(names)
    return [what if alike else None for what, alike in zip(found[1:], ok[1:].tolist(), strict=True)]


def _address(file: h5py.File, name: str) -> int:
    """The byte of a group's object header; of what is no plain member of the file one that is nowhere."""
    link = file.id.links.get_info(name.encode())
    return link.u if link.type == h5py.h5l.TYPE_HARD and link.u < 1 << 63 else -1


def _equal(one: object, other: object) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return np.array_equal(one, other)


# --- the first group -----------------------------------------------------------------------------


def _pattern_of(descriptor: int, address: int) -> Part | None:
    """The structures of the group whose object header stands at a byte of an open file; None: left to HDF5."""
    try:
        if _read(descriptor, 0, 16) == SUPERBLOCK and _read(descriptor, 24, 8) == bytes(8):  # addresses count from 0
            return _header(descriptor, address, "")
    except (Unknown, error, RecursionError):
        pass
    return None


def _header(descriptor: int, address: int, path: str) -> Part:
    """An object header: its messages in one block, or in several that continue each other."""
    (length,) = unpack_from("<I", _read(descriptor, address, 16), 8)
    part = Part.of(_read(descriptor, address, 16 + length))
    _expect(part.content[0] == 1)
    _messages(descriptor, part, 16, path)
    return part


def _messages(descriptor: int, part: Part, at: int, path: str) -> None:
    content = part.content.tobytes()
    while at < len(content):
        kind, size = unpack_from("<HH", content, at)
        _expect(at + 8 + size <= len(content) and not content[at + 4] & 2)  # flag 2: stored elsewhere, and shared
        body = at + 8
        if kind == CONTINUATION:
            where, length = unpack_from("<QQ", content, body)
            more = Part.of(_read(descriptor, where, length))
            _messages(descriptor, more, 0, path)
            part.leads(body, more)
        elif kind == SYMBOL_TABLE and path in ("", "grid"):
            tree, heap = unpack_from("<QQ", content, body)
            _group(descriptor, part, body, tree, heap, path)
        elif kind == LAYOUT and path in ("data", *POINTS):
            _layout(descriptor, part, body, path)
        elif kind == ATTRIBUTE:
            if not path:
                _attribute(part, body)
        elif kind in UNREAD:
            part.free(body, size)
        else:
            _expect(kind in SAME)
        at = body + size


def _group(descriptor: int, part: Part, at: int, tree: int, heap: int, path: str) -> None:
    """The members of a group: a B-tree of one node, over one table of symbols, with the names in a heap."""
    node = Part.of(_read(descriptor, tree, 48))
    _expect(node.content.tobytes().startswith(b"TREE\0\0\1\0" + 2 * NOWHERE))  # of groups, a leaf, one child
    store = Part.of(_read(descriptor, heap, 32))
    _expect(store.content.tobytes().startswith(b"HEAP\0"))
    size, _, segment = unpack_from("<QQQ", store.content, 8)
    names = Part.of(_read(descriptor, segment, size))
    (where,) = unpack_from("<Q", node.content, 32)
    head = _read(descriptor, where, 8)
    _expect(head.startswith(b"SNOD\1"))
    table = Part.of(_read(descriptor, where, 8 + 40 * unpack_from("<H", head, 6)[0]))
    for entry in range(8, len(table.content), 40):
        name, header = unpack_from("<QQ", table.content, entry)
        (cached,) = unpack_from("<I", table.content, entry + 16)  # 1: where the tree and the heap of a group are
        _expect(cached in (0, 1) and name < size)
        child = f"{path}/{_text(names.content, name)}".lstrip("/")
        table.free(entry + 24, 16)
        if child in FOLLOWED:
            table.leads(entry + 8, _header(descriptor, header, child))
            if cached:
                table.takes(f"{child}: tree and heap", entry + 24, 16)
        else:
            table.free(entry + 8)
    node.leads(32, table)
    store.leads(24, names)
    part.leads(at, node)
    part.leads(at + 8, store)
    part.takes(f"{path}: tree and heap", at, 16)


def _layout(descriptor: int, part: Part, at: int, path: str) -> None:
    """Where an array is: version 3 of the message, in one piece (class 1) or in chunks (class 2)."""
    version, kind, axes = part.content[at : at + 3].tolist()
    _expect(version == 3)
    if kind == 1:
        address, size = unpack_from("<QQ", part.content, at + 2)
        if path == "data":
            part.takes("start", at + 2)
        else:
            part.leads(at + 2, Part.of(_read(descriptor, address, size)))
        return
    _expect(kind == 2)
    (tree,) = unpack_from("<Q", part.content, at + 3)
    part.leads(at + 3, _chunks(descriptor, tree, axes, path))


def _chunks(descriptor: int, tree: int, axes: int, path: str) -> Part:
    """The chunks of an array: a B-tree of one node. Of data their sizes, masks of filters and addresses may differ."""
    head = _read(descriptor, tree, 24)
    _expect(head.startswith(b"TREE\1\0") and head[8:] == 2 * NOWHERE)
    (count,) = unpack_from("<H", head, 6)
    entry = chunk_type(axes)  # in the file they have an axis more, that of the bytes of a number
    part = Part.of(_read(descriptor, tree, 24 + count * entry.itemsize + entry.itemsize - 8))
    for at in range(24, 24 + count * entry.itemsize, entry.itemsize):
        address = at + entry.itemsize - 8
        if path == "data":
            part.free(at)
            part.free(address)
        else:
            (size,), (where,) = unpack_from("<I", part.content, at), unpack_from("<Q", part.content, address)
            part.leads(address, Part.of(_read(descriptor, where, size)))
    part.free(24 + count * entry.itemsize)  # the size in the key that closes the node means nothing
    if path == "data":
        part.taken.append((24, 24 + count * entry.itemsize, "chunks"))
    return part


def _attribute(part: Part, at: int) -> None:
    """`config`, a text of any length: its size, the address of a heap, and an index there. No other may differ."""
    content = part.content.tobytes()
    version = content[at]
    _expect(version in (1, 3))
    sizes = unpack_from("<HHH", content, at + 2)  # of name, datatype, dataspace
    head = 8 if version == 1 else 9
    if content[at + head : at + head + 7] != b"config\0":
        return
    if version == 1:
        sizes = [-(-size // 8) * 8 for size in sizes]
    kind, value = at + head + sizes[0], at + head + sum(sizes)
    _expect(content[kind] & 15 == 9 and content[kind + 1] & 15 == 1)  # a text of any length
    part.takes("config", value, REFERENCE.itemsize)


# --- the others ----------------------------------------------------------------------------------


def _follow(descriptor: int, end: int, part: Part, at: np.ndarray, taken: dict[str, np.ndarray]) -> np.ndarray:
    """Which of the structures at those bytes are `part` and lead to what it leads to; what they hold into `taken`."""
    size = len(part.content)
    inside = (at >= 0) & (at <= end - size)
    content = b"".join(os.pread(descriptor, size, place).ljust(size) for place in np.where(inside, at, 0).tolist())
    rows = np.frombuffer(content, np.uint8).reshape(len(at), size)
    ok = inside & ~((rows != part.content) & part.same).any(axis=1)
    for start, stop, name in part.taken:
        found = np.ascontiguousarray(rows[:, start:stop])
        ok &= (taken.setdefault(name, found) == found).all(axis=1)
    for start, other in part.parts:
        places = np.ascontiguousarray(rows[:, start : start + 8]).view(np.int64)[:, 0]
        ok &= _follow(descriptor, end, other, places, taken)
    return ok


def _texts(descriptor: int, references: np.ndarray, ok: np.ndarray) -> list[str]:
    """The texts that are referred to, as h5py decodes them; one that is not there makes its group not `ok`."""
    heaps: dict[int, dict[int, bytes]] = {}
    texts = []
    for row, (size, address, index) in enumerate(references.view(REFERENCE)[:, 0].tolist()):
        text = b""
        if ok[row]:
            if address not in heaps:
                heaps[address] = _heap(descriptor, address)
            text = heaps[address].get(index, b"")
            ok[row] = 0 < size <= len(text)
        texts.append(text[:size].partition(b"\0")[0].decode("utf-8", "surrogateescape"))
    return texts


def _heap(descriptor: int, address: int) -> dict[int, bytes]:
    """The texts of a global heap by their index there; none of one that is damaged."""
    texts = {}
    try:
        head = _read(descriptor, address, 16)
        _expect(head.startswith(b"GCOL\1"))
        content, at = _read(descriptor, address, *unpack_from("<Q", head, 8)), 16
        while at + 16 <= len(content):
            index, _, size = unpack_from("<HHxxxxQ", content, at)
            if index == 0:  # what is free, at the end
                break
            _expect(at + 16 + size <= len(content))
            texts[index] = content[at + 16 : at + 16 + size]
            at += 16 + -(-size // 8) * 8
    except (Unknown, error):
        return {}
    return texts


def _expect(true: bool) -> None:
    if not true:
        raise Unknown


def _read(descriptor: int, address: int, size: int) -> bytes:
    _expect(0 <= address < 1 << 63 and size <= LARGEST)
    content = os.pread(descriptor, size, address)
    _expect(len(content) == size)
    return content


def _text(content: np.ndarray, at: int) -> str:
    return content[at:].tobytes().partition(b"\0")[0].decode(errors="replace")
