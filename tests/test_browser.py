"""The pages in a headless Chromium: no errors, no requests, figures that can be seen, tables that sort, phone, print.

Screenshots go to pytest's temporary folder, or to the folder that NCOPS_SCREENSHOTS names; their paths are printed.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import chromium
import pytest
import report_runs
import torch

import ncops
from ncops.report import compare
from ncops.report.page import render
from ncops.report.page.lens import render_lens

BROWSER = chromium.find()
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt-get install chromium, or NCOPS_CHROMIUM=path)"),
]
HOSTILE = "<img src=x onerror=alert(1)>\" onload='alert(1)' $x_"
PHONE, DESK = 375, 1280
PAPER = round((210 - 28) / 25.4 * 96)  # CSS pixels of A4 within the margins


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Files of a comparison and of a single report."""
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("pages")
    runs = report_runs.write_runs(folder / "runs", steps=(0, 100, 1000, 20000))
    compare(runs).to_html(folder / "comparison.html")
    report, details = report_runs.measured(1.0)
    (folder / "report.html").write_text(render(report, details=details, title="One run"), encoding="utf-8")
    many = compare([report] * 12, labels=[f"{HOSTILE}-{100 * i}" for i in range(12)])
    many.to_html(folder / "many.html", title=HOSTILE)
    (folder / "lens.html").write_text(render_lens(lens_document(), title="One lens"), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in ("comparison", "report", "many", "lens")}


