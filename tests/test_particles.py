"""Particles: the neighbour graph is checked or built, trajectories kept, twins together, datasets safe."""

import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from ups_data.conversion.points import convert_points
from ups_data.datasets import ParticleZarrDataset
from ups_data.errors import UpsDataError
from ups_data.files import checksum
from ups_data.geometry import edges_of_graph, neighbour_graph
from ups_data.params import SPLITS, Convert, Splits
from ups_data.simulate import particles as simulation
from ups_data.sources import particles_npz
from ups_data.sources.npz import write_npz
from ups_data.sources.particles_npz import ParticleShard
from ups_data.stores.particles import ParticleStore

TASK = "particles_advect"
GRAPH = ("indptr", "indices", "edges")


def trajectory(seed=0, beta=20.0, count=40):
    rng = np.random.default_rng(seed)
    flow = simulation.random_flow(rng, beta)
    return simulation.shard(flow, rng.random((count, 2)), np.linspace(0, 0.5, 6), 0.15, beta)


def convert(root, out="out", folder="raw", float64="round"):
    where = {"source": "npz", "root": str(root), "folder": folder, "pattern": "*.npz"}
    knobs = Convert(**where, limit=None, samples=None, float64=float64)
    splits = Splits(protocol="grouped", seed=0, train=0.6, val=0.2, test=0.2)
    return convert_points(TASK, "particles", knobs, splits, root / out)


def stores(folder):
    return {split: ParticleStore(folder / f"{TASK}_{split}.zarr") for split in SPLITS}


def without(arrays, *names):
    return {name: value for name, value in arrays.items() if name not in names}


@pytest.fixture(scope="module")
def raw():
    """Eight trajectories; the numbers of particles differ."""
    return [trajectory(seed, beta, 40 + seed) for seed, beta in enumerate(2 * simulation.BETAS)]


@pytest.fixture(scope="module")
def converted(raw, tmp_path_factory):
    root = tmp_path_factory.mktemp("particles")
    for index, arrays in enumerate(raw):
        write_npz(root / "raw" / f"p{index}.npz", arrays)
    convert(root)
    return root


# --- the shard -----------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [GRAPH, ("edges",)])
def test_a_missing_graph_is_built(tmp_path, missing):
    arrays = trajectory()
    with ParticleShard(write_npz(tmp_path / "p.npz", without(arrays, *missing))) as shard:
        assert np.array_equal(shard.indptr, arrays["indptr"])
        assert np.array_equal(shard.indices, arrays["indices"])


def test_a_pair_exactly_at_the_radius_may_be_in_the_graph_or_not(tmp_path):
    arrays = trajectory()
    row, column = arrays["edges"][0]
    gap = arrays["positions"][0, row].astype(np.float64) - arrays["positions"][0, column]
    radius = np.linalg.norm(gap - np.round(gap))
    for slightly in (1 - 1e-7, 1 + 1e-7):
        indptr, indices = neighbour_graph(arrays["positions"][0], radius * slightly, np.ones(2))
        changed = {"radius": radius, "indptr": indptr, "indices": indices, "edges": edges_of_graph(indptr, indices)}
        with ParticleShard(write_npz(tmp_path / "p.npz", arrays | changed)) as shard:
            assert shard.radius == radius


def test_three_dimensions_without_a_box_are_read(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "positions": rng.normal(size=(3, 20, 3)),
        "velocities": rng.normal(size=(3, 20, 3)),
        "times": np.arange(3.0),
        "radius": np.float64(1.0),
    }
    with ParticleShard(write_npz(tmp_path / "p.npz", arrays)) as shard:
        assert shard.box.tolist() == [0, 0, 0]
        apart = np.linalg.norm(arrays["positions"][0, :, None] - arrays["positions"][0], axis=-1)
        assert len(shard.indices) == (apart <= 1.0).sum() - 20


def graph_of_pairs(arrays, pairs):
    """The graph's three arrays from pairs (row, column), given in order."""
    pairs = np.array(sorted(map(tuple, pairs)), dtype=np.int32)
    counts = np.bincount(pairs[:, 0], minlength=arrays["positions"].shape[1])
    return {"indptr": np.concatenate([[0], np.cumsum(counts)]), "indices": pairs[:, 1], "edges": pairs}


def lacking_a_pair(arrays):
    return graph_of_pairs(arrays, arrays["edges"][1:])


def with_a_far_pair(arrays):
    there = set(map(tuple, arrays["edges"].tolist()))
    return graph_of_pairs(arrays, [*there, next((0, c) for c in range(1, 40) if (0, c) not in there)])


def with_a_loop(arrays):
    return graph_of_pairs(arrays, [*arrays["edges"].tolist(), (5, 5)])


def without_periodicity(arrays):
    indptr, indices = neighbour_graph(arrays["positions"][0], 0.15)
    return {"indptr": indptr, "indices": indices, "edges": edges_of_graph(indptr, indices)}


