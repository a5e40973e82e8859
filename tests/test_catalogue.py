"""The catalogue is the official list; DVC commands neither trip over it nor miss what was downloaded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stages import catalogue as catalogue_stage
from stages import download as download_stage
from tests.http_server import Served, md5, serving
from ups_data import files
from ups_data.catalogue import (
    BASE_URL,
    CATALOGUE,
    OFFICIAL,
    Entry,
    Family,
    all_entries,
    keep,
    read_catalogue,
    read_family,
    render,
    select,
    twins,
)
from ups_data.dvc_files import cache_object, folder_md5
from ups_data.errors import UpsDataError
from ups_data.params import load_params

HERE = Path(__file__).parents[1]
FAMILIES = read_catalogue(HERE)
ENTRIES = all_entries(FAMILIES)
DATASETS = load_params(HERE / "params.yaml").datasets


# --- the list ------------------------------------------------------------------------------------


def test_the_catalogue_holds_all_377_official_files():
    assert len(ENTRIES) == len({e.path for e in ENTRIES}) == len({e.url for e in ENTRIES}) == 377
    assert sum(e.size or 0 for e in ENTRIES) == 3_902_903_970_421
    assert sum(e.size is None for e in ENTRIES) == 41
    assert all(e.url == f"{BASE_URL}/{e.file_id}" and e.file_id.isdigit() for e in ENTRIES)


def test_every_file_stands_with_its_family():
    for entry in ENTRIES:
        assert entry.path.startswith("3D/" if entry.family == "3D/CFD" else f"{entry.family}/")


def test_two_files_are_in_the_archive_only():
    only = [e.path for e in ENTRIES if e.archive_only]
    assert [Path(path).name for path in only] == [
        "ns_incom_inhom_2d_512-49.h5",
        "3D_CFD_Rand_M0.1_Eta1e-08_Zeta1e-08_periodic_Train.hdf5",
    ]


def test_there_are_25_pairs_of_twins_all_of_navier_stokes():
    groups = twins(ENTRIES).values()
    assert len(groups) == 25 and all(len(group) == 2 for group in groups)
    assert {e.family for group in groups for e in group} == {"2D/NS_incom"}
    assert all(a.size == b.size for a, b in groups)


def test_the_files_are_written_as_they_are_read():
    for family in FAMILIES:
        assert (HERE / CATALOGUE / f"{family.name}.dvc").read_text() == render(family)


def test_dvc_agrees_with_the_checksum_of_the_catalogue_folder():
    folder = HERE / CATALOGUE
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    recorded = (HERE / "data/catalogue.dvc").read_text()
    assert folder_md5({name: files.checksum(path, "md5") for name, path in found.items()}) in recorded


# --- choosing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "count"),
    [
        ("1D/Burgers", 12),
        ("burgers1d", 12),
        ("advection1d", 8),
        ("navier_stokes2d", 275),
        ("data/raw/pdebench/1D/Burgers/Train/", 12),
        ("3D/CFD", 9),
        ("3D/Train", 3),
        ("2D", 299),
        ("*Sod*", 7),
        ("2D/NS_incom/*-1?.h5", 10),
        ("2D_DarcyFlow_beta1.0_Train.hdf5", 1),
        ("*", 377),
    ],
)
def test_a_word_names_files(word, count):
    assert len(select(ENTRIES, [word], DATASETS)) == count


def test_several_words_name_each_file_once():
    assert len(select(ENTRIES, ["1D/Burgers", "burgers1d", "2D/DarcyFlow"], DATASETS)) == 17


def test_a_task_names_the_files_its_conversion_takes():
    few = DATASETS["burgers1d"].convert.model_copy(update={"limit": 2})
    chosen = select(ENTRIES, ["burgers1d"], {"burgers1d": DATASETS["burgers1d"].model_copy(update={"convert": few})})
    assert [e.path.rpartition("Nu")[2] for e in chosen] == ["0.001.hdf5", "0.002.hdf5"]


def test_an_unknown_word_is_a_sentence():
    with pytest.raises(UpsDataError, match=r"'1D/Burger' names no official file \(did you mean '1D/Burgers'\?\)"):
        select(ENTRIES, ["1D/Burger"], DATASETS)


def test_a_task_without_official_files_says_so():
    with pytest.raises(UpsDataError, match=r"darcy2d_mesh reads mesh/darcy2d/\*\.npz, which no official file matches"):
        select(ENTRIES, ["darcy2d_mesh"], DATASETS)


def test_a_path_that_leaves_the_download_root_is_refused(tmp_path):
    text = render(FAMILIES[0]).replace("pdebench/1D/Advection", "pdebench/../../..", 1)
    (tmp_path / "x.dvc").write_text(text)
    with pytest.raises(UpsDataError, match="is not a list of official files"):
        read_family(tmp_path / "x.dvc", tmp_path)


# --- with DVC ------------------------------------------------------------------------------------

BODIES = {"11": b"a" * 3000, "12": b"b" * 2000, "13": b"a" * 3000}  # 13 is the twin of 11


def run(folder, *words):
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def dvc(folder, *words):
    status, text = run(folder, sys.executable, "-m", "dvc", *words)
    assert status == 0, text
    return text


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A git repository with DVC, a local remote, a stage, and a catalogue of three small files."""
    root = tmp_path_factory.mktemp("catalogue")
    repo = root / "template"
    folder = repo / CATALOGUE
    entries = tuple(
        Entry("1D/Burgers", f"1D/Burgers/Train/Nu{name}.hdf5", md5(body), len(body), f"{BASE_URL}/{name}", False)
        for name, body in BODIES.items()
    )
    files.write_text(folder / "1D/Burgers.dvc", render(Family("1D/Burgers", "Burgers", {"licence": "x"}, entries)))
    shutil.copy(HERE / "params.yaml", repo)
    (repo / ".gitignore").write_text("/data/raw/\n/.state/\n/out.txt\n")
    (repo / "dvc.yaml").write_text("stages:\n  made:\n    cmd: echo made > out.txt\n    outs: [out.txt]\n")
    listing = folder_md5({"1D/Burgers.dvc": files.checksum(folder / "1D/Burgers.dvc", "md5")})
    recorded = (HERE / "data/catalogue.dvc").read_text().splitlines()
    lines = [f"  md5: {listing}" if "md5:" in line and ".dir" in line else line for line in recorded]
    (repo / "data/catalogue.dvc").write_text(
        "\n".join(line for line in lines if not line.startswith(("  size", "  nfiles"))) + "\n"
    )
    run(repo, "git", "init", "-q")
    dvc(repo, "init", "-q")
    (repo / ".dvc/config").write_text(
        "[core]\n  remote = team\n  analytics = false\n[cache]\n  type = hardlink\n"
        f"['remote \"team\"']\n  url = {root / 'remote'}\n  verify = true\n"
    )
    dvc(repo, "repro", "-q")
    commit(repo)
    dvc(repo, "push", "-q")
    return repo


