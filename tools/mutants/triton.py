"""Defects of the Triton kernels, which Triton's interpreter runs."""

from .plants import Source

BLOCKS = "tests/test_blocks_triton.py"

SOURCES: tuple[Source, ...] = (
    Source(
        "triton_kernels/_deviations.py",
        f"{BLOCKS} -k 'class_ or projected or labels or accumulated'",
        (
            (" & (y != ignore_index)", ""),
            ("(y < num_classes)", "(y <= num_classes)"),
            ("wide * of.stride_cd", "wide * of.stride_xd"),
            ("labels.stride(0)", "1"),
            ("mask = keep[:, None] & inside[None, :]", "mask = inside[None, :] & (rows >= 0)[:, None]"),
        ),
    ),
    Source(
        "triton_kernels/_row_products.py",
        f"{BLOCKS} -k 'scatter or projected or gradient'",
        (
            ("tl.cdiv(width, BLOCK_J)", "(width // BLOCK_J + 1)"),
            ("        keep &= scale != 0\n", ""),
            ("d.to(tl.int64)[:, None] * stride_md + wide", "d.to(tl.int64)[:, None] * stride_mj + wide"),
            ("(d < dim)[:, None] & inside[None, :]", "(d < dim - dim % BLOCK_D)[:, None] & inside[None, :]"),
            ("factor.stride(0)", "1"),
        ),
    ),
    Source(
        "triton_kernels/_rows.py",
        f"{BLOCKS} -k 'means or nearest or pair_stats or coincide'",
        (
            ("mask=wanted, other=0) != 0)", "mask=wanted, other=0) >= 0)"),
            ("triton.cdiv(tiles, splits), **config.options", "tiles // splits, **config.options"),
            ('total = tl.where(good, total, float("-inf"))', "total = tl.where(good, total, 0.0)"),
            ("total = -0.5 * total", "total = -1.0 * total"),
            ("tl.sqrt(total)", "total"),
            ("found += wanted.to(tl.float64)", "found += (row < count).to(tl.float64)"),
        ),
    ),
    Source(
        "triton_kernels/_sorted_rows.py",
        f"{BLOCKS} tests/test_class_moments_triton.py -k 'moments_in or accumulated or invalid or sorted or narrow'",
        (
            (
                "tl.where(y == ignore_index, num_classes + 1, key)",
                "tl.where((y == ignore_index) & (y < 0), num_classes + 1, key)",
            ),
            ("(y >= 0) & (y < num_classes)", "(y >= -1) & (y < num_classes)"),
            ("rows.bit_length()", "rows.bit_length() - 1"),
            ("labels.stride(0), BLOCK", "1, BLOCK"),
            ("(key >= wanted), middle, high)", "(key > wanted), middle, high)"),
            ("num_classes + 1 <= torch.iinfo(dtype).max", "num_classes <= torch.iinfo(dtype).max"),
        ),
    ),
    Source(
        "triton_kernels/class_moments.py",
        f"{BLOCKS} tests/test_class_moments_triton.py -k 'moments or accumulated or projected or gradient or labels'",
        (
            ("late = (begin > low * CHUNK)", "late = (begin >= low * CHUNK)"),
            ("(first != begin).to(tl.int64)", "(stop == end).to(tl.int64)"),
            (
                "        if tl.program_id(1) == 0:\n            squares = tl",
                "        if True:\n            squares = tl",
            ),
            ("slot = block * chunks * 2 + part * 2", "slot = block * chunks + part * 2"),
            ("mask=all_rows < end, other=1), 0) > 0", "mask=all_rows < end, other=0), 0) >= 0"),
            ("total / (stop - first)", "total / (end - begin)"),
        ),
    ),
    Source(
        "triton_kernels/class_scatter.py",
        f"{BLOCKS} -k 'scatter'",
        (
            ("total += part", "total = part"),
            ("for split in range(splits)", "for split in range(1, splits)"),
            ("(split * pairs + pair)", "(split * splits + pair)"),
            ("g = g + g.t()", "g = g + g"),
            ("ignore_index, allow_tf32, scale=-1.0", "ignore_index, allow_tf32, scale=1.0"),
            ("row_columns = i * BLOCK_D + index", "row_columns = j * BLOCK_D + index"),
            (
                "j += ((j + 1) * (j + 2) // 2 <= index)",
                "j += ((j + 1) * (j + 2) // 2 < index)",
                "the interpreter's root of a square is exact, as a GPU's need not be",
            ),
            (
                "rows < end, num_classes",
                "rows < n, num_classes",
                "splits are whole folds, and folds whole blocks of rows",
            ),
        ),
    ),
    Source(
        "triton_kernels/_split_halves.py",
        "tests/test_class_scatter_triton.py",
        (
            ("(square == 0) | (biased == 2047)", "square == 0", "such a column is NaN whatever its scale"),
            ("(square == 0) | (biased == 2047)", "biased == 2047", "zeros have no digits whatever their scale"),
            ("(1022 + 24 - biased) >> 1, 126)", "(1022 + 24 - biased) >> 1, 200)"),
            ("1022 + 24 - biased", "1022 + 25 - biased"),
            ("1022 + 24 - biased", "1022 + 20 - biased"),
            ("total += r * r", "total = r * r"),
            ("begin + ROWS, n)", "begin + ROWS // 2, n)"),
            ("tl.floor(r + 0.5)", "tl.floor(r)"),
            ("(r - high.to(tl.float32)) * 4096.0", "(r - high.to(tl.float32)) * 2048.0"),
            ("crossed + lower * 2.0**-12", "crossed"),
            ("mask=here, other=0) + tl.trans(mirrored)", "mask=here, other=0) * 2"),
            ("index[:, None] <= index[None, :]", "index[:, None] >= 0"),
            ("add_product(squares, high.mT, high, first == 0)", "add_product(squares, high.mT, high, True)"),
            ("add_product(rests, both.mT, low, first == 0)", "add_product(rests, both.mT, low, True)"),
            ("        and not allow_tf32\n", ""),
        ),
    ),
    Source(
        "triton_kernels/projected_sqnorms.py",
        f"{BLOCKS} -k 'projected or gradient or labels'",
        (
            ("out.sum(0).to(dtype)", "out[-1].to(dtype)"),
            ("total += part", "total = part"),
            (
                "y, center, basis.t(), ignore_index, allow_tf32, factor=g[rows]",
                "y, center, basis.t(), ignore_index, allow_tf32, factor=g",
            ),
            ("x[rows], y, center, g[rows], ignore_index", "x[rows], y, center, g, ignore_index"),
            ("y = None if labels is None else labels[rows]", "y = labels"),
            ("            keep &= tl.load(factor + rows * stride_f, mask=keep, other=0) != 0\n", ""),
        ),
    ),
    Source(
        "triton_kernels/nearest_class_mean.py",
        f"{BLOCKS} -k 'nearest'",
        (
            ("better = top > best", "better = top >= best"),
            ("better = (value > best)", "better = (value >= best)"),
            ("c[None, :], NO_CLASS), 1)", "c[None, :], -1), 1)"),
            (
                "minimum(first + tiles_per_split * BLOCK_C, classes)",
                "minimum(first + tiles_per_split * BLOCK_C, classes // BLOCK_C * BLOCK_C)",
            ),
            ("later += count", "later += 1"),
        ),
    ),
    Source(
        "triton_kernels/pair_stats.py",
        f"{BLOCKS} tests/test_pair_stats_triton.py tests/test_pair_stats_labels.py "
        "-k 'pair_stats_in or coincide or nan_in or grouping or infinite or by_hand and triton'",
        (
            (
                "other = (other_value > value) | ((other_value == value) & (other_index < index))",
                "other = other_value > value",
            ),
            ("(seen * number / together)", "(number * number / together)"),
            ("poisoned = tl.maximum(poisoned, (index_along < 0)", "poisoned = ((index_along < 0)"),
            ("own + found * delta * delta", "own + delta * delta"),
            ("== (side == 0))", "== (side == 1))"),
            ("weighted += tl.where(some, found * tl", "weighted += tl.where(some, tl"),
        ),
    ),
    Source(
        "triton_kernels/_pair_values.py",
        f"{BLOCKS} tests/test_pair_stats_triton.py -k 'pair_stats_in or coincide or nan_in or powers'",
        (
            ("a[:, None] < b[None, :]", "a[:, None] <= b[None, :]"),
            ("some_a * (some_a - 1) // 2", "some_a * some_a // 2"),
            ("CLOSE = tl.constexpr(0.01)", "CLOSE = tl.constexpr(0.00001)"),
            ("at = 64 * part + bit", "at = bit"),
            ("tl.where(place // 64 == PART, ", "tl.where(place >= 0, "),
        ),
    ),
    Source(
        "triton_kernels/_pair_backward.py",
        f"{BLOCKS} tests/test_pair_stats_triton.py tests/test_pair_stats_labels.py "
        "-k 'pair_stats_in or coincide or strips or partner or triton and (near_0 or opposite)'",
        (
            ("tl.where(from_b[None, :] == a[:, None]", "tl.where(from_b[None, :] > count + a[:, None]"),
            ("total += part", "total = part"),
            ("tl.full((), 64 * word, tl.int64)", "tl.full((), 0, tl.int64)"),
            ("factor = tl.where(flagged[None, :], 0, factor)", "factor = tl.where(flagged[None, :], factor, factor)"),
            ("tl.where(product < 0, -1, 1)", "tl.where(product < 0, 1, 1)"),
            ("theirs = theirs * tl.load(scale + friend)", "theirs = theirs * tl.load(scale + i)"),
        ),
    ),
    Source(
        "triton_kernels/linear_stats.py",
        f"{BLOCKS} tests/test_linear_stats_triton.py "
        "-k 'linear_stats_in or splits or launch or share or halves or one_tile'",
        (
            ("tl.minimum(first + other, num_rows - 1) * stride_target", "tl.minimum(first + other, num_rows - 1)"),
            ("        start += BLOCK_V // 2\n", ""),
            ("        column += BLOCK_V // 2\n", ""),
            ("target_logit[rows]", "target_logit"),
            ("in_block[:, None] == other[None, :]", "in_block[:, None] == (other - start)[None, :]"),
            (
                "start = tl.maximum(first, whole)",
                "start = whole",
                "no split is empty",
            ),
        ),
    ),
    Source(
        "triton_kernels/linear_stats_backward.py",
        f"{BLOCKS} tests/test_linear_stats_triton.py -k 'linear_stats_in or chunks or float16'",
        (
            ("first_class + column", "column"),
            ("read = first_row + tl.minimum", "read = tl.minimum"),
            ("part.unbind(), weight, first_class == 0", "part.unbind(), weight, True"),
            ("own, start == 0)", "own, True)"),
            ("        add_product(out, a[1], b[0], False)\n", ""),
            (
                "(self.indices[KIND.value, here] != 0)",
                "(self.indices[KIND.value, here] == 1)",
                "a poisoned row's gradient is NaN, and so are the sums",
            ),
        ),
    ),
    Source(
        "triton_kernels/linear_topk.py",
        f"{BLOCKS} -k 'topk or groups_are or zeros_of'",
        (
            ("there = there & (column < num_classes)\n", "\n"),
            ("    value = tl.where(value == 0, 0.0, value)  # -0 is equal to 0\n", ""),
            ("(same & (equals <= spare))", "same"),
            ("equal += tl.sum(same.to(tl.int32), 1)", "equal += 0"),
            ("above = tl.where(reached >= k, above, reached)", "above = tl.where(reached >= k, reached, above)"),
            ("rows[:, None] * k + at // GROUP", "rows[:, None] * k + at % k"),
            ("tl.where(tile[None, :] == winner[:, None], 0, 1)", "tl.where(tops == top[:, None], 0, 1)"),
            ("column = tl.where(poisoned, -1, column)", "column = tl.where(poisoned, 0, column)"),
            ("        tl.store(at, value, there)\n", ""),
            ("triton.cdiv(num_classes, g) + k * g", "triton.cdiv(num_classes, g)"),
        ),
    ),
    Source(
        "triton_kernels/logit_stats.py",
        f"{BLOCKS} -k 'logit'",
        (
            ("target + row * stride_target", "target + row"),
            ("gradient + rows[:, None] * out_n", "gradient + rows[:, None] * stride_n"),
            ("y = None if target is None else target[rows]", "y = target"),
            ("column, first, start, num_classes, z, True, True)", "column, start, start, num_classes, z, True, True)"),
            ("there, 0.0)", "there | True, 0.0)", "a masked tile counts no column from num_classes on"),
            ("if split == 0:", "if split == splits - 1:", "every split has the target's logit"),
            (
                "grad = scaled(logit_gradient(z, column, row, coefficients, indices, num_rows, SOFTCAP), scale)",
                "grad = logit_gradient(z, column, row, coefficients, indices, num_rows, SOFTCAP)",
            ),
        ),
    ),
    Source(
        "triton_kernels/_divergence_terms.py",
        f"{BLOCKS} -k 'divergence'",
        (
            ("(other_bias - bias)", "(bias - other_bias)"),
            ("tl.where(there[None, :], y, lowest)", "y"),
            ("return even + odd, even - odd", "return even + odd, even + odd"),
            ("low + tl.maximum(s, 0)", "low"),
            ("tl.where(less, h + apart, h)", "h"),
            ("tl.where(pair.masked, FAR, pair.d - shift[:, None])", "pair.d - shift[:, None]"),
        ),
    ),
    Source(
        "triton_kernels/_divergence_passes.py",
        f"{BLOCKS} tests/test_divergence_shards.py -k 'blocks_triton and divergence or shards and triton and"
        " (float32 and uneven or masked_classes or poisoned or lowest or at_a_time)'",
        (
            ("newer = peak > share.max", "newer = peak >= share.max"),
            ("share.sum * factor + tl.sum(terms, 1)", "share.sum + tl.sum(terms, 1)"),
            ("(weighted + lower * sums)", "weighted"),
            ('tl.where(lost > 0, float("-inf"), mean)', "mean"),
            ("(1 - above) * q", "above * q"),
            ("floats[:, here], agree[here], False)", "floats[:, here], agree, False)"),
            ("tops.masked_fill(poisoned, torch.nan)", "tops"),
            ("below + other_below, below])", "below + below, below])"),
            ("whole[:, here].contiguous(), beta", "whole[:, : here.stop - here.start].contiguous(), beta"),
            ('bad = ((lse < float("inf")) & (other_lse < float("inf"))) == 0', "bad = _poisoned(lse, other_lse)"),
        ),
    ),
    Source(
        "triton_kernels/_divergence_gradient.py",
        f"{BLOCKS} -k 'divergence'",
        (
            ("+ _times(g_kl, rise)", "- _times(g_kl, rise)"),
            ("(1 - above) - (_of", "above - (_of"),
            ("tl.where(near, p * (t + rest), q - p)", "tl.where(near, p * t, q - p)"),
            ("_mixture(g_js * (1 - beta), over_q", "_mixture(g_js * beta, over_q"),
            ("beta=beta, factor=factor", "beta=beta, factor=1.0"),
        ),
    ),
    Source(
        "triton_kernels/linear_divergence.py",
        f"{BLOCKS} tests/test_parity.py -k 'linear_divergence and (blocks or triton and one and bfloat16)'",
        (
            ("        others.g_weight, others.g_bias = sums.g_weight, sums.g_bias\n", ""),
            ("return upper, (difference", "return upper, 0 * (difference"),
            ("weight.mT, k == 0)", "weight.mT, True)"),
            ("grad[:, here], floats[:, here], beta, rows", "grad[:, here], floats, beta, rows"),
        ),
    ),
    Source(
        "triton_kernels/_gradient_sums.py",
        f"{BLOCKS} -k 'linear_divergence'",
        (
            ("own.where(active[:, None], 0)", "own"),
            ("self.scale * g_z", "g_z"),
            ("parts_of(self.weight[these])", "parts_of(self.weight[: len(part[0].mT)])"),
            ("self.g_x[rows] = block", "self.g_x[: len(own)] = block"),
        ),
    ),
    Source(
        "triton_kernels/_logit_columns.py",
        f"{BLOCKS} tests/test_linear_stats_triton.py -k 'linear_stats_in or logit or launch or share'",
        (
            ("out[0][:, rows], out[1][:, rows]", "out[0][:, rows], out[1]"),
            ("0 if target is None else target.stride(0)", "1"),
            ("out[0].stride(0),", "n,"),
        ),
    ),
    Source(
        "triton_kernels/_logit_gradient.py",
        f"{BLOCKS} tests/test_linear_stats_gradients.py tests/test_linear_stats_triton.py "
        "-k 'linear_stats_in or logit_stats_in or finite or outside or collapse and blocks or (triton and collapsed)'",
        (
            ("g_nll = tl.where(y >= 0, g_nll, 0)", "g_nll = tl.where(y >= -1, g_nll, 0)"),
            ("g_var * 2 / num_classes", "g_var / num_classes"),
            ("    squared = tl.minimum(tl.maximum(squared, term * term), term * rest)\n", ""),
            ("tl.where(gradient == 0, 0, gradient * value)", "gradient * value"),
            ("(y >= 0) & (y < num_classes), y, -1)", "(y >= 0) & (y <= num_classes), y, -1)"),
        ),
    ),
    Source(
        "triton_kernels/_logit_state.py",
        f"{BLOCKS} tests/test_linear_stats_triton.py -k 'linear_stats_in or logit or splits or share or same_bits'",
        (
            ("(count * part)", "(other_count * part)"),
            ("tl.where(newer, low >= second, low > second)", "low > second"),
            ("newer = peak > share.max", "newer = peak >= share.max"),
            ("winner = parts.argmax == argmax[:, None]", "winner = parts.max == max[:, None]"),
            ("(parts.weighted.to(tl.float64) + delta * rests)", "parts.weighted.to(tl.float64)"),
        ),
    ),
    Source(
        "triton_kernels/_logits_tile.py",
        f"{BLOCKS} tests/test_linear_stats_triton.py -k 'linear_stats_in or no_rows'",
        (
            ("ws += BLOCK_D * tl.cast(of.stride_wd", "ws += BLOCK_D * tl.cast(of.stride_xd"),
            ("of.bias + column * of.stride_b", "of.bias + column"),
            ("feature < of.num_features - start", "feature < of.num_features"),
            ("z = scaled(products, of.scale)", "z = scaled(products, 1.0)"),
            ("column[None, :] * of.stride_wv", "column[None, :] * of.num_features"),
        ),
    ),
    Source(
        "triton_kernels/_products.py",
        f"{BLOCKS} -k 'nearest or linear_stats_in'",
        (
            ("tl.dot(a, b, products, input_precision", "tl.dot(a, b, None, input_precision"),
            ("products + tl.dot", "tl.dot", "plain products are those of ROCm"),
        ),
    ),
    Source(
        "triton_kernels/_launch.py",
        f"{BLOCKS} -k 'nearest'",
        (
            (
                'return "ieee" if across',
                'return "tf32" if across',
                "the interpreter multiplies exactly whatever is asked for",
            ),
            (
                "return max(1, -(-tiles // per_split))",
                "return max(1, tiles // per_split)",
                "callers cut their tiles into so many parts anew",
            ),
        ),
    ),
)