def with_nan(arrays):
    positions = arrays["positions"].copy()
    positions[4, 3, 1] = np.nan
    return {"positions": positions}


BAD = [
    (lacking_a_pair, r"indices: got a graph that differs in 1 entries, first at the pair \(0, "),
    (with_a_far_pair, "indices: got a graph that differs in 1 entries"),
    (with_a_loop, r"first at the pair \(5, 5\), 0 apart"),
    (without_periodicity, "indices: got a graph that differs"),
    (with_nan, r"positions\[4, 3, 1\]: got nan"),
    (lambda a: {"edges": a["edges"][:, ::-1]}, "edges: got shape .* expected the entries of indptr and indices"),
    (lambda a: {"edges": a["edges"][1:]}, "edges: got shape"),
    (lambda a: {"indptr": a["indptr"][:-1]}, r"indptr: got shape \(40,\), expected \(41,\)"),
    (lambda a: {"indptr": a["indptr"] + 1}, "indptr: got a number outside"),
    (lambda a: {"indptr": a["indptr"] - (a["indptr"] > 0)}, r"indptr: got 0\.\.121, expected a climb from 0 to 122"),
    (lambda a: {"indices": a["indices"] + 1}, "indices: got a number outside 0..39|columns out of order|differs"),
    (lambda a: {"indices": a["indices"].astype(np.float32)}, "indices: got float32, expected integers"),
    (lambda a: {"velocities": a["velocities"][:, 1:]}, r"velocities: got shape \(6, 39, 2\), expected \(6, 40, 2\)"),
    (lambda a: {"positions": a["positions"][0]}, r"positions: got shape \(40, 2\)"),
    (lambda a: {"times": a["times"][::-1]}, r"times: got 0\.\d+ after 0\.\d+, expected ascending times"),
    (lambda a: {"times": a["times"][1:]}, r"times: got shape \(5,\)"),
    (lambda a: {"radius": np.float64(-1)}, "radius: got -1.0, expected one positive number"),
    (lambda a: {"radius": np.float64(0.6)}, "radius: got 0.6, expected at most half of every period"),
    (lambda a: {"box": np.ones(3)}, "box: got .* expected 2 periods"),
]


