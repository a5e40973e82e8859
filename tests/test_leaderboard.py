"""The leaderboard, spectra and animations: what they say follows from the errors, and from nothing else."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from stages import leaderboard as stage
from ups_data.evaluation import animation, leaderboard
from ups_data.evaluation.forecast import Forecast, Forecasts
from ups_data.evaluation.report import gather
from ups_data.evaluation.spectra import Spectrum, grid_powers
from ups_data.files import write_csv, write_json

X = (np.arange(64) + 0.5) / 64


def test_the_interval_holds_the_true_mean_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(1.0, 0.3, size=(150, 40))
    intervals = [leaderboard.interval(values, [str(i) for i in range(40)]) for values in draws]
    covered = np.mean([low <= 1.0 <= high for low, high in intervals])
    assert 0.90 <= covered <= 0.985  # 95 %, a little less for 40 values; 150 trials know it to 3 %


def test_samples_of_one_initial_condition_count_as_one_piece_of_evidence():
    values = np.random.default_rng(1).normal(size=30)
    names = [str(i) for i in range(30)]
    alone = leaderboard.interval(values, names)
    copied = leaderboard.interval(np.repeat(values, 4), [name for name in names for _ in range(4)])
    assert copied == pytest.approx(alone, rel=1e-12)
    as_if_independent = leaderboard.interval(np.repeat(values, 4), [str(i) for i in range(120)])
    assert np.ptp(as_if_independent) < 0.7 * np.ptp(alone)


def test_one_initial_condition_has_no_interval():
    assert leaderboard.interval(np.array([0.1, 0.2]), ["a", "a"]) is None


def errors(level, count=6):
    return np.full((count, 2, 1), level) * np.linspace(0.5, 1.5, count)[:, None, None]


def board(task):
    parameters = np.array([[0.1], [0.1], [0.1], [1.0], [1.0], [1.0]])
    groups = list("abcabc")
    sizes = {"operator": (1000, 60), "baseline": (200, 30), "roundtrip": (50, 10)}
    protocol = {"task": task, "given": 10, "every_point": 4, "every_frame": 5}
    scores = {"operator": errors(0.2), "baseline": errors(0.1), "persistence": errors(0.5), "roundtrip": errors(0.01)}
    return leaderboard.rows(scores, groups, leaderboard.subsets(parameters, ["viscosity"]), sizes, protocol)


@pytest.fixture()
def reports(tmp_path):
    for task in ("waves", "heat"):
        write_csv(tmp_path / "leaderboard" / f"{task}.csv", leaderboard.COLUMNS, board(task))
    write_json(tmp_path / "waves" / "minutes.json", {"operator": {"seconds": 90.0, "device": "cpu", "resumed": False}})
    return tmp_path


def test_all_tasks_are_merged_and_the_best_forecast_stands_first(reports, capsys):
    assert stage.main(["--reports", str(reports)]) == 0
    with open(reports / "leaderboard.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["task"] for row in table] == ["heat"] * 12 + ["waves"] * 12
    text = (reports / "leaderboard.md").read_text()
    waves = text[text.index("## waves") :].splitlines()
    assert [line.split("|")[3].strip() for line in waves[4:8]] == [
        "plain network", "latent operator", "nothing changes", "encode, decode (floor)",
    ]  # fmt: skip
    assert "| 10 | 4th point, 5th frame | latent operator | 0.2 [" in text
    assert "viscosity 0.1 " in text


def test_minutes_stand_in_the_tables_alone(reports):
    """They differ on every run: what DVC tracks has to be the same."""
    assert stage.main(["--reports", str(reports), "-q"]) == 0
    before = (reports / "leaderboard.csv").read_bytes()
    assert "1.5 (cpu)" in (reports / "leaderboard.md").read_text()
    write_json(reports / "waves" / "minutes.json", {"operator": {"seconds": 120.0, "device": "H100", "resumed": True}})
    assert stage.main(["--reports", str(reports), "-q"]) == 0
    assert "over 2.0 (H100)" in (reports / "leaderboard.md").read_text()
    assert (reports / "leaderboard.csv").read_bytes() == before


def test_no_evaluation_and_an_old_table_are_sentences(tmp_path, capsys):
    assert stage.main(["--reports", str(tmp_path)]) == 1
    assert "python -m stages.evaluate TASK" in capsys.readouterr().err
    write_csv(tmp_path / "leaderboard" / "waves.csv", ["task", "score"], [["waves", 1]])
    assert stage.main(["--reports", str(tmp_path)]) == 1
    assert "got other columns" in capsys.readouterr().err


def waves(samples=4, steps=6, points=64):
    """Travelling sines with 1 and 5 cycles; the operator misses the fast one."""
    times = np.linspace(0, 1, steps)[None, :, None]
    phase = 0.3 * np.arange(samples)[:, None, None]
    slow = np.sin(2 * np.pi * (X[:points] - times) + phase)
    fast = 0.5 * np.sin(2 * np.pi * 5 * (X[:points] - times) + phase)
    predictions = {"operator": slow[..., None], "baseline": (slow + fast)[..., None]}
    truth = (slow + fast)[..., None]
    return Forecast(list(range(samples)), truth, predictions, {"x": X[:points]})


def forecasts(*parts):
    count = sum(len(part.samples) for part in parts)
    groups = [str(k) for k in range(count)]
    return Forecasts(["u"], np.ones(1), np.linspace(0, 1, 6), np.zeros((count, 0)), [], groups, iter(parts))


def test_the_spectrum_shows_where_the_error_is():
    header, rows = gather(forecasts(waves()), powers=grid_powers).spectrum.table()
    assert header == ["wavenumber", "truth", "operator", "baseline"]
    truth, operator, baseline = np.array(rows)[:, 1:].T
    assert truth[1] == pytest.approx(0.5)  # mean square of a sine
    assert truth[5] == operator[5] == pytest.approx(0.125)
    assert np.delete(operator, 5) == pytest.approx(0.0, abs=1e-25)
    assert baseline == pytest.approx(0.0, abs=1e-25)


def test_batches_with_fewer_wavenumbers_are_averaged_in():
    spectrum = Spectrum([2.0])
    spectrum.add({"truth": np.full((1, 1, 1, 3), 4.0)})
    spectrum.add({"truth": np.full((1, 1, 1, 2), 8.0)})
    assert [row[1] for row in spectrum.table()[1]] == [1.5, 1.5, 0.5]  # in units of the variance 4


def test_errors_at_every_nth_point_are_those_of_that_grid():
    forecast = waves()
    found = gather(forecasts(forecast), points=(1, 16)).scores
    sparse = Forecast([0], forecast.truth[:1, :, ::16], {"operator": forecast.predictions["operator"][:1, :, ::16]}, {})
    assert found[16]["operator"][0] == pytest.approx(gather(forecasts(sparse)).scores[1]["operator"][0], rel=1e-12)
    assert not np.allclose(found[16]["operator"], found[1]["operator"], rtol=1e-6)


def test_an_animation_has_a_frame_a_step_and_the_same_bytes_again(tmp_path):
    forecast = waves()
    kept = [forecast.only(0), forecast.only(2)]
    for name in ("first", "second"):
        animation.animate(tmp_path / f"{name}.gif", "grid", forecasts(forecast), kept)
    assert (tmp_path / "first.gif").read_bytes() == (tmp_path / "second.gif").read_bytes()
    with Image.open(tmp_path / "first.gif") as image:
        assert image.n_frames == 6


def test_a_score_that_is_no_number_is_a_sentence_and_changes_nothing(reports, capsys):
    table = reports / "leaderboard" / "heat.csv"
    lines = table.read_text().splitlines()
    lines[3] = ",".join(
        "x" if column == "nrmse" else value
        for column, value in zip(leaderboard.COLUMNS, lines[3].split(","), strict=True)
    )
    table.write_text("\n".join(lines))
    assert stage.main(["--reports", str(reports)]) == 1
    assert "heat.csv, line 4: nrmse is 'x', expected a number" in capsys.readouterr().err
    assert not (reports / "leaderboard.csv").exists()
