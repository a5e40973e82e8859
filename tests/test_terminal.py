"""What a person sees: the list of commands, bars on a terminal, lines elsewhere, an ending with what comes next."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.docs_reference import parser_of
from stages import __main__ as listing
from stages.common import repeated, run, stage_parser
from ups_data import console
from ups_data.errors import UpsDataError

ROOT = Path(__file__).parents[1]


class Terminal(io.StringIO):
    """A stream that is a terminal."""

    def isatty(self):
        return True


def on_terminal(monkeypatch) -> Terminal:
    """Make standard error a terminal; called in a test, since pytest sets the stream after the fixtures."""
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


# --- the list ------------------------------------------------------------------------------------


def test_every_command_is_listed_with_its_purpose_and_nothing_heavy_is_imported():
    code = (
        "import sys; from stages.__main__ import main; main([]); print('numpy' in sys.modules, 'torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__", "__main__", "common"}
    assert set(re.findall(r"^  (\w+) +[A-Z]", shown, re.MULTILINE)) == files
    assert shown.endswith("False False\n")


def test_commands_stand_in_the_order_of_the_datas_way():
    names = [name for under in listing.grouped(list(listing.docstrings())).values() for name in under]
    way = ["download", "simulate", "convert", "autoencoder", "latents", "train", "evaluate", "package", "hydrate"]
    assert [name for name in names if name in way] == way
    assert listing.grouped(["convert", "brand_new"]) == {"training data": ["convert"], "more": ["brand_new"]}


def test_a_name_shows_its_docstring_and_an_unknown_one_is_a_sentence(capsys):
    assert listing.main(["convert"]) == 0
    assert "python -m stages.convert burgers1d --root" in capsys.readouterr().out
    assert listing.main(["convrt"]) == 1
    assert capsys.readouterr().err == "python -m stages: no command 'convrt'; did you mean 'convert'?\n"
    assert listing.main(["xyz"]) == 1
    assert "there are audit, autoencoder" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(listing.docstrings()))
def test_every_command_has_a_purpose_an_example_and_the_shared_flags(name):
    parser = parser_of(name)
    assert parser.prog == f"python -m stages.{name}"
    assert parser.epilog.startswith(f"example:\n  python -m stages.{name}")
    flags = {flag for action in parser._actions for flag in action.option_strings}
    assert {"-q", "-v", "--params", "--set"} <= flags
    assert all(action.help for action in parser._actions), "an argument has no help"
    assert 20 < len(listing.purpose(listing.docstrings()[name])) <= 150


# --- progress ------------------------------------------------------------------------------------


def test_a_terminal_gets_a_bar_with_rate_and_time_left_that_leaves_no_trace(monkeypatch):
    terminal = on_terminal(monkeypatch)
    with console.progress("convert burgers1d", 4e6, "B") as bar:
        bar.advance(1e6)
        bar.bar.refresh()
        bar.advance(3e6, "last file")
        bar.bar.refresh()
    drawn = terminal.getvalue().split("\r")
    assert any(re.search(r"convert burgers1d: +25%.*1.00M/4.00M \[\d\d:\d\d<\d\d:\d\d, .*B/s", line) for line in drawn)
    assert any("last file" in line for line in drawn)
    assert drawn[-1].strip() == "" and drawn[-2].strip() == ""


def test_a_line_that_is_said_meanwhile_stands_above_the_bar(monkeypatch, capsys):
    terminal = on_terminal(monkeypatch)
    with console.progress("train", 10, "step") as bar:
        bar.advance(5)
        console.say("going on from step 5")
    assert capsys.readouterr().out == "going on from step 5\n"
    assert " step/s" in terminal.getvalue()


def test_elsewhere_there_is_a_line_now_and_then(monkeypatch, capsys):
    clock = iter([0.0, 4.0, 10.0, 10.0, 10.0])
    monkeypatch.setattr(console.time, "monotonic", lambda: next(clock))
    with console.progress("latents", 400, "frame") as bar:
        bar.advance(50)
        bar.advance(50, "shard 1")
    assert capsys.readouterr().out == "latents: 100/400 frame, 10 frame/s, 30.0 s left shard 1\n"


def test_quiet_is_quiet_and_verbose_tells_the_rate(monkeypatch, capsys):
    terminal = on_terminal(monkeypatch)
    for level in (console.QUIET, console.VERBOSE):
        console.set_level(level)
        with console.progress("pack", 10, "file") as bar:
            bar.advance(10)
        if level == console.QUIET:
            assert terminal.getvalue() == "" and capsys.readouterr().out == ""
    assert re.fullmatch(r"pack: 10 file in 0.0 s, \S+ file/s\n", capsys.readouterr().out)


def test_the_next_command_repeats_the_folders_that_are_not_the_usual_ones():
    assert repeated(params="params.yaml", cache_dir="data/latent_cache/", models="./models") == ""
    assert repeated(cache_dir="my cache", models="m", data="d") == " --cache-dir 'my cache' --models m --data d"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (59.96, "1 min 00 s"), (3599.4, "59 min 59 s"), (3599.6, "1 h 00 min")],
)
def test_times_are_said_as_people_do(seconds, said):
    assert console.duration(seconds) == said


# --- endings -------------------------------------------------------------------------------------


def ended(work, *flags: str) -> int:
    return run(work, stage_parser("Do it.", "python -m stages.doing it"), list(flags))


def test_the_last_line_says_what_was_made_and_how_long_it_took(capsys):
    assert ended(lambda args: "made it; next: python -m stages.more") == 0
    assert re.fullmatch(r"made it; next: python -m stages.more \(0\.\d s\)\n", capsys.readouterr().out)
    assert ended(lambda args: "made it", "-q") == 0
    assert capsys.readouterr().out == ""


def test_a_mistake_is_a_sentence_even_when_quiet(capsys):
    def work(args):
        raise UpsDataError("x.h5 is missing; make it")

    assert ended(work, "-q") == 1
    assert capsys.readouterr().err == "python -m stages.doing: x.h5 is missing; make it\n"


def test_a_reader_that_goes_away_is_no_error():
    code = (
        "from stages.common import run, stage_parser as p; run(lambda a: print('long' * 99999) or '', p('', 'a'), [])"
    )
    command = ["bash", "-c", f'"$0" -c "{code}" | head -c 4', sys.executable]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert (shown.stdout, shown.stderr) == ("long", "")


def test_work_goes_on_when_nobody_reads_what_it_says(tmp_path):
    code = (
        "import time; from ups_data import console; from stages.common import run, stage_parser as p\n"
        "def work(a):\n"
        "    console.say('first'); time.sleep(0.5); console.say('second')\n"
        f"    open('{tmp_path}/made', 'w').close()\n"
        "    return 'made'\n"
        "raise SystemExit(run(work, p('', 'a'), []))"
    )
    command = ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | head -n 1', sys.executable, code]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "first\n", "")
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_work_cleanly(number, status, tmp_path):
    code = (
        "import sys, time; from stages.common import run, stage_parser as p; from ups_data import files\n"
        "def work(a):\n"
        f"    with files.atomic('{tmp_path}/out') as temporary:\n"
        "        temporary.write_text('half'); print('ready', flush=True); time.sleep(60)\n"
        "raise SystemExit(run(work, p('', 'python -m stages.doing it'), []))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == status
    assert said == "python -m stages.doing: interrupted; run the same command again to go on\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", ['RuntimeError("DefaultCPUAllocator: can\'t allocate memory")', "MemoryError()"])
def test_too_little_memory_is_a_sentence(error, capsys):
    def work(args):
        raise eval(error)

    assert ended(work) == 1
    assert "not enough memory; use a smaller batch" in capsys.readouterr().err


def test_a_path_that_cannot_be_is_a_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert ended(lambda args: (tmp_path / "file" / "x").write_text("")) == 1
    assert capsys.readouterr().err.endswith(f"{tmp_path}/file/x: Not a directory; name another file or folder\n")
