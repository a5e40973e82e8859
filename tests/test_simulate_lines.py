"""Burgers and advection against exact solutions, and their files against PDEBench's layout."""

import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from stages import simulate
from ups_data.execution import WorkersLost
from ups_data.simulate import advection, burgers, initial_conditions, lines, sample_folder, workers

TIMES = 0.01 * np.arange(201)
EVERYTHING = initial_conditions.draw(3, range(60))
SMOOTH = np.flatnonzero(~EVERYTHING.absolute)
PLAIN = np.flatnonzero(~EVERYTHING.absolute & ~EVERYTHING.windowed)


def rows(numbers) -> initial_conditions.InitialConditions:
    return initial_conditions.InitialConditions(*(column[numbers] for column in EVERYTHING))


def relative(got, expected) -> float:
    return float(np.sqrt(np.mean((got - expected) ** 2) / np.mean(expected**2)))


def cole_hopf(functions, nu, time, x) -> np.ndarray:
    """The exact solution by quadrature on a fine grid, for sums of sines, [n, X] (log-sum-exp: no overflow).

    u = <(x - y) / t> under the weight exp(-((x - y)^2 / (2 t) + integral of u0 up to y) / (2 nu)).
    """
    reach = (np.abs(functions.offset).max() + 2) * time + 10 * np.sqrt(2 * nu * time)
    shift = np.arange(-reach, reach, min(1e-3, np.sqrt(2 * nu * time) / 20))
    y = x[:, None] + shift
    solutions = []
    for wave_numbers, amplitudes, phases, offset, sign in zip(*functions[:4], functions.sign, strict=True):
        integral = offset * y
        for k, amplitude, phase in zip(2 * np.pi * wave_numbers, amplitudes, phases, strict=True):
            integral -= amplitude * np.cos(k * y + phase) / k
        exponent = -(shift**2 / (2 * time) + sign * integral) / (2 * nu)
        weight = np.exp(exponent - exponent.max(axis=1, keepdims=True))
        solutions.append((weight * -shift).sum(axis=1) / (time * weight.sum(axis=1)))
    return np.array(solutions)


# At Nu = 0.001 a shock is about one cell of 1/1024 wide: its exact profile is not resolved, its place is.
@pytest.mark.parametrize(("nu", "tolerance"), [(0.001, 6e-3), (0.01, 6e-4), (0.1, 5e-5), (1.0, 5e-5), (4.0, 1e-4)])
def test_burgers_follows_the_cole_hopf_solution(nu, tolerance):
    functions = rows(PLAIN[:3])
    x = initial_conditions.cell_centres(1024)
    solution = burgers.solve(initial_conditions.evaluate(functions, x), nu, TIMES[:101]).numpy()
    for frame in (1, 20, 100):
        exact = cole_hopf(functions, nu / np.pi, TIMES[frame], x[::32])
        for got, expected in zip(solution[:, frame, ::32], exact, strict=True):
            assert relative(got, expected) < tolerance


