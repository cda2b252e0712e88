"""The HTML report: one file, no request, safe with hostile token texts, the same bytes every time."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
import report_runs
import torch

import ncops
from ncops.metrics import table
from ncops.metrics.papers import PAPERS
from ncops.report import compare, numbers
from ncops.report import details as parts
from ncops.report import page as html
from ncops.report.plots.report import OVERVIEW
from ncops.report.plots.style import DARK, LIGHT
from ncops.report.plots.svg import presented

NASTY = "</code><script>alert(1)</script>\"'&\n\t\x00\u202e"
VOID = {"meta", "input", "br", "path", "use", "rect"}


@pytest.fixture(scope="module")
def page():
    """A report with every kind of detail."""
    generator = torch.Generator().manual_seed(3)
    x, y = torch.randn(900, 8, generator=generator), torch.randint(0, 30, (900,), generator=generator)
    weight = torch.randn(40, 8, generator=generator)
    x = x + weight[y]
    statistics = ncops.ClassStatistics(num_classes=40, dim=8, scatter=True)
    statistics.update(x, y)
    geometry = statistics.compute(min_count=5)
    decisions = ncops.DecisionStatistics(geometry, weight)
    decisions.update(x, y)
    report = ncops.collapse(geometry, weight, decisions=decisions)
    details = parts.geometry_details(geometry, weight)
    details["histograms"].update(parts.decision_details(decisions))
    details["classes"] = parts.class_rows(report, lambda c: NASTY if c % 3 == 0 else f" w{c}", "token", limit=20)
    details["layers"] = parts.trajectory("layer", [0, 1, 2], [report] * 3, ("nc1_quotient", "nc3_cos_mean"))
    details["checkpoints"] = parts.trajectory("step", [0, 50, 800], [report] * 3, ("nc1_quotient", "nll"))
    details["run"] = {"model_name": "<b>model</b>", "data": "text & more", "seconds": 1.5}
    details["notes"] = ["a < b"]
    return report, details


class Reader(HTMLParser):
    """Checks nesting and collects what a browser would act on."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.ids, self.attributes, self.text = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        self.ids += [v for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    return reader


def test_one_file_without_requests(page):
    report, details = page
    text = html.render(report, title="T", details=details)
    reader = read(text)
    quiet = re.sub(r'<a href="https://arxiv.org/abs/[\d.]+" rel="noreferrer">|//.*?\n', "", text)
    assert not re.search(r"https?:|//[a-z]|@import|\bsrc=", quiet)
    assert {"link", "img", "iframe", "object"}.isdisjoint(reader.tags)
    assert reader.tags.count("svg") == 8 + 4
    assert reader.tags.count("script") == 1
    assert len(set(reader.ids)) == len(reader.ids)
    assert len(text) < 600_000


def test_hostile_text_is_escaped(page):
    report, details = page
    text = html.render(report, title="<script>x</script>", details=details)
    assert "alert(1)</script>" not in text and "<script>x" not in text and "<b>model" not in text
    assert "\x00" not in text and "\u202e" not in text
    assert "&lt;/code&gt;&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_white_space_can_be_seen():
    assert html.token_html(" a b ") == "<code><u>·</u>a b<u>·</u></code>"
    assert html.token_html("\n") == "<code><u>⏎</u></code>"
    assert html.token_html("\x07") == "<code><u>\\u0007</u></code>"
    assert html.token_html("é漢") == "<code>é漢</code>"


def test_headline_coverage_and_table(page):
    report, details = page
    joined = " ".join(read(html.render(report, details=details)).text)
    for wanted in (
        "NC1 · variability collapse",
        "0 = collapsed",
        "1 = collapsed",
        "classes kept",
        "the 20 most frequent of 30 kept tokens",
        "a < b",
    ):
        assert wanted in joined
    assert numbers.format_value(report["nc1_quotient"]) in joined


def test_colours_follow_the_page(page):
    report, details = page
    text = html.render(report, details=details)
    svg = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.S))
    assert f'fill="var(--accent,{LIGHT.accent})"' in svg
    colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', svg)) - {"none"}
    assert colours and all(re.fullmatch(r"var\(--\w+,#\w{6}\)", colour) for colour in colours), colours
    assert "prefers-color-scheme:dark" in text


