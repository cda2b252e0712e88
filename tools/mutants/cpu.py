"""Defects of the native CPU kernels of class geometry and of these ops' C++ side; of what kernels share: blocks.py.

Most matter only beyond one block: several chunks, splits, tiles, column blocks, folds.
"""

from .plants import Source


def tests(files: str, only: str = "") -> str:
    """These files of tests/ on the native backend: of their tests those that ``only`` names."""
    chosen = "not reference- and not -reference and not reference] and not triton and not compile and not opcheck"
    files = files.replace("across_parts", "across_parts across_native_parts")
    return " ".join(f"tests/test_{name}.py" for name in files.split()) + f" -k '{chosen}{only and f' and ({only})'}'"


KERNELS = "distance or riesz or gaussian or cdnv or dot or cosine or angle"
MOMENTS = tests("across_parts class_moments accumulate_class_moments", "moments or squares or accumulated")
SCATTER = tests("across_parts class_scatter", "scatter")
CENTRES = tests("across_parts native_gradients projected_sqnorms", "centre or class_scatter or projected")
CLASS_GRADIENTS = tests("across_parts native_gradients", "centre or class_moments or class_scatter or projected")
PROJECTIONS = tests("across_parts projected_sqnorms native_gradients", "project")
NEAREST = tests("across_parts nearest_class_mean", "nearest or nan_mean or overflows")
PAIRS = tests("across_parts pair_stats pair_stats_labels", "pair or nan_in_one")
PAIR_GRADIENTS = tests(
    "across_parts native_gradients pair_stats pair_stats_labels", f"by_hand or coincide or grad and ({KERNELS})"
)

