"""The report page in a real browser, opened from disk: it works, is quiet, and asks no network for anything.

Needs Playwright and a Chromium: any on the PATH, or Playwright's own (`playwright install chromium`). Skipped where
there is none, unless REQUIRE_BROWSER is set.
"""

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from gaternet_jax.analysis.statistics import compute_statistics
from tests.analysis.test_report import NASTY, observe, write

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP, PHONE, SMALL_PHONE = (1280, 900), (390, 844), (360, 740)
SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="40" height="20">
<style>rect { fill: red }</style><rect width="40" height="20"/></svg>"""


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            own = playwright.chromium.executable_path
            path = next((found for name in BROWSERS if (found := shutil.which(name))), own)
            if not Path(path).exists():
                raise ImportError("no Chromium on the PATH, and none of Playwright's")
            opened = playwright.chromium.launch(executable_path=path)
            yield opened
            opened.close()
    except ImportError as error:
        if os.environ.get("REQUIRE_BROWSER"):
            raise
        pytest.skip(f"no browser: {error}")


@pytest.fixture
def visit(browser):
    """A function: opens a file in a window; complaints, and requests to a network, fail the test at its end."""
    complaints, contexts = [], []

    def guard(route):
        if not route.request.url.startswith(("file:", "data:")):
            complaints.append(route.request.url)
        route.continue_()

    def visit(path, size=DESKTOP, **options):
        width, height = size
        context = browser.new_context(viewport={"width": width, "height": height}, reduced_motion="reduce", **options)
        contexts.append(context)
        context.set_default_timeout(4000)
        context.route("**/*", guard)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto(path.as_uri())
        page.wait_for_selector("html[data-ready]")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


@pytest.fixture(scope="module")
def observations():
    return observe(images=60, widths=(16, 80, 7), names=NASTY)


@pytest.fixture(scope="module")
def report(observations, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    (folder / "figure.svg").write_text(SVG)
    ablation = {"gates": [3], "accuracy": [0.9, 0.8, 0.7], "shut": [[0.4, 0.8, 0.7]], "open": [[0.9, 0.8, 0.75]]}
    path = folder / "a report.html"
    write(path, observations, figures=[("Depth", "By unit.", folder / "figure.svg")], ablation=ablation)
    return path


def choose(page, mode):
    page.locator(f"input[name=mode][value={mode}]").check(force=True)


def pictures(page):
    """What the map shows, row by row."""
    return page.eval_on_selector_all("#map canvas", "rows => rows.map((row) => row.toDataURL())")


def click_cell(page, row, number):
    """Clicks a filter's cell; cells are 15 CSS pixels apart here, as many to a line as fit."""
    cells = page.locator("#map canvas").nth(row)
    cells.scroll_into_view_if_needed()
    per_line = round((cells.bounding_box()["width"] - 2) / 15)
    cells.click(position={"x": 1 + 15 * (number % per_line) + 6, "y": 1 + 15 * (number // per_line) + 6})


def test_nothing_is_wider_than_the_window(visit, report):
    page = visit(report, PHONE)
    for width, height in (PHONE, SMALL_PHONE, DESKTOP):
        page.set_viewport_size({"width": width, "height": height})
        for mode in ("image", "images", "classes"):
            choose(page, mode)
            assert page.evaluate("document.documentElement.scrollWidth") <= width, mode


def test_picking_an_image_lights_its_filters(visit, report, observations):
    page = visit(report)
    before = pictures(page)
    page.locator("#thumbnails button[aria-pressed=false]").nth(4).click()
    pressed = page.locator("#thumbnails button[aria-pressed=true]")
    image = int(re.search(r"image (\d+)", pressed.get_attribute("aria-label"))[1])
    assert sum(old != new for old, new in zip(before, pictures(page), strict=True)) >= 2
    gates = observations.gates
    assert page.locator("#open-count").inner_text() == str(gates[image].sum())
    assert f"{gates[image].sum()} of 103 filters open" in page.locator("#live").text_content()
    # The nearest images are the nearest, with their distances.
    distances = np.sort((gates != gates[image]).sum(1))[1:9]
    captions = page.locator("#differences .caption").all_inner_texts()
    assert [int(text.split()[0]) for text in captions] == distances.tolist()
    # Unusual filters are those that the class's rates say.
    rates = compute_statistics(observations).open_rate_by_class[observations.labels[image]]
    opened = np.round(rates * 255) / 255 <= 0.2
    titles = page.locator("#differences .pair h4").all_inner_texts()
    assert titles[0].endswith(f"({(gates[image] & opened).sum()})")
    page.wait_for_selector(".portrait[data-drawn]")


def test_picking_a_filter_shows_its_images_and_classes(visit, report, observations):
    page = visit(report)
    click_cell(page, 1, 70)
    gate = 16 + 70
    assert page.locator("#filter-title").inner_text() == "Filter 70 of stage1.block1.conv2"
    rate = observations.gates[:, gate].mean()
    assert f"{100 * rate:.0f} % of images" in page.locator(".filter-facts").inner_text()
    statistics = compute_statistics(observations)
    shown = [int(text.split()[0]) for text in page.locator(".histogram td:last-child").all_inner_texts()]
    np.testing.assert_allclose(shown, 100 * statistics.open_rate_by_class[:, gate], atol=1)
    for state, is_open in (("open", True), ("closed", False)):
        labels = page.eval_on_selector_all(
            f"[data-examples={state}] button", "all => all.map((button) => button.getAttribute('aria-label'))"
        )
        images = [int(re.search(r"image (\d+)", label)[1]) for label in labels]
        assert images
        assert (observations.gates[images, gate] == is_open).all()
    assert page.locator(".ablation").count() == 0
    page.locator("#site-choice").select_option(index=0)
    page.locator("#filter-choice").fill("3")
    page.locator("#filter-choice").press("Enter")
    assert "\N{MINUS SIGN}50.0" in page.locator(".ablation").inner_text()


def test_two_images_and_two_classes_are_compared(visit, report, observations):
    page = visit(report)
    choose(page, "images")
    page.locator("#thumbnails button").nth(3).click()
    page.locator("input[name=slot][value=b]").check(force=True)
    page.locator("#thumbnails button").nth(7).click()
    names = [page.locator(f"#thumbnails [data-slot={slot}]").get_attribute("aria-label") for slot in "AB"]
    a, b = (int(re.search(r"image (\d+)", name)[1]) for name in names)
    differ = (observations.gates[a] != observations.gates[b]).sum()
    assert page.locator(".verdict").inner_text() == f"{differ} filters of 103 differ"
    images = pictures(page)

    choose(page, "classes")
    page.locator("#class-a").select_option(index=2)
    page.locator("#class-b").select_option(index=0)
    assert pictures(page) != images
    rates = np.round(compute_statistics(observations).open_rate_by_class * 255) / 255
    differ = (np.abs(rates[2] - rates[0]) >= 0.25).sum()
    assert page.locator(".verdict").inner_text().startswith(f"{differ} filters open more often for one")
    assert NASTY[2] in page.locator("#subject").inner_text()


def test_keys_reach_images_and_filters(visit, report):
    page = visit(report)

    def tab_to(selector):
        for _ in range(60):
            page.keyboard.press("Tab")
            if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"the tab key does not reach {selector}")

    tab_to("#thumbnails button")
    before = page.locator("#subject").inner_text()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown", "Enter"):
        page.keyboard.press(key)
    assert page.locator("#subject").inner_text() != before
    focused = page.evaluate("document.activeElement.getAttribute('aria-pressed')")
    assert focused == "true"

    tab_to("#map canvas")
    told = page.evaluate("document.activeElement.getAttribute('aria-valuetext')")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-valuetext')") != told
    assert page.locator("#tip").is_visible()
    page.keyboard.press("Enter")
    assert page.locator("#filter-title").inner_text().startswith("Filter 1 of ")


def test_the_dark_theme_is_remembered(visit, report):
    page = visit(report, color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light, map_ = page.evaluate(background), pictures(page)
    page.get_by_role("button", name="Switch to dark colours").click()
    dark = page.evaluate(background)
    assert dark != light
    assert pictures(page) != map_
    page.reload()
    page.wait_for_selector("html[data-ready]")
    assert page.evaluate(background) == dark
    assert visit(report, color_scheme="dark").evaluate(background) == dark


def test_names_are_shown_as_they_are_and_everything_has_a_name(visit, report):
    page = visit(report)
    options = page.locator("#class-choice option").all_inner_texts()
    assert options[1:] == [f"{name} (20)" for name in NASTY]
    nameless = page.eval_on_selector_all(
        "button, [role=slider]",
        "all => all.filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim())).length",
    )
    assert nameless == 0
    assert page.eval_on_selector("figure img", "image => image.decode().then(() => image.naturalWidth)") == 40


@pytest.mark.parametrize("kind", ["unknown", "constant", "one image"])
def test_unusual_models_and_data(visit, tmp_path, kind):
    observations = observe(images=1 if kind == "one image" else 20, classes=1, unknown=20 if kind == "unknown" else 0)
    if kind == "constant":
        observations.gates[:] = observations.gates[0]
    page = visit(tmp_path / "report.html") if write(tmp_path / "report.html", observations) else None
    for mode in ("images", "classes", "image"):
        choose(page, mode)
    click_cell(page, 1, 2)
    expected = "unknown class" if kind == "unknown" else "class 0"
    assert page.locator(".subject-name").inner_text().startswith(expected)
    assert page.locator("#glance").is_visible() == (kind == "unknown")
