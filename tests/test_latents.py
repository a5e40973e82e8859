"""Latent caches: the same bytes every time, whole or absent, and unreadable once anything they depend on changed."""

import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ups_data.errors import UpsDataError
from ups_data.files import checksum
from ups_data.models.autoencoder import build_autoencoder, load_autoencoder, save_autoencoder
from ups_data.params import View
from ups_data.stores import latents
from ups_data.stores.latents import LatentCache, cache_is_current, open_cache
from ups_data.training import caching
from ups_data.training.autoencoder import autoencoder_config
from ups_data.training.caching import cache_split, constituents

from .small_data import CPU, LATENTS, TASKS, WRITERS, frames_of, knobs, trained

KINDS = tuple(TASKS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for write in WRITERS.values():
        write(root)
    return root


@pytest.fixture(scope="module")
def models(data):
    return {kind: trained(data, kind, steps=20)[0] for kind in KINDS}


@pytest.fixture(scope="module")
def caches(data, models, tmp_path_factory):
    root = tmp_path_factory.mktemp("caches")
    for kind in KINDS:
        write(root, data, models, kind)
    return root


def write(root, data, models, kind="grid", split="train", knobs=LATENTS):
    return cache_split(models[kind], frames_of(data, kind, split), folder(root, kind, split), knobs, device=CPU)


def folder(root, kind="grid", split="train"):
    return root / f"{TASKS[kind]}_{split}"


def as_from_a_gpu(monkeypatch, workers):
    """Have caches written as those of a GPU are, but that a CPU encodes; returns a list of what is done."""
    done, encode = [], caching._encode
    event = SimpleNamespace(synchronize=lambda: done.append("waited"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(record_event=lambda: event))

    def by_one_core(*args, **options):  # how many add up a sum tells in its last digits
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        done.append("encoded")
        try:
            return encode(*args, **options)
        finally:
            torch.set_num_threads(threads)

    monkeypatch.setattr(caching, "_encode", by_one_core)
    monkeypatch.setattr(caching, "_on_cores", lambda *work: caching._on_gpu(*work, workers, CPU, pin=False))
    return done


def contents(path):
    return {p.name: checksum(p) for p in sorted(path.iterdir())}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cached_is_what_the_encoder_says_in_half_precision(caches, data, models, kind):
    cache, frames = LatentCache(folder(caches, kind)), frames_of(data, kind)
    assert (cache.samples, cache.frames, cache.roles) == (frames.samples, frames.frames, list(models[kind].roles))
    assert np.array_equal(cache.parameters, frames.parameters)
    assert np.array_equal(cache.times, frames.times)
    for role in cache.roles:
        with torch.no_grad():
            latents = models[kind].encode(frames.read(np.arange(len(frames)), role), role)
        found = cache.load(role)
        assert found.shape == (cache.samples, cache.frames, torch.Size(cache.token_grid).numel(), cache.latent_dim)
        torch.testing.assert_close(found.flatten(0, 1), latents, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_is_a_slice_of_all(caches, kind):
    cache = LatentCache(folder(caches, kind))
    for role in cache.roles:
        everything = cache.load(role)
        for sample in (0, cache.samples // 2, cache.samples - 1):
            assert torch.equal(cache.read(role, sample), everything[sample])
            start = cache.frames - 1
            assert torch.equal(cache.read(role, sample, start, cache.frames), everything[sample, start:])


@pytest.mark.parametrize(("kind", "workers"), [("grid", 0), ("grid", 2), ("mesh", 2), ("particles", 2)])
def test_bytes_are_the_same_when_threads_read_ahead_and_latents_leave_as_from_a_gpu(
    caches, data, models, tmp_path, monkeypatch, kind, workers
):
    done = as_from_a_gpu(monkeypatch, workers)
    write(tmp_path, data, models, kind)
    assert contents(folder(tmp_path, kind)) == contents(folder(caches, kind))
    assert done.count("waited") == done.count("encoded")
    assert done[:3] == ["encoded", "encoded", "waited"]  # the second block is begun before the first is waited for


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_the_same_on_any_number_of_cores(caches, data, models, tmp_path, monkeypatch, kind):
    threads = torch.get_num_threads()
    for cores in (1, 3):
        monkeypatch.setattr(caching.ranks, "cores", lambda cores=cores: cores)
        write(tmp_path / str(cores), data, models, kind)
    assert contents(folder(tmp_path / "1", kind)) == contents(folder(tmp_path / "3", kind))
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(("batch", "readers"), [(8, 4), (128, 2), (4096, 1)])
def test_as_many_threads_read_for_a_gpu_as_have_a_gigabyte_ready_at_most(batch, readers):
    frames = SimpleNamespace(read=lambda index, role: {"fields": torch.empty(len(index), 1 << 20)})  # 4 MB a frame
    assert caching._readers(frames, ["state"], batch) == readers


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_caches_what_a_cpu_does_pinned_or_not(caches, data, models, tmp_path, kind):
    save_autoencoder(tmp_path / "autoencoder.safetensors", models[kind], 20)
    gpu = torch.device("cuda")
    model = load_autoencoder(tmp_path / "autoencoder.safetensors", gpu)
    for pin, workers in ((True, 3), (False, 0)):
        cache_split(
            model, frames_of(data, kind), tmp_path / str(pin), LATENTS, device=gpu, workers=workers, pin_memory=pin
        )
    assert contents(tmp_path / "True") == contents(tmp_path / "False")
    made, known = LatentCache(tmp_path / "True"), LatentCache(folder(caches, kind))
    for role in known.roles:
        assert torch.allclose(made.load(role), known.load(role), rtol=1e-2, atol=1e-2)  # rounded in convolutions


@pytest.mark.parametrize("gpu", [False, True])
@pytest.mark.parametrize("what", ["write_cache", "_encode"])
def test_a_cache_that_cannot_be_made_leaves_no_threads_behind(data, models, tmp_path, monkeypatch, what, gpu):
    def full(folder, *, batches, **facts):
        next(iter(batches))
        raise OSError("no space left")

    def broken(*args, **options):
        raise OSError("no space left")

    monkeypatch.setattr(caching, what, {"write_cache": full, "_encode": broken}[what])
    if gpu:
        as_from_a_gpu(monkeypatch, workers=2)
    monkeypatch.setattr(caching.ranks, "cores", lambda: 2)
    before = torch.get_num_threads(), set(threading.enumerate())
    torch.set_num_threads(3)
    with pytest.raises(OSError, match="no space") as error:
        write(tmp_path, data, models)
    threads = torch.get_num_threads()
    torch.set_num_threads(before[0])
    assert error.traceback and threads == 3 and set(threading.enumerate()) == before[1]


def test_large_frames_are_encoded_a_few_at_a_time(caches, data, models, tmp_path, monkeypatch):
    sizes, encode, frames = [], caching._encode, frames_of(data, "grid")

    def noted(model, task, **options):
        sizes.append(len(task[0]["state"]["fields"]))
        return encode(model, task, **options)

    monkeypatch.setattr(caching, "_encode", noted)
    monkeypatch.setattr(caching, "BYTES_AT_ONCE", 3 * frames.read(np.arange(1), "state")["fields"].nbytes)
    write(tmp_path, data, models)
    assert max(sizes) == 3 and sum(sizes) == len(frames)
    assert torch.equal(LatentCache(folder(tmp_path)).load("state"), LatentCache(folder(caches)).load("state"))


def test_a_core_encodes_as_much_at_once_as_its_caches_hold(data):
    frames, batch = frames_of(data, "grid"), 10**9
    one = frames.read(np.arange(1), "state")["fields"].nbytes
    for depth, widest in ((0, one), (1, 4 * 8 * 100)):  # eight tokens of a hundred numbers are more than the fields
        size = knobs("grid", width=100, encoder_depth=depth)
        model = build_autoencoder(autoencoder_config("t", frames, size) | {"steps": 1})
        assert caching._block(model, frames, batch) == caching.BYTES_AT_ONCE // widest
    assert caching._block(model, frames, 7) == 7


@pytest.mark.parametrize("rows", [1, 3, 100])
def test_shards_of_any_size_hold_the_same_latents(caches, data, models, tmp_path, monkeypatch, rows):
    whole = LatentCache(folder(caches))
    trajectory = whole.load("state")[0].numel() * 2
    write_cache, save_file = caching.write_cache, latents.save_file
    monkeypatch.setattr(
        caching, "write_cache", lambda *a, **kw: write_cache(*a, **kw | {"shard_bytes": rows * trajectory})
    )

    def slowly(tensors, path):  # a shard's memory is taken for another one when it is written, and not before
        time.sleep(0.02)
        save_file(tensors, path)

    monkeypatch.setattr(latents, "save_file", slowly)
    monkeypatch.setattr(latents, "writers", lambda: 2)
    write(tmp_path, data, models)
    cache = LatentCache(folder(tmp_path))
    assert len(list(folder(tmp_path).glob("latents-*"))) == -(-cache.samples // rows)
    assert torch.equal(cache.load("state"), whole.load("state"))
    last = cache.samples - 1
    assert torch.equal(cache.read("state", last, 1, 3), whole.read("state", last, 1, 3))


@pytest.mark.parametrize(("dtype", "bits", "tolerance"), [("float32", 4, 0.0), ("bfloat16", 2, 2**-8)])
def test_the_number_format_is_a_choice(caches, data, models, tmp_path, dtype, bits, tolerance):
    manifest = write(tmp_path, data, models, knobs=LATENTS.model_copy(update={"dtype": dtype}))
    frames = frames_of(data, "grid")
    with torch.no_grad():
        exact = models["grid"].encode(frames.read(np.arange(len(frames)), "state"), "state")
    found = LatentCache(folder(tmp_path)).load("state").flatten(0, 1)
    torch.testing.assert_close(found, exact, rtol=tolerance, atol=1e-5)
    shard = manifest["files"]["latents-00000.safetensors"]["size"]
    assert shard - exact.numel() * bits in range(1, 1000)  # the header
    assert manifest["key"] != LatentCache(folder(caches)).key


@pytest.mark.parametrize("kind", KINDS)
def test_the_manifest_tells_the_error_and_a_cache_smaller_than_the_data(caches, data, models, kind):
    manifest = LatentCache(folder(caches, kind)).manifest
    frames = frames_of(data, kind)
    expected = {"grid": {"state": ["u"]}, "particles": {"state": ["velocity_x", "velocity_y"]}}.get(
        kind, {"input": ["permeability", "source"], "target": ["solution"]}
    )
    assert {role: list(errors) for role, errors in manifest["reconstruction"].items()} == expected
    role = list(expected)[-1]
    frame = frames.read(np.arange(len(frames)), role)
    decoded = models[kind].decode(torch.cat(list(LatentCache(folder(caches, kind)).load(role))), frame, role).detach()
    mask = frame.get("mask", torch.ones(frame["fields"].shape[:-1]))
    rms = [((f**2) * mask[..., None]).sum(1).sqrt() for f in (decoded - frame["fields"], frame["fields"])]
    error = (rms[0] / rms[1])[:, -1].mean().item()
    assert manifest["reconstruction"][role][expected[role][-1]] == pytest.approx(error, rel=1e-4)
    numbers = sum(
        int(frames.read(np.arange(len(frames)), r).get("mask", mask).sum()) * len(n) for r, n in expected.items()
    )
    assert manifest["data_bytes"] == 4 * numbers
    assert manifest["bytes"] == sum(p.stat().st_size for p in folder(caches, kind).glob("*.safetensors"))
    assert kind == "mesh" or manifest["bytes"] < manifest["data_bytes"]  # so few fields do not outweigh their meshes


def test_a_mesh_cache_says_where_to_decode(caches, data, models):
    cache, frames = LatentCache(folder(caches, "mesh")), frames_of(data, "mesh")
    samples = [0, cache.samples - 1]
    geometry, frame = cache.geometry(samples), frames.read(np.array(samples), "target")
    assert all(torch.equal(geometry[name], frame[name]) for name in ("coords", "mask", "boundary"))
    latents = torch.stack([cache.read("target", sample)[0] for sample in samples])
    with torch.no_grad():
        fields = models["mesh"].decode(latents, geometry, "target")
    assert fields.shape == frame["fields"].shape


def test_grids_need_no_places_and_particles_are_decoded_on_a_regular_grid(caches):
    assert LatentCache(folder(caches)).geometry([0]) is None
    geometry = LatentCache(folder(caches, "particles")).geometry([0, 3])
    points = geometry["coords"].shape[1]
    assert geometry["mask"].shape == (2, points)
    for axis in (0, 1):
        places, counts = geometry["coords"][0, :, axis].unique(return_counts=True)
        assert len(places) ** 2 == points
        assert (counts == len(places)).all()


def test_a_cache_of_other_weights_config_normaliser_view_or_data_is_refused_by_name(caches, data, models):
    model = models["grid"]
    open_cache(caches, TASKS["grid"], "train", model)
    changes = {
        "weights": {},
        "config": {"task": "other"},
        "normaliser": {"normaliser": {"u": {"mean": 9.0, "std": 1.0}}},
        "view": {"view": {"space_stride": 1, "time_stride": 2}},
        "data": {"data": "0" * 64},
    }
    for name, change in changes.items():
        other = build_autoencoder(model.config | change)
        other.load_state_dict(model.state_dict())
        if name == "weights":
            with torch.no_grad():
                next(other.parameters()).view(-1)[0] += 1e-3
        with pytest.raises(UpsDataError, match=rf"is stale: .* another {name} than .*stages\.latents advection1d"):
            open_cache(caches, TASKS["grid"], "train", other)


def test_another_dtype_or_dataset_is_named_before_anything_is_replaced(caches, data, models):
    expect = constituents(models["grid"], frames_of(data, "grid"), "float16")
    assert cache_is_current(folder(caches), expect)
    assert not cache_is_current(caches / "absent_train", expect)
    with pytest.raises(UpsDataError, match=r"made with another data, another dtype; .* --overwrite"):
        cache_is_current(folder(caches), expect | {"dtype": "float32", "data": "1"})


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), r"got \d+ bytes, expected \d+ bytes"),
        (lambda path: path.unlink(), r"got no file, expected \d+ bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"), "is corrupt"),
        (lambda path: path.write_bytes(b"\xff" * path.stat().st_size), "is corrupt"),
    ],
)
@pytest.mark.parametrize("name", ["latents-00000.safetensors", "samples.safetensors"])
def test_a_damaged_file_is_a_sentence(caches, tmp_path, spoil, sentence, name):
    shutil.copytree(folder(caches), folder(tmp_path))
    spoil(folder(tmp_path) / name)
    with pytest.raises(UpsDataError, match=rf"{name}.*{sentence}.*encode again with"):
        LatentCache(folder(tmp_path)).load("state")


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (None, "missing or no latent cache"),
        ("{", "not valid JSON"),
        ("[]", "got a JSON list, expected an object"),
        ('{"format": "x"}', "got format 'x'"),
        ('{"format": "ups-data/latents", "version": 2, "key": "k"}', "got no constituents, dtype, files, frames"),
    ],
)
def test_a_folder_that_is_no_cache_is_a_sentence(tmp_path, manifest, sentence):
    if manifest:
        (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UpsDataError, match=sentence):
        LatentCache(tmp_path)