def test_burgers_is_second_order_on_smooth_data():
    functions = rows(PLAIN[:3])
    errors = []
    for cells in (256, 512, 1024):
        x = initial_conditions.cell_centres(cells)[:: cells // 64]
        initial = initial_conditions.evaluate(functions, initial_conditions.cell_centres(cells))
        got = burgers.solve(initial, 0.1, TIMES[:21])[:, -1, :: cells // 64].numpy()
        errors.append(relative(got, cole_hopf(functions, 0.1 / np.pi, TIMES[20], x)))
    assert errors[0] / errors[1] > 3.3
    assert errors[1] / errors[2] > 3.3


def test_shocks_do_not_overshoot_and_the_mean_is_conserved():
    initial = initial_conditions.evaluate(rows(np.arange(24)), initial_conditions.cell_centres(512))
    solution = burgers.solve(initial, np.tile([0.0001, 0.001, 1.0], 8), TIMES).numpy()
    assert (solution.max(axis=(1, 2)) <= initial.max(axis=1) + 1e-13).all()
    assert (solution.min(axis=(1, 2)) >= initial.min(axis=1) - 1e-13).all()
    assert np.abs(solution.mean(axis=2) - initial.mean(axis=1)[:, None]).max() < 1e-13


def test_total_variation_never_grows():
    initial = initial_conditions.evaluate(rows(np.arange(24)), initial_conditions.cell_centres(256))
    solution = burgers.solve(initial, 0.001, TIMES).numpy()
    variation = np.abs(solution - np.roll(solution, 1, axis=2)).sum(axis=2)
    assert (np.diff(variation, axis=1) < 1e-12).all()


def test_a_trajectory_does_not_depend_on_the_others_solved_with_it():
    initial = initial_conditions.evaluate(EVERYTHING, initial_conditions.cell_centres(256)).astype(np.float32)
    together = burgers.solve(initial, 0.001, TIMES[:21])
    assert torch.equal(burgers.solve(initial[[41, 5]], 0.001, TIMES[:21]), together[[41, 5]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_gives_the_solution_of_the_cpu():
    initial = initial_conditions.evaluate(EVERYTHING, initial_conditions.cell_centres(256))
    here, there = (burgers.solve(initial, 0.001, TIMES[:21], device).cpu() for device in ("cpu", "cuda"))
    assert (here - there).abs().max() < 1e-9


def test_initial_conditions_are_what_pdebench_describes():
    drawn = initial_conditions.draw(0, range(3000))
    assert set(np.unique(drawn.wave_numbers)) == {1.0, 2.0, 3.0, 4.0}
    assert np.mean(drawn.wave_numbers[:, 0] == drawn.wave_numbers[:, 1]) == pytest.approx(1 / 4, abs=0.03)
    assert drawn.amplitudes.min() >= 0
    assert drawn.amplitudes.max() < 1
    assert np.mean(drawn.absolute) == pytest.approx(0.1, abs=0.02)
    assert np.mean(drawn.windowed) == pytest.approx(0.1, abs=0.02)
    assert np.mean(drawn.sign) == pytest.approx(0, abs=0.05)
    means = initial_conditions.evaluate(drawn, initial_conditions.cell_centres(64)).mean(axis=1)
    assert 0.35 < np.abs(means).mean() < 0.55


def test_an_initial_condition_depends_on_the_seed_and_its_number_alone():
    few, many = initial_conditions.draw(5, range(3)), initial_conditions.draw(5, range(9))
    for column, longer in zip(few, many, strict=True):
        np.testing.assert_array_equal(column, longer[:3])
    assert not np.array_equal(few.phases, initial_conditions.draw(6, range(3)).phases)


def test_advection_by_whole_cells_rolls_every_kind_of_initial_condition():
    x = initial_conditions.cell_centres(1024)
    cells_a_frame = 7
    solution = advection.solve(EVERYTHING, cells_a_frame / 1024 / 0.01, x, TIMES[:41], "float64")
    for frame in range(41):
        rolled = np.roll(solution[:, 0], cells_a_frame * frame, axis=1)
        np.testing.assert_allclose(solution[:, frame], rolled, atol=1e-11)


def test_advection_by_any_distance_is_the_spectral_shift_of_smooth_functions():
    x = initial_conditions.cell_centres(1024)
    times = TIMES[::20]
    solution = advection.solve(rows(SMOOTH), 0.4, x, times, "float64")
    shift = np.exp(-2j * np.pi * np.arange(513) * 0.4 * times[:, None])
    spectral = np.fft.irfft(np.fft.rfft(solution[:, 0])[:, None] * shift, 1024)
    # A window's flank is 10 cells wide: its spectrum ends at about 1e-8 of the whole.
    np.testing.assert_allclose(solution, spectral, atol=2e-7)


# --- the files -------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text(Path("params.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(task, *flags) -> int:
    small = [f"--set=simulate.{task}.{knob}" for knob in ("resolution=32", "frames=4")]
    return simulate.main([task, "--quiet", "--device", "cpu", *small, *flags])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_files_have_the_official_names_keys_shapes_and_attributes(project):
    assert make("burgers1d", "--samples", "5", "--values", "0.001", "1", "4.0", "--out", "b") == 0
    assert sorted(contents(project / "b")) == [f"1D_Burgers_Sols_Nu{nu}.hdf5" for nu in ("0.001", "1.0", "4.0")]
    with h5py.File(project / "b/1D_Burgers_Sols_Nu0.001.hdf5") as file:
        assert set(file) == {"tensor", "x-coordinate", "t-coordinate"}
        assert dict(file.attrs) == {"Nu": 0.001}
        assert file["tensor"].shape == (5, 4, 32)
        assert {file[key].dtype for key in file} == {np.dtype("f4")}
        np.testing.assert_allclose(file["t-coordinate"], 0.01 * np.arange(5), rtol=1e-6)
        np.testing.assert_allclose(file["x-coordinate"], (np.arange(32) + 0.5) / 32, rtol=1e-6)


def test_a_file_holds_the_solution_of_its_own_equation(project):
    assert make("burgers1d", "--samples", "3", "--values", "0.1", "--out", "b") == 0
    assert make("advection1d", "--samples", "3", "--values", "0.4", "--out", "a") == 0
    functions, x = initial_conditions.draw(0, range(3)), initial_conditions.cell_centres(32)
    initial = initial_conditions.evaluate(functions, x).astype(np.float32)
    expected = {
        "b/1D_Burgers_Sols_Nu0.1.hdf5": burgers.solve(initial, 0.1, TIMES[:4]).numpy(),
        "a/1D_Advection_Sols_beta0.4.hdf5": advection.solve(functions, 0.4, x, TIMES[:4], "float32"),
    }
    for name, solution in expected.items():
        with h5py.File(project / name) as file:
            np.testing.assert_allclose(file["tensor"][:], solution, atol=1e-5)


def test_all_files_of_both_equations_start_from_the_same_states(project):
    assert make("burgers1d", "--samples", "5", "--values", "0.001", "1", "--out", "sample") == 0
    assert make("advection1d", "--samples", "9", "--values", "0.1", "7", "--out", "sample2") == 0
    first = []
    for path in [*(project / "sample").iterdir(), *(project / "sample2").iterdir()]:
        with h5py.File(path) as file:
            first.append(file["tensor"][:5, 0])
    assert len(first) == 4
    assert all(np.array_equal(first[0], other) for other in first)


def test_any_number_of_workers_writes_the_same_bytes(tmp_path, monkeypatch):
    line = lines.Line("burgers", 0.001, 0, 6, 64, 5, "float32")
    monkeypatch.setitem(lines.CHUNK, "cpu", 2 * line.bytes_per_row)
    for count in (1, 2):
        monkeypatch.setattr(workers, "cores", lambda count=count: count)
        with lines.pool(line, "cpu") as team:
            assert team.count == count
            lines.write_file(tmp_path / str(count), line, team, "cpu")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_a_worker_that_is_killed_is_a_sentence(monkeypatch):
    monkeypatch.setattr(workers, "cores", lambda: 2)
    with pytest.raises(WorkersLost, match="run the same command again"):
        with workers.pool(2, "cpu") as team:
            list(workers.in_order(team, signal.raise_signal, [signal.SIGKILL] * 2))


@pytest.mark.parametrize(
    ("folder", "readers"),
    [("data/raw/1D/Burgers/Train", ["both", "burgers1d"]), ("data/raw/1D/New", ["both"]), ("mine", [])],
)
def test_the_last_line_names_the_datasets_that_read_the_files(project, capsys, folder, readers):
    params = yaml.safe_load(Path("params.yaml").read_text())
    both = params["datasets"]["burgers1d"]
    both = both | {"convert": both["convert"] | {"folder": "1D"}, "package": both["package"] | {"name": "both_v1"}}
    params["datasets"]["both"] = both
    Path("mine.yaml").write_text(yaml.safe_dump(params))
    small = ["--samples=1", "--values=1", "--device=cpu", "--set=simulate.burgers1d.resolution=32"]
    assert simulate.main(["burgers1d", *small, "--params", "mine.yaml", "--out", folder]) == 0
    commands = [f"python -m stages.convert {task} --params mine.yaml" for task in readers]
    following = f"; next: {' && '.join(commands)} (" if readers else "kB ("
    assert following in capsys.readouterr().out


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(project, monkeypatch):
    flags = ("--samples", "3", "--values", "0.1", "0.2", "0.4", "--out", "s")
    assert make("burgers1d", *flags) == 0
    whole = contents(project / "s")
    for path in (project / "s").iterdir():
        path.unlink()
    write, written = lines.write_file, []

    def stop_at_the_second(path, *rest):
        if len(written) == 1:
            (path.parent / f".{path.name}.1234.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path.name)
        write(path, *rest)

    monkeypatch.setattr(lines, "write_file", stop_at_the_second)
    assert make("burgers1d", *flags) == 130
    monkeypatch.setattr(lines, "write_file", lambda path, *rest: (written.append(path.name), write(path, *rest)))
    assert make("burgers1d", *flags) == 0
    assert written == sorted(whole), "the first file was not written again"
    assert contents(project / "s") == whole


def test_files_of_other_knobs_are_replaced_and_stale_ones_removed(project):
    assert make("advection1d", "--samples", "3", "--values", "0.1", "0.4", "--out", "s") == 0
    before = contents(project / "s")
    assert make("advection1d", "--samples", "4", "--values", "0.4", "--out", "s") == 0
    after = contents(project / "s")
    assert list(after) == ["1D_Advection_Sols_beta0.4.hdf5"]
    assert after["1D_Advection_Sols_beta0.4.hdf5"] != before["1D_Advection_Sols_beta0.4.hdf5"]


@pytest.mark.parametrize("name", ["notes.txt", "1D_Advection_Sols_beta0.1.hdf5"])
def test_a_file_of_somebody_else_is_refused_and_kept(project, capsys, name):
    assert make("advection1d", "--samples", "3", "--values", "0.1", "--out", "s") == 0
    (project / "s" / name).write_bytes(b"official")
    before = contents(project / "s")
    assert make("advection1d", "--samples", "4", "--values", "0.1", "--out", "s") == 1
    assert f"{name} was not written by this stage" in capsys.readouterr().err
    assert contents(project / "s") == before


def test_a_solver_that_fails_leaves_the_files_of_the_run_before(project):
    folder = project / "s"

    def write(where):
        (where / "a.npz").write_bytes(b"a")
        return [where / "a.npz"]

    def fail(where):
        (where / "b.npz").write_bytes(b"half")
        raise ValueError

    assert sample_folder.write_whole(folder, {"seed": 0}, write) == [folder / "a.npz"]
    with pytest.raises(ValueError):
        sample_folder.write_whole(folder, {"seed": 1}, fail)
    assert contents(folder) == {"a.npz": b"a"}
    assert sorted(path.name for path in project.iterdir()) == [".state", "params.yaml", "s"]
