"""Defects of the plain references."""

from .plants import Source

REFERENCE = "-k 'reference and not compile and not opcheck'"

SOURCES: tuple[Source, ...] = (
    Source(
        "ncops/reference/linear_topk.py",
        "tests/test_linear_topk.py tests/test_vocabulary_topk.py -m 'not triton'",
        (
            ("descending=True, stable=True", "descending=True"),
            ("indices.masked_fill(poisoned, -1)", "indices"),
            ("(g_values != 0).any(1) | (g_logprob != 0)", "(g_logprob != 0)"),
            ("g_lse - g_logprob[:, 1:].sum(1)", "g_lse - g_logprob.sum(1)"),
            (".masked_fill(poisoned & active, 1)", ""),
            ("picked.where(here, 0)", "picked"),
            ("classes[:, 0].where(here[:, 0], classes_here)", "classes[:, 0]"),
            ("argsort(stable=True)", "argsort()", "torch sorts stably on the CPU, asked or not"),
            ("x.where(active[:, None], 0)", "x"),
            ("(scale * picked)[:, None]", "picked[:, None]"),
            ("z = z if bias is None else z + bias[classes[here]]", "pass"),
            ("scale * torch.einsum(\"nk,nkd->nd\"", "torch.einsum(\"nk,nkd->nd\""),
        ),
    ),
    Source(
        "ncops/reference/nearest_neighbors.py",
        "tests/test_nearest_neighbors.py -m 'not triton'",
        (
            ("kept if valid is None else kept & valid", "kept"),
            ("[:, : k + SPARE].sort(dim=1).values", "[:, : k + SPARE]"),
            ("kept == torch.arange(here.start", "kept == 1 + torch.arange(here.start"),
            ("distance.where(there, INF)", "distance"),
            ("2 * torch.einsum", "torch.einsum"),
            (".where(g[:, :, None] != 0, 0)", ""),
            ("(index[here] < 0) & (g_sqdist[here] != 0)", "index[here] < 0"),
        ),
    ),
    Source(
        "ncops/reference/logit_divergence.py",
        "tests/test_divergences.py -m 'not triton' -k reference",
        (
            ("range(15, 1, -1)", "range(5, 1, -1)"),
            ("range(27, 1, -2)", "range(5, 1, -2)"),
            ("direct.where(direct > NEAR, _sum(terms).log1p())", "direct.where(direct > NEAR, _sum(terms))"),
            ("(q.masked & ~p.masked).any(1)", "q.masked.any(1)"),
            (", self.z.shape[1]).amin(1)", ", -1).amax(1)"),
            ("(p * (t + _exp_rest(t))).where(near, q - p)", "q - p"),
        ),
    ),
    Source(
        "ncops/reference/_blocks.py",
        "tests/test_class_moments.py tests/test_linear_stats.py -k 'reference and (dense or blocks)'",
        (("min(rows, start + step)", "min(rows, start + max(1, step - 1))"),),
    ),
    Source(
        "ncops/reference/_deviations.py",
        "tests/test_class_moments.py tests/test_class_scatter.py tests/test_across_parts.py"
        " -k 'reference and (dense or gradients or counts_nowhere)'",
        (
            ("(labels != ignore_index) & (labels >= 0)", "(labels >= 0)"),
            ("yield keep + rows.start,", "yield keep,"),
            ("g_center -= g_rows", "g_center += g_rows"),
            ("alpha=-1", "alpha=1"),
        ),
    ),
    Source(
        "ncops/reference/center.py",
        "tests/test_nearest_class_mean.py -k '(reference or centre) and not compile and not opcheck'",
        (
            ("at = steps * rows.shape[0] // MOST\n", "at = steps.clamp(max=rows.shape[0] - 1)\n"),
            ("values[MOST // 2]", "values[0]"),
            ("steps * seen[-1] // MOST + 1)", "steps * seen[-1] // MOST)"),
            ("torch.where(mean.isfinite(), middle, mean)", "mean"),
        ),
    ),
    Source(
        "ncops/reference/class_moments.py",
        "tests/test_accumulate_class_moments.py tests/test_class_moments.py tests/test_across_parts.py"
        " -k 'reference and (matches or gradient or state or large_class or hand)'",
        (
            ("new = present[counts[present] == 0]", "new = present"),
            ('if x.device.type == "cpu" and bad > 0:', "if False:"),
            ("sqnorms[present] += batch_sqnorms[present]", "sqnorms[present] = batch_sqnorms[present]"),
            (
                "r.double().square().sum(1)",
                "r.square().sum(1).double()",
                "rounding only: the kernels too square a row in float32",
            ),
            ("g_sums[y] + 2 * g_sqnorms", "g_sums[y] + g_sqnorms"),
            ("(~inside & (labels != ignore_index)).sum()", "(~inside).sum()"),
        ),
    ),
    Source(
        "ncops/reference/class_scatter.py",
        f"tests/test_class_scatter.py {REFERENCE}",
        (
            ("total.tril() + total.tril(-1).t()", "total.tril() + total.tril().t()"),
            ("g = g + g.t()", "g = 2 * g"),
        ),
    ),
    Source(
        "ncops/reference/linear_stats.py",
        f"tests/test_linear_stats.py tests/test_linear_stats_gradients.py tests/test_vocabulary_shards.py {REFERENCE}",
        (
            ("z.add_(bias)", "z.add_(scale * bias)"),
            ("g_bias += g_z.sum(0", "g_bias += scale * g_z.sum(0"),
            (".where(active[:, None], 0))", ")"),
            (
                "share_of(z, None if target_logit is None else target_logit[rows])",
                "share_of(z, None if target_logit is None else target_logit[: len(z)])",
            ),
            ("        g_z *= self.scale\n", ""),
        ),
    ),
    Source(
        "ncops/reference/logit_gradient.py",
        "tests/test_logit_stats_gradients.py tests/test_linear_stats_gradients.py tests/test_vocabulary_shards.py"
        " tests/test_across_parts.py tests/test_logit_stats.py"
        " -k 'reference and (each_column or digits or gradient or counts_nowhere)'",
        (
            ("(target != ignore_index) & (target >= 0)", "(target >= 0)"),
            ('rows.floats["entropy"] - gap', 'rows.floats["entropy"] + gap'),
            ('(2 / z.shape[1]) * g["var"]', '(1 / z.shape[1]) * g["var"]'),
            ("lost = torch.expm1(-gap)", "lost = share - 1"),
            ("share**3 * _not_squared", "share**2 * _not_squared"),
            ("(target >= 0) & ~hit, 0)", "target >= 0, 0)"),
            ('g["second"].where(second_index >= 0, 0)[:, None]', '0 * g["second"][:, None]'),
            ("torch.where(elsewhere, grad.gather(1, at)[:, 0], at_argmax)", "at_argmax"),
            ("rest - torch.minimum(torch.maximum(squared, term.square()), term * rest)", "rest - squared"),
        ),
    ),
    Source(
        "ncops/reference/logit_share.py",
        "tests/test_vocabulary_shards.py tests/test_logit_stats.py tests/test_linear_stats.py -k 'reference and not"
        " compile and not opcheck'",
        (
            ("s.squares + s.count * (s.mean - mean).square()", "s.squares + (s.mean - mean).square()"),
            (".where(s.max == top, NOWHERE).amin(0)", ".where(s.max == top, -1).amax(0)"),
            ("rest = s.rest + (~winner).double()", "rest = s.rest"),
            ("(s.weighted + fall * rest)", "s.weighted"),
            ("(s.mean * s.count).where(s.count > 0, 0).sum(0) / count", "s.mean.where(s.count > 0, 0).mean(0)"),
            ("(z > target_logit[:, None])", "(z >= target_logit[:, None])"),
            ("(1 + s.squared) / (1 + s.rest).square()", "s.squared / (1 + s.rest).square()"),
            ("(s.squares / s.count)", "(s.squares / (s.count - 1))"),
            ("(target < s.count) & ~poisoned", "(target < s.count)"),
            ("value.where(good, NAN).masked_fill(ignored, 0)", "value.where(good, NAN)"),
        ),
    ),
    Source(
        "ncops/reference/logit_stats.py",
        f"tests/test_logit_stats.py {REFERENCE}",
        (
            ("out[here] = scale * uncapped_gradient", "out[here] = uncapped_gradient"),
            ("target.where(inside, 0)[:, None]", "target.clamp(0, z.shape[1] - 1).flip(0)[:, None]"),
        ),
    ),
    Source(
        "ncops/reference/nearest_class_mean.py",
        f"tests/test_nearest_class_mean.py {REFERENCE}",
        (
            ("half = 0.5 * centred", "half = centred"),
            ("(chosen[rows].double() - origin).to(dtype)", "chosen[rows].to(dtype) - origin.to(dtype)"),
            ("        at = kept[at]\n", ""),
            (
                "good = best.isfinite()",
                "good = ~best.isnan()",
                "an infinite row meets a zero among the centred means, and their product is NaN",
            ),
        ),
    ),
    Source(
        "ncops/reference/pair_stats.py",
        f"tests/test_pair_stats.py tests/test_pair_stats_labels.py tests/test_across_parts.py {REFERENCE}",
        (
            ("self.squares + delta.square() * (n * (count - n) / count)", "self.squares"),
            ("self.mean + delta * (n / count)", "self.mean + delta / 2"),
            ("squares / max(self.count, 1)", "squares / max(self.count - 1, 1)"),
            ("better &= ~(best[own].isnan() & (where[own] == -2))", "better &= True"),
            ("torch.where(d2 == 0, 0, slope)", "slope"),
            ("        weight[mine - block.start, mine] = 0\n", ""),
            ("CLOSE = 0.01", "CLOSE = 0"),
            (
                "self.low, self.high = torch.minimum(self.low, picked.amin())",
                "self.low, self.high = torch.fmin(self.low, picked.amin())",
            ),
            ("torch.where(tile.opposite[i - block.start, j - first], -1.0, 1.0)", "torch.ones(len(i))"),
            ("torch.where(_same(p, block, 0), share[0], share[1])", "share[0].expand(tile.values.shape).clone()"),
            (
                "-power * (p.variances[block, None] + p.variances) * d2.pow(-power - 1)",
                "-power * p.variances[block, None] * d2.pow(-power - 1)",
            ),
        ),
    ),
    Source(
        "ncops/reference/projected_sqnorms.py",
        f"tests/test_projected_sqnorms.py {REFERENCE}",
        (
            ("factor = 2 * g[rows, None]", "factor = g[rows, None]"),
            ("        r = torch.where(factor == 0, 0, r)\n", ""),
        ),
    ),
)