def commit(repo):
    run(repo, "git", "add", "-A")
    status, text = run(repo, "git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x")
    assert status == 0, text


@pytest.fixture
def clone(template, tmp_path, monkeypatch):
    run(tmp_path, "git", "clone", "-q", str(template), "clone")
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


def test_plain_dvc_commands_do_not_see_what_was_never_downloaded(clone):
    assert "1 file fetched" in dvc(clone, "pull")
    assert "up to date" in dvc(clone, "repro") and "up to date" in dvc(clone, "status")
    assert "up to date" in dvc(clone, "push")


def test_downloaded_files_travel_by_plain_push_and_pull(clone, tmp_path, monkeypatch, capsys):
    dvc(clone, "pull")
    with serving() as server:
        server.files |= {name: Served(body) for name, body in BODIES.items()}
        assert download_stage.main(["1D/Burgers/Train/Nu1[13].hdf5", "--base-url", server.url]) == 0
        assert [name for name, _ in server.seen] == ["11"]
    printed = capsys.readouterr().out
    assert "2 files fetched" in printed and "dvc push" in printed
    here = clone / "data/raw/pdebench/1D/Burgers/Train"
    cached = cache_object(clone / ".dvc/cache", md5(BODIES["11"]))
    assert cached.samefile(here / "Nu11.hdf5") and cached.samefile(here / "Nu13.hdf5")
    assert "up to date" in dvc(clone, "status")
    assert "1 file pushed" in dvc(clone, "push")  # twins are one object
    commit(clone)

    run(tmp_path, "git", "clone", "-q", str(clone), "other")
    dvc(tmp_path / "other", "pull")
    there = tmp_path / "other/data/raw/pdebench/1D/Burgers/Train"
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        "Nu11.hdf5": BODIES["11"],
        "Nu13.hdf5": BODIES["13"],
    }
    monkeypatch.chdir(tmp_path / "other")
    assert download_stage.main(["*Nu11.hdf5", "--base-url", "http://127.0.0.1:9"]) == 0  # nothing is asked for
    assert not run(tmp_path / "other", "git", "status", "--short")[1]