SOURCES: tuple[Source, ...] = (
    Source(
        "csrc/cpu/class_moments_cpu.cpp",
        MOMENTS,
        (
            ("from == 0 ? square : -1.0", "square"),
            ("constexpr int64_t kGroup = 32; ", "constexpr int64_t kGroup = 512; "),
            ("onto ? load(sum + a * W) + acc[a] : acc[a]", "acc[a]"),
            ("center ? center + k : nullptr, i > 0, sum + k", "center, i > 0, sum + k"),
            ("x.row_stride, rows.order + i, n,", "x.row_stride, rows.order, n,"),
            (
                "at_ = std::min(at, last_);",
                "at_ = at;",
                "what is fetched is read by nobody; a sanitizer sees the number past the last",
            ),
            ("double total[width] = {}, square = 0;", "float total[width] = {}; double square = 0;"),
            ("p == q ? 2 * p + 1 : 2 * p", "2 * p + 1"),
            ("p <= last", "p < last"),
            ("if (k < x.dim) square += reduce_any", "if (k < x.dim) reduce_any"),
            ("block[c] -= center[j + c]", "block[c] -= center[c]"),
            ("center ? center + k : nullptr, sum + k);\n  return", "center, sum + k);\n  return"),
            ("if (!apart) job.empty(c);", ";"),
            ("for (; !apart && c < classes && starts[c + 1] == end; ++c) job.empty(c);", ""),
            (
                "if (square >= 0 || square != square) args.sqnorms[c] = square",
                "if (square >= 0) args.sqnorms[c] = square",
            ),
            ("!anchors || args.counts[c] == 0", "true"),
            ("args.sums[c * dim + k] += double", "args.sums[c * dim + k] = double"),
            ("(square >= 0 || square != square)) args.sqnorms[c] +=", "square >= 0) args.sqnorms[c] +="),
        ),
    ),
    Source(
        "csrc/cpu/class_moments_backward_cpu.cpp",
        CLASS_GRADIENTS,
        (
            ("counts ? 2 * T(args.g_sqnorms[c])", "counts ? T(args.g_sqnorms[c])"),
            ("is_class(c, args.num_classes, args.ignore_index)", "c >= 0 && c < args.num_classes"),
            ("args.center) + c * dim + k", "args.center) + c * dim"),
        ),
    ),
    Source(
        "csrc/cpu/class_scatter_cpu.cpp",
        SCATTER,
        (
            ("per_chunk = (x.rows + chunks - 1) / chunks", "per_chunk = x.rows / chunks"),
            ("std::min(kRows, end - row)", "std::min(kRows, x.rows - row)"),
            ("f / L * rows * L + f % L", "f / L * rows * L"),
            ("first >= j * L + L / 2", "first >= j * L"),
            ("first < (j + 1) * L", "first < j * L"),
            ("panel + j * rows * L, rows,", "panel, rows,"),
            ("sums.write(out, stride, true);", "sums.write(out, stride, false);"),
            ("for (int64_t chunk = 0; chunk < chunks", "for (int64_t chunk = chunks > 1; chunk < chunks"),
        ),
    ),
    Source(
        "csrc/cpu/class_scatter_backward_cpu.cpp",
        tests("across_parts native_gradients class_scatter", "scatter"),
        (("a[j] + b[j]", "2 * a[j]"),),
    ),
    Source(
        "csrc/cpu/class_sums_cpu.cpp",
        CENTRES,
        (
            ("T(args.factor * total[j])", "T(total[j])"),
            ("double total[kLoadBlock] = {};", "T total[kLoadBlock] = {};"),
            ("ranges ? pieces(classes, ranges) : 0", "ranges ? classes / ranges : 0"),
            ("if (weight == 0) continue;", ""),
        ),
    ),
    Source(
        "csrc/cpu/nearest_class_mean_cpu.cpp",
        NEAREST,
        (
            ("later.best > best.best", "later.best >= best.best"),
            ("if (plan.splits == 1) return;", "return;"),
            ("index = z > best ? j : index", "index = z >= best ? j : index"),
            ("best.poisoned || later.poisoned", "later.poisoned"),
            ("best.poisoned || later.poisoned", "best.poisoned"),
            ("first - first / plan.w_per_split * plan.w_per_split", "first % plan.w_per_tile"),
            ("if (bias[first + i] ==", "if (bias[i] =="),
        ),
    ),
    Source(
        "csrc/cpu/pair_stats_cpu.cpp",
        PAIRS,
        (
            ("delta * delta * (count * n / total)", "delta * delta * (n / total)"),
            ("total.poisoned |= r.poisoned", "total.poisoned = r.poisoned"),
            ("v > value || (v != v", "v >= value || (v != v"),
            (
                "first >= s.row + L && s.count == L",
                "first >= s.row + L",
                "only the last panel is short, and no row comes after it",
            ),
            ("first >= s.row + L && s.count == L", "first > s.row && s.count == L"),
            ("better |= (v != v) & (c.best == c.best), ", ""),
            ("if (any<T>(sides[side].sum != sides[side].sum)) return false;", ""),
            ("wanted & (side == 0 ? same : ~same)", "wanted & same"),
            ("wanted & ~(IntVec<T>)(v <= T(column.value))", "wanted & (IntVec<T>)(v > T(column.value))"),
        ),
    ),
    Source(
        "csrc/cpu/pair_stats_backward_cpu.cpp",
        PAIR_GRADIENTS,
        (
            ("{d2 == 0 ? 0 : slope, weight, 1}", "{slope, weight, 1}"),
            ("return d2 == 0 ? Vec<T>{} : f;", "return f;"),
            ("if (own >= 0 && own < W)", "if (first == 0 && own >= 0 && own < W)"),
            ("own * (sum[c + i] - scale()[r] * block[i])", "own * sum[c + i]"),
            ("s.close[lane * args.rows.dim + k + c]", "s.close[lane * args.rows.dim + c]"),
            ("pair.opposite() ? -1.0 : 1.0", "1.0"),
            ("opposite[i] ? -1 : 1)", "1)"),
            ("label == labels[w] ? same : different", "label == labels[w] ? different : same"),
            ("-power / 2 - 1)", "-power / 2)"),
        ),
    ),
    Source(
        "csrc/cpu/projected_sqnorms_cpu.cpp",
        PROJECTIONS,
        (("for (int64_t split = 0; split < plan.splits", "for (int64_t split = 1; split < plan.splits"),),
    ),
    Source(
        "csrc/cpu/projected_sqnorms_backward_cpu.cpp",
        PROJECTIONS,
        (
            ("for (int64_t task = 0; task < plan.tasks", "for (int64_t task = plan.tasks > 1; task < plan.tasks"),
            ("factor[args.x.stored(r)]", "factor[r]"),
        ),
    ),
    Source(
        "csrc/cpu/row_mean_cpu.cpp",
        tests("nearest_class_mean pair_stats", "far or invalid or nan or offset or zero"),
        (
            ("x.stored(r), k, n, block);\n      for (int64_t i = 0", "r, k, n, block);\n      for (int64_t i = 0"),
            ("x.stored(r), k, n, block);\n      for (int64_t j = 0", "r, k, n, block);\n      for (int64_t j = 0"),
            ("r = i * x.rows / most", "r = std::min(i, x.rows - 1)"),
        ),
    ),
    Source(
        "csrc/cpu/limits_cpu.cpp",
        tests("roofline"),
        (("2.0 * (pairs ? 2 : 1) * lanes", "2.0 * lanes", "a yardstick of the benchmark, which no result depends on"),),
    ),
    Source(
        "csrc/cpu/nearest_neighbors_cpu.cpp",
        tests("nearest_neighbors"),
        (
            ("const Vec<T> z = load(p) + bias[first + j];", "const Vec<T> z = load(p) + bias[j];"),
            ("std::max<int64_t>(0, first - s.row)", "std::max<int64_t>(1, first - s.row)"),
            ("std::min(s.count, first + count - s.row)", "std::min(s.count, first + count - s.row - 1)"),
            ("std::isfinite(squared_norm<T>(args.x, row))", "true"),
            ("&& found[i - 1].index > index)", "&& found[i - 1].index < index)"),
            ("T(-0.5 * square)", "T(-square)"),
            ("!args.valid || args.valid[r] ?", "true ?"),
            ("(!args.valid || args.valid[next]) && ", "", "the origin is another point amid the rows"),
            ("args.x.offset = args.rows.offset", "args.rows.offset"),
            ("std::min(rows, args.k + kSpare)", "std::min(rows, args.k)"),
            ("write_row<T>(args, first_row + row,", "write_row<T>(args, row,"),
        ),
    ),
    Source("csrc/class_moments.cpp", MOMENTS, (("args.ignore_index = ignore_index;", "args.ignore_index = -100;"),)),
    Source(
        "csrc/class_scatter.cpp",
        CLASS_GRADIENTS,
        (
            ("return is_class(labels[i], classes, ignore_index);", "return labels[i] >= 0 && labels[i] < classes;"),
            ("ignore_index, nullptr, -1, args.g_center", "ignore_index, nullptr, 1, args.g_center"),
        ),
    ),
    Source("csrc/nearest_class_mean.cpp", NEAREST, (("row_center({kept_means,", "row_center({args.means,"),)),
    Source(
        "csrc/pair_stats.cpp",
        PAIR_GRADIENTS,
        (
            ("inputs.original(best_index[from])", "best_index[from]"),
            ("label[i] >= 0 && label[i] != ignore_index", "label[i] >= 0"),
            ("pointer<double>(spread)[original(i)]", "pointer<double>(spread)[i]"),
        ),
    ),
    Source(
        "csrc/projected_sqnorms.cpp",
        PROJECTIONS,
        (
            ("? 2 * gradient[i] : zero", "? gradient[i] : zero"),
            ("!rows.labels || is_class(rows.labels[i], classes, ignore_index)", "true"),
        ),
    ),
)
