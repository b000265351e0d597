"""The page of two traces in a real browser: no error, plots drawn, tables sorted, light and dark, on a phone."""
# ruff: noqa: E402 (what profiling imports may be missing on a machine that only runs the operators)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

for package in ("jinja2", "matplotlib", "msgspec"):
    pytest.importorskip(package, reason=f"profiling needs {package}: pip install -r requirements/compare.txt")

from matplotlib.image import imread

import browser
from profiling.traces import findings, trace_report

TRACES = Path(__file__).parent / "data" / "traces"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    browser.require()
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def page(profile: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    paths = [TRACES / f"unet-{name}.pt.trace.json.gz" for name in ("native", "my_ops")]
    return trace_report.write(findings.analyze(paths), tmp_path_factory.mktemp("page"))


LOOK = """{
  drawn: [...document.querySelectorAll("figure svg")].map((svg) => ({
    box: svg.getBoundingClientRect(),
    marks: [...svg.querySelectorAll("path, use, text")].filter((e) => e.getBoundingClientRect().width > 0).length,
    text: svg.textContent,
  })),
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  width: document.documentElement.clientWidth,
  title: document.title,
}"""

SORT = """[...document.querySelectorAll("table")].filter((t) => t.textContent.includes("speed-up")).map((table) => {
  const heads = [...table.tHead.rows[0].cells];
  const click = (name) => heads.find((h) => h.textContent === name).querySelector("button").click();
  const column = (name) => [...table.tBodies[0].rows].map((r) => r.cells[heads.findIndex((h) => h.textContent === name)]
    .textContent);
  const found = {};
  click("us, native"); found.falling = column("us, native");
  click("us, native"); found.rising = column("us, native");
  found.marked = heads.filter((h) => h.hasAttribute("aria-sort")).map((h) => [h.textContent, h.ariaSort]);
  click("layer"); found.layers = column("layer");
  return found;
})[0]"""


def test_plots_are_drawn_and_the_console_is_silent(page: Path, profile: Path) -> None:
    found, console = browser.ask(page, LOOK, profile)
    assert console == [] and found["title"] == "Batch norm in unet"
    assert len(found["drawn"]) == 4
    for plot in found["drawn"]:
        assert plot["box"]["width"] > 600 and plot["box"]["height"] > 100 and plot["marks"] > 20
    timeline, layers, roofline, memory = (plot["text"] for plot in found["drawn"])
    assert "One step, side by side" in timeline and "down.0.1" in layers and "Roofline" in roofline and "MiB" in memory


def test_a_script_with_an_error_is_seen(page: Path, profile: Path) -> None:
    """Else the silence above would mean nothing."""
    _, console = browser.ask(page, "nothing.here", profile)
    assert len(console) == 1 and "ReferenceError" in console[0]


def test_a_click_on_a_head_sorts(page: Path, profile: Path) -> None:
    found, console = browser.ask(page, SORT, profile)
    falling = [float(text) for text in found["falling"]]
    assert console == [] and len(falling) == 28
    assert falling == sorted(falling, reverse=True) and found["rising"] == found["falling"][::-1]
    assert found["marked"] == [["us, native", "ascending"]]
    assert found["layers"] == sorted(found["layers"])


def test_on_a_phone_only_tables_and_plots_scroll_sideways(page: Path, profile: Path) -> None:
    found, _ = browser.ask(page, LOOK, profile, width=500)  # no window of a browser is narrower
    assert found["width"] <= 500 and found["wide"] == 0
    assert all(plot["box"]["width"] >= 600 for plot in found["drawn"]), "plots keep a readable size"


def brightness(path: Path) -> tuple[float, int]:
    """Of the page's margin, and how many colours the picture has."""
    pixels: Any = imread(path)[..., :3]
    colours = {tuple(pixel) for row in pixels[::9] for pixel in row[::9]}
    return float(pixels[:, 2].mean()), len(colours)


def test_light_and_dark(page: Path, profile: Path, tmp_path: Path) -> None:
    light, colours = brightness(browser.picture(page, tmp_path / "light.png", profile, width=1000))
    assert light > 0.9 and colours > 50
    dark, colours = brightness(browser.picture(page, tmp_path / "dark.png", profile, width=1000, dark=True))
    assert dark < 0.2 and colours > 50
