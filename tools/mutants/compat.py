"""Defects of the interfaces of other code."""

from .plants import Source

SOURCES: tuple[Source, ...] = (
    Source(
        "ncops/compat/linguistic_collapse.py",
        "tests/test_compat_linguistic_collapse.py",
        (
            ("stats.sums = left * counts[:, None]", "stats.sums = left"),
            ("(variance + left.square().sum(1)) * counts", "variance * counts"),
            ("/ seen.clamp(min=1)", "/ counts.clamp(min=1)"),
            ('if first["hash"] and second["hash"] and first["hash"] != second["hash"]:', "if False:"),
            ("totals[kept] = geometry.means.cpu() * n[:, None]", "totals[kept] = geometry.means.cpu()"),
            ("squares[kept] = geometry.class_var.cpu() * n", "squares[kept] = geometry.class_var.cpu() * (n - 1)"),
            (
                'Hits(stored["Ns_toks"].long().reshape(-1), stored["totals"]',
                'Hits(stored["totals"].long().reshape(-1), stored["totals"]',
            ),
            ("compute_dtype(input_dtype)", "torch.float64"),
        ),
    ),
    Source(
        "ncops/compat/neural_collapse/accumulate.py",
        "tests/test_compat_neural_collapse.py",
        (
            ("if known is not None and known != hashify(tensor):", "if False:"),
            ("return self._tensor._version == self._seen", "return True"),
            ("chosen &= counts < maximum", "chosen &= counts <= maximum"),
            ("(n / n.sum()) @", "(n / n.numel()) @"),
            ("y = y.long().clamp_(min=IGNORED)", "y = y.long().clamp_(min=0)"),
            ("int(y.max()) >= self.n_classes", "int(y.max()) > self.n_classes"),
            ("self.ns_samples.sum().clamp(min=1).to", "(self.ns_samples.sum() - 1).clamp(min=1).to"),
            ("& (batch.y != IGNORED)", ""),
            ("wide = torch.promote_types(batch.x.dtype, weight.dtype)", "wide = batch.x.dtype"),
            (
                "counts, totals = counts[chosen], totals[chosen]",
                "totals = totals[chosen]; counts = counts[: len(totals)]",
            ),
            ("self._moments(batch, self._given(self._means, M)).sqnorms", "self._moments(batch).sqnorms"),
        ),
    ),
    Source(
        "ncops/compat/neural_collapse/kernels.py",
        "tests/test_compat_neural_collapse.py",
        (
            ("return -stats.mean.item(), stats.var.item()", "return stats.mean.item(), stats.var.item()"),
            ("v[:, -1]) / 2 /", "v[:, -1]) /"),
            ("_distances(u, v) ** (-s)", "_distances(u, v) ** (-s - 1)"),
            ("return kernel(normalize(M - m_G),", "return kernel(normalize(M),"),
        ),
    ),
    Source(
        "ncops/compat/neural_collapse/measure.py",
        "tests/test_compat_neural_collapse.py",
        (
            ("/ magnitude.where(magnitude > 0, 1.0)", "/ magnitude.norm()"),
            ("8 * torch.finfo(torch.float32).eps", "0"),
            ("M, power=dist_exp", "M"),
            ("structure_error(M - m_G, W)", "structure_error(M, W)"),
            (".square().sum() / M.shape[0]", ".square().sum()"),
            ("torch.promote_types(W.dtype, rows.dtype)", "W.dtype"),
        ),
    ),
    Source(
        "ncops/compat/neural_collapse/util.py",
        "tests/test_compat_neural_collapse.py",
        (
            ("count * (count - 1) / 2", "count * count / 2"),
            ("data.triu(1)", "data.triu(0)"),
            ("+ torch.finfo(x.dtype).eps)", ")"),
            ("data[j : j + size]", "data[i : i + size]"),
        ),
    ),
)
