"""Autoencoders: they know shifts and forget node numbers, and what they encode comes back."""

import copy

import numpy as np
import pytest
import torch

from stages import autoencoder as stage
from ups_data import files
from ups_data.errors import UpsDataError
from ups_data.geometry import boundary_distance
from ups_data.models import splines
from ups_data.models.autoencoder import build_autoencoder, load_autoencoder, save_autoencoder
from ups_data.models.checkpoint import weights_id
from ups_data.models.grid_autoencoder import from_patches, to_patches, token_shape
from ups_data.params import View
from ups_data.training.autoencoder import round_trip
from ups_data.training.frames import frame_errors

from .small_data import CPU, TASKS, VIEWS, WRITERS, frames_of, knobs, trained

KINDS = tuple(TASKS)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for write in WRITERS.values():
        write(root)
    return root


@pytest.fixture(scope="module")
def models(data):
    return {kind: trained(data, kind) for kind in KINDS}


def grid_config(resolution, tokens, periodic, channels=("u", "v")):
    return {
        "task": "t",
        "kind": "grid",
        "roles": {"state": list(channels)},
        "normaliser": {name: {"mean": 0.3, "std": 2.0} for name in channels},
        "resolution": resolution,
        "token_grid": tokens,
        "periodic": periodic,
        "latent_len": int(np.prod(tokens)),
        "latent_dim": 5,
        "width": 8,
        "depth": 2,
        "steps": 1,
    }


def first_frame(data, kind, role):
    frames = frames_of(data, kind)
    return frames.read(np.array([0, len(frames) - 1]), role)


