"""Groups looked at all at once: what is found is what HDF5 finds, whoever wrote them; anything unlike is left to it."""

import h5py
import numpy as np
import pytest

from tests.raw import converted, random
from tests.test_convert_kills import digests
from ups_data.errors import UpsDataError
from ups_data.sources import hdf5_groups, pdebench, pdebench_parameters
from ups_data.sources.grids import open_raw
from ups_data.sources.hdf5_groups import look_alike
from ups_data.sources.stored import sample_of

NAME, SHAPE, ORDER = "1D_diff-sorp_NA_NA.h5", (11, 64, 1), (2, 0, 1)
CONFIG = "name: 1d_diff-sorp\nsim:\n  D: 0.0005\n  por: 0.29\n  seed: {}\n"
LZF = {"chunks": (3, 16, 1), "compression": "lzf"}  # the last frames are beyond the sample: these chunks get packed
TABLES = "TREE", "HEAP", "SNOD"


def write(path, count=8, order=None, libver="earliest", dtype="<f4", group=None, spoil=None, before=0, **layout):
    """A file of diffusion-sorption, and what it holds."""
    numbers = np.random.default_rng(0)
    data = [numbers.normal(size=SHAPE).astype(dtype) for _ in range(count)]
    with h5py.File(path, "w", libver=libver, userblock_size=before) as file:
        for row in order or range(count):
            sample = file.create_group(f"{row:04d}", **(group or {}))
            sample.create_dataset("data", data=data[row], **layout)
            sample.create_dataset("grid/x", data=np.linspace(0, 1, SHAPE[1], dtype=np.float32), compression="lzf")
            sample.create_dataset("grid/t", data=np.linspace(0, 1, SHAPE[0], dtype=np.float32), compression="lzf")
            sample.attrs["config"] = CONFIG.format(row)
        if spoil:
            spoil(file)
    return data


def looked_at(path):
    """What is found without HDF5, and with it, for every sample."""
    with h5py.File(path) as file:
        names = sorted(key for key in file if key.isdigit())
        alike = look_alike(path, file, names[0], names, ORDER)
        return alike, [(file[n].attrs["config"], sample_of(file[n]["data"].id, ORDER)) for n in names]


def same(one, other):
    return one[0] == other[0] and hdf5_groups._equal(one[1], other[1])


def replace(name, values, **layout):
    def change(file):
        del file[name]
        file.create_dataset(name, data=values, **layout)

    return change


ALIKE = {
    "lzf": LZF,
    "lzf-shuffle": LZF | {"shuffle": True},
    "gzip": LZF | {"compression": "gzip"},
    "chunks": {"chunks": (3, 16, 1)},
    "one-piece": {},
    "fletcher32": {"chunks": (4, 16, 1), "fletcher32": True},
    "resizable": LZF | {"maxshape": (None, None, 1)},
    "fill-value": LZF | {"fillvalue": 3.0},
    "float64": LZF | {"dtype": "<f8"},
    "big-endian": LZF | {"dtype": ">f4"},
    "timed": LZF | {"track_times": True},
    "v108": LZF | {"libver": ("earliest", "v108")},
    "shuffled": LZF | {"order": [3, 1, 0, 7, 5, 2, 6, 4]},
}
UNLIKE = {
    "latest": LZF | {"libver": "latest"},
    "v108-v108": LZF | {"libver": ("v108", "v108")},
    "v110-v110": LZF | {"libver": ("v110", "v110")},
    "track-order": LZF | {"group": {"track_order": True}},
    "userblock": LZF | {"before": 512},
    "compact": {"spoil": lambda file: compact(file)},
    "many-chunks": {"chunks": (1, 8, 1), "compression": "lzf"},
    "text-of-a-length": LZF | {"spoil": lambda file: file["0000"].attrs.__setitem__("config", np.bytes_(CONFIG))},
}
PARTLY = {
    "rewritten": replace("0003/data", random(*SHAPE), **LZF),
    "other-filter": replace("0003/data", random(*SHAPE), chunks=(3, 16, 1), compression="gzip"),
    "other-chunks": replace("0003/data", random(*SHAPE), chunks=(4, 16, 1), compression="lzf"),
    "other-shape": replace("0003/data", random(10, 64, 1), **LZF),
    "other-number": replace("0003/data", random(*SHAPE).astype("<f8"), **LZF),
    "other-time": replace("0003/grid/t", np.linspace(0, 2, SHAPE[0], dtype=np.float32), compression="lzf"),
    "other-place": replace("0003/grid/x", np.linspace(0, 2, SHAPE[1], dtype=np.float32), compression="lzf"),
    "no-time": lambda file: file["0003/grid"].__delitem__("t"),
    "no-config": lambda file: file["0003"].attrs.__delitem__("config"),
    "another-attribute": lambda file: file["0003"].attrs.__setitem__("more", 1),
    "many-attributes": lambda file: [file["0003"].attrs.__setitem__(f"a{i}", i) for i in range(20)],
    "another-array": lambda file: file["0003"].__setitem__("more", [1.0]),
    "an-alias": lambda file: file.__setitem__("0010", file["0002"]),
    "a-link": lambda file: file.__setitem__("0010", h5py.SoftLink("/0002")),
    "first-rewritten": replace("0000/data", random(*SHAPE), **LZF),
    "long-text": lambda file: file["0003"].attrs.__setitem__("config", CONFIG.format(3) + "# more\n" * 9999),
    "never-written": lambda file: never_written(file),
}