@pytest.mark.parametrize("where", [("state", 99, 0, 1), ("state", 0, 2, 2), ("state", 0, 0, 99), ("input", 0, 0, 1)])
def test_reading_what_is_not_there_is_refused(caches, where):
    with pytest.raises(UpsDataError, match="expected a role of state, a sample below"):
        LatentCache(folder(caches)).read(*where)


def test_a_killed_run_leaves_the_old_cache_or_none(caches, data, models, tmp_path, monkeypatch):
    shutil.copytree(folder(caches), folder(tmp_path))
    before = contents(folder(tmp_path))
    calls = []

    def killed(*args):
        calls.append(1)
        if len(calls) >= 3:
            raise KeyboardInterrupt
        return torch.zeros(len(args[0]), 1, dtype=torch.float64)

    monkeypatch.setattr(caching, "frame_errors", killed)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, data, models)
    assert contents(folder(tmp_path)) == before
    assert [p.name for p in tmp_path.iterdir()] == [folder(tmp_path).name]


def test_who_may_read_the_folder_may_read_the_cache(caches):
    for path in folder(caches).iterdir():
        assert path.stat().st_mode & 0o444 == folder(caches).stat().st_mode & 0o444, path.name


def test_latents_that_the_number_format_cannot_hold_are_refused(data, tmp_path):
    """One frame in hundreds, which need not be among those that are decoded again."""
    model, _ = trained(data, "grid", steps=2)
    model.get_buffer("state_latent_std").fill_(1e-6)
    with pytest.raises(UpsDataError, match=r"some latents are too large for float16 .*; train the autoencoder longer"):
        write(tmp_path, data, {"grid": model})
    assert not list(tmp_path.iterdir())
    write(tmp_path, data, {"grid": model}, knobs=LATENTS.model_copy(update={"dtype": "float32"}))


