"""The report in a real browser, without a network: it opens, draws, and holds what it must."""

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Locator, Page, sync_playwright
from support.project_copy import Project

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.browser,
    pytest.mark.timeout(900),
]

FIGURES = {
    "Accuracy by length",
    "Effective length",
    "Depth by length: passkey",
    "Depth by length: niah",
    "Prefill time and cache by length",
    "Memory over time",
    "Density by layer",
    "Accuracy by measured density",
    "Training curves",
    "Training speed and memory",
    "Accuracy by depth before and after fine-tuning",
}
FORMATS = {"interactive", "PNG", "SVG"}
HELD = [
    *("summary.csv", "needles.csv", "comparison.csv", "comparison_speed.csv"),
    *("effective_length.csv", "mean_scores.csv"),
    *("experiment.yaml", "software.csv", "plan.csv", "tables.html"),
]

# Colours of an image, each channel in eight steps, that at least ten of its pixels have.
COLOURS = """image => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
    const context = canvas.getContext("2d");
    context.drawImage(image, 0, 0);
    const {data} = context.getImageData(0, 0, canvas.width, canvas.height);
    const pixels = new Map();
    for (let i = 0; i < data.length; i += 4) {
        if (data[i + 3] < 128) continue;
        const colour = [data[i] >> 5, data[i + 1] >> 5, data[i + 2] >> 5].join();
        pixels.set(colour, (pixels.get(colour) ?? 0) + 1);
    }
    return [...pixels.values()].filter(n => n >= 10).length;
}"""


@pytest.fixture(scope="module")
def trouble() -> list[str]:
    """Errors of the page, and what it asked the network for."""
    return []


@pytest.fixture(scope="module")
def page(finished: Project, trouble: list[str]) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or "/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu"],
        )
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("console", lambda m: trouble.append(m.text) if m.type == "error" else None)
        page.on("request", lambda request: trouble.extend(_outside(request.url)))
        page.goto((finished.root / "report.html").as_uri())
        yield page
        browser.close()


def _outside(url: str) -> list[str]:
    return [url] if urlsplit(url).scheme not in ("file", "data", "blob") else []


def open_category(page: Page, name: str) -> Locator:
    """Go to a category from wherever the page is; its rows."""
    page.locator("nav nav a").first.click()
    page.locator("nav li").get_by_role("link", name=name, exact=True).click()
    page.locator("tbody tr").first.wait_for()
    return page.locator("tbody tr")


def test_opens_on_what_the_experiment_is(page: Page):
    text = page.locator(".document").inner_text()
    assert "needlework: small." in text
    assert "dense, random, sketchwalk, seer, infini" in text
    assert "256 tokens, on passkey, niah" in text


def test_every_figure_draws(page: Page, trouble: list[str], tmp_path: Path):
    rows = open_category(page, "Figures")
    drawn = set()
    for i in range(rows.count()):
        figure, form = (cell.strip() for cell in rows.nth(i).inner_text().split("\t")[:2])
        rows.nth(i).locator("a[iconname=eye]").click()
        if form == "interactive":
            chart = page.frame_locator("iframe").locator("svg.marks")
            chart.wait_for()
            marks = chart.locator("[role=graphics-symbol], .mark-line path, .mark-symbol path")
            assert marks.count() >= 4, f"{figure}: {marks.count()} marks"
            box = chart.bounding_box()
            assert min(box["width"], box["height"]) > 100, f"{figure}: {box}"
            assert box["x"] + box["width"] <= 1400, f"{figure} is cut at the right: {box}"
        else:
            image = page.locator(f"img[src*='image/{form.lower()}'][src*='filename=']").last
            image.wait_for()
            assert image.evaluate("image => image.decode().then(() => image.complete)")
            assert image.evaluate(COLOURS) >= 4, f"{figure} as {form} is blank"
        page.screenshot(path=tmp_path / f"{i:02}-{form}.png")
        drawn.add((figure, form))
    assert drawn == {(figure, form) for figure in FIGURES for form in FORMATS}
    assert trouble == []


def test_an_interactive_figure_tells_its_numbers(page: Page, tmp_path: Path):
    rows = open_category(page, "Figures")
    row = rows.filter(has_text="Accuracy by length").filter(has_text="interactive")
    row.locator("a[iconname=eye]").click()
    frame = page.frame_locator("iframe")
    frame.locator(".mark-symbol path").first.hover(force=True)  # equal points lie on one another
    tooltip = frame.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    page.screenshot(path=tmp_path / "tooltip.png")
    text = tooltip.inner_text()
    assert "Accuracy (%)" in text
    assert any(system in text for system in ("dense", "random", "sketchwalk", "seer", "infini"))


def test_results_configuration_and_versions_are_inside(page: Page, finished: Project):
    held = page.evaluate("results")
    made = sorted((finished.root / "results/small/figures").rglob("*.*"))
    figures = [file for file in made if file.suffix in (".html", ".svg", ".png")]
    assert len(figures) == len(FIGURES) * len(FORMATS)
    for file in [*figures, *(finished.root / "results/small" / name for name in HELD)]:
        result = held[str(file.relative_to(finished.root))]
        content = base64.b64decode(result["data_uri"].split(";base64,", 1)[1])
        assert content == file.read_bytes(), file


def test_tables_are_read_in_the_report(page: Page):
    rows = open_category(page, "Tables")
    rows.filter(has_text="All tables").locator("a[iconname=eye]").click()
    shown = page.frame_locator("iframe")
    shown.locator("input").fill("sketchwalk niah 256")
    compared = shown.locator("details").filter(has_text="comparison.csv")
    compared.locator("summary").click()
    found = compared.locator("tbody tr:visible")
    assert found.count() == 1
    assert found.inner_text().split("\t")[:4] == ["dense", "sketchwalk", "niah", "256"]


def test_captions_are_filled_in(page: Page):
    rows = open_category(page, "Figures")
    row = rows.filter(has_text="Depth by length: passkey").filter(has_text="PNG")
    row.locator("a[iconname=information-circle]").click()
    assert "samples: 4 answers per system and length" in page.locator("nav").first.inner_text()
    for path, result in page.evaluate("results").items():
        assert result["caption"], f"{path} has no caption"
        assert "{{" not in result["caption"], path