@pytest.mark.parametrize(("change", "sentence"), BAD)
def test_a_bad_shard_is_refused_with_a_sentence_and_old_outputs_stay(tmp_path, converted, change, sentence):
    shutil.copytree(converted, tmp_path, dirs_exist_ok=True)
    before = {p: checksum(p) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    write_npz(tmp_path / "raw/p9.npz", (a := trajectory()) | change(a))
    with pytest.raises(UpsDataError, match=sentence) as error:
        convert(tmp_path)
    assert "p9.npz" in str(error.value)
    assert {p: checksum(p) for p in (tmp_path / "out").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["positions", "velocities", "times", "radius"])
def test_a_missing_key_is_named(tmp_path, name):
    with pytest.raises(UpsDataError, match=f"needs the key '{name}'"):
        ParticleShard(write_npz(tmp_path / "p.npz", without(trajectory(), name)))


# --- the conversion ------------------------------------------------------------------------------


def test_every_trajectory_is_kept_with_its_graph_parameters_and_source(converted, raw):
    seen = []
    for store in stores(converted / "out").values():
        assert store.channels == ["position_x", "position_y", "velocity_x", "velocity_y"]
        assert store.parameter_names == ["beta"]
        for sample in range(len(store)):
            file = int(store.source_file[sample])
            item = store.read(sample)
            for name in ("positions", "velocities", "times", "box", "radius", *GRAPH):
                assert np.array_equal(item[name], raw[file][name])
            assert item["parameters"] == [raw[file]["beta"]]
            seen.append(file)
    assert sorted(seen) == list(range(8))


def test_blocks_of_any_size_give_the_same_store(converted, monkeypatch):
    monkeypatch.setattr(particles_npz, "BLOCK_BYTES", 700)  # two frames
    convert(converted, "blocks")
    for split in SPLITS:
        first, second = (
            (converted / out / f"{TASK}_{split}.zarr/positions/c/0/0").read_bytes() for out in ("out", "blocks")
        )
        assert first == second


def test_arrays_that_are_left_behind_are_said_once(tmp_path, capsys):
    for seed in range(5):
        write_npz(tmp_path / f"raw/p{seed}.npz", trajectory(seed) | {"temperature": np.zeros((6, 40))})
    convert(tmp_path)
    said = [line for line in capsys.readouterr().out.splitlines() if "not read" in line]
    assert said == [f"{TASK}: not read, since the layout has no place for them: temperature"]


def test_a_second_run_gives_the_same_bytes(converted):
    convert(converted, "again")
    digests = [
        {p.relative_to(converted / out): checksum(p) for p in (converted / out).rglob("*") if p.is_file()}
        for out in ("out", "again")
    ]
    assert digests[0] == digests[1]


def test_the_same_start_under_another_beta_is_in_the_same_split(tmp_path):
    for seed in range(5):
        for beta in (20.0, 80.0):
            write_npz(tmp_path / f"raw/p{seed}_{beta:g}.npz", trajectory(seed, beta))
    manifest = convert(tmp_path)
    assert [manifest["splits"][split]["samples"] for split in SPLITS] == [6, 2, 2]
    assert [len(manifest["splits"][split]["groups"]) for split in SPLITS] == [3, 1, 1]
    assert manifest["leaked_share"] == 0
    for store in stores(tmp_path / "out").values():
        assert sorted(store.parameters[:, 0]) == [20.0] * (len(store) // 2) + [80.0] * (len(store) // 2)


def test_statistics_are_those_of_the_train_trajectories(converted):
    store = stores(converted / "out")["train"]
    values = np.concatenate([store.all("positions"), store.all("velocities")], axis=1).astype(np.float64)
    for channel, name in enumerate(store.channels):
        facts = store.manifest["statistics"]["channels"][name]
        assert facts["mean"] == pytest.approx(values[:, channel].mean(), abs=1e-7 * values[:, channel].std())
        assert facts["std"] == pytest.approx(values[:, channel].std(), rel=1e-7)
    assert store.manifest["periodic"] == [True, True]
    assert store.manifest["resolution"] == {"particles": [40, 47]}
    assert store.manifest["time_step"] == pytest.approx(0.1)


def test_a_shard_in_another_box_or_at_other_times_is_refused(tmp_path):
    write_npz(tmp_path / "raw/p0.npz", trajectory())
    write_npz(tmp_path / "raw/p1.npz", without(trajectory(), *GRAPH) | {"box": np.array([1.0, 0.0])})
    with pytest.raises(UpsDataError, match=r"p1.npz: box is \[1.0, 0.0\], expected \[1.0, 1.0\] as in p0.npz"):
        convert(tmp_path)
    for name, end in (("p0", 1e-6), ("p1", 2e-6)):
        write_npz(tmp_path / f"raw/{name}.npz", trajectory() | {"times": np.linspace(0, end, 6)})
    with pytest.raises(UpsDataError, match=r"p1\.npz: its times differ from those of p0\.npz"):
        convert(tmp_path)


# --- the dataset ---------------------------------------------------------------------------------


def test_an_item_is_torch_tensors_of_the_whole_trajectory(converted):
    dataset = ParticleZarrDataset(converted / f"out/{TASK}_train.zarr")
    item = dataset[0]
    assert item["positions"].shape == item["velocities"].shape == (6, dataset.store.particles(0), 2)
    assert {item[k].dtype for k in ("positions", "velocities", "times", "radius", "box")} == {torch.float32}
    assert {item[k].dtype for k in GRAPH} == {torch.int64}


def test_a_window_has_the_graph_of_each_of_its_frames(converted):
    dataset = ParticleZarrDataset(converted / f"out/{TASK}_train.zarr", window=3, graph="each")
    item = dataset[1]
    assert len(dataset) == len(dataset.store) * 4
    assert item["start"] == 1
    for frame in range(3):
        indptr, indices = neighbour_graph(item["positions"][frame].numpy(), dataset.store.radius[0], np.ones(2))
        first, last = item["graph_offsets"][frame : frame + 2]
        assert np.array_equal(item["indptr"][frame], indptr)
        assert np.array_equal(item["indices"][first:last], indices)
        assert np.array_equal(item["edges"][first:last], edges_of_graph(indptr, indices))


def test_an_unknown_graph_is_refused(converted):
    with pytest.raises(UpsDataError, match="graph: got 'none', expected 'stored' or 'each'"):
        ParticleZarrDataset(converted / f"out/{TASK}_train.zarr", graph="none")


def test_forked_workers_read_what_this_process_reads(converted):
    dataset = ParticleZarrDataset(converted / f"out/{TASK}_train.zarr", window=2)
    expected = [dataset[i] for i in range(len(dataset))]  # the parent has its store open when it forks
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context="fork")
    for got, wanted in zip(loader, expected, strict=True):
        assert got.keys() == wanted.keys()
        assert all(torch.equal(torch.as_tensor(got[k]), torch.as_tensor(wanted[k])) for k in wanted)


def test_float64_trajectories_are_rounded_with_a_report_or_refused(tmp_path):
    for seed in range(5):
        arrays = trajectory(seed)
        exact = arrays["velocities"].astype(np.float64) * (1 + 2.0**-26)
        write_npz(tmp_path / "raw" / f"p{seed}.npz", arrays | ({"velocities": exact} if seed == 3 else {}))
    facts = convert(tmp_path)["float64"]
    assert facts["files"] == ["raw/p3.npz"]
    assert facts["greatest_relative_loss"] == pytest.approx(2.0**-26, rel=1e-6)
    with pytest.raises(UpsDataError, match=r"p3\.npz: its numbers are float64 .* knob convert\.float64 to round"):
        convert(tmp_path, out="refused", float64="refuse")
    assert not (tmp_path / "refused").exists()
