"""Defects of what the native CPU kernels share: packing, products, conversions, instruction sets, tensors.

A header that every kernel includes has few, each of which is a build of everything; a file that only declares has none.
"""

from .cpu import CLASS_GRADIENTS, KERNELS, MOMENTS, PAIRS, tests
from .cpu_logits import LINEAR
from .plants import Source

FEW_CLASSES = tests("across_parts nearest_class_mean parity", "few or nearest")
EVERYTHING = tests("parity across_parts native_gradients logit_stats")
PRODUCTS = tests("accuracy_at_depth parity across_parts", "linear or pair or feature")
ROUNDING = tests("native_gradients logit_stats_gradients", "rounded or halves")

SOURCES: tuple[Source, ...] = (
    Source(
        "csrc/cpu/blocks/steps.h",
        tests("parity linear_stats_gradients linear_loss", "past_the_end or odd_number or grad or float64 or blocks"),
        (
            ("(low & 0xffff) | high << 16", "low | high << 16"),
            ("odd ? IntVec<T>{} : narrow_bits", "narrow_bits"),
            (
                "store(block[r] + i, row_pairs(src, row + at, at < count, at + 1 < count, k + i));",
                "store(block[r] + i, row_pairs(src, row + at, at < count, at < count, k + i));",
            ),
            ("k + W <= src.dim)", "k < src.dim)"),
        ),
    ),
    Source(
        "csrc/cpu/blocks/tiles.h",
        tests(
            "linear_stats linear_stats_gradients linear_loss divergences batch_invariance across_native_parts",
            "bfloat16 or blocks",
        ),
        (
            ("round_up(Bf16Pairs::depth(dim), kLine<float>)", "Bf16Pairs::depth(dim)"),
            ("if (left_out && left_out[i]) continue;", ""),
            ("rows += 2 * group, to += 2 * next)", "rows += group, to += 2 * next)"),
            ("first += kLinesAtOnce, onto = true)", "first += kLinesAtOnce)"),
            ("total += even + odd;", "total += even;"),
            ("if (count > kMR) tile_products<2", "if (count > 1) tile_products<1"),
            ("out[(m + i) * dim + k + j] += total[i][j];", "out[(m + i) * dim + k + j] = total[i][j];"),
            ("columns = x + k * (panels * L / 2)", "columns = x + k * (panels * L)"),
        ),
        isa="avx512_amx",
    ),
    Source(
        "csrc/cpu/blocks/few_rows.h",
        tests("across_parts accuracy_at_depth linear_stats", "linear"),
        (
            ("out[r] += reduce_add<T>(acc[r])", "out[r] = reduce_add<T>(acc[r])"),
            ("if (k < end) {", "if (k + 1 < end) {"),
            ("|| w.col_stride != 1 ||", "||"),
            ("c * w.row_stride", "c * w.dim"),
            ("first += at_once", "first += at_once + 1"),
        ),
    ),
    Source(
        "csrc/cpu/blocks/few_classes.h",
        FEW_CLASSES,
        (
            ("onto ? load(p) + acc[m][r] : acc[m][r]", "acc[m][r]"),
            ("w += M * W, soon += line", "w += W, soon += line"),
            ("first + m, first + m < w.rows, k + i,", "first + m, true, k + i,"),
            ("first + m < w.rows, k + i,", "first + m < w.rows, i,"),
            ("((i + j) / W * kernel_.classes + m) * W", "(i + j / W * kernel_.classes + m) * W"),
            ("r + i < count, k, n,", "true, k, n,"),
            ("* W, load(steps + j));", "* W, load(steps));"),
            (
                "4 * M + 4 < kRegisters ? 4 : 2, kWidth<T>)",
                "4 * M + 4 < kRegisters ? 4 : 2, 4)",
                "less lanes than four have double in generic and NEON alone",
            ),
        ),
    ),
    Source(
        "csrc/cpu/blocks/few_classes.h",
        FEW_CLASSES,
        (  # of several groups of classes
            ("sums + (g * kernel_.classes * W + r) * W", "sums + (g * W + r) * W"),
            ("w += padded_classes() * vectors * W;", "w += kernel_.classes * vectors * W;"),
            ("next[i] += vectors * line", "next[i] += line", "what is fetched is read by nobody"),
        ),
        isa="avx2",
    ),
    Source(
        "csrc/cpu/blocks/pair_rows.h",
        PAIRS,
        (
            ("if (!(x[i] >= ExpConstants<T>::lowest && x[i] <= 0))", "if (!(x[i] <= 0))"),
            ("kClose = 0.01", "kClose = 0.0001"),
        ),
    ),
    Source(
        "csrc/cpu/blocks/sorted_rows.cpp",
        MOMENTS,
        (
            ("std::upper_bound", "std::lower_bound"),
            ("own[num_classes] += c != ignore_index", "own[num_classes] += c > ignore_index"),
            ("else kept_ += std::exchange(own, kept_)", "else kept_ += own, own = starts[c]"),
        ),
    ),
    Source(
        "csrc/cpu/blocks/scratch.cpp",
        tests("public_classes", "fork"),
        (("forked = true", "forked = false"),),
    ),
    Source(
        "csrc/cpu/isa/dispatch.cpp",
        tests("backend_choice", "instruction"),
        (("return name == kWithTiles ?", "return true ?"), ("&& !pairs && !tiles)", "&& !pairs)")),
    ),
    Source(
        "csrc/cpu/blocks/two_products.h",
        tests("across_parts native_gradients", f"grad and ({KERNELS} or projected)"),
        (
            ("if (first == 0) multiply_group", "if (first >= 0) multiply_group"),
            ("first / kMR + g", "g"),
        ),
    ),
    Source(
        "csrc/cpu/blocks/store.h",
        CLASS_GRADIENTS,
        (
            ("task + 1 == tasks ? x.rows + 1 : ", "task + 1 == tasks ? x.rows : "),
            ("x.dim + first + k", "x.dim + k"),
        ),
    ),
    Source(
        "csrc/tensors.h",
        EVERYTHING,
        (("r.col_stride = t.stride(1)", "r.col_stride = 1"),),
    ),
    Source(
        "csrc/cpu/blocks/product.h",
        PRODUCTS,
        (
            ("kChain = kByChains ? 128 : 256", "kChain = 65536"),
            ("w_packed = w_whole.at<T>() + first / kMR * group", "w_packed = w_whole.at<T>()"),
            ("row0 / kMR * kMR", "row0"),
            ("rows <= 4) multiply_group", "rows <= 5) multiply_group"),
            ("row += L, ++p) begin(row, p);", "row += L, ++p) begin(row0, p);"),
            ("rows[m] = row_at(first + c + m)", "rows[m] = row_at(first + c)"),
            ("rows[m] = w[m] + k, prefetch", "rows[m] = w[m], prefetch"),
            ("sums.write(tile, L, start > 0);", "sums.write(tile, L, false);"),
            ("tiles + p * tile_size + c * L);", "tiles + c * L);"),
            ("tiles + p * tile_size + c * L);", "tiles + p * tile_size);"),
            ("panels + p * L * depth, rows, ahead", "panels, rows, ahead"),
            ("epilogue.tile(states[p], tile + p * tile_size,", "epilogue.tile(states[p], tile,"),
            (
                "kFewPanelRows && !plan.upper",
                "kFewPanelRows",
                "so few rows are one tile, and pairs in it are chosen later",
            ),
            ("x_shared.at<T>() + (row0 - first_row) * depth", "x_shared.at<T>()"),
            ("x_shared.at<T>() + from * depth", "x_shared.at<T>()"),
            ("pack(first_row + from, first_row + to,", "pack(from, to,"),
            ("first_row = block * plan.rows_per_block", "first_row = 0"),
            ("tile + (depth > plan.steps ? p * tile_size : 0)", "tile"),
            ("if (k + steps >= depth) epilogue.tile", "epilogue.tile"),
            ("count, steps, k > 0, out, ahead)", "count, steps, false, out, ahead)"),
            ("panel(p) + k * L, w_packed", "panel(p), w_packed"),
            ("w_packed + k * kMR", "w_packed"),
            (
                "round_up(pieces(dim, pieces(row_bytes, kTileRowBytes)), kChain)",
                "pieces(dim, pieces(row_bytes, kTileRowBytes))",
            ),
            ("round_up(pieces(v, splits), p.w_per_tile));", "pieces(v, splits));"),
            ("total = start > 0 ? total + acc : acc;", "total = acc;"),
            ("first + count <= row + 1", "first + count <= row + L"),
        ),
    ),
    Source(  # panels that meet w chain by chain
        "csrc/cpu/blocks/product.h",
        PRODUCTS,
        (
            ("w + g * group + start * kMR", "w + g * group"),
            ("true>(count - g * kMR, panel + start * L", "true>(count - g * kMR, panel"),
            ("start += at_once, continues = true)", "start += at_once)"),
        ),
        isa="avx2",
    ),
    Source(
        "csrc/cpu/blocks/load.h",
        EVERYTHING,
        (
            ("center ? center + k : nullptr", "center"),
            ("center_of<T>(src, stored)", "center_of<T>(src, r)"),
            ("if (c) load_wide(c + i, less);", ""),
            ("v[h] *= factor;", ""),
            ("load(src.offset + k + i + h * kWidth<double>)", "load(src.offset + i + h * kWidth<double>)"),
            ("wide[j] -= src.offset[k + i]", "wide[j] -= src.offset[i]"),
            ("src.scale ? src.scale[stored] : 1", "src.scale ? src.scale[r] : 1"),
            ("sums[0] + sums[1]);\n}\n\n// |x_i", "sums[0]);\n}\n\n// |x_i"),
            ("std::memcpy(b, y + k, (dim - k)", "std::memcpy(b, y, (dim - k)"),
            ("if (x.col_stride == 1 && y.col_stride == 1) {", "if (x.col_stride == 1) {"),
        ),
    ),
    Source(
        "csrc/cpu/blocks/pack.h",
        tests("linear_stats native_gradients across_parts parity"),
        (
            ("real && n % Pad == 0 ? Mode::in_place", "real ? Mode::in_place"),
            ("if (!real || n % Pad != 0) std::memset", "if (!real) std::memset"),
            ("Mode::load(src, r, k + i, std::min", "Mode::load(src, r, k, std::min"),
            ("2 * (k + n) > src.dim", "2 * k + n > src.dim"),
            ("center_of<T>(x, x.stored(row + r))", "center_of<T>(x, row + r)"),
        ),
    ),
    Source("csrc/cpu/blocks/scratch.h", EVERYTHING, (("(context))(task, worker)", "(context))(task, 0)"),)),
    Source(
        "csrc/cpu/rows.h",
        EVERYTHING,
        (
            ("label < num_classes &&", "label <= num_classes &&"),
            (" && label != ignore_index", ""),
        ),
    ),
    Source(
        "csrc/cpu/kernels.h",
        PAIRS,
        (("kernel >= PairKernel::distance", "kernel >= PairKernel::angle"),),
    ),
    Source("csrc/columns.h", LINEAR, (("kMean, kVar, kSumSquaredProb", "kVar, kMean, kSumSquaredProb"),)),
    Source(
        "csrc/cpu/isa/vec.h",
        EVERYTHING,
        (
            ("fma(p * s2, s, n * ExpConstants<T>::ln2_low)", "(p * s2) * s"),
            ("fma(n, splat<T>(-C::ln2_low), fma(n,", "(fma(n,"),
        ),
    ),
    Source(
        "csrc/cpu/isa/convert.h",
        ROUNDING,
        (
            ("bits + 0x7fff + (bits >> 16 & 1)", "bits + 0x8000"),
            (
                "value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : I{} + 0x7fc0",
                "(bits + 0x7fff + (bits >> 16 & 1)) >> 16",
            ),
        ),
    ),
    Source(
        "csrc/cpu/isa/avx512.h",
        tests("logit_stats native_gradients logit_stats_gradients"),
        (
            ("_mm512_cvtps_ph((__m512)v, 0)", "_mm512_cvtps_ph((__m512)v, 3)"),
            ("_CMP_GT_OQ", "_CMP_GE_OQ"),
        ),
        isa="avx512",
    ),
    Source(
        "csrc/cpu/isa/avx2.h",
        ROUNDING,
        (("_mm256_cvtps_ph((__m256)v, 0)", "_mm256_cvtps_ph((__m256)v, 3)"),),
        isa="avx2",
    ),
    Source(
        "csrc/cpu/isa/x86.h",
        ROUNDING,
        (("_cvtss_sh(value, 0)", "_cvtss_sh(value, 3)"),),
        isa="avx2",
    ),
    Source(
        "csrc/cpu/isa/neon.h",
        "tests/test_isa.py -k neon",
        (
            ("vfmaq_f32((float32x4_t)c, (float32x4_t)a,", "vfmsq_f32((float32x4_t)c, (float32x4_t)a,"),
            ("vfmaq_f64((float64x2_t)c, (float64x2_t)a,", "vfmaq_f64((float64x2_t)a, (float64x2_t)c,"),
            ("%1.8h, %2.8h", "%1.8h, %1.8h"),
            ("any_lane(IntVec<float> mask) { return vmaxvq_u32", "any_lane(IntVec<float> mask) { return vminvq_u32"),
            ("any_lane(IntVec<double> mask) { return vmaxvq_u32", "any_lane(IntVec<double> mask) { return vminvq_u32"),
            ("IntVec<float>{1, 2, 4, 8}", "IntVec<float>{8, 4, 2, 1}"),
            ("IntVec<double>{1, 2}", "IntVec<double>{2, 1}"),
            ("vcvt_f16_f32((float32x4_t)v)", "vcvt_f16_f32((float32x4_t)(v + 0))"),
            ("const __fp16 rounded = value;", "const __fp16 rounded = value + 0;"),
        ),
        needs=("aarch64-linux-gnu-g++", "qemu-aarch64-static"),
    ),
    Source(
        "csrc/cpu/isa/convert.h",
        ROUNDING,
        (
            ("size - 0x38000000 + 0xfff + (size >> 13 & 1)", "size - 0x38000000 + 0x1000"),
            ("size >= 0x477ff000 ?", "size >= 0x47800000 ?", "between the two, rounding carries into infinity"),
            ("size < 0x38800000 ? subnormal", "size < 0x38000000 ? subnormal"),
        ),
        isa="generic",
    ),
)
