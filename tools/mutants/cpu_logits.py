"""Defects of the native CPU kernels of logits and heads, and of these ops' C++ side."""

from .cpu import tests
from .plants import Source

LOGITS = tests("across_parts logit_stats", "logit")
LOGIT_GRADIENTS = tests("logit_stats_gradients")
SPLIT = "linear or an_overflow or columns"
LINEAR = tests("across_parts linear_stats batch_invariance", SPLIT)
DIVERGENCES = tests("divergences")
LINEAR_GRADIENTS = tests("across_parts linear_stats_gradients", "linear or products")

SOURCES: tuple[Source, ...] = (
    Source(
        "csrc/cpu/logit_stats_cpu.cpp",
        LOGITS,
        (
            ("count, first + k, std::min", "count, k, std::min"),
            ("loaded[i] *= T(args.scale)", "loaded[i] *= T(1)"),
        ),
    ),
    Source(
        "csrc/cpu/logit_row.h",
        LOGITS,
        (
            ("z[i] == value && i != except", "z[i] == value"),
            (
                "share_.second = top, share_.second_index = read_ + at",
                "share_.second = top, share_.second_index = at",
            ),
            ("(T(share_.second)) < s.tops[0]", "(T(share_.second)) <= s.tops[0]"),
            ("delta * delta * before * part", "delta * delta * part"),
            (
                "shift_ = next - next == 0 ? next : shift_",
                "shift_ = next - next == 0 ? shift_ : next",
                "rounding alone: the variance of a row whose mean moves is off by 1e-7 for 4e-8",
            ),
            ("above_ += s.above[0]", "above_ = s.above[0]"),
            ("largest < room * room", "largest < 1000 * room"),
            ("second < top ? at : -1", "at"),
            ("terms.weighted += weighted[0] + weighted[1]", "terms.weighted += weighted[0]"),
            ("sums.lower(share_.max - double(origin_)", "sums.lower(double(origin_) - share_.max"),
            ("    join_exponentials();\n    share_.sums.lower", "    share_.sums.lower"),
        ),
    ),
    Source(
        "csrc/cpu/logit_columns.h",
        tests("across_parts logit_stats linear_stats", "logit or linear or an_overflow"),
        (
            ("share = added / (n + added)", "share = n / (n + added)"),
            ("delta * delta * cross", "delta * delta * share"),
            ("next = z > m2", "next = z >= m2"),
            ("LaneInt<T>(first - first_class)", "LaneInt<T>(first)"),
            ("top <= load(second + lane)", "top <= load(max + lane)"),
        ),
    ),
    Source(
        "csrc/logit_share.h",
        LINEAR,
        (
            ("mean += delta * (added / n)", "mean += delta * (mine / n)"),
            ("delta * delta * (mine * added / n)", "delta * delta * (added / n)"),
            ("(u == v && i < j)", "(u == v && i > j)"),
            ("(squared + equal) * factor * factor", "squared * factor * factor"),
            ("before(max, argmax, b.second, b.second_index)", "true"),
            ("flags |= b.flags", "flags = b.flags"),
        ),
    ),
    Source(
        "csrc/cpu/linear_stats_cpu.cpp",
        tests("across_parts linear_stats batch_invariance vocabulary_shards", f"{SPLIT} or shares or few_rows"),
        (
            ("for (int64_t split = 1; split < plan.splits", "for (int64_t split = 1; split + 1 < plan.splits"),
            ("logits[row] = epilogue.logit(out[row], args.target[row]);", "logits[row] = out[row];"),
            ("some_rows<T>(args, row, count)", "some_rows<T>(args, 0, count)"),
            ("NV * kWidth<T>, kMostSplits);", "NV * kWidth<T>);"),
            ("args.w.rows > 0 && args.w.rows <= plan.w_per_tile;", "args.w.rows > 0;"),
            ("if (args.shares.floats) part.shares.floats += first, part.shares.indices += first;", ""),
            ("if (args.target_logit) part.target_logit", "if (false) part.target_logit"),
            ("if (args.target_logit) std::memcpy(targets", "if (false) std::memcpy(targets"),
            ("std::fill_n(out, args.x.rows", "std::fill_n(out, 0", "the op makes them 0 where a target is no class"),
        ),
    ),
    Source(
        "csrc/cpu/linear_logits.h",
        tests("across_parts linear_stats softcap batch_invariance", SPLIT),
        (
            ("bias ? bias + first : nullptr", "bias"),
            ("inside(row + i) ? args.target[row + i] : 0", "inside(row + i) ? args.target[i] : 0"),
            ("tile[args.target[state.first_row + i] * L + i]", "tile[args.target[i] * L + i]"),
            ("target_logits + state.first_row,", "target_logits,"),
            ("logit(product(i), args.target[row + i])", "logit(product(i), args.target[i])"),
            ("Softcap<T>(args.softcap)(z[0])", "z[0]"),
            ("partials[split * args.x.rows + row + i]", "partials[row + i]"),
        ),
    ),
    Source(
        "csrc/cpu/gradient_products.h",
        LINEAR_GRADIENTS,
        (
            ("for (int64_t group = 1; group < groups; ++group)", "for (int64_t group = 2; group < groups; ++group)"),
            ("if (!zero[p]) sums", "sums"),
            ("x + k * (panels * L / kPerStep<Mode>)", "x"),
            ("  if (scale != 1)", "  if (scale == 2)"),
        ),
    ),
    Source(
        "csrc/cpu/kept_tiles.h",
        tests("linear_loss divergences", "float64 or blocks or groups"),
        (
            (
                "for (int64_t split = 1; split < splits; ++split) {",
                "for (int64_t split = 2; split < splits; ++split) {",
            ),
            ("std::min(steps, depth - k), onto || k > 0,", "std::min(steps, depth - k), onto,"),
            ("std::min(steps, depth - k), onto || k > 0,", "std::min(steps, depth - k), k > 0,"),
            ("std::min(end, row + rows_per_block), group, at, each", "row + rows_per_block, group, at, each"),
        ),
    ),
    Source(
        "csrc/cpu/divergence_lanes.h",
        DIVERGENCES,
        (
            ("kRestTerms = sizeof(T) == 4 ? 8 : 14;", "kRestTerms = sizeof(T) == 4 ? 4 : 14;"),
            ("odd *= square * t;", "odd *= square;"),
            ("T(0.5) * (minus - plus)", "T(0.5) * (plus - minus)"),
            ("rest_q = beta == T(0.5) ?", "rest_q = beta > 0 ?"),
            ("high = beta == T(0.5) ? low", "high = beta > 0 ? low"),
            ("if (any<T>(near)) {", "if (!any<T>(~near)) {"),
            ("if (any<T>(~near)) {", "if (!any<T>(near)) {"),
            ("constexpr int terms = sizeof(T) == 4 ? 6 : 13;", "constexpr int terms = sizeof(T) == 4 ? 1 : 1;"),
            ("(1 - (z * inverse) * (y * inverse))", "(1 - (z * inverse) * (z * inverse))"),
            (
                "other_slope = cap.slope(one ? z + load(second) * scale",
                "other_slope = cap.slope(one ? z + load(second)",
            ),
            ("factor * (weighted + by * sum)", "factor * weighted"),
            ("sum *= factor, d *= factor;", "sum *= factor;"),
            ("    poisoned |= s.poisoned, lost |= s.lost,", "    lost |= s.lost,"),
            ("lost |= s.lost, other_lost |= s.other_lost;", "lost |= s.lost;"),
            ("      max = max2, at = at2;", "      max = max2;"),
            (
                "bad |= ~((IntVec<T>)(v.z < inf) & (IntVec<T>)(v.y < inf));",
                "bad |= ~(IntVec<T>)(v.z < inf);",
            ),
            ("gone[1] |= v.masked & ~v.other_masked;", "gone[1] |= v.masked;"),
            (
                "peak[o] = top[o] == -inf ? Vec<T>{} : top[o];",
                "peak[o] = top[o];",
                "exponentials of NaN are those of the lowest number, and the first class that counts wipes them out",
            ),
            ("direct > 0.5 ? direct : std::log1p(rest)", "direct > 0.5 ? direct : rest"),
            ("std::min(1.0, rise - r.mean)", "std::min(1.0, rise)"),
            ("std::min(1.0, r.other_mean - rise)", "std::min(0.1, r.other_mean - rise)"),
            ("over_q = s <= 0 ? low - s : high;", "over_q = s <= 0 ? low : high;"),
            ("found[2] += s > 0 ? p : (s == 0 ? p * T(0.5) : none);", "found[2] += s > 0 ? p : none;"),
            ("|| !(r.share.other_max > -inf);", ";"),
            ("args.agree[row] = !poisoned && r", "args.agree[row] = r"),
        ),
    ),
    Source(
        "csrc/cpu/divergence_gradient.h",
        DIVERGENCES,
        (
            ("on |= g[c][i] != 0;", "on = g[c][i] != 0;"),
            ("wants_mixture |= g", "wants_mixture = g"),
            (
                "poisoned[i] = f[divergence::kLse][i] - f[divergence::kLse][i] != 0 ? -1 : 0;",
                "poisoned[i] = 0;",
            ),
            (
                "dy = v.other_masked ? none : dy * other_slope;",
                "dy = dy * other_slope;",
                "the slope of a masked class is 0",
            ),
            ("near ? mixture.over_p - mixture.rest_p : over_p", "near ? mixture.over_p : over_p"),
            ("return gradient == 0 ? Vec<T>{} : gradient * value;", "return gradient * value;"),
        ),
    ),
    Source(
        "csrc/cpu/linear_divergence_cpu.cpp",
        DIVERGENCES,
        (
            ("*other = b.panels[1] + p * size;", "*other = b.panels[1];"),
            ("odd(b) - odd(a), upper", "odd(b) + odd(a), upper"),
            ("second - odd(upper))", "second)"),
            ("std::memcpy(b.lower + p * size, other", "std::memcpy(b.lower, other"),
            ("r < b.end && gradient.active[r - row] != 0", "r < b.end"),
            (
                "split < plan_.splits; ++split) total.merge(b.shares[split * plan_.rows_per_block + at]);",
                "split < plan_.splits; ++split) total.merge(b.shares[at]);",
            ),
            ("b.sums[split * plan_.panels + p].rests[o][i]", "b.sums[p].rests[o][i]"),
            ("number * L * sides_[s].features * sizeof(T)", "L * sides_[s].features * sizeof(T)"),
            ("if (s == 0 || !args_.one_head || !sides_[0].g_x)", "if (s == 0 || !args_.one_head)"),
            ("biases[args_.one_head ? 0 : s].share(group)", "biases[s].share(group)"),
        ),
    ),
    Source(
        "csrc/cpu/logit_divergence_cpu.cpp",
        DIVERGENCES,
        (
            ("(args.other, row, count, first + k,", "(args.other, row, count, k,"),
            ("lanes.shift[i] = T(rows[i].shift)", "lanes.shift[i] = T(rows[i].mean)"),
            ("tile[i] *= T(args.scale)", "tile[i] *= T(1)"),
        ),
    ),
    Source(
        "csrc/linear_divergence.cpp",
        DIVERGENCES,
        (
            ("need_other_weight && other_weight", "need_weight && other_weight"),
            ("{rows, args.other.dim}, x.scalar_type()", "{rows, args.x.dim}, x.scalar_type()"),
            ("args.one_head = !other_weight;", "args.one_head = !bias && !other_weight;"),
        ),
    ),
    Source(
        "csrc/cpu/softcap.h",
        tests("softcap"),
        (
            ("return z - z == 0 ? (z < 0 ? -size : size) : z;", "return z < 0 ? -size : size;"),
            ("fma(-e.power, e.rest, 1 - e.power)", "1 - fma(e.power, e.rest, e.power)"),
            ("4 * e / (sum * sum)", "2 * e / (sum * sum)"),
            ("bias ? bias[i / L] : T(0)", "bias ? bias[i / L / 2] : T(0)"),
        ),
    ),
    Source(
        "csrc/cpu/linear_loss_cpu.cpp",
        tests("linear_loss"),
        (
            (
                "for (int64_t split = 1; split < plan_.splits; ++split) total",
                "for (int64_t split = 2; split < plan_.splits; ++split) total",
            ),
            ("2 * term[kOfLseSquared] * lse", "term[kOfLseSquared] * lse"),
            ("set(kMean, term[kOfMean]);", "set(kMean, -term[kOfMean]);"),
            ("b.row == 0 && plan_.groups == 1", "plan_.groups == 1"),
            ("number * panel * sizeof(T)", "panel * sizeof(T)"),
        ),
    ),
    Source(
        "csrc/linear_loss.cpp",
        tests("linear_loss"),
        (
            ("[](double c) { return c != 0; }", "[](double c) { return c > 0; }"),
            ("plane * out.rows + index[i]] = static_cast", "plane * out.rows + i] = static_cast"),
            ("target.push_back(args.target[row])", "target.push_back(args.target[target.size()])"),
        ),
    ),
    Source(
        "csrc/cpu/largest.h",
        tests("linear_topk nearest_neighbors"),
        (
            ("const T unsigned_zero = z + T(0);", "const T unsigned_zero = z;"),
            ("bits & sign ? bits : Bits(~(bits | sign))", "bits & sign ? Bits(~bits) : Bits(~(bits | sign))"),
            ("floor[i] = std::numeric_limits<T>::infinity();", "floor[i] = -std::numeric_limits<T>::infinity();"),
            ("floor[i] = std::max(least, known);", "floor[i] = known;", "collects more, and keeps the same"),
            ("const T below = std::nextafter(least, -std::numeric_limits<T>::infinity());", "const T below = least;"),
            ("if (count[lane + i] == room) keep", "if (count[lane + i] == room - 1) keep", "keeps the same"),
            ("if (number > k) std::nth_element", "if (number > k + 1) std::nth_element"),
            ("if (count[i] > k) keep_largest(i);", "", "what is left over is sorted out in the end"),
            ("std::memcpy(all + number, keys(split, row)", "std::memcpy(all + number, keys(split, 0)"),
        ),
    ),
    Source(
        "csrc/cpu/linear_topk_cpu.cpp",
        tests("linear_topk"),
        (
            ("for (int64_t j = 0; j < count; ++j) bad |=", "for (int64_t j = 1; j < count; ++j) bad |="),
            ("below = (below + equal) * std::exp", "below = below * std::exp"),
            ("if (any<T>(old_max < max)) raise_max", "if (any<T>(old_max > max)) raise_max"),
            ("AtPeak ? (d < 0 ? e : Vec<T>{}) : e", "e"),
            ("total.poisoned |= p.poisoned;", "total.poisoned = p.poisoned;"),
            ("p.lower(total.max);\n", ""),
            ("for (int64_t split = 1; split < candidates.splits", "for (int64_t split = 2; split < candidates.splits"),
            ("sums[row] = sums[total_rows + row] = nan;", "sums[row] = nan;", "what is made of NaN values is NaN"),
            ("if (next < found && int64_t(best[next]) == c) ++next;", "if (int64_t(best[next]) == c) ++next;"),
            ("plan_of(part.x.rows), row, args", "plan_of(part.x.rows), 0, args"),
        ),
    ),
    Source(
        "csrc/cpu/logit_gradient.h",
        tests(
            "logit_stats_gradients linear_stats_gradients linear_stats",
            "grad or column or collapsed or width or masked or ignored",
        ),
        (
            ("T(2 * g_var / double(classes))", "T(g_var / double(classes))"),
            ("rest - std::min(std::max(squared, term * term), term * rest)", "rest - squared"),
            (
                "c >= first && c < first + classes;\n    return any;",
                "c > first && c < first + classes;\n    return any;",
            ),
            (
                "r.at_argmax + r.constant + (r.slope == 0 ? T(0) : r.slope * (r.max - r.mean))",
                "r.at_argmax + r.constant",
            ),
            ("store(p, on ? g : Vec<T>{})", "store(p, g)"),
            ("any_bend |= r.bend != 0", "any_bend = r.bend != 0"),
        ),
    ),
    Source(
        "csrc/cpu/logit_stats_backward_cpu.cpp",
        LOGIT_GRADIENTS,
        (
            ("in[(first + i) * step]", "in[first + i * step]"),
            ("if (c == r.second) g += r.at_second * weight", "if (c == r.second) g += r.at_second"),
            ("first_lane<T>(in + c * step)", "first_lane<T>(in + c)"),
        ),
    ),
    Source(
        "csrc/cpu/linear_stats_backward_cpu.cpp",
        LINEAR_GRADIENTS,
        (
            ("share ? share + (r - first) * features_ : nullptr", "share"),
            (
                "for (int64_t split = 0; split < splits_; ++split)",
                "for (int64_t split = splits_ > 1; split < splits_; ++split)",
            ),
            ("row < end && gradients[(row - begin) / L].rows[(row - begin) % L].active", "row < end"),
        ),
    ),
    Source(
        "csrc/linear_stats.cpp",
        tests("across_parts linear_stats vocabulary_shards"),
        (
            (
                "attach(args, x, weight, bias, std::nullopt, scale, softcap, -1)",
                "attach(args, x, weight, bias, std::nullopt, 1, softcap, -1)",
            ),
        ),
    ),
    Source(
        "csrc/logit_stats.cpp",
        LOGITS,
        (("args.out = out.columns();\n  run", "args.scale = 1, args.out = out.columns();\n  run"),),
    ),
)
