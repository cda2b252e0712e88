"""Files of the Linguistic Collapse code, read and written back."""

from __future__ import annotations

import pytest
import torch

import ncops
import ncops.compat.neural_collapse as library
from ncops.compat.linguistic_collapse import read_hits, read_statistics, write_statistics
from ncops.compat.neural_collapse.util import hashify

C, D, N = 9, 4, 120


def collected(tmp_path):
    """What that code does: three passes with float64 accumulators, saved by torch.save."""
    labels = torch.randint(0, C - 1, (N,))  # the last class never occurs
    x = 50 * torch.randn(C, D)[labels] + 0.01 * torch.randn(N, D)
    means, variances = (
        getattr(library.accumulate, f"{name}Accumulator")(C, D, "cpu", float) for name in ("Mean", "VarNorm")
    )
    decs = library.accumulate.DecAccumulator(C, D)
    means.accumulate(x, labels)
    m = means.compute()[0]
    variances.accumulate(x, labels, m)
    decs.accumulate(x, labels, torch.randn(C, D), m)
    for name, accumulator in (("means", means), ("vars", variances), ("decs", decs)):
        stored = {"hash": hashify(m), "N_seqs": 3, "Ns_toks": accumulator.ns_samples, "totals": accumulator.totals}
        torch.save(stored, tmp_path / f"{name}.pt")
    return x, labels, decs


def test_read(tmp_path):
    x, labels, decs = collected(tmp_path)
    stats = read_statistics(tmp_path / "means.pt", tmp_path / "vars.pt")
    direct = ncops.ClassStatistics(C, D)
    direct.update(x, labels)
    a, b = stats.compute(), direct.compute()
    assert torch.equal(a.classes, b.classes) and torch.equal(a.counts, b.counts)
    torch.testing.assert_close(a.means, b.means, rtol=1e-7, atol=0)
    torch.testing.assert_close(a.class_var, b.class_var, rtol=1e-3, atol=0)  # theirs are about means of x in float64
    hits = read_hits(tmp_path / "decs.pt")
    assert torch.equal(hits.agree, decs.totals.long()) and hits.count.sum() == N
    stats.merge(direct)  # and they go on as any others
    assert stats.counts.sum() == 2 * N
    without = read_statistics(tmp_path / "means.pt").compute()
    assert without.class_var.isnan().all() and torch.equal(without.means, a.means)


def test_written_files_are_read_back_and_carry_the_hash_of_their_means(tmp_path):
    x, labels, _ = collected(tmp_path)
    direct = ncops.ClassStatistics(C, D)
    direct.update(x, labels)
    name = write_statistics(direct, tmp_path / "m.pt", tmp_path / "v.pt", sequences=7)
    stored = torch.load(tmp_path / "m.pt", weights_only=True)
    again = library.accumulate.MeanAccumulator(C, D, "cpu", float)
    again.ns_samples, again.totals = stored["Ns_toks"], stored["totals"]
    assert stored["hash"] == name and stored["N_seqs"] == 7
    torch.testing.assert_close(again.compute()[0], direct.compute().means.new_zeros(C, D).index_copy(
        0, direct.compute().classes, direct.compute().means))  # fmt: skip
    back = read_statistics(tmp_path / "m.pt", tmp_path / "v.pt").compute()
    torch.testing.assert_close(back.means, direct.compute().means, rtol=1e-12, atol=0)
    torch.testing.assert_close(back.class_var, direct.compute().class_var, rtol=1e-9, atol=0)


def test_what_does_not_fit_is_refused(tmp_path):
    collected(tmp_path)
    stored = torch.load(tmp_path / "vars.pt", weights_only=True)
    torch.save(stored | {"hash": "0" * 64}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="vars: made with other means"):
        read_statistics(tmp_path / "means.pt", tmp_path / "other.pt")
    torch.save(stored | {"Ns_toks": stored["Ns_toks"] // 2}, tmp_path / "early.pt")
    with pytest.warns(UserWarning, match="another number of rows"):
        early = read_statistics(tmp_path / "means.pt", tmp_path / "early.pt").compute()
    torch.testing.assert_close(early.class_var, (stored["totals"] / (stored["Ns_toks"] // 2))[: C - 1].double())
    with pytest.raises(FileNotFoundError, match="means: no file"):
        read_statistics(tmp_path / "none.pt")
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="means: .*cannot be read as tensors"):
        read_statistics(tmp_path / "broken.pt")
    torch.save({"weights": torch.ones(3)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="expected the entries hash, N_seqs, Ns_toks, totals, got \\['weights'\\]"):
        read_statistics(tmp_path / "model.pt")


class Payload:
    def __reduce__(self):
        return (print, ("executed",))


def test_nothing_in_a_file_is_executed(tmp_path, capsys):
    torch.save({"hash": Payload(), "N_seqs": 0, "Ns_toks": 0, "totals": 0}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        read_statistics(tmp_path / "bad.pt")
    assert "executed" not in capsys.readouterr().out
