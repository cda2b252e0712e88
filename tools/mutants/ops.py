"""Defects of the op layer: checks, columns, dispatch."""

from .plants import Source
from .reference import REFERENCE

LABELS = "-k 'counts_nowhere or first_label'"
ONCE = "-m 'not triton' -k 'not compile and not opcheck'"

SOURCES: tuple[Source, ...] = (
    Source(
        "ncops/ops/checks.py",
        "tests/test_label_errors.py tests/test_across_parts.py tests/test_class_moments.py tests/test_statistics.py"
        " tests/test_forward_mode.py -m 'not triton' -k 'labels or label or errors or arguments or counts_nowhere or"
        " forward or features or integers'",
        (
            ("low >= 0 and high < num_classes", "low >= 0 and high <= num_classes"),
            ("low >= 0 and high < num_classes", "high < num_classes"),
            ("if (((labels < 0) | (labels >= num_classes)) &", "if ((labels >= num_classes) &"),
            (
                "bad = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)",
                "bad = (labels < 0) | (labels >= num_classes)",
            ),
            ("row = int(bad.nonzero()[0])", "row = int(bad.nonzero()[-1])"),
            ("    if x.ndim == 2:\n        return x\n", "    if x.ndim <= 2:\n        return x\n"),
            ("-1 if x.shape[-1] else x.shape[:-1].numel()", "-1"),
            ("None if isinstance(value, bool) else operator", "operator"),
            ("found < minimum:", "found < minimum - 1:"),
            ("if tuple(t.shape) != tuple(expected):", "if t.ndim != len(expected):"),
            ("if labels.dtype not in INTEGER:", "if labels.dtype.is_floating_point:"),
            ("for t in tensors:\n        if t is not None and", "for t in tensors[1:]:\n        if t is not None and"),
        ),
    ),
    Source(
        "ncops/ops/class_moments.py",
        "tests/test_native_arguments.py tests/test_class_moments.py tests/test_accumulate_class_moments.py"
        " tests/test_across_parts.py -m 'not triton'"
        " -k '(class_moments or label or gradient or in_place) and not compile and not opcheck'",
        (
            ("2 * g_sqnorms[:, None] * sums", "g_sqnorms[:, None] * sums"),
            ("-(counts[:, None] * g_sums +", "-(counts[:, None] * g_sums -"),
            ("and int(out[3]):", "and int(out[3]) > 1:"),
            ("arguments[:5]", "arguments[2:5]"),
            ('    check_dtype(center, "center", compute_dtype(x.dtype), f"x is {x.dtype}")\n', ""),
        ),
    ),
    Source(
        "ncops/ops/class_scatter.py",
        f"tests/test_class_scatter.py tests/test_across_parts.py {ONCE}",
        (
            ('center.shape[0], ignore_index, "labels"', 'center.shape[0] + 1, ignore_index, "labels"'),
            ('(x.shape[-1],), "(D,) without labels"', 'tuple(center.shape), "(D,) without labels"'),
        ),
    ),
    Source(
        "ncops/ops/projected_sqnorms.py",
        f"tests/test_projected_sqnorms.py tests/test_across_parts.py {LABELS} -m 'not triton'",
        (('center.shape[0], ignore_index, "labels"', 'center.shape[0] + 1, ignore_index, "labels"'),),
    ),
    Source(
        "ncops/ops/columns.py",
        "tests/test_linear_stats.py tests/test_linear_stats_gradients.py tests/test_logit_stats.py"
        " tests/test_loss_of_columns.py -m 'not triton'"
        " -k 'by_hand or losses or ignore or sum_of or ignored or one_class or cross_entropy or nowhere'",
        (
            ("self.target == self.argmax, self.second, self.max", "self.target == self.argmax, self.max, self.second"),
            ("torch.where(self.valid, self.target_logit - rival, 0.0)", "self.target_logit - rival"),
            ("self.valid & (self.target == self.argmax)", "(self.target == self.argmax)"),
            ("(var + mean.square())", "(var - mean.square())"),
            ("target != ignore_index", "target >= 0"),
            ("values.numel() if self.valid is None else self.valid)", "values.numel())"),
            ("label_smoothing * even", "even"),
            (
                "_reduced(of_row * self.nll.where(of_row != 0, 0.0), reduction, of_row)",
                "_reduced(of_row * self.nll, reduction, of_row)",
            ),
            ("self.lse if self.valid is None else self.lse.where(self.valid, 0.0)", "self.lse"),
            ("self.entropy if self.valid is None else self.entropy.where(self.valid, 0.0)", "self.entropy"),
        ),
    ),
    Source(
        "ncops/ops/linear_stats.py",
        "tests/test_linear_stats_gradients.py tests/test_across_parts.py tests/test_linear_stats.py -m 'not triton'"
        " -k 'autocast or errors or first_label or out_of_range'",
        (
            ("target, weight.shape[0], ignore_index", "target, weight.shape[0] + 1, ignore_index"),
            ("t is None or t.dtype == torch.float64 else", "t is None else"),
            ("if t is not None and t.dtype != expected:", "if t is not None and t.dtype.itemsize > expected.itemsize:"),
        ),
    ),
    Source(
        "ncops/ops/linear_loss.py",
        "tests/test_linear_loss.py -m 'not triton'",
        (
            ("or g_loss != 1:", "and g_loss != 1:"),
            ("or flat.dtype == torch.float16:", "or False:"),
        ),
    ),
    Source(
        "ncops/ops/loss_terms.py",
        "tests/test_linear_loss.py -m 'not triton'",
        (
            ('for name in ("target_logit", "nll"):', 'for name in ("nll",):'),
            ("indices.masked_fill(nowhere, -1)", "indices"),
            ("z_loss * counts / per_row", "z_loss * counts / per_weight"),
            ("smooth * class_weight.mean()", "smooth"),
            (").where(valid[:, None], 0)\n", ")\n"),
            ("loss.where(some, torch.nan)", "loss"),
            ("some = some | (f.num_items != 0)", "pass"),
            ("x.where(counts[:, None], 0).to", "x.to"),
            ("    with outside_autocast(x.device):\n", "    if True:\n"),
            ("factors[i : i + 4096] @ weight[i : i + 4096]", "factors[:4096] @ weight[i : i + 4096]"),
        ),
    ),
    Source(
        "ncops/ops/linear_topk.py",
        "tests/test_linear_topk.py -m 'not triton'",
        (
            ("if k > weight.shape[0]:", "if k >= weight.shape[0]:"),
            ("(values - values[:, :1]) - gap[:, None]", "values - lse[:, None]"),
            ("lse = lse.reshape(rows)", "lse = lse.reshape(-1)"),
        ),
    ),
    Source(
        "ncops/ops/linear_divergence.py",
        "tests/test_divergences.py tests/test_forward_mode.py -m 'not triton' -k 'not reference- and not reference]'",
        (
            ('(*x.shape[:-1], None), "x.shape', '(None, None), "x.shape'),
            ("states = rows_of(other)", "states = other"),
            ("(classes, states.shape[1])", "(classes, flat.shape[1])"),
            ("        if other_bias is not None:", "        if other_bias is x:"),
            ('    refuse_forward_mode("linear_divergence", *tensors)\n', ""),
        ),
    ),
    Source(
        "ncops/ops/divergences.py",
        "tests/test_divergences.py -m 'not triton' -k 'not reference- and not reference]'",
        (
            ("if len(rows) != 1:", "if len(rows) > 1:"),
            ("if not 0 < beta < 1:", "if not 0 <= beta <= 1:"),
            ("dtype=compute_dtype(like.dtype)", "dtype=like.dtype"),
            ("like.new_empty(rows, dtype=torch.bool)", "like.new_empty(rows)"),
        ),
    ),
    Source(
        "ncops/ops/logit_stats.py",
        f"tests/test_across_parts.py tests/test_logit_stats.py {LABELS} -m 'not triton'",
        (("target, logits.shape[1], ignore_index", "target, logits.shape[1] + 1, ignore_index"),),
    ),
    Source(
        "ncops/ops/nearest_class_mean.py",
        f"tests/test_nearest_class_mean.py {ONCE}",
        (("not in (torch.float64, dtype)", "not in (torch.float64, torch.float32)"),),
    ),
    Source(
        "ncops/ops/pair_stats.py",
        "tests/test_pair_stats.py -k errors",
        (
            ("    if labels is not None:\n        check_class_labels", "    if False:\n        check_class_labels"),
            ('if kernel != "cdnv":', "if False:"),
            ("if valid.dtype != torch.bool:", "if valid.dtype.is_floating_point:"),
        ),
    ),
    Source(
        "ncops/ops/op.py",
        "tests/test_backend_choice.py tests/test_compile.py -k 'gradient_runs or not_felt'",
        (
            ("ctx.forced = backends.forced()", "ctx.forced = None"),
            ("if autocast_dtype(like.device) is not None:", "if False:"),
        ),
    ),
    Source(
        "ncops/ops/pinv_trace.py",
        "tests/test_pinv_trace.py tests/test_rounding.py -k 'not compile and not wide_deviations'",
        (
            ("rank = max(0, min(d, k - 1))", "rank = min(d, k)"),
            ("weights = weights / weights.sum()", "weights = weights / weights.max()"),
            ("global_mean = weights @ rows", "global_mean = rows.mean(0)"),
            ("centred / max(1, k) ** 0.5", "centred / max(1, k - 1) ** 0.5"),
            ("trace / means.shape[0] if divide", "trace / (means.shape[0] - 1) if divide"),
            ("dtypes == {torch.float64}", "torch.float64 in dtypes"),
            ("        dtypes.add(global_mean.dtype)\n", ""),
            ("in (None, torch.float64) else", "in (None, torch.float32, torch.float64) else"),
            ("squares = rows.square()", "squares = (rows - global_mean.double()).square()"),
            ("(vt * a.magnitude).norm(dim=1)", "a.magnitude.norm()"),
            ("floor = rtol * s[:1]", "floor = rtol"),
            ("floor = rtol * values.abs().max()", "floor = rtol"),
            ("floor = 8 * a.eps *", "floor = 0 * a.eps *"),
            ("_keep(exact, s, vt, None) & ~keep", "_keep(exact, s, vt, None)"),
            ("good = weights.isfinite() & (weights >= 0)", "good = weights.isfinite()"),
            ("or not 0 <= number < math.inf", "or not 0 <= number"),
            ("cross + cross.t() - pinv @ m @ pinv", "-pinv @ m @ pinv"),
            ("g_scaled = 2 * g *", "g_scaled = g *"),
            ("1 + (a.scaled.shape[1] / max(1, a.scaled.shape[0])) ** 0.5", "1"),
        ),
    ),
    Source(
        "ncops/backends/__init__.py",
        "tests/test_backend_choice.py tests/test_op_lists.py tests/test_class_moments.py"
        " -m 'not triton' -k 'not compile and not opcheck'",
        (
            ("        _forced.reset(before)", "        _forced.set(None)"),
            (
                '        if not op.endswith("_backward"):\n            raise',
                '        if op.endswith("_targets"):\n            raise',
            ),
            ("for backend in order if why_not", "for backend in () if why_not"),
        ),
    ),
    Source(
        "ncops/backends/dtypes.py",
        f"tests/test_class_scatter.py {REFERENCE}",
        (("torch.float64 if dtype == torch.float64 else torch.float32", "torch.float32"),),
    ),
    Source(
        "ncops/backends/planes.py",
        "tests/test_planes.py",
        (
            ('"entropy", "mean", "var"', '"entropy", "var", "mean"'),
            ('"rest", "weighted", "squared"', '"rest", "squared", "weighted"'),
        ),
    ),
)