def test_no_element_has_a_style_of_its_own(page):
    report, details = page
    for text in (html.render(report, details=details), compare([report, report], labels=["a", "b"]).html()):
        reader = read(text)
        assert "style" not in {name for name, _ in reader.attributes} and reader.tags.count("style") == 1
        (policy,) = (value for name, value in reader.attributes if name == "content" and "default-src" in value)
        for kind in ("style", "script"):
            (content,) = re.findall(f"<{kind}>(.*)</{kind}>", text, re.S)
            digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
        assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy


def test_styles_become_presentation_attributes():
    given = (
        '<svg a="b"><style>*{x}</style><path style="fill: none; clip-path: url(#p)"/>'
        "<text style=\"font: italic 700 9px 'DejaVu Sans', serif; text-anchor: middle\">x</text></svg>"
    )
    assert presented(given) == (
        '<svg stroke-linejoin="round" a="b"><path fill="none" clip-path="url(#p)"/>'
        '<text text-anchor="middle" font-style="italic" font-weight="700" font-size="9px">x</text></svg>'
    )


def test_a_sampled_mean_is_told_from_the_exact_one(monkeypatch):
    monkeypatch.setattr(parts, "PAIR_SAMPLE", 8)
    geometry, weight = report_runs.statistics(1.0)[3], report_runs.statistics(1.0)[2]
    report, details = ncops.collapse(geometry, weight), parts.geometry_details(geometry, weight)
    entry = details["histograms"]["pair_cosine"]
    assert entry["classes"] == 8 and entry["mean"] != pytest.approx(report["nc2_cos_mean"], abs=1e-3)
    text = html.render(report, details=details)
    assert f"mean of the sample {numbers.format_value(entry['mean'])}" in text
    assert (
        "Pairs of a random sample of 8 of 30 kept classes: its mean is that of the sample, over all pairs it is "
        f"{numbers.format_value(report['nc2_cos_mean'])} (NC2, mean cosine)." in text
    )
    assert "which needs K ≤ D + 1" in text
    whole = html.render(report, details={"histograms": {"pair_cosine": {**entry, "of": 8}}})
    assert "All pairs of kept classes." in whole and "of the sample" not in whole


def test_the_class_table_says_what_the_decisions_were_on(page):
    report, details = page
    text = html.render(report, details={**details, "run": {"decisions_on": "training data"}})
    assert "rows of the decisions (training data)" in text and "decision samples" in text and "held-out" not in text


def test_deterministic(page):
    report, details = page
    assert html.render(report, details=details) == html.render(report, details=details)


def test_report_alone(page, tmp_path):
    report, _ = page
    report.to_html(tmp_path / "a.html")
    assert "NC1" in (tmp_path / "a.html").read_text() and read((tmp_path / "a.html").read_text())


