"""What leaves a report: provenance, text in any encoding, JSON, tables of others, names that are wrong."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import report_runs
import torch

import ncops
from ncops.backends import native
from ncops.report import compare, provenance
from ncops.report.console import LiveTable, encodable
from ncops.report.details import document
from ncops.report.output import deliver, deliver_comparison
from ncops.report.page import render
from ncops.report.stored import read_report

TEXT = "日本語 – ≥ \udcff"
FOLDER = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def measured():
    report, details = report_runs.measured(1.0)
    details["run"]["model_name"] = TEXT
    details["classes"]["rows"][0]["text"] = TEXT
    details["notes"] = [TEXT]
    return ncops.report.measured.Measured(report, details)


# -- provenance -------------------------------------------------------------------------------------------------------


def test_provenance_is_in_the_json_and_on_the_page(tmp_path, monkeypatch, measured):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/ncops", "measure", "a b.npz"])
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    made = provenance.provenance("cpu", torch.float32)
    assert made["ncops"] == ncops.__version__ and made["torch"] == torch.__version__
    assert made["python"] == ".".join(map(str, sys.version_info[:3]))
    assert made["date"] == "2001-09-09T01:46:40+00:00" and made["command"] == "ncops measure 'a b.npz'"
    assert made["threads"] == torch.get_num_threads()
    if native.load() is None:
        assert made["backend"] == "cpu" and made["instruction_set"] == torch.ops.ncops_C.cpu_isa()
    with ncops.use_backend("reference"):
        other = provenance.provenance()
    assert other["backend"] == "reference" and other["instruction_set"] is None
    monkeypatch.setattr(sys, "argv", ["/x/ncops/__main__.py", "lm"])
    assert provenance.provenance()["command"] == "ncops lm"

    report, details = report_runs.measured(1.0)
    assert report.provenance["date"] == made["date"]
    stored = document(report, details)
    assert stored["schema"] == 1 and stored["provenance"] == report.provenance
    assert json.loads(report.to_json())["provenance"] == report.provenance
    page = render(report, details=details)
    for shown in (made["date"].replace("+", "&#43;"), "ncops lm", made["torch"].replace("+", "&#43;")):
        assert shown in page or shown.replace("&#43;", "+") in page
    (tmp_path / "report.json").write_text(json.dumps(stored))
    assert read_report(tmp_path / "report.json").report.provenance == report.provenance
    runs = compare([tmp_path, report], labels=["a", "b"])
    assert runs.document()["schema"] == 1 and runs.document()["provenance"]["ncops"] == ncops.__version__
    assert runs.document()["runs"][0]["provenance"] == report.provenance and runs.caveats()[:1] != ["versions"]


def test_files_of_another_version(tmp_path):
    report, details = report_runs.measured(1.0)
    stored = document(report, details) | {"schema": 7}
    stored["provenance"] = report.provenance | {"ncops": "9.9", "<b>": "x", "threads": [1]}
    (tmp_path / "report.json").write_text(json.dumps(stored))
    again = read_report(tmp_path / "report.json")
    assert again.report.provenance["ncops"] == "9.9" and "<b>" not in again.report.provenance
    assert any("has schema 7, this version of ncops reads up to 1" in note for note in again.details["notes"])
    told = compare([tmp_path, report], labels=["a", "b"]).caveats()
    assert f"The runs were measured by different versions of ncops (9.9, {ncops.__version__})." in told


# -- encodings --------------------------------------------------------------------------------------------------------


def test_what_an_encoding_lacks_is_replaced():
    narrow = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    assert encodable("a – ≥ 日", narrow) == "a – ? ?" and encodable("≥", io.StringIO()) == "≥"
    assert encodable("\udcff", io.TextIOWrapper(io.BytesIO(), encoding="utf-8")) == "?"


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.usefixtures("undrawn")
def test_delivered_in_any_encoding(measured, tmp_path, monkeypatch, encoding, as_json):
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", streams[0])
    monkeypatch.setattr(sys, "stderr", streams[1])
    deliver(measured, title=TEXT, folder=tmp_path / "out", as_json=as_json)
    two = compare([measured, measured], labels=[TEXT + "1", TEXT + "2"])
    deliver_comparison(two, folder=tmp_path / "both", title=TEXT, as_json=as_json)
    with LiveTable(TEXT, ["≥", "b"]) as table:
        table.add([TEXT, "1"])
    printed = [stream.buffer.getvalue().decode(encoding) for stream in streams if not stream.flush()]
    stored = json.loads((tmp_path / "out" / "report.json").read_text(encoding="ascii"))
    assert stored["run"]["model_name"] == TEXT and stored["classes"]["rows"][0]["text"] == TEXT
    both = json.loads((tmp_path / "both" / "comparison.json").read_text(encoding="ascii"))
    assert both["runs"][0]["name"] == TEXT + "1"
    assert "日本語 – ≥ ·" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    if as_json:
        first, _ = json.JSONDecoder().raw_decode(printed[0])
        assert first == stored
    else:
        assert "nc1_quotient" in printed[0] and ("日本語" in printed[0]) == (encoding == "utf-8")


def test_other_commands_in_any_encoding(monkeypatch):
    from ncops.bench import runner, table
    from ncops.cli import info

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    facts = info.collect(torch_env=False)
    monkeypatch.setattr(sys, "stdout", stream)
    info.show({**facts, "torch_env": TEXT})
    table.show({**runner.machine(), "device": TEXT}, [])
    printed = stream.buffer.getvalue().decode("ascii")
    assert f"ncops {facts['ncops']} ? torch" in printed and printed.count("threads ? ncops") == 1


def test_rich_tables_in_any_encoding():
    pytest.importorskip("rich")
    code = (
        "import sys, ncops; from ncops.report.console import show_table; sys.stdout.isatty = lambda: True\n"
        "show_table('\\u2265 title', ['\\u65e5'], [['\\u672c']])"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, cwd=FOLDER.parent)
    assert done.returncode == 0 and b"| ? |" in done.stdout, done.stderr.decode()


# -- tables of others, wrong names ------------------------------------------------------------------------------------


def test_a_wrong_name_is_told_the_near_ones(measured):
    with pytest.raises(KeyError, match="report: no metric 'nc1'; did you mean nc1_pinv, nc1_quotient, nc1_cdnv?"):
        measured.report["nc1"]
    with pytest.raises(KeyError, match="did you mean nc4_agreement"):
        measured.report["nc4_agrement"]
    with pytest.raises(KeyError, match="no metric 'x'; it has nc1_pinv, .*, ece"):
        measured.report["x"]
    with pytest.raises(KeyError, match="it has none"):
        ncops.CollapseReport({})["nc1"]
    assert measured.report.get("nc1") is None and "nc1" not in measured.report


class Frame:
    def __init__(self, columns, index=None):
        self.columns, self.index = columns, index


def test_frames_are_pandas_and_only_when_asked_for(measured, monkeypatch):
    x, w = torch.randn(3, 2, 4), torch.randn(5, 4, requires_grad=True)
    results = (measured.report, compare([measured, measured], labels=["a", "b"]), ncops.linear_stats(x, w))
    monkeypatch.setitem(sys.modules, "pandas", None)
    for result in results:
        with pytest.raises(ModuleNotFoundError, match="^to_frame: needs the package pandas: pip install pandas$"):
            result.to_frame()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=Frame))
    report, runs, stats = (result.to_frame() for result in results)
    assert report.index == list(measured.report) and report.columns["value"] == list(measured.report.values())
    assert runs.index == ["a", "b"] and runs.columns["run"] == [0, 1]
    assert runs.columns["nll"] == [measured.report["nll"]] * 2
    assert stats.columns["lse"] == results[2].lse.flatten().tolist() and "nll" not in stats.columns


def test_a_frame_of_pandas(measured):
    pandas = pytest.importorskip("pandas")
    frame = measured.report.to_frame()
    assert isinstance(frame, pandas.DataFrame) and frame.loc["nll", "value"] == measured.report["nll"]


def test_notebooks_get_escaped_tables(measured):
    html = measured.report._repr_html_()
    assert html.count("<tr>") == 1 + len(measured.report) and "<td>nc1_pinv</td>" in html
    runs = compare([measured.report] * 2, labels=["<script>1", "<script>2"])
    assert "<script>" not in runs._repr_html_() and "&lt;script&gt;1" in runs._repr_html_()
    assert measured.report.to_dict() == dict(measured.report)


def test_column_results_are_short():
    x, w, y = torch.randn(900, 4), torch.randn(7, 4), torch.randint(0, 7, (900,))
    stats = ncops.linear_stats(x, w, target=y)
    assert repr(stats) == (
        "LinearStats(rows=(900,), num_classes=7, float32 on cpu: lse, gap, max, argmax, second, second_index, "
        "target_logit, target_rank, nll, entropy, mean, var, valid, target, sum_squared_prob)"
    )
    columns = stats.to_dict()
    assert list(columns) == [n for n in stats._fields if n != "num_classes"] and columns["nll"] is stats.nll
    assert "nll" not in repr(ncops.logit_stats(x)) and len(repr(ncops.logit_stats(x.view(30, 30, 4)))) < 200
    html = stats._repr_html_()
    assert html.count("<tr>") == 11 and "<p>and 890 more rows</p>" in html
    assert f"<td>{float(stats.nll[9]):.4g}</td>" in html
    empty = ncops.linear_stats(x[:0], w)
    assert empty._repr_html_().count("<tr>") == 1 and "rows=(0,)" in repr(empty)


def test_other_results_are_short():
    """Tensors of up to 1,000 numbers print whole: nine columns of 900 rows are 80,000 characters."""
    x, w, y = torch.randn(900, 4), torch.randn(7, 4), torch.arange(900)
    statistics = ncops.ClassStatistics(900, 4)
    statistics.update(x, y)
    for result in (
        ncops.linear_loss(x, w, None, y % 7), ncops.linear_topk(x, w, k=1), ncops.linear_divergence(x, w, -x),
        ncops.nearest_neighbors(x, w, k=1), ncops.nearest_class_mean(x, w), ncops.class_moments(x, y, 900),
        ncops.pair_stats(x, "dot"), statistics.compute(),
    ):  # fmt: skip
        assert repr(result).startswith(f"{type(result).__name__}(") and len(repr(result)) < 600
    assert repr(ncops.nearest_class_mean(x, w)) == "NearestClassMean(index=(900,), sqdist=(900,))"
    assert f"count=tensor({900 * 899 // 2})" in repr(ncops.pair_stats(x, "dot"))
