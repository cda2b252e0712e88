// logit_stats_backward: the gradient of stored logits, read once and written once.
//
// Every element is a function of its logit and of its row alone, so rows are cut into vectors wherever that is convenient:
// the first and the last vector of a row overlap their neighbours, and what lies between is aligned for the stores.
// The result is always fresh: autograd keeps the logits, and whoever made them may too.
#include "logit_gradient.h"
#include "blocks/scratch.h"
#include "isa/convert.h"

namespace ncops::NCOPS_ISA {
namespace {

template <class T, class Stored>
NCOPS_INLINE T first_lane(const Stored* p) {
  Stored lanes[kWidth<T>] = {};
  lanes[0] = *p;
  return load_stored(lanes)[0];
}
template <class T, class Stored>
NCOPS_INLINE void put(Stored* p, T value) {
  Stored lanes[kWidth<T>];
  store_as(lanes, splat<T>(value));
  *p = lanes[0];
}

// out[i] for i < n, n at least a vector; `streams`: past the caches.
template <class T, class In, class Out, class F>
inline void map_row(const In* in, Out* out, int64_t n, bool streams, const F& f) {
  constexpr int64_t W = kWidth<T>;
  const int64_t misplaced = int64_t(reinterpret_cast<uintptr_t>(out) / sizeof(Out) % W);
  int64_t i = 0;
  if (streams) {
    store_as(out, f(load_stored(in)));
    for (i = misplaced ? W - misplaced : 0; i + W <= n; i += W) stream_as(out + i, f(load_stored(in + i)));
  } else {
    for (; i + W <= n; i += W) store_as(out + i, f(load_stored(in + i)));
  }
  if (i < n) store_as(out + n - W, f(load_stored(in + n - W)));
}

// The same for any n, from elements `step` apart.
template <class T, class Stored, class F>
inline void map_any(const Stored* in, int64_t step, Stored* out, int64_t n, bool streams, const F& f) {
  constexpr int64_t W = kWidth<T>, block = 64 * W;
  if (step == 1 && n >= W) return map_row<T>(in, out, n, streams, f);
  for (int64_t first = 0; first < n; first += block) {
    alignas(64) Stored values[block] = {}, results[block];
    const int64_t count = std::min(block, n - first);
    for (int64_t i = 0; i < count; ++i) values[i] = in[(first + i) * step];
    map_row<T>(values, results, round_up(count, W), false, f);
    std::memcpy(out + first, results, count * sizeof(Stored));
  }
}

template <class T, class Stored>
void run(const LogitStatsBackwardArgs& args) {
  const int64_t rows = args.logits.rows, v = args.logits.dim, step = args.logits.col_stride;
  const T scale = T(args.scale);
  const Softcap<T> cap(args.softcap);
  constexpr int64_t cached = int64_t(8) << 20;  // bytes: a smaller result is better left where its reader finds it
  const bool streams = rows * v * int64_t(sizeof(Stored)) > cached;
  const int64_t rows_per_task = std::max<int64_t>(1, 16384 / v);
  for_tasks((rows + rows_per_task - 1) / rows_per_task, [&](int64_t task, int) {
    for (int64_t row = task * rows_per_task; row < std::min(rows, (task + 1) * rows_per_task); ++row) {
      const Stored* in = static_cast<const Stored*>(args.logits.data) + row * args.logits.row_stride;
      Stored* out = static_cast<Stored*>(args.g_logits) + row * v;
      const RowGradient<T> r(args, row, v);
      if (!r.active) {
        std::memset(out, 0, v * sizeof(Stored));
        continue;
      }
      if (r.poisoned) {
        for (int64_t i = 0; i < v; ++i) put<T>(out + i, std::numeric_limits<T>::quiet_NaN());
        continue;
      }
      const auto finish = [&](const auto& f) {
        map_any<T>(in, step, out, v, streams, f);
        // The columns apart; see RowGradient. Rounded once, so formed again rather than added to.
        const auto put_column = [&](int64_t c) {
          if (c < 0) return;
          const T stored = first_lane<T>(in + c * step), weight = f.weight(stored);
          T g = c == r.argmax ? r.at_argmax + r.constant + (r.slope == 0 ? T(0) : r.slope * (r.max - r.mean))
                              : f(splat<T>(stored))[0];
          if (c == r.argmax) g *= weight;
          if (c == r.target) g += r.at_target * weight;
          if (c == r.second) g += r.at_second * weight;
          put<T>(out + c, g);
        };
        put_column(r.argmax), put_column(r.target), put_column(r.second);
      };
      if (cap) finish(Element<T, true, true>(r, scale, cap));
      else if (r.flat_only()) finish(Element<T, false, false>(r, scale, cap));
      else finish(Element<T, true, false>(r, scale, cap));
    }
    if (streams) finish_streams();
  });
}

}  // namespace

void logit_stats_backward(const LogitStatsBackwardArgs& args) {
  switch (args.logits.dtype) {
    case DType::f32: return run<float, float>(args);
    case DType::f64: return run<double, double>(args);
    case DType::bf16: return run<float, Bf16>(args);
    case DType::f16: return run<float, F16>(args);
  }
}

}  // namespace ncops::NCOPS_ISA