def test_without_matplotlib(page, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = html.render(page[0], details=page[1])
    assert "ncops[cli]" in text and "<svg" not in text


def test_undefined_numbers_are_dashes():
    statistics = ncops.ClassStatistics(num_classes=4, dim=3)
    statistics.update(torch.randn(5, 3), torch.zeros(5, dtype=torch.int64))
    geometry = statistics.compute()
    report = ncops.collapse(geometry)
    text = html.render(report, details=parts.geometry_details(geometry))
    read(text)
    assert "Only 1 class has enough samples" in text and ">nan<" not in text
    document = parts.document(report)
    assert document["metrics"]["nc1_quotient"] is None


def test_plot_returns_figure_and_axes(page):
    report, _ = page
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = report.plot()
    assert axes.figure is figure
    own = pyplot.figure().add_subplot()
    assert report.plot(ax=own) == (own.figure, own)
    pyplot.close("all")
    assert [t.get_text() for t in own.get_yticklabels()][-1] == table.meaning(OVERVIEW[0]).label


def test_histogram():
    found = parts.histogram(torch.tensor([0.0, 0.5, 1.0, float("nan"), float("inf")]))
    assert sum(found["counts"]) == 3 and found["edges"][0] == 0 and found["edges"][-1] == 1 and found["mean"] == 0.5
    assert sum(parts.histogram(torch.full((7,), 2.0))["counts"]) == 7
    assert parts.histogram(torch.tensor([float("nan")])) is None


def test_every_row_explains_its_metric(page):
    text = html.render(page[0], details=page[1])
    rows = dict(re.findall(r'<dl id="about-(\w+)">(.*?)</dl>', text, re.S))
    assert list(rows) == list(page[0])
    for name, row in rows.items():
        told, metric = " ".join(read(row).text), table.METRICS[name]
        for fact in (metric.formula, metric.span, metric.moved, *(PAPERS[paper].title for paper in metric.papers)):
            assert fact in told, (name, fact)
        assert re.findall(r"arXiv:([\d.]+)", told) == [PAPERS[paper].arxiv for paper in metric.papers]
    assert "Formulas are those of" not in text


def test_formulas_of_another_convention_are_not_passed_off_as_the_reports(page):
    statistics = ncops.ClassStatistics(num_classes=4, dim=3)
    statistics.update(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 4)
    report = ncops.collapse(statistics.compute(), convention="papyan")
    told = re.search(r"Formulas are those of .*", html.render(report))[0]
    assert told == (
        "Formulas are those of the convention ncops; this report's, papyan, has nc1_divide = False, norm_ddof = 1, "
        "duality_error = distance."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5000"),
        (float("nan"), "–"),
        (12345, "12,345"),
        (1.5e-5, "1.500e-05"),
        (float("inf"), "∞"),
        (float("-inf"), "-∞"),
        (-0.25, "-0.2500"),
    ],
)
def test_format_value(value, text):
    assert numbers.format_value(value) == text


# -- colours ----------------------------------------------------------------------------------------------------------

# Linear RGB as readers without red-sensitive or green-sensitive cones see it (Machado, Oliveira, Fernandes 2009).
DEFICIENT = {
    "none": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
}
TO_XYZ = torch.tensor(
    ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))
)


def linear(colour: str) -> torch.Tensor:
    s = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return torch.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)


def lab(colour: str, sight: str) -> torch.Tensor:
    seen = (torch.tensor(DEFICIENT[sight], dtype=torch.float32) @ linear(colour)).clamp(0, 1)
    xyz = TO_XYZ @ seen / (TO_XYZ @ torch.ones(3))
    f = torch.where(xyz > 0.008856, xyz.pow(1 / 3), 7.787 * xyz + 16 / 116)
    return torch.stack([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(TO_XYZ[1] @ linear(c)) + 0.05 for c in (one, other))
    return high / low


def css(scheme: int) -> dict[str, str]:
    """The variables of the page: 0 light, 1 dark, 2 on paper."""
    blocks = re.findall(r":root\{(.*?)\}", html.render(ncops.CollapseReport({})))
    return {m[1]: m[2] + (m[2][1:] if len(m[2]) == 4 else "") for m in re.finditer(r"--(\w+):(#\w+)", blocks[scheme])}


@pytest.mark.parametrize("scheme", [0, 1, 2])
def test_lines_can_be_told_apart(scheme):
    colours = css(scheme)
    series = [colours[f"s{i}"] for i in range(1, 7)]
    palette = DARK if scheme == 1 else LIGHT
    assert tuple(series) == palette.series and {n: colours[n] for n in ("muted", "line", "accent")} == {
        n: getattr(palette, n) for n in ("muted", "line", "accent")} or scheme != 1  # fmt: skip
    for sight in DEFICIENT:
        for i, one in enumerate(series):
            for other in series[:i]:
                assert float((lab(one, sight) - lab(other, sight)).norm()) > 20, (sight, one, other)
    for name in (*(f"s{i}" for i in range(1, 7)), "ink", "muted", "accent", "second"):
        assert contrast(colours[name], colours["card"]) >= (4.5 if name in ("ink", "muted") else 3.0), name
    assert contrast(colours["muted"], colours["bg"]) >= 4.5