def compact(file):
    for name in list(file):
        del file[name]["data"]
        made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        made.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple(SHAPE)
        h5py.h5d.create(file[name].id, b"data", h5py.h5t.IEEE_F32LE, space, made)


def never_written(file):
    del file["0003/data"]
    file.create_dataset("0003/data", SHAPE, "<f4", fillvalue=3.0, **LZF)[:6] = 1.0


@pytest.mark.parametrize("kind", ALIKE)
def test_groups_of_one_program_are_known_without_hdf5(tmp_path, kind):
    write(tmp_path / NAME, **ALIKE[kind])
    alike, asked = looked_at(tmp_path / NAME)
    assert all(alike) and all(map(same, alike, asked))


@pytest.mark.parametrize("kind", UNLIKE)
def test_other_structures_are_left_to_hdf5(tmp_path, kind):
    write(tmp_path / NAME, **UNLIKE[kind])
    assert not any(looked_at(tmp_path / NAME)[0])


@pytest.mark.parametrize("kind", PARTLY)
def test_a_group_unlike_the_first_is_left_to_hdf5(tmp_path, kind):
    write(tmp_path / NAME, spoil=PARTLY[kind], **LZF)
    with h5py.File(tmp_path / NAME) as file:
        names = sorted(file)
        alike = look_alike(tmp_path / NAME, file, names[0], names, ORDER)
        for name, found in zip(names, alike, strict=True):
            if found:
                group = file[name]
                assert same(found, (group.attrs["config"], sample_of(group["data"].id, ORDER)))
                assert group["data"].shape == SHAPE
                assert all(np.array_equal(group["grid"][axis], file["0000/grid"][axis]) for axis in "tx")
    if kind not in ("rewritten", "an-alias", "first-rewritten"):
        assert alike[3 if "0010" not in names else -1] is None and sum(map(bool, alike)) == len(names) - 1


@pytest.mark.parametrize("kind", ["lzf", "one-piece", "gzip", "float64", "latest", "rewritten", "never-written"])
def test_the_outputs_are_the_same_bytes_as_with_hdf5(tmp_path, monkeypatch, kind):
    options = (ALIKE | UNLIKE)[kind] if kind not in PARTLY else LZF | {"spoil": PARTLY[kind]}
    write(tmp_path / NAME, **{"count": 12} | options)
    converted(tmp_path, "*.h5", tmp_path / "quick")
    monkeypatch.setattr(pdebench, "look_alike", lambda path, file, first, names, order: [None] * len(names))
    monkeypatch.setattr(pdebench, "sample_of", lambda data, order: None)
    samples, _ = converted(tmp_path, "*.h5", tmp_path / "asked")
    assert digests(tmp_path / "quick") == digests(tmp_path / "asked")
    with h5py.File(tmp_path / NAME) as file:
        for row in range(12):
            np.testing.assert_array_equal(samples[NAME, row][0], file[f"{row:04d}/data"][()].astype("<f4"))


