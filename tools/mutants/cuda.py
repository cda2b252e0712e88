"""Defects of the CUDA kernels, which the host harness runs."""

from .plants import Source

SOURCES: tuple[Source, ...] = (
    Source(
        "csrc/cuda/class_moments.cuh",
        "tests/simt/test_class_moments_simt.py",
        (
            ("1 / double(end - first) : 1", "1 / double(rows - first) : 1"),
            (
                "squares[first][warp] = slab == warp ? square : squares[first][warp] + square",
                "squares[first][warp] = square",
            ),
            ("to = min(length, from + share)", "to = from + share"),
            ("e < to; e += 32) square", "e < min(to, from + 32); e += 32) square"),
            ("      square += double(chain);\n      chain = 0;\n", ""),
            ("NCOPS_SHARED(double, totals, [kMomentWarps][128])", "NCOPS_SHARED(float, totals, [kMomentWarps][128])"),
            ("sqnorms[c] = 0", "sqnorms[c] += 0"),
            ("< border - split_rows) return", "<= border - split_rows) return"),
            ("anchor && seen[c] != 0", "anchor && seen[c] > 1"),
            ("sqnorms[c] += square", "sqnorms[c] = square"),
        ),
    ),
    Source(
        "csrc/cuda/sorted_labels.cuh",
        "tests/simt/test_class_moments_simt.py -k 'label or nothing or accumulate'",
        (
            ("label < num_classes;", "label <= num_classes;"),
            ("invalid += !inside && !ignored", "invalid += !inside"),
            ("inside && !ignored ? label", "inside ? label"),
            ("b < invalid_count; b += 32", "b < min(invalid_count, 32); b += 32"),
            ("*invalid_total += total", "*invalid_total = total"),
            ("order[i] = uint32_t(i)", "order[i] = uint32_t(i % kLabelThreads)"),
        ),
    ),
    Source(
        "csrc/cuda/load.cuh",
        "tests/simt/test_class_moments_simt.py tests/simt/test_class_scatter_simt.py -k layouts",
        (
            ("return r.col_stride == 1 && ", "return "),
            ("r.dim % kVector<In> == 0 && ", ""),
            ("row * row_stride + col * col_stride", "row * row_stride + col"),
        ),
    ),
    Source(
        "csrc/cuda/class_scatter.cuh",
        "tests/simt/test_class_scatter_simt.py",
        (
            (" || label == centers.ignore_index", ""),
            ("label >= centers.num_classes", "label > centers.num_classes"),
            ("row <= lane ? block[row][lane]", "true ? block[row][lane]"),
            ("ti * (ti - 1) / 2", "ti * ti / 2"),
            ("begin * x.row_stride", "begin * x.dim"),
            ("chunk < chunks; ++chunk) total", "chunk < min(chunks, int64_t(4)); ++chunk) total"),
            ("double total = 0;", "T total = 0;", "float32 sums of at most 1024 chunks stay within the bound"),
            ("min(x.rows - begin, chunk_rows)", "x.rows - begin"),
        ),
    ),
    Source(
        "csrc/cuda/class_scatter_fma.cuh",
        "tests/simt/test_class_scatter_simt.py",
        (
            ("sum[i][g * V + j], sum[i][g * V + j] = 0;", "sum[i][g * V + j];"),
            ("if (!fresh) load_columns(v, p);", "if (!fresh) v[0] = 0;"),
            ("row + 2 * kRows + k, block.rows", "row + kRows + k, block.rows"),
        ),
    ),
    Source(
        "csrc/cuda/class_scatter_mma.cuh",
        "tests/simt/test_class_scatter_simt.py",
        (
            ("int q = kParts - 1 - p;", "int q = kParts - 2 - p;"),
            ("fill_side(to + kAsyncSide, row, block.col)", "fill_side(to + kAsyncSide, row, block.row)"),
            (" && centers.labels == nullptr)", ")"),
            ("row + 2 * kSplitRows + k, block.rows", "row + kSplitRows + k, block.rows"),
            ("? *x.at(row + r, col + c + j)", "? x.at(row + r, col)[c + j]"),
            (
                "if ((stage + 1) % (kAsyncChain / kAsyncRows) == 0) product.end_chain();",
                "",
                "the harness does not truncate as tensor cores do, for which chains end",
            ),
        ),
    ),
    Source(
        "csrc/cuda/product_tile.cuh",
        "tests/simt/test_linear_stats_simt.py",
        (
            ("if (row >= 0 && col + j < rows.dim)", "if (row >= 0 && col + j <= rows.dim)"),
            ("(x.dim + Tile::kDepth - 1) / Tile::kDepth", "(x.dim + Tile::kDepth / 2) / Tile::kDepth"),
            ("? 256 / kDepth : 0", "? 8192 / kDepth : 0"),
            ("sums[i][j] += chain[i][j], chain[i][j] = 0", "sums[i][j] += chain[i][j]"),
            ("const bool inside = row >= 0 && col < rows.dim", "const bool inside = row >= 0"),
        ),
    ),
    Source(
        "csrc/cuda/linear_stats.cuh",
        "tests/simt/test_linear_stats_simt.py",
        (
            ("ours ? argmax : first_class + two.second_index", "ours ? argmax : two.second_index"),
            ("if (two.max > max) {", "if (two.max >= max) {"),
            ("else if (two.max > second)", "else if (two.max >= second)"),
            ("(double(seen) * part)", "(added * part)"),
            ("part_count, double(owned_total(sum))", "count, double(owned_total(sum))"),
            ("above += z[j] > rival", "above += z[j] >= rival"),
            ("const T next = T(mean);", "const T next = T(offset);"),
            (
                "min(begin + split_tiles, tiles)",
                "begin + split_tiles",
                "tiles beyond the last have no columns, and are left",
            ),
        ),
    ),
    Source(
        "csrc/cuda/logit_state.cuh",
        "tests/simt/test_logit_stats_simt.py tests/simt/test_linear_stats_simt.py -k 'tie or split or bad or every'",
        (
            ("i < first + length && i < splits", "i < first + length"),
            ("next = z > second;", "next = z >= second;"),
            ("else if (before(m, i, second, second_index))", "else if (m > second)"),
            ("(u == v && i < j)", "(u == v && i > j)"),
            ("lane + step < count", "lane + step < count - 1"),
            ("label < classes && label", "label <= classes && label", "the columns know such a label again"),
        ),
    ),
    Source(
        "csrc/cuda/logit_stats.cuh",
        "tests/simt/test_logit_stats_simt.py",
        (
            ("tail + (at - head)", "tail + at"),
            ("const bool candidate = !(chunk_top < floor);", "const bool candidate = chunk_top > floor;"),
            ("(squared + T(equal)) * factor * factor", "(squared + T(equal)) * factor"),
            ("kNoClass : first + top.second_index", "kNoClass : top.second_index"),
            ("words[j / 2] << 16 : words[j / 2] & 0xffff0000u", "words[j / 2] & 0xffff0000u : words[j / 2] << 16"),
            ("equal += x >= 0", "equal = x >= 0"),
            ("(chunk_sum - chunk_sum == 0)", "(chunk_sum == chunk_sum)"),
            (
                "base + step <= vectors; base += step",
                "base + step < vectors; base += step",
                "the last whole chunk is read by the loop for parts of one",
            ),
        ),
    ),
)