def test_a_cache_that_does_not_fit_on_the_disk_is_not_begun(data, models, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1))
    with pytest.raises(UpsDataError, match=r"needs .* but .* has 1 B free; free some room"):
        cache_split(models["grid"], frames_of(data, "grid"), tmp_path / "cache", LATENTS, device=CPU)
    assert not (tmp_path / "cache").exists()


def test_an_untrained_encoder_is_never_cached(data, models, tmp_path):
    untrained = build_autoencoder(models["grid"].config | {"steps": 0})
    with pytest.raises(UpsDataError, match="trained for 0 steps"):
        write(tmp_path, data, {"grid": untrained})
    assert not list(tmp_path.iterdir())


def test_a_view_that_differs_is_another_cache(data, models):
    seen = frames_of(data, "grid", view=View(space_stride=1, time_stride=1))
    assert len(seen) > len(frames_of(data, "grid"))
    assert models["grid"].constituents()["view"] == "every 2. point, every 2. frame"


def test_data_that_are_no_numbers_are_named_and_training_is_not_blamed(data, models, tmp_path):
    spoilt = frames_of(data, "grid")
    read = spoilt.read

    def with_nan(index, role, *pinned):
        frame = read(index, role, *pinned)
        frame["fields"][np.asarray(index) == spoilt.frames + 2] = np.nan
        return frame

    spoilt.read = with_nan
    with pytest.raises(UpsDataError, match=r"^latents: frame 2 of sample 1 of .*_train\.h5 holds more than finite num"):
        cache_split(models["grid"], spoilt, tmp_path / "cache", LATENTS, device=CPU)