def lens_document():
    """Of a random model, whose tokens have hostile names."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 90, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 9}
    config = transformers.LlamaConfig(**sizes, num_attention_heads=2, initializer_range=0.4)
    generator = torch.Generator().manual_seed(0)
    found = ncops.lens(transformers.LlamaForCausalLM(config), torch.randint(0, 90, (2, 40), generator=generator))
    return found._replace(words={i: HOSTILE if i % 7 == 0 else f" word{i}" for i in range(90)}).document()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    running = chromium.Chromium(BROWSER, tmp_path_factory.mktemp("chromium") / "profile")
    yield running
    running.close()


@pytest.fixture
def keep(tmp_path):
    """Name -> the path that a picture of that name goes to."""
    folder = Path(os.environ.get("NCOPS_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)

    def path(name: str) -> Path:
        print(f"\npicture: {folder / name}")
        return folder / name

    return path


BOXES = """[...document.querySelectorAll("figure")].map(f => {
  const box = f.querySelector("svg").getBoundingClientRect(), text = [...f.querySelectorAll("svg text")];
  return {title: f.querySelector("h3").textContent, width: box.width, height: box.height,
          ink: [...f.querySelectorAll("svg path, svg use")].filter(e => e.getBoundingClientRect().width > 0).length,
          smallest: Math.min(...text.map(t =>
            parseFloat(getComputedStyle(t).fontSize) * Math.hypot(t.getScreenCTM().c, t.getScreenCTM().d))),
          label: f.querySelector("svg").getAttribute("aria-label"), role: f.querySelector("svg").getAttribute("role"),
          outside: text.filter(t => t.getBoundingClientRect().right > f.getBoundingClientRect().right + 1).length};
})"""
# Elements that stick out of a page `width` wide and are not inside a box that scrolls.
WIDE = """(width => [...document.body.querySelectorAll("*")].filter(e =>
  !e.closest("svg svg, svg *") && e.getBoundingClientRect().right > width + 1 &&
  ![...ancestors(e)].some(a => getComputedStyle(a).overflowX !== "visible")).map(e => e.outerHTML.slice(0, 120)))"""
ANCESTORS = "function* ancestors(e) { while ((e = e.parentElement)) yield e; }; 0"


@pytest.mark.parametrize("name", ["comparison", "report", "lens"])
@pytest.mark.parametrize(("width", "dark"), [(DESK, False), (DESK, True), (PHONE, False)])
def test_loads_and_shows(browser, pages, keep, name, width, dark):
    page = chromium.Page(browser, pages[name], width=width, dark=dark)
    boxes = page.run(BOXES)
    assert len(boxes) == {"comparison": 6 + 2 + 2 + 8, "report": 8 + 2 + 2, "lens": 6 + 3 + 3}[name]
    for box in boxes:
        assert box["width"] > 200 and box["height"] > 120 and box["ink"] > 5, box
        assert box["smallest"] >= 9, box  # CSS pixels: the axis labels can be read without zooming
        assert box["role"] == "img" and box["label"].startswith(box["title"]) and box["outside"] == 0, box
    page.run(ANCESTORS)
    assert page.run("document.documentElement.scrollWidth") <= width
    assert page.run(f"{WIDE}({width})") == []
    colours = page.run(
        '["body", ".card, .scroll", "figure"].map(s => getComputedStyle(document.querySelector(s)).backgroundColor)'
    )
    assert all((sum(map(int, re.findall(r"\d+", colour)[:3])) < 200) == dark for colour in colours), colours
    picture = page.screenshot(keep(f"{name}-{width}-{'dark' if dark else 'light'}.png"))
    assert picture.stat().st_size > 20_000
    assert page.problems == []
    assert page.requests == [pages[name].as_uri()]


STRICT = "default-src 'none'; script-src 'none'; style-src 'none'"
BLACK = """[...document.querySelectorAll("figure svg path, figure svg use, figure svg text")].filter(e =>
  !e.closest("defs") && [getComputedStyle(e).stroke, getComputedStyle(e).fill].every(c => c === "none" ||
  c === "rgb(0, 0, 0)") && getComputedStyle(e).opacity > 0 &&
  [getComputedStyle(e).stroke, getComputedStyle(e).fill].some(c => c !== "none")).length"""


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["comparison", "report"])
def test_figures_under_a_policy_that_lets_no_style_in(browser, pages, keep, tmp_path, name, dark):
    text = pages[name].read_text(encoding="utf-8")
    strict = tmp_path / f"{name}.html"
    strict.write_text(re.sub(r'(Policy" content=")[^"]*', rf"\g<1>{STRICT}", text), encoding="utf-8")
    page = chromium.Page(browser, strict, width=DESK, dark=dark)
    assert page.run('getComputedStyle(document.querySelector(".card")).borderRadius') == "0px"  # no sheet
    boxes = page.run(BOXES)
    assert len(boxes) >= 12 and all(box["width"] > 200 and box["height"] > 120 for box in boxes)
    assert page.run(BLACK) == 0
    colours = page.run('[...document.querySelectorAll("figure svg path")].map(e => getComputedStyle(e).stroke)')
    assert len(set(colours)) > 4, set(colours)
    fills = page.run('[...document.querySelectorAll("figure svg text")].map(e => getComputedStyle(e).fill)')
    assert "rgb(31, 36, 48)" in fills  # the ink of a light page, on which it then is
    assert page.run("getComputedStyle(document.documentElement).colorScheme") == "normal"
    page.screenshot(keep(f"{name}-strict-{'dark' if dark else 'light'}.png"))


def test_the_pages_own_policy_lets_in_its_sheet_and_its_script_only(browser, pages, tmp_path):
    text = pages["report"].read_text(encoding="utf-8")
    assert "unsafe" not in text and not re.search(r"<[^>]*\sstyle=", text)
    other = tmp_path / "other.html"
    planted = "<style>h1{color:rgb(1,2,3)}</style><script>document.title = 'planted'</script>"
    other.write_text(text.replace("<main>", f"{planted}<main>"), encoding="utf-8")
    page = chromium.Page(browser, other)
    assert page.run("document.title") == "One run"
    assert page.run('getComputedStyle(document.querySelector("h1")).color') != "rgb(1, 2, 3)"
    assert page.run('getComputedStyle(document.querySelector(".card")).borderRadius') == "12px"


def column(page, table: str, index: int) -> list[str]:
    return page.run(f'[...document.querySelectorAll("#{table} tbody tr")].map(r => r.cells[{index}].textContent)')


def press(page, table: str, index: int) -> None:
    """A real click in the middle of a heading."""
    button = f'document.querySelectorAll("#{table} thead button")[{index}]'
    page.run(f'{button}.scrollIntoView({{block: "center", inline: "center"}})')
    box = page.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({button}.getBoundingClientRect())")
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)


def test_tables_sort_and_filter(browser, pages):
    page = chromium.Page(browser, pages["comparison"])
    heads = page.run('[...document.querySelectorAll("#runs thead th")].map(h => h.textContent)')
    assert heads[:2] == ["run", "step"] and len(heads) >= 12
    assert column(page, "runs", 1) == ["0", "100", "1,000", "20,000"]
    press(page, "runs", 1)
    assert column(page, "runs", 1) == ["20,000", "1,000", "100", "0"]  # as numbers: not 20,000 after 1,000
    sort = '[...document.querySelectorAll("#runs thead th")].map(h => h.getAttribute("aria-sort"))'
    assert page.run(sort)[:3] == [None, "descending", None]
    nll = heads.index("NLL (nats)")
    press(page, "runs", nll)
    values = [float(v) for v in column(page, "runs", nll)]
    assert values == sorted(values, reverse=True) and len(set(values)) == 4
    press(page, "runs", nll)
    assert [float(v) for v in column(page, "runs", nll)] == values[::-1]
    press(page, "classes", 0)
    names = column(page, "classes", 0)
    press(page, "classes", 0)
    assert column(page, "classes", 0) == names[::-1] != names
    page.run('(i => { i.value = "w7"; i.dispatchEvent(new Event("input")); })(document.querySelector("[data-filter]"))')
    shown = page.run('[...document.querySelectorAll("#classes tbody tr")].filter(r => !r.hidden).length')
    assert 0 < shown < len(names)
    assert page.problems == []


def test_hostile_names_stay_text(browser, pages, keep):
    page = chromium.Page(browser, pages["many"], width=PHONE)
    assert page.run("document.title").startswith("<img src=x")
    assert page.run('document.querySelectorAll("img, [onerror], [onload]").length') == 0
    assert page.run("document.documentElement.scrollWidth") <= PHONE
    assert page.run('document.querySelectorAll("#runs tbody tr").length') == 12
    page.screenshot(keep("many-375.png"))
    assert page.problems == [] and page.requests == [pages["many"].as_uri()]


def test_a_heat_map_tells_its_cells(browser, pages, keep):
    page = chromium.Page(browser, pages["lens"], width=PHONE)
    assert page.run('document.querySelectorAll("img, [onerror], [onload]").length') == 0
    colours = 'new Set([...document.querySelectorAll(".heat td")].map(c => getComputedStyle(c).backgroundColor)).size'
    seen = []
    for name in ("entropy", "kl", "logprob"):
        page.run(f'document.querySelector("label[for=by-{name}]").click()')
        assert page.run(colours) > 5
        shown = '[...document.querySelectorAll(".scale")].filter(e => e.checkVisibility()).map(e => e.textContent)'
        seen += page.run(shown)
    assert [text.partition(":")[0].split()[0] for text in seen] == ["Entropy", "KL", "Log-probability"]
    told = 'document.querySelector(".maps output")'
    assert page.run(f"{told}.checkVisibility()") is False
    cell = 'document.querySelectorAll("[data-heat] tbody")[1].rows[3].cells[4]'  # layer 9 is the first row
    page.run(f'{cell}.scrollIntoView({{block: "center", inline: "center"}})')
    x, y = page.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({cell}.getBoundingClientRect())")
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert page.run(f"{told}.textContent").startswith("layer 6, position 19, after")
    page.screenshot(keep("lens-cell.png"))
    for key, words in (("ArrowRight", "layer 6, position 20"), ("ArrowDown", "layer 5, position 20"),
                       ("ArrowUp", "layer 6, position 20"), ("ArrowLeft", "layer 6, position 19")):  # fmt: skip
        page.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert page.run(f"{told}.textContent").startswith(words), key
    assert page.problems == []


# Headings of more lines than words.
BROKEN_WORDS = """[...document.querySelectorAll(".scroll:not(.many) thead button")].filter(b => {
  const range = document.createRange();
  range.selectNodeContents(b);
  const lines = new Set([...range.getClientRects()].map(r => Math.round(r.top))).size;
  return lines > b.textContent.trim().split(/[\\s-]+/).length;
}).map(b => b.textContent)"""
# Headings of a table turned on its side that stand lower or higher than the cells they are of.
BESIDE_THEIR_ROWS = """[...document.querySelectorAll(".turn table")].flatMap(table => {
  const tops = row => [...row.cells].map(cell => cell.getBoundingClientRect().top), heads = tops(table.tHead.rows[0]);
  return [...table.tBodies[0].rows].flatMap(row => tops(row).filter((top, i) => Math.abs(top - heads[i]) > 1));
})"""


@pytest.mark.parametrize("name", ["comparison", "report", "many", "lens"])
def test_prints(browser, pages, keep, name):
    page = chromium.Page(browser, pages[name], width=PAPER, dark=True)
    page.run('document.querySelectorAll(".tall td code").forEach(e => e.textContent = "representation")')
    data = page.pdf(keep(f"{name}.pdf")).read_bytes()
    sheets = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", data)
    assert data.startswith(b"%PDF") and len(sheets) >= 3
    assert {(round(float(w)), round(float(h))) for w, h in sheets} == {(595, 842)}  # A4 in points
    assert page.run('[...document.querySelectorAll("details")].every(d => d.open)')  # opened by beforeprint
    page.media("print", dark=True)
    page.run(ANCESTORS)
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run('[...document.querySelectorAll("input")].every(e => getComputedStyle(e).display === "none")')
    page.screenshot(keep(f"{name}-print.png"))
    assert page.run(f"{WIDE}({PAPER})") == []  # nothing scrolls on paper, so nothing may stick out
    assert page.run('[...document.querySelectorAll(".scroll")].every(e => e.scrollWidth <= e.clientWidth + 1)')
    assert page.run('[...document.querySelectorAll("details table")].every(e => e.getBoundingClientRect().height > 20)')
    assert page.run(BROKEN_WORDS) == []
    # A button's text is not painted where a heading is repeated on the next sheet.
    assert page.run('[...document.querySelectorAll("th button")].every(e => getComputedStyle(e).display == "contents")')
    assert page.run(BESIDE_THEIR_ROWS) == []
    assert page.problems == []


def test_a_row_opens_to_its_explanation(browser, pages, keep):
    page = chromium.Page(browser, pages["report"], width=PHONE)
    row = 'document.getElementById("about-nc1_pinv")'
    assert page.run(f"{row}.checkVisibility()") is False
    summary = f'{row}.closest("details").querySelector("summary")'
    page.run(f'{summary}.scrollIntoView({{block: "center"}})')
    box = page.run(f"(b => [b.x + b.width / 2, b.y + b.height / 2])({summary}.getBoundingClientRect())")
    for kind in ("mousePressed", "mouseReleased"):
        page.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
    assert page.run(f"{row}.checkVisibility()") is True
    left, right = page.run(f"(b => [b.left, b.right])({row}.getBoundingClientRect())")
    assert 0 <= left < right <= PHONE  # without a scroll to the side
    assert page.run(f'{row}.querySelector("dd").getBoundingClientRect().width') > 100
    page.screenshot(keep("about-375.png"))
    page.run('document.querySelector(".card a[href=\'#about-nc4_agreement\']").click()')
    assert page.run('document.getElementById("about-nc4_agreement").checkVisibility()') is True
    assert page.problems == [] and page.requests == [pages["report"].as_uri()]