def test_a_family_can_be_pulled_by_name_from_a_remote_that_has_part_of_it(clone, template):
    remote = cache_object(template.parent / "remote", md5(BODIES["12"]))
    remote.parent.mkdir(parents=True, exist_ok=True)
    remote.write_bytes(BODIES["12"])
    dvc(clone, "fetch", "data/catalogue/1D/Burgers.dvc")
    assert cache_object(clone / ".dvc/cache", md5(BODIES["12"])).read_bytes() == BODIES["12"]
    remote.unlink()


def test_keeping_more_of_a_family_adds_to_what_was_kept(clone):
    (family,) = read_catalogue(clone)
    assert keep([family.entries[1]], clone) == [OFFICIAL / "1D/Burgers.dvc"]
    assert keep([family.entries[0]], clone) == [OFFICIAL / "1D/Burgers.dvc"]
    assert keep([family.entries[1]], clone) == []
    kept = read_family(clone / OFFICIAL / "1D/Burgers.dvc", clone / OFFICIAL)
    assert kept.entries == family.entries[:2]


def test_the_listing_says_what_is_where(clone, capsys):
    place = clone / "data/raw/pdebench/1D/Burgers/Train"
    place.mkdir(parents=True)
    (place / "Nu12.hdf5").write_bytes(BODIES["12"])
    assert catalogue_stage.main(["--json", "--remote"]) == 0
    rows = {Path(row["path"]).name: row for row in json.loads(capsys.readouterr().out)}
    assert [rows[name]["workspace"] for name in sorted(rows)] == [False, True, False]
    assert rows["Nu13.hdf5"]["twin_of"] == "1D/Burgers/Train/Nu11.hdf5" and not rows["Nu12.hdf5"]["remote"]
    assert catalogue_stage.main([]) == 0
    printed = capsys.readouterr().out
    assert "1D/Burgers      3  8 kB     1       2 kB" in printed
    assert "3 files, 2 different: 5 kB; next: python -m stages.download WHAT (" in printed
    assert catalogue_stage.main(["*Nu13*"]) == 0
    assert "archive  twin of Nu11.hdf5" in capsys.readouterr().out


def test_the_command_line_fails_in_one_sentence(clone, capsys):
    assert download_stage.main(["3D", "--base-url", "http://127.0.0.1:9"]) == 1
    assert download_stage.main(["*", "--base-url", "ftp://x"]) == 1
    assert download_stage.main(["*", "--connections", "0"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3 and "names no official file" in lines[0] and "--base-url" in lines[1]
