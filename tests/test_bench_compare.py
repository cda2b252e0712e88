"""``ncops bench --compare``: what an older file says beside this run, and files that say nothing."""

from __future__ import annotations

import json

import pytest

from ncops import cli
from ncops.bench import compare, plan, records, runner
from ncops.bench.case import EAGER, OURS, Case
from ncops.bench.timing import Quantiles
from ncops.errors import CommandError

MACHINE = {"device": "A CPU", "threads": 2, "ncops": "0.1.0", "torch": "2.13.0", "python": "3.11", "isa": "avx2"}
SIZES = {"N": 40, "D": 8, "V": 13}


def spread(value: float, by: float = 0.05) -> Quantiles:
    return Quantiles(value, value * (1 - by), value * (1 + by))


def result(time: float, share: float | None = 0.5, name: str = "tiny", threads: int = 2, **sizes: int) -> runner.Result:
    case = Case(plan.bench("linear_stats", "forward"), name, {**SIZES, **sizes})
    limits = {"register": spread(1e11), "read": spread(1e10)}
    times = {OURS: spread(time), EAGER: spread(9.0)}
    return runner.Result(case, threads, times, {EAGER: 9 / time}, limits, share and spread(share), "register")


def written(path, results, **machine):
    records.write_csv(path, list(records.rows({**MACHINE, **machine}, results)))
    return path


def compared(path, results, **machine):
    return compare.compare(compare.read(path), {**MACHINE, **machine}, results)


@pytest.mark.parametrize(
    ("time", "share", "said"),
    [
        (2.0, 0.5, ""),
        (2.15, 0.47, ""),  # spreads of 5 % touch
        (2.3, 0.44, "slower"),
        (1.7, 0.57, "faster"),
        (2.3, 0.5, ""),  # the whole machine is slower
        (2.0, 0.4, ""),  # a faster limit beside the same time
        (2.3, None, "slower"),
        (1.7, None, "faster"),
    ],
)
def test_worse_is_what_time_and_share_say_beyond_both_spreads(tmp_path, time, share, said):
    old = written(tmp_path / "old.csv", [result(2.0)])
    found = compared(old, [result(time, share)])
    (change,) = found.changes
    assert change.verdict == said and found.slower == ([change] if said == "slower" else [])
    assert change.faster == pytest.approx(2.0 / time) and change.case == "linear_stats tiny, N=40 D=8 V=13"
    assert change.share is None if share is None else [y.p50 for y in change.share] == [0.5, share]
    assert found.notes == []


@pytest.mark.parametrize(
    ("now", "note"),
    [
        ({"device": "B"}, "machine: A CPU then, B now"),
        ({"isa": "avx512"}, "instruction set: avx2 then, avx512 now"),
        ({"threads": 4}, "threads: 2 then, 4 now"),
    ],
)
def test_times_elsewhere_are_not_compared(tmp_path, now, note):
    old = written(tmp_path / "old.csv", [result(2.0)])
    found = compared(old, [result(1.0, 0.4, threads=now.get("threads", 2))], **now)
    (change,) = found.changes
    assert (change.milliseconds, change.faster, change.verdict) == (None, None, "slower")
    assert found.notes == [note, "so times are not compared"]


def test_other_versions_are_told_and_compared(tmp_path):
    old = written(tmp_path / "old.csv", [result(2.0)], ncops="0.0.9", torch="2.10.0")
    found = compared(old, [result(1.0, 0.9)])
    assert found.notes == ["ncops: 0.0.9 then, 0.1.0 now", "torch: 2.10.0 then, 2.13.0 now"]
    assert found.changes[0].faster == 2 and found.changes[0].verdict == "faster"


def test_of_several_rows_the_one_of_this_machine_counts(tmp_path):
    path = tmp_path / "old.csv"
    written(path, [result(4.0)])
    written(path, [result(8.0, 0.3)], isa="avx512")
    written(path, [result(9.0, 0.2)], device="B")
    found = compared(path, [result(2.0)])
    assert found.changes[0].faster == 2 and found.notes == []


