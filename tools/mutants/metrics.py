"""Defects of the metrics."""

from .plants import Source

PAPERS = "tests/test_paper_metrics.py"
VALUES = "tests/test_metrics.py tests/test_collapse.py -k 'not import and not plot'"

SOURCES: tuple[Source, ...] = (
    Source(
        "ncops/metrics/common.py",
        VALUES,
        (
            ("return total / means.shape[0]", "return total / (means.shape[0] - 1)"),
            ("return global_mean.double()", "return means.mean(0, dtype=torch.float64)"),
            ("means.mean(0, dtype=torch.float64)", "means.mean(0).double()"),
            ("/ (values.numel() - ddof)).sqrt()", "/ values.numel()).sqrt()"),
            ("deviation / mean.abs() if", "deviation / mean if"),
            ("values = values.double()\n", "values = values.float()\n"),
        ),
    ),
    Source(
        "ncops/metrics/configuration.py",
        VALUES,
        (
            ("stats.var * pairs / (pairs - ddof) if ddof", "stats.var * (pairs - ddof) / pairs if ddof"),
            ("PairMoments(-stats.mean,", "PairMoments(stats.mean,"),
            ("rows = centred(means, global_mean) if center else means.double()", "rows = centred(means, global_mean)"),
            ("norms = norms.square()", "norms = norms"),
            ("if k <= d + 1 else", "if k <= d else"),
            ("(k - 1) ** -0.5 / k", "(k - 1) ** -0.5 / (k - 1)"),
            ("(inner - sum_left @ sum_right / k)", "inner"),
            ("(gram_left * gram_right)", "(gram_left * gram_left)"),
            ("norms.log() if log else norms", "norms"),
            ("(tile.sum() - tile.diagonal().sum()) / 2", "tile.sum() / 2"),
            ("range(start + ANGLE_TILE, k, ANGLE_TILE)", "range(start, k, ANGLE_TILE)"),
            ("ANGLE_TILE].T).add_(1 / (k - 1))", "ANGLE_TILE].T)"),
            ("return total / (k * (k - 1) / 2)", "return total / (k * k / 2)"),
        ),
    ),
    Source(
        "ncops/metrics/decisions.py",
        VALUES,
        (
            ("hits.sum().double() / counts.sum().double()", "(hits.double() / counts.double()).nanmean()"),
            ("nll.sum().double() / counts.sum().double()", "(nll.double() / counts.double().clamp_min(1)).mean()"),
            ('torch.where(counts > 0, counts.double(), float("nan"))', "counts.double().clamp_min(1)"),
        ),
    ),
    Source(
        "ncops/metrics/calibration.py",
        f"{VALUES} {PAPERS}",
        (
            (
                "(correct.double() - confidence.double()).abs().sum()",
                "(correct.double() - confidence.double()).sum().abs()",
            ),
            ("confidence.argsort(stable=True)", "torch.arange(len(confidence))"),
            ("part.sum().abs()", "part.abs().sum()"),
            ("1 - 2 * (-stats.nll).exp()", "1 - (-stats.nll).exp()"),
            ("- stats.entropy - stats.target_logit", "- stats.target_logit"),
            ("return bool(slope > 0)", "return bool(slope < 0)"),
        ),
    ),
    Source(
        "ncops/metrics/frames.py",
        PAPERS,
        (
            ("math.sqrt(k / (k - 1))", "math.sqrt((k - 1) / k)"),
            ("index + rows.start] -= target", "index] -= target"),
            ("left[rows].double() @ columns / norm", "left[rows].double() @ columns / norm.square()"),
            (".clamp_min(0)", ""),
        ),
    ),
    Source(
        "ncops/metrics/separability.py",
        PAPERS,
        (
            ("1 - means.mean(0).square().sum()", "1 - means.square().mean(0).sum()"),
            ("n @ (n - 1) / 2", "n @ n / 2"),
            ("(own - samples) / 2 / pairs", "own / 2 / pairs"),
            ("sums.square().sum() / n.sum().square()", "sums.square().sum() / n.square().sum()"),
            ("weights=shares, rtol=rtol", "rtol=rtol"),
            ("2 * k / (k - 1)", "2"),
        ),
    ),
    Source(
        "ncops/metrics/spectrum.py",
        PAPERS,
        (
            ("s.double() ** power", "s.double()"),
            ("entropy / math.log(len(s))", "entropy / len(s)"),
            ("1 / _shares(s, 2).square().sum()", "1 / _shares(s, 1).square().sum()"),
            ("1 / _shares(s, 2).max()", "1 / _shares(s, 1).max()"),
            ("torch.arange(first + 1, first + 1 + len(values)", "torch.arange(1, 1 + len(values)"),
            ("return -(x @ y) / (x @ x)", "return -(x @ y) / (y @ y)"),
        ),
    ),
    Source(
        "ncops/metrics/neighbors.py",
        PAPERS,
        (
            ('k if numerator == "k" else k - 1', "k"),
            ("mean = distances[:, :-1].mean(1)", "mean = distances.mean(1)"),
            ("torch.arange(kept, dtype", "torch.arange(1, kept + 1, dtype"),
            ("int(n * (1 - discard))", "n - 1"),
        ),
    ),
    Source(
        "ncops/metrics/ood.py",
        PAPERS,
        (
            ("(rows - inside @ space.directions).norm", "rows.norm"),
            ("vectors[:, -k:].flip(1).T", "vectors[:, :k].T"),
            ("/ rows.norm(dim=1)\n", "/ (rows - space.mean).norm(dim=1)\n"),
            ("return -nearest_class_mean", "return nearest_class_mean"),
            ("lse.double() - alpha", "lse.double() + alpha"),
        ),
    ),
    Source(
        "ncops/metrics/regression.py",
        PAPERS,
        (
            ("[1][:, -dim:].T", "[1][:, :dim].T"),
            ("rows[s > s.max()", "rows[s >= s.max()"),
            ("gram = gram / gram.norm()", "pass"),
            ("best.nan_to_num(0.0).clamp(zero, roots[0])", "zero"),
        ),
    ),
    Source(
        "ncops/metrics/similarity.py",
        PAPERS,
        (("s[dim:, dim:].norm()", "s[:dim, :dim].norm()"),),
    ),
    Source(
        "ncops/losses/columns.py",
        "tests/test_losses.py",
        (
            ("stats.max - stats.mean\n", "stats.max - stats.target_logit\n"),
            ("F.softplus(a * (b - standard)) / a", "F.softplus(a * (b - standard))"),
            ("-torch.expm1(-q * stats.nll) / q", "(1 - torch.exp(-q * stats.nll)) / q"),
            ("math.exp(margin / temperature)", "math.exp(margin)"),
            ("- math.log(stats.num_classes)", ""),
        ),
    ),
    Source(
        "ncops/losses/features.py",
        "tests/test_losses.py",
        (
            (".clamp(min=1)).mean()", ".clamp(min=1)).sum() / (moments.counts > 0).sum()"),
            ("means - means.mean(0) if center else means", "means"),
            ("power=t", "power=2 * t"),
            ("counts[own] - 1", "counts[own]"),
            ("- unit.square().sum(1)", ""),
            ("+ torch.log(-torch.expm1(-stats.nll))", ""),
        ),
    ),
    Source(
        "ncops/metrics/duality.py",
        VALUES,
        (
            ("weight[rows].double() - offset", "weight[rows].double()"),
            ("means[rows].double() - origin", "means[rows].double()"),
            ("dot / (w.norm(dim=1) * m.norm(dim=1))", "dot / w.norm(dim=1)"),
            ("spread(values, ddof)", "spread(values, 0)"),
            ("w / w.norm() - m / m.norm()", "w / m.norm() - m / m.norm()"),
            ("weight.double() - offset if center_weight else weight", "weight"),
            ("weight.double() - offset, centred", "weight.double(), centred"),
            ("weight, centred(means, global_mean))", "weight, centred(means, None))"),
        ),
    ),
    Source(
        "ncops/metrics/goals.py",
        "tests/test_goals.py tests/test_metrics.py -k 'not plot'",
        (
            ("dim / (classes - 1))))", "dim / classes)))"),
            ("classes * (classes - 1 - dim) / dim", "classes * (classes - dim) / dim"),
            ("2 * classes / (classes - 1)) / 2", "2 * classes / (classes - 1))"),
            ("self.classes > self.dim + 1", "self.classes > self.dim"),
            ('if self.classes != 2 or self.settings.global_mean != "class":', "if self.classes != 2:"),
            ("most = 1 - self.unkept", "most = self.unkept"),
            ("math.sqrt(pairs / (pairs - settings.pair_ddof))", "math.sqrt((pairs - settings.pair_ddof) / pairs)"),
            ("found[0] if len(found) == 1 else cls()", "found[0] if found else cls()"),
            ('and self.settings.duality_error == "gram"', ""),
            ("abs(value - target)", "abs(value)"),
            ('["nc2_etf_error"] if self.settings.etf_of == "means" else []', '["nc2_etf_error"]'),
            ('name == "nc2_cos_std" and settings.similarity == "cosine"', 'name == "nc2_cos_std"'),
            ('"nc2_cos_std", "nc2_cos_error"]', '"nc2_cos_std"]'),
            ('("nc2_etf_error", "nc2_cos_error", "nc2_w_cos_error")', '("nc2_etf_error", "nc2_cos_error")'),
            ('name == "nc2_w_cos_std" or (', "("),
            ('name == "nc2_cos_std" and settings.global_mean == "class"', 'name == "nc2_cos_std"'),
            ('("nc2_cos_std", "nc2_cos_error", "nc2_w_cos_error", "gnc2_log_var")', '("nc2_cos_std", "gnc2_log_var")'),
        ),
    ),
    Source(
        "ncops/metrics/table.py",
        "tests/test_collapse.py tests/test_metrics.py tests/test_goals.py -k 'not import and not plot'",
        (
            ('"vci", "NC1", (PAIRS, SCATTER)', '"vci", "NC1", (PAIRS,)'),
            ('"1 = collapsed", "higher", 1.0', '"1 = collapsed", "higher", 0.0'),
            ('"nc2_norm_cv", "NC2", (PAIRS,)', '"nc2_norm_cv", "NC2", (PAIRS, SCATTER)'),
            ('"nc4_agreement", "NC4", (DECISIONS, NEAREST)', '"nc4_agreement", "NC4", (DECISIONS,)'),
        ),
    ),
    Source(
        "ncops/metrics/variability.py",
        "tests/test_metrics.py tests/test_rounding.py tests/test_collapse.py"
        " -k 'not import and not plot and not wide_deviations'",
        (
            ("float(dropped[0] / found.s[0])", "float(dropped[-1] / found.s[0])"),
            ("(values <= -values[0]).sum()", "(values < 0).sum()"),
            ("variances * counts / (counts - ddof)", "variances * (counts - ddof) / counts"),
            (".clamp_min(0)\n    return pair", ".clamp_min(1)\n    return pair"),
            ("variances=variances, power=power", "variances=variances"),
            ("between_trace(means, global_mean)", "between_trace(means, None)"),
            ("between * rank**0.5,", "between,"),
            (" / rank).clamp(0, 1)", " / rank)"),
            ("(1 - solve_trace(", "(1 - rank / means.shape[1] * solve_trace("),
            (
                "total = within_cov.double() + between.T @ between",
                "total = within_cov.double() + between.T @ between / rank",
            ),
            (
                "    singular, basis = between_svd(\n        means, global_mean=global_mean, weights=weights,",
                "    singular, basis = between_svd(\n        means, weights=weights,",
            ),
            ("return basis / singular[:, None]", "return basis * singular[:, None]"),
            (
                "between_svd(means, global_mean=global_mean, rtol=rtol, input_dtype=input_dtype)",
                "between_svd(means, global_mean=global_mean, rtol=rtol)",
            ),
            (
                "scale = within_cov.diagonal().double().rsqrt()",
                "scale = torch.ones_like(within_cov.diagonal().double())",
            ),
            (
                "rtol=rtol, divide=divide, input_dtype=input_dtype\n",
                "rtol=rtol, divide=divide\n",
            ),
        ),
    ),
)
