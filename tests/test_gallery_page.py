"""The gallery in a real browser: opened from disk, moved, read on a phone, in the dark, on paper, by keyboard."""

import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests import gallery_cases

sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright (requirements-dev.txt)")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: `apt-get install chromium`")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
LUMINANCE = """colour => {
    const linear = v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(v => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}"""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    root = tmp_path_factory.mktemp("page")
    gallery_cases.write_data(root)
    gallery_cases.write_reports(root)
    return gallery_cases.write_page(root).as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """Open the page in a fresh window; it stands still unless asked otherwise. Nothing may fail or be loaded."""
    contexts, problems = [], []

    def visit(**options):
        options = {"reduced_motion": "reduce", **options}
        context = browser.new_context(viewport={"width": 1200, "height": 800}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda r: problems.append(r.url) if not r.url.startswith(("data:", address)) else None)
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    assert problems == []


def rollouts(page, task):
    return page.locator(f"#{task} .player:not(.auto)")


def test_the_page_opens_from_disk_without_an_error_or_a_request(visit):
    page = visit()
    assert page.title() == "ups-data: the gallery"
    assert page.locator("article").count() == len(gallery_cases.TASKS) + 1
    broken = page.evaluate("[...document.images].filter(i => !(i.complete && i.naturalWidth)).length")
    assert (page.locator("img").count() > 10, broken) == (True, 0)


def test_the_slider_moves_the_film_to_its_frame(visit):
    player = rollouts(visit(), "navier_stokes2d")
    slider, film = player.get_by_role("slider"), player.locator(".film img").first
    slider.fill("0")
    first = film.screenshot()
    for frame in (1, gallery_cases.STEPS - 1):
        slider.fill(str(frame))
        moved = film.evaluate("film => new DOMMatrix(getComputedStyle(film).transform).f / film.offsetHeight")
        step = 8 + 2  # points a side, and the rim
        assert moved == pytest.approx(-(frame * step + 1) / (gallery_cases.STEPS * step), abs=1e-3)
    assert film.screenshot() != first


def test_the_slider_moves_curves_cursors_and_its_words(visit):
    player = rollouts(visit(), "advection1d")
    slider, seen = player.get_by_role("slider"), []
    for frame in ("0", "3"):
        slider.fill(frame)
        curve = player.locator("path.operator").first.get_attribute("d")
        seen.append(
            (
                curve,
                player.locator(".cursor").first.evaluate("c => c.style.left"),
                player.locator("output").inner_text(),
            )
        )
    (one, left, told), (other, right, later) = seen
    assert one != other
    assert (left, right) == ("0%", "75%")
    assert told.startswith("t = ")
    assert told != later == slider.get_attribute("aria-valuetext")


def test_curves_are_drawn_where_the_numbers_are(visit):
    """The first frame drawn by the script is the one that stands in the page without it."""
    page, still = visit(), visit(java_script_enabled=False)
    slider = page.locator("#advection1d .auto").get_by_role("slider")
    slider.fill("0")
    paths = [p.locator("#advection1d .auto path.shade").all() for p in (page, still)]
    drawn, stood = ([[float(v) for v in re.findall(r"[\d.]+", path.get_attribute("d"))] for path in ps] for ps in paths)
    assert len(drawn) == 2
    for one, other in zip(drawn, stood, strict=True):
        assert one == pytest.approx(other, abs=0.11)


def test_the_keyboard_moves_the_slider(visit):
    page = visit()
    slider = rollouts(page, "darcy2d_mesh").get_by_role("slider")
    slider.focus()
    before = slider.input_value()
    page.keyboard.press("ArrowRight")
    assert int(slider.input_value()) == int(before) + 1
    page.keyboard.press("Home")
    assert slider.input_value() == "0"


def test_particles_and_their_distances_from_the_truth_move(visit):
    player = rollouts(visit(), "particles_advect")
    player.get_by_role("slider").fill("2")
    counts = [
        player.locator(f"path.{look}").first.get_attribute("d").count("M") for look in ("truth", "operator", "links")
    ]
    assert counts[0] == counts[1] >= counts[2] > 0


def test_play_runs_until_it_is_stopped(visit):
    page = visit()
    player = rollouts(page, "advection1d")
    player.scroll_into_view_if_needed()
    button, slider = player.get_by_role("button"), player.get_by_role("slider")
    slider.fill("0")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    page.wait_for_function("slider => Number(slider.value) >= 2", arg=slider.element_handle())
    button.click()
    assert button.get_attribute("aria-pressed") == "false"


def test_a_trajectory_plays_by_itself_unless_motion_is_unwanted(visit):
    for motion, pressed in (("no-preference", "true"), ("reduce", "false")):
        page = visit(reduced_motion=motion)
        player = page.locator("#advection1d .auto")
        player.scroll_into_view_if_needed()
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        if pressed == "true":
            page.wait_for_selector("#advection1d .auto button[aria-pressed=true]")
        assert player.get_by_role("button").get_attribute("aria-pressed") == pressed


def test_links_lead_to_what_they_name(visit):
    page = visit()
    hashes = page.evaluate("[...document.querySelectorAll(\"a[href^='#']\")].map(a => a.hash.slice(1))")
    assert set(gallery_cases.TASKS) <= set(hashes)
    assert [name for name in hashes if page.locator(f"[id='{name}']").count() != 1] == []
    page.locator("nav").get_by_text("darcy2d_mesh").click()
    page.wait_for_function("() => Math.abs(document.getElementById('darcy2d_mesh').getBoundingClientRect().top) < 100")
    page.wait_for_selector("nav a[aria-current][href='#darcy2d_mesh']")


def test_a_narrow_screen_scrolls_down_only(visit):
    page = visit()
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    for width in (320, 390, 768):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("[document.documentElement.scrollWidth, innerWidth]") == [width, width]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_the_light_and_in_the_dark(visit, scheme):
    page = visit(color_scheme=scheme)

    def luminance(selector, name):
        colour = page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{name}")
        return page.evaluate(LUMINANCE, colour)

    ground = luminance("body", "backgroundColor")
    assert (ground < 0.05) == (scheme == "dark")
    for selector in ("article p", ".note", ".eyebrow", "figcaption", "nav a"):
        low, high = sorted((ground, luminance(selector, "color")))
        assert (high + 0.05) / (low + 0.05) >= 4.5  # WCAG AA


def test_paper_has_no_controls_and_all_of_every_card(visit):
    page = visit(color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("body").evaluate("b => getComputedStyle(b).backgroundColor") == "rgb(255, 255, 255)"
    assert [page.locator(hidden).first.is_visible() for hidden in ("nav", ".play")] == [False, False]
    assert (
        page.locator("details")
        .first.get_by_text("bibtex", exact=False)
        .or_(page.locator("details pre").first)
        .first.is_visible()
    )
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_everything_has_a_name_for_those_who_do_not_see_it(visit):
    page = visit()
    nameless = page.evaluate(
        """[...document.querySelectorAll('input, button, svg[role=img], article, img')]
            .filter(e => !(e.labels?.[0]?.textContent.trim() || e.getAttribute('aria-label') || e.textContent.trim()
                || e.getAttribute('aria-labelledby') || e.hasAttribute('alt'))).length"""
    )
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
    assert nameless == 0
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_without_scripts_the_page_still_shows_its_pictures_and_words(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("#advection1d .map img").first.is_visible()
    assert page.locator("#advection1d path.shade").count() == 2
    assert page.get_by_text("A shape that travels and does not change").is_visible()


def test_the_page_is_one_file_of_a_few_megabytes(address):
    assert Path(address.removeprefix("file://")).stat().st_size < 2e6
