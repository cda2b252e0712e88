"""Defects of reductions over ranks and shards of a vocabulary."""

from .plants import Source

SHARDS = "tests/test_class_shards.py tests/test_class_shard_files.py"

SOURCES: tuple[Source, ...] = (
    Source(
        "ncops/stats/collectives.py",
        "tests/test_distributed.py -k 'one_row or class_statistics or unlike or other_kept'",
        (
            ("((counts[rows] > 0) & (owner[rows] != rank))", "((counts[rows] > 1) & (owner[rows] != rank))"),
            ("        center[rows] = anchors\n", ""),
            (
                "    if scatter is not None:\n        scatter += change\n        reduce",
                "    if scatter is not None:\n        reduce",
            ),
            ("sum_over_ranks([counts, sqnorms], group)", "sum_over_ranks([counts], group)"),
            (
                "            tensor[rows] = part\n",
                "",
                "rows of contiguous sums are a view, which has been reduced in place",
            ),
            ("if value != expected:", "if type(value) is not type(expected):"),
            (
                "torch.where((owner[rows] == rank)[:, None], center[rows], 0)",
                "torch.where((counts[rows] > 0)[:, None], center[rows], 0)",
            ),
            ("dist.ReduceOp.MIN)", "dist.ReduceOp.MAX)"),
            (
                "        move(*far, counts, center, sums, sqnorms, change, squares)\n",
                "        move(*far, counts, center, sums, sqnorms, None, squares)\n",
            ),
            ("dist.ReduceOp.SUM if op is None else op", "dist.ReduceOp.SUM if op is None else dist.ReduceOp.SUM"),
            ("tensor.cpu().contiguous().numpy()", "tensor.sum().cpu().contiguous().numpy()"),
            ("if one[name] is not None})", "if one[name]})"),
        ),
    ),
    Source(
        "ncops/stats/decisions.py",
        "tests/test_distributed.py -k other_kept",
        (
            (', "kept classes": fingerprint(self.kept),', ","),
            (', "scale": self.scale,\n            "softcap"', ',\n            "softcap"'),
            ('"softcap": self.softcap or 0.0,', '"softcap": self.softcap,'),
        ),
    ),
    Source(
        "ncops/distributed/agreement.py",
        "tests/test_class_shards.py -k 'refuse or no_value_error or out_of_step'",
        (
            ("    for name in offer.alike:\n", "    for name in list(offer.alike)[:1]:\n"),
            ('    same_value("call", {rank: theirs for rank, (theirs, *_) in enumerate(every)})\n', ""),
            ("ValueError if all(callers", "ValueError if any(callers"),
        ),
    ),
    Source(
        "ncops/distributed/class_shards.py",
        SHARDS,
        (
            ("return classes + self.classes[0], local", "return classes, local"),
            ("self.local.skipped += left_out[0]", "self.local.skipped += left_out[1]"),
            ("        self.local.ignored += left_out[1]\n", ""),
            ("        self.updates += 1\n", ""),
            (
                "order = counted[owner.argsort(stable=True)]",
                "order = counted[owner.argsort(stable=True, descending=True)]",
            ),
            ("counted = (y != whole.ignore_index)", "counted = (y >= 0)"),
            ("sum(numbers[name] for _, numbers in every)", "every[0][1][name]"),
            ("        sum_over_ranks(sums, self._group, dst)\n", ""),
            ("        sum_over_ranks(added.values(), self._group, dst)\n", ""),
            ("files.path(max(common))", "files.path(min(common))"),
            ("if ranks != self.ranks or tuple(kept) != self.classes:", "if ranks != self.ranks:"),
            ("        self.updates = updates\n", ""),
            ("            self.local.check_values()\n", ""),
            ('settings = {**self._config(), "updates": self.updates}', "settings = self._config()"),
            ("            if self._halfway:\n", "            if False:\n"),
            ("torch.tensor(counts), limit,", "torch.tensor(counts).T.contiguous(), limit,"),
            ("-(-self.num_classes // self.ranks)", "self.num_classes // self.ranks + 1"),
            (
                "nonfinite=whole.nonfinite, ignore_index=whole.ignore_index)",
                'nonfinite="propagate", ignore_index=whole.ignore_index)',
            ),
            ('{"min_count": min_count, "dst": dst}', '{"dst": dst}'),
        ),
    ),
    Source(
        "ncops/distributed/exchange.py",
        SHARDS,
        (
            ("        begin += size\n", ""),
            ("first = counts.cumsum(0) - counts", "first = counts.cumsum(1) - counts"),
            (
                "(place - first).clamp_min(0).minimum(counts)",
                "(place - first).clamp_min(0).minimum(counts - (counts > 2).long())",
            ),
            (
                "column[begin + rows.start : begin + rows.stop] = tensor",
                "column[begin : begin + rows.stop - rows.start] = tensor",
            ),
            ("(counts[rank].cumsum(0) - counts[rank])", "(counts[rank].cumsum(0) - counts[rank]).flip(0)"),
        ),
    ),
    Source(
        "ncops/distributed/shard_columns.py",
        "tests/test_vocabulary_shards.py -m 'not triton'",
        (
            ("-start) + start\n", "-start)\n"),
            ("own = target - start\n    own =", "own = target\n    own ="),
            (
                "(own < weight.shape[0]) & (target != ignore_index)",
                "(own < weight.shape[0])",
                "no column of an ignored row depends on its logit",
            ),
            (
                'nothing[SHARE_FLOATS.index("rest")] = nothing[SHARE_FLOATS.index("squared")] = -1\n',
                "pass\n",
                "terms of no class weigh 0 beside any other's",
            ),
            ("g[name] * (classes / num_classes)", "g[name]"),
            ("(counted & ~here, 0)", "(counted, 0)"),
            (
                "(target != ignore_index) & (target >= 0) & (target < num_classes)",
                "(target >= 0) & (target < num_classes)",
            ),
            ("here = (own >= 0) & (own < classes) & (target != ignore_index)", "here = (own >= 0) & (own < classes)"),
            ('_local(index["argmax"], start, classes, classes)', '_local(index["argmax"], start, classes, -1)'),
            ('_local(index["second_index"], start, classes, -1)', '_local(index["second_index"], start, classes, 0)'),
            ("DIRECTION_TOLERANCE = 0.03", "DIRECTION_TOLERANCE = 3"),
            ("(targets != targets[:1]).any(0) | ", ""),
            ("    others = every - every[:1]\n", "    others = every[:2] - every[:1]\n"),
            ("rows[:, 1::2].sum(1).double()", "0"),
        ),
    ),
    Source(
        "ncops/distributed/shard_divergences.py",
        "tests/test_divergence_shards.py -m 'not triton'",
        (
            ('for name in ("lse", "other_lse", "max", "other_max"):', 'for name in ("max", "other_max"):'),
            ("(indices + start)", "indices"),
            ('("reverse_kl", q)', '("reverse_kl", p)'),
            (".where(~side.masked, 0)", ""),
            (".masked_fill(inside == INF, INF)", ""),
            (", INF).amin(1)", ", -INF).amax(1)"),
            ('("lse", "other_lse", "shift")', '("lse", "other_lse", "kl")'),
            ("sum(every.unbind())", "every[0]"),
            ("agree & ~poisoned", "agree"),
        ),
    ),
    Source(
        "ncops/distributed/linear_divergence.py",
        "tests/test_vocabulary_divergence.py",
        (
            ("        for i in (0, 2):\n", "        for i in (0,):\n"),
            ("    head, *others = known.own(head, *others)\n", ""),
            ("directions_differ(every[:, -2]) | ", ""),
            (" | directions_differ(every[:, -1])", ""),
            ('"beta": options[2],\n', "\n"),
            ('"columns of other": states.shape[1],\n', "\n"),
            (", agree & ~differ", ", agree"),
        ),
    ),
    Source(
        "ncops/distributed/shard_files.py",
        "tests/test_class_shard_files.py -k files_of_a_rank",
        (
            ("if of != ranks:", "if of < ranks:"),
            ("            if owner == rank:\n", "            if True:\n"),
            ("for other in self.saves - {save}:", "for other in set():"),
        ),
    ),
    Source(
        "ncops/distributed/linear_stats.py",
        "tests/test_vocabulary_parallel.py",
        (
            ("            sum_gradient(g_x, shard.group)\n", "            pass\n"),
            ("            reduce_in_place(level, shard.group)\n", ""),
            ('"dtype of x": x.dtype, "scale": scale,', '"dtype of x": x.dtype,'),
            ('"ignore_index": ignore_index,\n', "\n"),
            ('"softcap": softcap or None, ', ""),
            ('            refuse_other_rows(differ, "x, target", call)\n', "            pass\n"),
            ('        check_label_values(y, shard.num_classes, options[-1], "target")\n', "        pass\n"),
        ),
    ),
    Source(
        "ncops/distributed/shard_topk.py",
        "tests/test_vocabulary_topk.py",
        (
            ("(indices + start).T", "indices.T"),
            ("packed[k : 2 * k] = INF", "packed[k : 2 * k] = 0"),
            (".flatten(0, 1).sort(dim=0)  #", ".flatten(0, 1).sort(dim=0, descending=True)  #"),
            ("(gaps.expm1() + (~own).double())", "(gaps.expm1() + 1)"),
            ("terms.where(tops > -INF, 0.0)", "terms"),
            (".masked_fill(top == -INF, -INF)", ""),
            ("tops.isnan().any(0)", "tops[0].isnan()"),
        ),
    ),
    Source(
        "ncops/distributed/linear_topk.py",
        "tests/test_vocabulary_topk.py",
        (
            ("            sum_gradient(gradients[0], ctx.shard.group)\n", "            pass\n"),
            ('            refuse_other_rows(differ, "x", "linear_topk")\n', "            pass\n"),
            ("    weight, bias = known.own(weight, bias)\n", ""),
            (' | {"k": number}', ""),
            ("if number > known.num_classes:", "if False:"),
        ),
    ),
    Source(
        "ncops/distributed/linear_loss.py",
        "tests/test_vocabulary_loss.py",
        (
            ("class_weight[known.start : known.start + weight.shape[0]]", "class_weight[: weight.shape[0]]"),
            ("        reduce_in_place(total, group)\n", ""),
            ("        weight, bias = known.own(weight, bias)\n", ""),
            ("    factors.check(y, class_weight, classes, softcap, flat)", "    pass"),
            ('"class_weight": told(class_weight),\n', "\n"),
            ('            "num_items": told(num_items),\n', ""),
            ("        return gradient, None\n", "        return gradient * 2, None\n"),
        ),
    ),
    Source(
        "ncops/distributed/vocabulary.py",
        "tests/test_vocabulary_parallel.py",
        (
            ("sum(sizes[: dist.get_rank(self.group)])", "dist.get_rank(self.group) * sizes[0]"),
            ("[None if t is None else t[:classes] for t in tensors]", "list(tensors)"),
            ("each = -(-rows // ranks)", "each = max(1, rows // ranks)"),
            ("if not 1 <= classes <= total:", "if not 1 <= classes:"),
            ("if not 1 <= classes <= rows:", "if not 1 <= classes:"),
            ("mesh.get_group(axis), start, classes)", "mesh.get_group(axis), start, rows)"),
            ("if self.start is not None and (self.start < 0 or self.num_classes < 1):", "if False:"),
        ),
    ),
)
