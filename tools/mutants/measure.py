"""Defects of measurements: of stored features, of language models, and of what their reports say."""

from .plants import Source

SOURCES: tuple[Source, ...] = (
    Source(
        "ncops/lm/head.py",
        "tests/test_lm.py tests/test_lm_refusals.py -k 'head or scale or soft or adapter or later_tokens or untrained'",
        (
            ("logits.double() - offset, x.dtype", "logits.double(), x.dtype"),
            ("scale = next(stated, fitted)", "scale = fitted"),
            ("    _prove_causal(model, head, ids)\n", ""),
            ("if not error <= tolerance:", "if error > 1e4 * tolerance:"),
            ("if abs(bend) > 12 * noise and", "if abs(bend) > 12e6 * noise and"),
            ("torch.allclose(hidden.float(), x.float(), rtol=1e-3, atol=1e-4)", "True"),
            ("if softcap and not ignore_softcap:", "if False:"),
            ("1.0 if softcap else _proved_scale", "1.0 if True else _proved_scale"),
            ("head = Head(weight.detach(), bias, scale,", "head = Head(weight.detach(), None, scale,"),
        ),
    ),
    Source(
        "ncops/lm/windows.py",
        "tests/test_lm.py -k 'windows or tokenize or agrees or bos or tokens_counts or both_parts'",
        (
            ("if min(a + size, end) - a >= 2]", "if min(a + size, end) - a >= 1]"),
            ("range(start, end, size)", "range(start, end, size - 1)"),
            ("row[1:] + [IGNORE] for row", "row + [IGNORE] * 0 for row"),
            ("[IGNORE for _ in lead] + row[1:]", "row[:1] * len(lead) + row[1:]"),
            ("set().union(*(self[i][1:] for i", "set().union(*(self[i] for i"),
            ("max(1, round(held_out * len(self)))", "max(1, int(held_out * len(self)) + 1)"),
            ("return range(len(self) - last), range", "return range(len(self) - last + 1), range"),
            ("            left -= len(ids)\n", ""),
            ("            ids = ids[:left]\n", ""),
            ("repr((self._spans, self.bos))", "repr(self._spans)"),
            ("sum(end - start for start, end in self._spans)", "len(self._ids)"),
            ("alike[first : first + batch_size]", "alike[first : first + batch_size - 1] or alike[first:]"),
        ),
    ),
    Source(
        "ncops/lm/collect.py",
        "tests/test_lm.py tests/test_lm_jobs.py"
        " -k 'padding or hidden_layers or agrees or killed or torchrun or interrupted'",
        (
            ("statistics.update(hidden[layer], rows)", "statistics.update(hidden[layer - 1], rows)"),
            ("torch.where(labels == IGNORE, labels, self._row[labels.clamp_min(0)])", "self._row[labels.clamp_min(0)]"),
            ("self.windows.batches(mine[done:],", "self.windows.batches(mine[max(0, done - 1) :],"),
            (
                "            for state in into.states.values():\n                state.all_reduce(inplace=True)",
                "            into.statistics.all_reduce(inplace=True)",
            ),
            ("count % place.every == 0 or position == last", "count % place.every == 0"),
            ("self.states |= {", "self.unused = {"),
        ),
    ),
    Source(
        "ncops/measure/features.py",
        "tests/test_cli.py tests/test_hostile_files.py -k 'measure or labels or unsigned'",
        (
            ("    return top + 1\n", "    return top\n"),
            ("for start in range(0, shape[0], size):", "for start in range(0, shape[0] - 1, size):"),
            ("if len(shape) != 2 or count != shape[:1]:", "if len(shape) != 2:"),
            ("(decide or train).batches(batch)", "train.batches(batch)"),
            ("[NOT_HELD_OUT] if decide is None else []", "[]"),
            ("convention=convention)\n    facts", 'convention="ncops")\n    facts'),
            ("if y.dtype == torch.uint64 and (wide < 0).any():", "if False:"),
            ("if y.dtype not in LABEL_TYPES:", "if y.is_complex():"),
            ("scatter=scatter, nonfinite=nonfinite)", "scatter=scatter)"),
            ("min_count=min_count, scatter", "scatter"),
        ),
    ),
    Source(
        "ncops/measure/saved.py",
        "tests/test_lm_jobs.py tests/test_lm_refusals.py -k 'merge or merged or another_model or two_models'",
        (
            ('("classifier", "parameters")', '("classifier",)'),
            ("if any(path.samefile(other) for other in files[:i]):", "if path in files[:i]:"),
            ("        origin = origin or theirs\n", ""),
            ("save_statistics(output, total, origin)", "save_statistics(output, total, None)"),
            ("if kind is not None and type(statistics).__name__ != kind:", "if False:"),
        ),
    ),
    Source(
        "ncops/report/caveats.py",
        "tests/test_goals.py -k 'not plot'",
        (
            ("if share > UNKEPT:", "if share < UNKEPT:"),
            ("{1 - share:.3f}", "{share:.3f}"),
            ("kept < FEW_KEPT * classes", "kept > FEW_KEPT * classes"),
            ("samples < FEW_ROWS * kept", "samples < FEW_ROWS"),
            ("{samples / kept:.3g}", "{samples / classes:.3g}"),
            ("{simplex_uniformity(kept):.4g}", "{simplex_uniformity(goals.dim):.4g}"),
        ),
    ),
    Source(
        "ncops/report/numbers.py",
        "tests/test_collapse.py tests/test_report_output.py tests/test_html.py"
        " -k 'json or mapping or frames or tables or column or format_value'",
        (
            (
                "None if isinstance(value, float) and not math.isfinite(value) else value",
                "0.0 if isinstance(value, float) and not math.isfinite(value) else value",
            ),
            ("digits = 4 if abs(value) < 10 else 3", "digits = 2 if abs(value) < 10 else 3"),
            ('return "∞" if value > 0 else "-∞"', 'return "∞"'),
        ),
    ),
)
