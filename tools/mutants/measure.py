"""Defects of measurements: of stored features, of language models, and of what their reports say."""

from .plants import Source

SOURCES: tuple[Source, ...] = (
    Source(
        "ncops/lm/head.py",
        "tests/test_lm.py tests/test_lm_refusals.py"
        " -k 'head or scale or soft or cap or bends or adapter or later_tokens or untrained'",
        (
            ("logits.flatten(0, -2).double(), offset,", "logits.flatten(0, -2).double(), 0.0,"),
            ("abs(value / known - 1) <= tolerance / 8", "False"),
            ("    _prove_causal(model, head, ids)\n", ""),
            ("if not all(error <= tolerance for error in errors):", "if all(error > tolerance for error in errors):"),
            ("if not large.error(scale, None) <= tolerance:", "if False:"),
            ("torch.finfo(x.dtype).max / 2", "math.inf"),
            ("        scale, softcap = _fit(samples[-1], scale, softcap)\n", ""),
            ("* factor for factor in scales]", "for factor in scales]"),
            ("torch.allclose(hidden.float(), x.float(), rtol=1e-3, atol=1e-4)", "True"),
            ("(None, softcap) if ignore_softcap else (softcap, None)", "(softcap, None)"),
            ("head = Head(weight.detach(), bias, scale,", "head = Head(weight.detach(), None, scale,"),
        ),
    ),
    Source(
        "ncops/lm/adapter.py",
        "tests/test_lm_loading.py -k adapter",
        (
            ("    _untie(model)\n", ""),
            ("        if names:\n", "        if False:\n"),
            ("    if settings.is_prompt_learning:\n", "    if False:\n"),
            ("if not moved <= causal", "if moved <= causal"),
        ),
    ),
    Source(
        "ncops/lm/windows.py",
        "tests/test_lm.py tests/test_lm_text.py"
        " -k 'windows or tokenize or agrees or bos or tokens_counts or both_parts or byte or character or limits'",
        (
            ("first, end = max(seen, start + 1), min", "first, end = start + 1, min"),
            ("            if first < end:\n", "            if first <= end:\n"),
            ("range(begin, last, self.stride)", "range(begin, last, self.size)"),
            ("UNKNOWN if min(of_each) < 0 else sum(of_each)", "sum(of_each)"),
            ("sizes[first - begin : end - begin]", "sizes[start - begin : end - begin]"),
            ("self.tokens += end - max(seen, start)", "self.tokens += end - start"),
            ("elif len(ids) and len(self._ids) > begin:", "elif len(ids):"),
            ("length - 1 - len(scored) : -1]", "length - 1 - len(scored) - 1 : -2]"),
            ("or document < self._train[1] else self._train[1]", "else self._train[1]"),
            ("high - max(low - 1, counted)", "high - low + 1"),
            ("*(self.scored(i) for i", "*(self[i] for i"),
            ("max(1, round(held_out * len(self)))", "max(1, int(held_out * len(self)) + 1)"),
            ("return range(len(self) - last), range", "return range(len(self) - last + 1), range"),
            ("            left -= len(ids)\n", ""),
            ("repr((len(self), self.bos, self._train))", "repr((len(self), self._train))"),
            ("alike[first : first + batch_size]", "alike[first : first + batch_size - 1] or alike[first:]"),
            ("np.maximum.accumulate(np.asarray(ends, dtype=np.int64))", "np.array(ends, dtype=np.int64)"),
            ("    reached[-1:] = len(text)\n", ""),
            ("(points >= 0x10000)", "(points >= 0x20000)"),
            ("                sizes[at] += dropped\n", ""),
            ("            sizes[-1] += dropped\n", "            pass\n"),
        ),
    ),
    Source(
        "ncops/lm/text.py",
        "tests/test_lm_text_forms.py -k 'form or named or name or folder or pieces or line or utf8 or hostile or bomb'",
        (
            ("at = counted.count - len(error.object) + error.start", "at = error.start"),
            ('encoding="utf-8-sig"', 'encoding="utf-8"'),
            ("stream.readline(CHUNK_CHARACTERS)", "stream.readline()"),
            ("            if not text.strip():\n                continue\n", ""),
            ("found.sort(key=lambda file: Path(file).parts)", "found.sort(reverse=True)"),
            ("                    folders.remove(name)\n                elif", "                elif"),
            ("number, read = number + 1, read + len(line)", "number, read = number + 1, len(line)"),
            ("if len(line) > LONGEST_LINE:", "if False:"),
            ('return "binary" if broken or b"\\0" in head else ""', 'return ""'),
        ),
    ),
    Source(
        "ncops/lm/unpack.py",
        "tests/test_lm_text_forms.py",
        (
            ("self._frame, self._rest = None, self._frame.unused_data", 'self._frame, self._rest = None, b""'),
            ("                if self._frame is not None:\n", "                if False:\n"),
        ),
    ),
    Source(
        "ncops/lm/token_rows.py",
        "tests/test_lm_text.py -k 'numbers or table'",
        (
            ("for window in sorted(self._parts)", "for window in self._parts"),
            ("column[stats.valid]", "column"),
            ("            self._scratch.seek(at)\n", ""),
        ),
    ),
    Source(
        "ncops/lm/collect.py",
        "tests/test_lm.py tests/test_lm_jobs.py"
        " -k 'padding or hidden_layers or agrees or killed or torchrun or interrupted'",
        (
            ("statistics.update(hidden[layer], rows", "statistics.update(hidden[layer - 1], rows"),
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
        "ncops/measuring/features.py",
        "tests/test_cli.py tests/test_hostile_files.py tests/test_measure.py"
        " -k 'measure or labels or unsigned or ignored'",
        (
            ("    return top + 1\n", "    return top\n"),
            ("y[y != ignore_index] for y", "y for y"),
            ("(decide or train).batches(batch)", "train.batches(batch)"),
            ("[train.no_held_out] if decide is None else []", "[]"),
            ("*classifier, convention=convention", '*classifier, convention="ncops"'),
            ("if labels.dtype == torch.uint64 and (wide < 0).any()", "if False"),
            (", nonfinite=nonfinite,\n", ",\n"),
            ("min_count=min_count, scatter", "scatter"),
            ("convention=convention, ignore_index=ignore_index\n", "convention=convention\n"),
        ),
    ),
    Source(
        "ncops/measuring/files.py",
        "tests/test_cli.py tests/test_hostile_files.py -k 'measure or labels or unsigned'",
        (
            ("range(0, rows, size):\n            x =", "range(0, rows - 1, size):\n            x ="),
            ("if len(shape) != 2 or count != shape[:1]:", "if len(shape) != 2:"),
            ("if y.dtype not in LABEL_TYPES:", "if y.is_complex():"),
        ),
    ),
    Source(
        "ncops/measuring/tensors.py",
        "tests/test_measure.py",
        (
            ("self._y[start * inner : (start + step) * inner]", "self._y[start : start + step]"),
            ("max(1, size // max(1, inner))", "size"),
            ('newbyteorder("=")', 'newbyteorder("S")'),
            ("native if native.flags.writeable else native.copy()", "native"),
            ("part.check_labels(classes, ignore_index)", "part.check_labels(classes, -100)"),
            ("if part is not None:\n            part", "if part is train:\n            part"),
            ("x, shape = x[0], shape[1:]", "shape = shape[1:]"),
            ("convention=settings", 'convention="ncops"'),
        ),
    ),
    Source(
        "ncops/measuring/saved.py",
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
        "ncops/report/classes.py",
        "tests/test_measure.py",
        (
            ("& ~kept).nonzero()", "& kept).nonzero()"),
            ('0 if geometry.coverage.get("min_count") == 1 else -1', "0"),
            ("geometry.classes[found.clamp_min(0)]", "found.clamp_min(0)"),
            ("if not kept.any():", "if False:"),
            ('return ClassTable(columns).sort("class")', "return ClassTable(columns)"),
            ("torch.cat([known[order], last])", "torch.cat([last, known[order]])"),
            ("| (values == -1 if by in INTEGERS else False)", ""),
            ("metrics.mean_norms(means, global_mean=origin)", "metrics.mean_norms(means)"),
            ("self[name] for name in self._columns}", "self._columns[name].tolist() for name in self._columns}"),
            ("if len(rows) == self.of:", "if True:"),
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
