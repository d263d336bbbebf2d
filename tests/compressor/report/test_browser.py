"""Pages in headless Chromium: on a telephone and on a desk, in light and in dark."""

import shutil

import pytest

from compressor.report import comparison
from compressor.report.html import render

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}

# The contrast of every piece of text with what is behind it, as WCAG 2.1 defines it; the least of them with its text.
CONTRAST = """() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const color = parse(getComputedStyle(node).backgroundColor);
      if (color.length === 3 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  let least = [99, ''];
  for (const node of document.querySelectorAll('main *')) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
    if (!own || node.closest('title')) continue;
    const style = getComputedStyle(node), drawn = node.closest('svg') && node.tagName !== 'svg';
    const pair = [light(parse(drawn ? style.fill : style.color)), light(behind(node))].sort((a, b) => b - a);
    const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
    if (ratio < least[0]) least = [ratio, node.textContent.trim().slice(0, 40)];
  }
  return least;
}"""
CLIPPED = """() => [...document.querySelectorAll('svg')].flatMap(svg => {
  const box = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const own = text.getBoundingClientRect();
    return own.left < box.left - 2 || own.right > box.right + 2 || own.bottom > box.bottom + 2;
  }).map(text => text.textContent);
})"""


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser is installed: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=["run", "bisected", "comparison"])
def page_file(request, make_run, decision, blamed, run_folder, tmp_path):
    path = tmp_path / "page.html"
    if request.param == "run":
        path.write_text(render(make_run(), decision))
    elif request.param == "bisected":
        path.write_text(render(make_run(), decision, blamed))
    else:
        runs = [run_folder(f"run-{number}", size=(100 + 40 * number) << 20, ms=9.0 + number) for number in range(7)]
        path.write_text(comparison.render(comparison.open_runs(runs)))
    return path


@pytest.fixture(
    params=[("light", PHONE), ("dark", PHONE), ("light", DESK), ("dark", DESK)],
    ids=lambda one: f"{one[0]}-{one[1]['width']}",
)
def shown(request, browser, page_file):
    scheme, viewport = request.param
    page = browser.new_page(viewport=viewport, color_scheme=scheme, offline=True)
    page.asked, page.complaints, page.scheme = [], [], scheme
    page.on("request", lambda one: page.asked.append(one.url))
    page.on("console", lambda one: page.complaints.append(one.text))
    page.on("pageerror", lambda one: page.complaints.append(str(one)))
    page.goto(page_file.as_uri())
    yield page
    page.close()


def test_pages_are_readable_everywhere(shown, page_file):
    assert [url for url in shown.asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert shown.complaints == []
    width = shown.evaluate("document.documentElement.scrollWidth")
    assert width <= shown.viewport_size["width"], "the page scrolls sideways"
    assert shown.evaluate(CLIPPED) == []
    ratio, text = shown.evaluate(CONTRAST)
    assert ratio >= 4.5, text
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is (shown.scheme == "light")
    smallest = shown.evaluate("Math.min(...[...document.querySelectorAll('svg text')]"
                              ".filter(one => one.getClientRects().length)"
                              ".map(one => one.getBoundingClientRect().height))")  # fmt: skip
    assert smallest >= 9


def test_the_keyboard_reaches_everything_and_shows_where_it_is(shown):
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.className") == "skip"
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.tagName") == "A"
    assert shown.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    scrolling = shown.evaluate("""() => [...document.querySelectorAll('main *')]
        .filter(one => one.scrollWidth > one.clientWidth + 1 && getComputedStyle(one).overflowX === 'auto')
        .filter(one => one.tabIndex !== 0).length""")
    assert scrolling == 0
