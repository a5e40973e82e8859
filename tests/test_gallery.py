"""The gallery shows the stored data, proves the splits anew, and needs nothing beside its one file."""

import base64
import io
import json
import re
import shutil

import h5py
import matplotlib
import numpy as np
import pytest
from PIL import Image

from stages import exhibit as exhibit_stage
from stages import gallery as gallery_stage
from tests import gallery_cases, small_data
from tests.raw import convert_knobs, write_darcy, write_fields
from ups_data import cards, files
from ups_data.conversion.grid import convert_grid
from ups_data.errors import UpsDataError
from ups_data.gallery import charts, exhibit, plates, players
from ups_data.gallery.page import page
from ups_data.params import load_params


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    gallery_cases.write_data(folder)
    gallery_cases.write_reports(folder)
    return folder


@pytest.fixture(scope="module")
def parts(root):
    return {task: gallery_cases.part(root, task) for task in gallery_cases.TASKS}


@pytest.fixture(scope="module")
def html(parts):
    return page(list(parts.values()))


def pixels(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB"))


def panels(player, kind):
    return [panel for row in player["rows"] for panel in row["panels"] if panel["kind"] == kind]


# --- pictures ------------------------------------------------------------------------------------


def test_a_film_keeps_every_value_to_a_256th_and_frames_do_not_touch():
    frames = np.random.default_rng(0).random((3, 5, 7))
    drawn = pixels(plates.strip(frames, (0.0, 1.0), "viridis")).reshape(3, 7, 9, 3)
    colours = (matplotlib.colormaps["viridis"](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)
    assert np.array_equal(drawn[:, 1:-1, 1:-1], colours[np.round(frames * 255).astype(int)])
    assert np.array_equal(drawn[:, 0, 1:-1], drawn[:, 1, 1:-1])  # the rim repeats the edge


def test_a_field_in_the_plane_is_drawn_with_y_upwards_and_x_to_the_right():
    field = np.zeros((1, 4, 4))
    field[0, 3, 0] = 1.0  # x at the end, y at the start
    bright = pixels(players.film("u", field, (0.0, 1.0), "gray")["source"])[1:-1, 1:-1, 0]
    assert np.argwhere(bright == 255).tolist() == [[3, 3]]


def test_a_map_has_time_to_the_right_and_space_upwards():
    field = np.zeros((6, 4))
    field[5, 0] = 1.0  # the last time, the first place
    bright = pixels(players.space_time("u", field, (0.0, 1.0), "gray")["source"])[..., 0]
    assert np.argwhere(bright == 255).tolist() == [[3, 5]]


def test_numbers_for_the_page_are_right_to_a_65535th():
    values = np.random.default_rng(0).normal(size=(4, 9))
    read = np.frombuffer(base64.b64decode(plates.numbers(values, -5, 5)), "<u2").reshape(4, 9) / 65535 * 10 - 5
    assert np.abs(read - values).max() <= 10 / 65535


def test_the_ends_of_a_range_are_told_to_a_hundredth_of_it():
    assert plates.in_words(0.000488, 0.9995) == ("0", "1")
    assert plates.in_words(-2.7e-6, 0.642) == ("0", "0.642")
    assert plates.in_words(1.1412, 1.2138) == ("1.141", "1.214")


def test_a_field_about_zero_is_coloured_about_zero():
    (low, high), colours = players.colours_of(np.linspace(-1, 3, 100))
    assert (low, colours) == (-high, plates.SIGNED)
    (low, _), colours = players.colours_of(np.linspace(1, 3, 100))
    assert low > 0
    assert colours == plates.POSITIVE


def test_a_path_that_leaves_the_box_is_broken_at_the_seam():
    path = players.tracks(np.array([[[0.9, 0.5]], [[0.1, 0.5]], [[0.2, 0.5]]]), np.zeros(2), np.ones(2))
    assert path == "M900 500M100 500L200 500"


def test_bars_are_as_high_as_their_counts():
    drawn = charts.histogram(np.array([1, 4, 2]), np.array([0.0, 1.0, 2.0, 3.0]), "u", log=False)
    floor = charts.HEIGHT - charts.BOTTOM
    tops = [float(top) for top in re.findall(rf"M[\d.]+ {floor}V([\d.]+)H", drawn)]
    assert [(floor - top) / (floor - charts.TOP) for top in tops] == pytest.approx([0.25, 1, 0.5], abs=1e-3)


def test_a_positive_field_over_decades_gets_a_logarithmic_axis():
    assert np.allclose(np.diff(np.log(exhibit._edges(0.01, 50.0))), np.log(5000) / exhibit.BINS)
    assert np.allclose(np.diff(exhibit._edges(-1.0, 50.0)), 51 / exhibit.BINS)


# --- exhibits ------------------------------------------------------------------------------------


def test_twins_of_one_initial_condition_are_shown_together(parts):
    """Advection starts from the same states under both speeds: two curves, two maps, equal at the start."""
    (plot,), maps = panels(parts["advection1d"]["player"], "plot"), panels(parts["advection1d"]["player"], "map")
    assert [mark["name"] for mark in plot["marks"]] == ["advection_speed 0.5", "advection_speed 1"]
    assert plot["marks"][0]["path"] == plot["marks"][1]["path"]
    assert len(maps) == 2


def test_every_channel_and_every_parameter_has_a_distribution(parts, root):
    for task, part in parts.items():
        manifest = files.read_json(root / f"{task}_manifest.json")
        assert [h["name"] for h in part["histograms"]] == [*manifest["channels"], *manifest.get("static_channels", [])]
        assert [h["name"] for h in part["parameters"]] == sorted(manifest["parameters"])


def test_the_error_that_is_drawn_is_that_of_the_stored_rollout(parts, root):
    with np.load(root / "reports/navier_stokes2d/rollouts.npz") as stored:
        channel = len(stored["channels"]) - 1
        truth, made = (stored[name][0, ..., channel].astype(np.float32) for name in ("truth", "operator"))
    film = panels(parts["navier_stokes2d"]["rollouts"], "film")[2]
    assert (
        film["source"]
        == players.film("error", np.abs(made - truth), (0.0, float(np.abs(made - truth).max())), plates.ERROR)["source"]
    )


def test_a_square_stands_for_every_initial_condition_and_rows_would_leak(parts):
    proof = parts["advection1d"]["splits"]
    assert len(proof["squares"]) == proof["distinct"] == 10
    assert proof["rehashed"] == 20
    assert proof["leaked"] == 0
    assert proof["by_rows"] == pytest.approx(12 / 19)  # a sample's one twin is one of 19 others, of which 12 are train


def test_data_that_are_not_what_the_manifest_says_are_called_so_on_the_page(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "copy")
    (copy / "advection1d_test.h5").chmod(0o644)
    with h5py.File(copy / "advection1d_test.h5", "r+") as file, h5py.File(copy / "advection1d_train.h5") as train:
        file["data"][0, 0] = train["data"][0, 0]
    html = page([gallery_cases.part(copy, "advection1d")])
    assert "is not the initial condition that is stored for it" in html
    assert "No test sample starts where a training sample does" not in html


def test_scores_are_those_of_all_test_samples(parts):
    board = parts["advection1d"]["scores"]["boards"][0]
    assert board["protocol"] == "10 frames given, every 4th point, every 5th frame"
    assert board["models"]["operator"] == {"nrmse": 0.1, "low": 0.09, "high": 0.5}
    assert parts["darcy2d_mesh"]["scores"]["boards"][0]["protocol"].startswith("static")


def test_what_is_not_made_yet_is_said_with_the_command_that_makes_it(root):
    part = exhibit.exhibit("advection1d", root, root / "nowhere", root / "nowhere", root / "cards" / "advection1d.md")
    text = page([part])
    assert "dvc repro latents@advection1d" in text
    assert "dvc repro evaluate@advection1d" in text


def test_a_missing_card_is_a_sentence(root):
    with pytest.raises(
        UpsDataError, match=r"advection1d\.md is missing; write it with `python -m stages.cards advection1d`"
    ):
        exhibit.exhibit("advection1d", root, root, root, root / "no" / "advection1d.md")


def gas(*shape):
    rng = np.random.default_rng(1)
    return lambda names: {name: rng.random(shape).astype(np.float32) + 0.5 for name in names}


LAYOUTS = {
    "a line of gas": (lambda p: write_fields(p / "1D_CFD.hdf5", gas(10, 4, 16)(["density", "pressure", "Vx"])), 3, 6),
    "a cube of gas": (
        lambda p: write_fields(p / "3D_CFD.hdf5", gas(10, 4, 8, 8, 8)(["density", "pressure", "Vx", "Vy", "Vz"])), 5, 5
    ),
    "a static plane": (
        lambda p: write_darcy(p / "2D_DarcyFlow.hdf5", *gas(10, 8, 8)(["nu", "tensor"]).values(), 1.0), 2, 2
    ),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_official_files_can_be_shown(layout, tmp_path):
    write, channels, pictures = LAYOUTS[layout]
    write(tmp_path / "raw")
    manifest = convert_grid("task", convert_knobs(tmp_path / "raw"), small_data.SPLIT, tmp_path, workers=1)
    cards.write_card(tmp_path, "task", cards.card(cards.part_of("task", "none"), manifest, None, "task_v1", None))
    part = exhibit.exhibit("task", tmp_path, tmp_path, tmp_path / "none", tmp_path / "task.md")
    assert len(part["histograms"]) == channels
    assert sum(len(row["panels"]) for row in part["player"]["rows"]) == pictures
    assert ("<output>" in page([part])) == (manifest["frames"] > 1)  # no slider where nothing moves


# --- the page ------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere(html, root):
    assert str(root) not in html
    for address in re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"'\s>)]+)""", html):
        assert address.startswith(("data:", "#")) or re.match(r"https://(doi\.org|creativecommons\.org)/", address)
    assert not re.search(r"@import|<link[^>]+stylesheet|<script[^>]+src|fetch\(|XMLHttpRequest|WebSocket", html)


def test_html_in_a_card_is_shown_and_not_obeyed(root, tmp_path):
    text = (root / "cards/advection1d.md").read_text()
    files.write_text(tmp_path / "advection1d.md", text.replace("\n\n## ", "\n\n<script>alert(1)</script>\n\n## ", 2))
    html = page([exhibit.exhibit("advection1d", root, root, root, tmp_path / "advection1d.md")])
    assert "<script>alert" not in html
    assert "&lt;script&gt;alert(1)" in html


def test_the_stages_write_equal_bytes_for_equal_data(root, tmp_path, capsys):
    places = ["--data", str(root), "--cache-dir", str(root / "cache"), "--reports", str(root / "reports")]
    for name in ("one", "two"):
        parts, out = str(tmp_path / name / "parts"), str(tmp_path / name / "page")
        for task in ("navier_stokes2d", "advection1d"):
            assert exhibit_stage.main([task, *places, "--cards", str(root / "cards"), "--out", parts]) == 0
        assert gallery_stage.main(["--parts", parts, "--out", out]) == 0
    pages = [(tmp_path / name / "page/index.html").read_bytes() for name in ("one", "two")]
    assert pages[0] == pages[1]
    order = [task for task in load_params().datasets if task in ("navier_stokes2d", "advection1d")]
    assert re.findall(r'<article id="(\w+)"', pages[0].decode()) == [*order, "leaderboard"]
    assert "index.html: 2 datasets" in capsys.readouterr().out
    json.loads((tmp_path / "one/parts/advection1d.json").read_text())


def test_a_gallery_without_parts_is_a_sentence(tmp_path, capsys):
    assert gallery_stage.main(["--parts", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "holds no part of a dataset; run `python -m stages.exhibit TASK` first" in capsys.readouterr().err
