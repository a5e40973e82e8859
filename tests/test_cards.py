"""A card says what the manifest knows and what its family's hand-written part tells, and nothing that is not so."""

import re

import pytest
from markdown_it import MarkdownIt

from stages import cards as cards_stage
from tests.raw import convert_knobs, write_burgers
from ups_data import cards, registry
from ups_data.catalogue import read_catalogue
from ups_data.conversion.grid import convert_grid
from ups_data.errors import UpsDataError
from ups_data.params import Splits, dataset_params, load_params
from ups_data.published import Published

GROUPED = Splits(protocol="grouped", seed=0, train=0.6, val=0.2, test=0.2)


@pytest.fixture(scope="module")
def params():
    return load_params()


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    """Burgers under three viscosities, converted."""
    root = tmp_path_factory.mktemp("burgers")
    write_burgers(root / "raw", samples=10)
    return convert_grid("burgers1d", convert_knobs(root / "raw"), GROUPED, root, workers=1)


def written(manifest, origin="Sample", folder="1D/Burgers/Train", entry=None):
    return cards.card(cards.part_of("burgers1d", folder), manifest, origin, "burgers1d_subset_v1", entry)


@pytest.mark.parametrize("family", sorted(path.stem for path in cards.FAMILIES.glob("*.md")))
def test_every_family_tells_its_equation_and_its_origin(family):
    part = cards.read_part(cards.FAMILIES / f"{family}.md")
    assert part.sections["Equation"].startswith("> ")
    assert set(part.sections) & set(cards.ORIGINS)
    assert set(part.sections) <= {
        "Equation", "Domain and boundary", "Initial conditions", "Sample", "Official", "Good to know",
    }  # fmt: skip


def test_every_official_file_and_every_dataset_has_a_hand_written_part(params):
    folders = {file.path.rpartition("/")[0] for family in read_catalogue() for file in family.entries}
    folders |= {dataset.convert.folder for dataset in params.datasets.values()}
    assert [folder for folder in sorted(folders) if not cards.part_of("task", folder).sections] == []


def test_the_longest_folder_wins_and_a_folder_is_not_a_prefix_of_letters():
    assert cards.part_of("a", "2D/CFD/2D_Train_Rand").title == "Compressible flow in 2D"
    assert cards.part_of("a", "2D/CFDX").sections == {}


def test_the_card_of_the_published_darcy_data_says_that_they_are_not_converged(manifest):
    official = written(manifest, "Official", "2D/DarcyFlow")
    assert "**The published fields are not converged solutions.**" in official
    assert "CC BY 4.0" in official
    assert "not converged" not in written(manifest)


def test_a_card_has_the_numbers_of_the_manifest(manifest):
    text = written(manifest)
    fact = manifest["statistics"]["channels"]["u"]
    assert f"| `u` | state | {fact['mean']:.4g} | {fact['std']:.4g} |" in text
    assert "| `viscosity` | `Nu` | 0.001, 0.1, 1 |" in text
    assert "| Samples | 30 from 10 initial conditions |" in text
    for split, facts in manifest["splits"].items():
        assert f"| {split} | {facts['samples']} | {len(facts['groups'])} |" in text
    assert "**No initial condition stands in two splits**" in text


def test_a_leak_is_counted_in_the_lists_and_said(manifest):
    splits = {name: dict(facts) for name, facts in manifest["splits"].items()}
    splits["test"]["groups"] = splits["test"]["groups"] + splits["train"]["groups"][:1]
    text = written(manifest | {"splits": splits, "leaked_share": 0.25})
    assert "**1 initial condition stands in two splits**; 25.0% of the test samples start from one of train." in text


def test_a_packed_dataset_tells_sizes_checksums_and_the_ways_to_it(manifest):
    entry = registry.read_registry()["burgers1d_subset_v1"]
    text = written(manifest, entry=entry)
    assert f"`{entry.splits['test'].sha256[:12]}`" in text
    for way in ("stages.hydrate burgers1d_subset_v1", f"dvc pull artifacts/{entry.archive.file}", "dvc get URL"):
        assert way in text
    assert "## Get it" not in written(manifest)
    code = text.split("```python\n")[1].split("```")[0]
    assert set(re.findall(r"data\.(\w+)\(", code)) <= set(dir(Published))


def test_files_are_official_by_name_and_size_and_sample_where_a_solver_writes(manifest, params):
    knobs = dataset_params(params, "burgers1d")
    published = {file["name"]: file["size"] for file in manifest["source"]["files"]}
    assert cards.origin_of(manifest, knobs, params, published) == "Official"
    other = {name: size + 1 for name, size in published.items()}
    assert cards.origin_of(manifest, knobs, params, other) == "Sample"
    moved = knobs.model_copy(update={"convert": knobs.convert.model_copy(update={"root": "data/elsewhere"})})
    assert cards.origin_of(manifest, moved, params, other) is None
    assert "neither PDEBench's published files nor our sample" in written(manifest, None)


def test_a_card_is_markdown_that_a_forge_renders_with_its_tables(manifest):
    html = MarkdownIt("commonmark", {"html": False}).enable("table").render(written(manifest))
    assert html.count("<h1>") == 1
    assert html.count("<table>") == 5  # facts, parameters, channels, splits, raw files
    assert "|" not in html.replace("|·|", "").replace("</code>|<code>", "")


def test_a_part_without_a_head_is_a_sentence(tmp_path):
    (tmp_path / "odd.md").write_text("no head\n")
    with pytest.raises(UpsDataError, match=r"odd\.md: expected a head of title and folder between two lines of ---"):
        cards.read_part(tmp_path / "odd.md")


def test_the_stage_writes_equal_bytes_for_equal_data(manifest, tmp_path):
    from ups_data.files import write_json

    for out in ("one", "two"):
        write_json(tmp_path / "data" / "burgers1d_manifest.json", manifest)
        assert cards_stage.main(["burgers1d", "--data", str(tmp_path / "data"), "--out", str(tmp_path / out)]) == 0
    assert (tmp_path / "one/burgers1d.md").read_bytes() == (tmp_path / "two/burgers1d.md").read_bytes()