def test_a_changed_byte_never_gives_another_number_than_hdf5(tmp_path):
    """In any structure of the file: what is found is what HDF5 finds, or nothing, or HDF5 itself fails."""
    write(tmp_path / "whole", **LZF)
    whole = (tmp_path / "whole").read_bytes()
    with h5py.File(tmp_path / "whole") as file:
        places = [file.id.links.get_info(name.encode()).u for name in file]
        places += [
            h5py.h5o.get_info(file[f"{name}/{key}"].id).addr for name in file for key in ("data", "grid", "grid/t")
        ]
    places += [at for at in range(len(whole)) if whole[at : at + 4].decode("latin-1") in TABLES]
    chance, found, texts = np.random.default_rng(0), [], whole.find(b"GCOL")
    for _ in range(400):
        broken = bytearray(whole)
        at = chance.choice(places) + int(chance.integers(0, 200))
        if not texts <= at < texts + 4096:  # HDF5 2.0 reads some damaged heaps for ever
            broken[at] = chance.integers(256)
        (tmp_path / NAME).write_bytes(broken)
        found += compared(tmp_path / NAME)
    for known, asked in found:
        assert known is None or asked is None or same(known, asked)
    unlike = [known is None for known, _ in found]
    assert len(unlike) > 2000 and 100 < sum(unlike) < 1500


def compared(path):
    """For every sample that is to be had what is known without HDF5, and what HDF5 says; None where it fails."""
    with h5py.File(path) as file:
        try:
            names = sorted(file)
            alike = look_alike(path, file, names[0], names, ORDER)
        except Exception:  # h5py raises what it likes; `open_raw` makes a sentence of it
            return []
        return [(known, asked(file, name)) for name, known in zip(names, alike, strict=True)]


def asked(file, name):
    try:
        return file[name].attrs["config"], sample_of(file[name]["data"].id, ORDER)
    except Exception:
        return None


def test_a_heap_of_texts_that_is_damaged_has_none(tmp_path):
    """Wherever a size or an index in it is another, its groups are left to HDF5 or have the very text."""
    write(tmp_path / NAME, **LZF)
    whole = (tmp_path / NAME).read_bytes()
    heap = whole.find(b"GCOL")
    with open(tmp_path / NAME, "rb") as file:
        texts = hdf5_groups._heap(file.fileno(), heap)
    assert sorted(texts.values()) == sorted(CONFIG.format(row).encode() for row in range(8))
    for at in (heap, heap + 4, heap + 8, heap + 10, heap + 24, heap + 30):
        broken = bytearray(whole)
        broken[at] ^= 0xFF
        (tmp_path / "broken").write_bytes(broken)
        with open(tmp_path / "broken", "rb") as file:
            found = hdf5_groups._heap(file.fileno(), heap)
        assert not found or (at == heap + 8 and found.items() <= texts.items())


def test_a_packed_chunk_that_is_damaged_is_a_sentence_that_names_the_sample(tmp_path):
    write(tmp_path / NAME, count=10, **LZF)
    with h5py.File(tmp_path / NAME) as file:
        chunk = file["0004/data"].id.get_chunk_info(15)
        assert chunk.filter_mask == 0
    with open(tmp_path / NAME, "r+b") as file:
        file.seek(chunk.byte_offset)
        file.write(b"\xff" * chunk.size)
    with pytest.raises(UpsDataError, match=r"sample 4 cannot be read"):
        converted(tmp_path, "*.h5", tmp_path / "out")


def test_the_seeds_of_thousands_of_samples_are_not_parsed(tmp_path):
    write(tmp_path / NAME, count=12, **LZF)
    pdebench_parameters._parsed.cache_clear()
    with open_raw(tmp_path / NAME) as raw:
        assert {raw.values(row) for row in range(12)} == {(0.0005, 0.29)}
    assert pdebench_parameters._parsed.cache_info().misses <= 3