@pytest.mark.parametrize(
    ("resolution", "tokens", "shift"),
    [([32], [8], [12]), ([16, 24], [4, 4], [-4, 6]), ([8, 8, 8], [2, 4, 2], [4, 2, 0])],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_shift_by_whole_patches_shifts_the_tokens(resolution, tokens, shift, frozen):
    torch.manual_seed(0)
    model = build_autoencoder(grid_config(resolution, tokens, [True] * len(tokens))).eval()
    model = model.freeze() if frozen else model
    fields = torch.randn(2, *resolution, 2)
    axes = list(range(1, 1 + len(tokens)))
    by_tokens = [s * n // points for s, n, points in zip(shift, tokens, resolution, strict=True)]
    with torch.no_grad():
        before = model.encode({"fields": fields}, "state").unflatten(1, tokens)
        after = model.encode({"fields": fields.roll(shift, axes)}, "state").unflatten(1, tokens)
        torch.testing.assert_close(after, before.roll(by_tokens, axes), rtol=0, atol=1e-6)
        decoded = model.decode(after.flatten(1, -2), None, "state")
        expected = model.decode(before.flatten(1, -2), None, "state").roll(shift, axes)
        torch.testing.assert_close(decoded, expected, rtol=0, atol=1e-5)


def trained_and_frozen(config):
    """An autoencoder whose latents have a mean and a spread, as training leaves it, and the same ready for use."""
    torch.manual_seed(0)
    trained, frozen = build_autoencoder(config), build_autoencoder(config)
    for role in config["roles"]:
        trained.get_buffer(f"{role}_latent_mean").copy_(torch.randn(config["latent_dim"]))
        trained.get_buffer(f"{role}_latent_std").copy_(0.5 + torch.rand(config["latent_dim"]))
    frozen.load_state_dict(trained.state_dict())
    return trained, frozen.freeze()


@pytest.mark.parametrize("depth", range(4))
@pytest.mark.parametrize("width", [4, 40])  # the width decides what is multiplied out
@pytest.mark.parametrize("periodic", [True, False])
@pytest.mark.parametrize(
    ("resolution", "tokens"), [([32], [8]), ([16, 24], [4, 4]), ([8, 8, 8], [2, 4, 2])], ids=["1d", "2d", "3d"]
)
def test_a_frozen_autoencoder_computes_what_was_trained_forwards_and_backwards(
    resolution, tokens, periodic, width, depth
):
    config = grid_config(resolution, tokens, [periodic] * len(tokens)) | {"width": width, "depth": depth}
    config["normaliser"] = {"u": {"mean": 0.3, "std": 2.0}, "v": {"mean": -1.0, "std": 0.1}}
    trained, frozen = trained_and_frozen(config)
    assert weights_id(frozen.state_dict()) == weights_id(trained.state_dict())
    fields = torch.randn(2, *resolution, 2)
    latents, found = (model.encode({"fields": fields}, "state") for model in (trained, frozen))
    assert relative(found, latents) < 1e-5
    given = [latents.detach().clone().requires_grad_() for _ in range(2)]
    decoded = [model.decode(own, None, "state") for model, own in zip((trained, frozen), given, strict=True)]
    assert relative(*decoded) < 1e-5
    weights = torch.randn_like(fields)
    gradients = [
        torch.autograd.grad((fields * weights).sum(), own)[0] for fields, own in zip(decoded, given, strict=True)
    ]
    assert relative(*gradients) < 1e-5


def relative(found, expected):
    """Largest difference by largest number."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def multiply_adds(network):
    """For every token, of a frozen network and of the same as it was trained."""
    return network.folded.multiply_adds, sum(p.numel() for name, p in network.named_parameters() if "weight" in name)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("depth", range(5))
@pytest.mark.parametrize("width", [4, 16, 48])
def test_a_frozen_network_never_takes_more_multiply_adds(axes, depth, width):
    config = grid_config([16] * axes, [4] * axes, [True] * axes) | {"width": width, "depth": depth}
    model = build_autoencoder(config).freeze()
    for network in (model.encoders["state"], model.decoders["state"]):
        now, before = multiply_adds(network)
        assert now <= before


def test_a_line_is_encoded_in_a_third_of_the_multiply_adds_and_without_a_network_in_a_seventeenth():
    config = grid_config([1024], [64], [True], ["u"]) | {"latent_dim": 14, "width": 48, "depth": 1}
    assert multiply_adds(build_autoencoder(config).freeze().encoders["state"]) == (3648, 11328)
    config |= {"encoder_depth": 0}
    assert multiply_adds(build_autoencoder(config).freeze().encoders["state"]) == (672, 672)


@pytest.mark.parametrize("kind", ["grid", "logarithm", "mesh"])
def test_a_frozen_encoder_takes_fields_with_their_units_of_every_kind(kind):
    config = grid_config([16, 16], [4, 4], [False, False], ["u"])
    frame = {"fields": 1.0 + torch.rand(3, 16, 16, 1)}
    if kind == "logarithm":
        config["normaliser"] = {"u": {"mean": 1.5, "std": 0.3, "log": {"mean": 0.4, "std": 0.2, "floor": 1e-3}}}
    if kind == "mesh":
        config |= {"kind": "mesh", "box": [[0.0, 1.0], [0.0, 1.0]]}
        config["normaliser"]["boundary"] = {"mean": 0.1, "std": 0.2}
        frame = {
            "fields": torch.rand(3, 400, 1), "boundary": torch.rand(3, 400), "coords": torch.rand(3, 400, 2),
            "mask": torch.ones(3, 400, dtype=torch.bool),
        }  # fmt: skip
    for depth in (0, 1):
        trained, frozen = trained_and_frozen(config | {"encoder_depth": depth})
        assert relative(frozen.encode(frame, "state"), trained.encode(frame, "state")) < 1e-5


@pytest.mark.parametrize("spreads", [0, 10, 2000])  # a pressure in pascals: 1e5, and 50 more or less
@pytest.mark.parametrize(("resolution", "tokens"), [([64], [16]), ([128, 128], [8, 8])], ids=["line", "plane"])
def test_units_in_the_kernels_cost_a_tenth_of_what_the_format_of_a_cache_does_at_most(resolution, tokens, spreads):
    mean, spread = 50.0 * spreads, 50.0
    config = grid_config(resolution, tokens, [True] * len(tokens), ["u"]) | {"encoder_depth": 0}
    trained, frozen = trained_and_frozen(config | {"normaliser": {"u": {"mean": mean, "std": spread}}})
    given = {"fields": mean + spread * torch.randn(4, *resolution, 1)}
    exact = copy.deepcopy(trained).double().encode({"fields": given["fields"].double()}, "state")
    scale = exact.std()
    rounded = (exact.half() - exact).pow(2).mean().sqrt() / scale
    assert (frozen.encode(given, "state") - exact).pow(2).mean().sqrt() / scale < 0.1 * rounded


def test_without_a_period_the_two_ends_know_nothing_of_each_other():
    torch.manual_seed(0)
    for periodic in (True, False):
        model = build_autoencoder(grid_config([64], [16], [periodic]) | {"depth": 1}).eval()
        fields = torch.randn(1, 64, 2)
        changed = fields.clone()
        changed[:, :4] += 1.0
        with torch.no_grad():
            moved = (model.encode({"fields": changed}, "state") != model.encode({"fields": fields}, "state")).any(-1)[0]
        assert moved[0]
        assert not moved[4:12].any()
        assert moved[-1] == periodic


def test_patches_come_back_and_hold_neighbours():
    fields = torch.arange(2 * 8 * 6 * 3.0).view(2, 8, 6, 3)
    patches = to_patches(fields, [4, 3])
    assert torch.equal(from_patches(patches, [8, 6]), fields)
    assert torch.equal(patches[1, :, 2, 1], fields[1, 4:6, 2:4].flatten())


@pytest.mark.parametrize(
    ("tokens", "extents", "resolution", "expected"),
    [
        (32, [256], [256], [32]),
        (256, [64, 64], [64, 64], [16, 16]),
        (32, [128, 64], [128, 64], [8, 4]),
        (32, [1.0, 0.5], None, [8, 4]),
    ],
)
def test_patches_are_as_square_as_can_be(tokens, extents, resolution, expected):
    assert token_shape(tokens, extents, resolution) == expected


def test_a_number_of_tokens_that_does_not_divide_the_grid_is_refused_with_ones_that_do():
    with pytest.raises(UpsDataError, match=r"latent_len: 30 tokens do not divide 256 points .* use 16, 32, 64"):
        token_shape(30, [256], [256])


@pytest.mark.parametrize("periodic", [True, False])
def test_splines_reproduce_a_smooth_field_between_the_points_it_was_given_at(periodic):
    generator = torch.Generator().manual_seed(0)
    coords = 3.0 + 2.0 * torch.rand(2, 500, 2, generator=generator)

    def field(x):
        wave = (2 * torch.pi * x / 2.0).sin()
        return torch.stack([wave[..., 0] * wave[..., 1], wave.sum(-1)], -1)

    grid = splines.SplineGrid([[3.0, 5.0]] * 2, [14, 14], [periodic] * 2)
    mask = torch.ones(2, 500, dtype=torch.bool)
    coefficients = splines.fit_frames(field(coords), coords, mask, None, grid)
    elsewhere = 3.0 + 2.0 * torch.rand(2, 200, 2, generator=generator).clamp(0.02, 0.98)
    found = splines.evaluate(coefficients, *splines.supports(elsewhere, grid))
    assert (found - field(elsewhere)).abs().max() < 0.03
    if periodic:
        images = splines.evaluate(coefficients, *splines.supports(elsewhere + torch.tensor([2.0, -4.0]), grid))
        torch.testing.assert_close(images, found, rtol=0, atol=1e-4)


def test_frames_on_one_mesh_are_fitted_together_as_they_are_alone(data):
    frame = frames_of(data, "mesh").read(np.arange(6), "input")
    grid = splines.SplineGrid([[0.0, 1.0]] * 2, [9, 9], [False] * 2)
    places = (frame["coords"], frame["mask"])
    together = splines.fit_frames(frame["fields"], *places, frame["topology"], grid)
    alone = splines.fit_frames(frame["fields"], *places, None, grid)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kind", "role"), [("mesh", "input"), ("mesh", "target"), ("particles", "state")])
def test_renumbering_nodes_and_padding_leave_the_latents_as_they_are(data, models, kind, role):
    model = models[kind][0]
    frame = first_frame(data, kind, role)
    count = frame["fields"].shape[1]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1))
    renumbered = {n: t if n == "topology" else t[:, order] for n, t in frame.items()}
    padded = {
        name: tensor if name == "topology" else torch.cat([tensor, torch.zeros_like(tensor[:, :9])], dim=1)
        for name, tensor in frame.items()
    }
    with torch.no_grad():
        latents = model.encode(frame, role)
        torch.testing.assert_close(model.encode(renumbered, role), latents, rtol=0, atol=1e-5)
        torch.testing.assert_close(model.encode(padded, role), latents, rtol=0, atol=1e-5)
        decoded = model.decode(latents, frame, role)
        torch.testing.assert_close(model.decode(latents, renumbered, role), decoded[:, order], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.decode(latents, padded, role)[:, :count], decoded, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "bounds"),
    [
        ("grid", {"u": 0.01}),
        ("mesh", {"permeability": 0.2, "source": 0.15, "solution": 0.06}),
        ("particles", {"velocity_x": 0.15, "velocity_y": 0.15}),
    ],
)
def test_what_is_encoded_comes_back_after_a_short_training(data, models, kind, bounds):
    model, curve = models[kind]
    errors = round_trip(model, frames_of(data, kind, "val"), CPU)
    assert errors.keys() == bounds.keys()
    assert all(errors[name] < bound for name, bound in bounds.items()), errors
    assert min(row[2] for row in curve) <= curve[0][2]


@pytest.mark.parametrize("kind", KINDS)
def test_latents_have_zero_mean_and_unit_spread_on_the_training_data(data, models, kind):
    model, frames = models[kind][0], frames_of(data, kind)
    for role in model.roles:
        with torch.no_grad():
            latents = model.encode(frames.read(np.arange(len(frames)), role), role).flatten(0, 1)
        torch.testing.assert_close(latents.mean(0), torch.zeros(latents.shape[1]), rtol=0, atol=1e-3)
        torch.testing.assert_close(latents.std(0), torch.ones(latents.shape[1]), rtol=1e-3, atol=0)


def test_a_positive_field_of_many_magnitudes_is_encoded_by_its_logarithm(data, models):
    model = models["mesh"][0]
    assert "log" in model.config["normaliser"]["permeability"]
    assert "log" not in model.config["normaliser"]["solution"]
    frame = first_frame(data, "mesh", "input")
    with torch.no_grad():
        decoded = model.decode(model.encode(frame, "input"), frame, "input")
    assert decoded.shape == frame["fields"].shape
    assert (decoded[..., 0] > 0).all()


def test_a_view_takes_every_nth_point_and_frame(data):
    seen, whole = frames_of(data, "grid"), frames_of(data, "grid", view=View(space_stride=1, time_stride=1))
    assert (seen.frames, seen.resolution) == (5, [32])
    assert np.array_equal(seen.times, whole.times[::2])
    frame = seen.read(np.array([5 * 3 + 2]), "state")["fields"]
    assert torch.equal(frame, whole.read(np.array([9 * 3 + 4]), "state")["fields"][:, ::2])
    for kind in ("mesh", "particles"):
        frames = frames_of(data, kind)
        index = np.array([len(frames) - 1, 0, 1])
        together = frames.read(index, next(iter(frames.roles)))
        for row, number in enumerate(index):
            alone = frames.read(np.array([number]), next(iter(frames.roles)))
            assert all(torch.equal(together[name][row], alone[name][0]) for name in alone)


def test_the_error_of_a_frame_is_that_of_its_real_points_relative_to_their_size():
    frame = {"fields": torch.tensor([[[3.0], [4.0], [0.0]]]), "mask": torch.tensor([[True, True, False]])}
    decoded = torch.tensor([[[3.0], [4.5], [99.0]]])
    assert frame_errors(decoded, frame, torch.ones(1)).item() == pytest.approx(0.5 / 5.0)


def test_the_distance_to_the_boundary_of_a_square_is_that_to_its_nearest_side():
    coords = np.array([[0, 0], [1, 0], [1, 1], [0, 1], [0.5, 0.3]])
    cells = np.array([[0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]])
    np.testing.assert_allclose(boundary_distance(coords, cells), [0, 0, 0, 0, 0.3], atol=1e-12)


def test_equal_seeds_train_equal_weights_and_an_interrupted_run_ends_in_them(data, models, monkeypatch, tmp_path):
    from ups_data.training import autoencoder as training
    from ups_data.training import loop

    again = trained(data, "grid")
    assert again[1] == models["grid"][1]
    assert again[0].constituents() == models["grid"][0].constituents()
    monkeypatch.setattr(loop, "SAVE_EVERY", 0.0)
    error, calls = training.error, []

    def killed_midway(*args):
        calls.append(1)
        if len(calls) > 25:
            raise KeyboardInterrupt
        return error(*args)

    arguments = (*(frames_of(data, "grid", s) for s in ("train", "val")), knobs("grid"))
    options = {"state": tmp_path, "key": "k", "device": CPU}
    monkeypatch.setattr(training, "error", killed_midway)
    with pytest.raises(KeyboardInterrupt):
        training.train_autoencoder(TASKS["grid"], *arguments, **options)
    monkeypatch.setattr(training, "error", error)
    model, curve = training.train_autoencoder(TASKS["grid"], *arguments, **options)
    assert curve == models["grid"][1]
    assert model.constituents()["weights"] == models["grid"][0].constituents()["weights"]


def test_weights_are_read_back_and_an_untrained_autoencoder_is_refused(data, models, tmp_path):
    model = models["particles"][0]
    path = tmp_path / "autoencoder.safetensors"
    save_autoencoder(path, model, 40)
    loaded = load_autoencoder(path)
    frame = first_frame(data, "particles", "state")
    assert torch.equal(loaded.encode(frame, "state"), copy.deepcopy(model).freeze().encode(frame, "state"))
    assert loaded.constituents() == model.constituents() | {"config": loaded.constituents()["config"]}
    save_autoencoder(path, model, 0)
    with pytest.raises(UpsDataError, match=r"trained for 0 steps; train it with `python -m stages.autoencoder"):
        load_autoencoder(path)
    path.write_bytes(b"not a model")
    with pytest.raises(UpsDataError, match="is not a model of ours or is damaged"):
        load_autoencoder(path)


def test_the_stage_writes_a_model_and_a_curve_and_leaves_no_state(data, tmp_path, monkeypatch, capsys):
    params = files.Path(__file__).parents[1] / "params.yaml"
    monkeypatch.chdir(tmp_path)
    small = {"latent_len": 8, "latent_dim": 4, "steps": 20, "batch": 8, "width": 8}
    view = VIEWS["grid"].model_dump()
    task = TASKS["grid"]
    changes = [f"datasets.{task}.autoencoder.{name}={value}" for name, value in small.items()]
    changes += [f"datasets.{task}.view.{name}={value}" for name, value in view.items()]
    flags = [flag for change in changes for flag in ("--set", change)]
    assert stage.main([task, "--data", str(data), "--params", str(params), *flags]) == 0
    assert "round-trip nRMSE on val: u 0." in capsys.readouterr().out
    assert load_autoencoder(f"models/{task}/autoencoder.safetensors").config["steps"] == 20
    lines = files.Path(f"reports/{task}/autoencoder.csv").read_text().splitlines()
    assert lines[0] == "step,train_loss,val_loss,learning_rate"
    assert len(lines) == 21
    assert not any(files.Path(".state").rglob("*.safetensors"))