def test_sizes_and_cases_are_matched(tmp_path):
    old = written(tmp_path / "old.csv", [result(2.0), result(4.0, V=99), result(7.0, name="another")])
    found = compared(old, [result(2.0, V=99), result(1.0, V=100), result(1.0, name="new")])
    assert [(c.case, c.faster) for c in found.changes] == [("linear_stats tiny, N=40 D=8 V=99", 2.0)]
    assert found.notes == ["2 of 3 cases cannot be compared"]


def test_files_of_before_there_were_shares(tmp_path):
    path = tmp_path / "old.csv"
    new = [row for row in records.rows(MACHINE, [result(2.0)]) if row["metric_name"] != records.SHARE]
    columns = records.COLUMNS[:-2]
    lines = [",".join(columns), *(",".join('"{}"'.format(str(r[c]).replace('"', '""')) for c in columns) for r in new)]
    path.write_text("\n".join(lines))
    found = compared(path, [result(1.0)])
    assert (found.changes[0].faster, found.changes[0].share, found.notes) == (2, None, [])


# -- the command -------------------------------------------------------------------------------------------------------


@pytest.fixture
def bench(monkeypatch, capsys):
    """Runs the command, whose only case takes so long; returns the exit status and what it printed."""

    def run(time, *arguments):
        measured = result(time)
        monkeypatch.setattr(plan, "quick", lambda ops: [measured.case])
        monkeypatch.setattr(runner, "machine", lambda device: MACHINE)
        monkeypatch.setattr(runner, "_measure", lambda *_: result(time, 1 / time))
        status = cli.main(["bench", *map(str, arguments)])
        return status, capsys.readouterr()

    return run


def test_command(bench, tmp_path):
    assert bench(2.0, "-o", tmp_path)[0] == 0
    status, printed = bench(4.0, "--compare", tmp_path, "-o", tmp_path)  # read before it is written
    assert status == 0
    heading, columns, line = printed.out.splitlines()[-3:]
    assert heading == f"Against {tmp_path}" and columns.split()[-1] == "verdict"
    assert line.split()[-8:] == ["2", "ms", "4", "ms", "0.50x", "50%", "25%", "slower"]
    status, printed = bench(4.0, "--compare", tmp_path / records.NAME, "--json")
    (change,) = json.loads(printed.out)["comparison"]["changes"]
    assert status == 0 and change["verdict"] == "" and change["faster"] == 1


def test_slower_is_an_error_where_it_is_asked_to_be(bench, tmp_path):
    assert bench(2.0, "-o", tmp_path)[0] == 0
    assert bench(4.0, "--compare", tmp_path, "--fail-slower")[0] == 1
    assert bench(1.0, "--compare", tmp_path, "--fail-slower")[0] == 0
    status, printed = bench(1.0, "--fail-slower")
    assert status == 2 and printed.err == "ncops: --fail-slower: needs --compare OLD.csv\n"


BROKEN = {
    "no header": "",
    "another table": "a,b\n1,2\n",
    "not text": b"\xff\xfe\x00",
    "no rows": ",".join(records.COLUMNS) + "\n",
    "NUL": "kernel_name\0",
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_a_wrong_file_is_one_line_before_anything_is_measured(bench, tmp_path, content):
    path = tmp_path / "old.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    status, printed = bench(1.0, "--compare", path)
    assert status == 2 and not printed.out
    assert printed.err.startswith(f"ncops: --compare: {path}: ") and printed.err.count("\n") == 1


def test_no_file_is_one_line(bench, tmp_path):
    status, printed = bench(1.0, "--compare", tmp_path)
    assert (status, printed.err) == (2, f"ncops: {tmp_path / records.NAME}: No such file or directory\n")


@pytest.mark.parametrize("column", ["y_value_50", "y_value_80", "extra_benchmark_config_str"])
@pytest.mark.parametrize("value", ["", "nan", "0", "x", "[]"])
def test_a_damaged_row_is_told(tmp_path, column, value):
    row = next(records.rows(MACHINE, [result(2.0)]))
    records.write_csv(tmp_path / "old.csv", [{**row, column: value}])
    with pytest.raises(CommandError, match="--compare: .*old.csv: expected all_benchmark_data.csv of ncops bench"):
        compare.read(tmp_path / "old.csv")
