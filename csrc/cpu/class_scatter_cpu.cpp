// class_scatter: the upper triangle of sum r r^T over rows r = x - center, centring fused into packing.
//
// Lanes and broadcasts both come from panels [feature panel][row][L], so one packed copy serves both sides and nothing is
// transposed. Rows are cut into at most 8 fixed chunks with a private D x D each (sharing packed panels between cores was
// slower: 70-75 ms against 57 at N=100k, D=512), merged in order.
#include "blocks/product.h"
#include "kernels.h"

namespace ncops::NCOPS_ISA {
namespace {

constexpr int kTile = kRegisters < 32 ? kMR : 8;  // broadcast features per tile, x 2 vectors of sums
constexpr int64_t kRows = 128;                    // rows packed at a time, and summed in one chain

// Where lines to come lie.
struct Lines {
  const char *rows, *centre;
};

// out[m][lane] += sum over rows of a[m][row * L] * b[row * L + lane], for kTile features m, each where it lies, and NV * W
// lanes. As many lines are fetched from either place of `ahead` meanwhile.
template <class T, int NV>
__attribute__((noinline)) void multiply_features(const T* const (&a)[kTile], const T* b, int64_t rows, T* out, int64_t stride,
                                                 Lines ahead) {
  constexpr int L = 2 * kWidth<T>;
  for (int m = 0; m < kTile; ++m) {
    prefetch(out + m * stride);
    prefetch_further(ahead.rows + m * 64), prefetch_further(ahead.centre + m * 64);
  }
  Sums<Plain<T>, kTile, NV> sums;
  sums.template add<L, L>(b, a, rows);
  sums.write(out, stride, true);
}

// What is fetched ahead, a few lines with each tile: rows from `next` on and their centres, which lie anywhere. To wait
// for both took a tenth of the time.
template <class T>
struct RowsAhead {
  const Rows& x;
  int64_t next, at = 0;  // lines of a tile each

  Lines take() {
    const int64_t per_row = pieces(x.dim * int64_t(sizeof(T)), kTile * 64);
    const int64_t row = std::min(next + at / per_row, x.rows - 1);
    const T* centre = center_of<T>(x, x.stored(row));
    const char* from = x.at(row);
    const int64_t offset = at++ % per_row * kTile * 64;
    return {from + offset, centre ? reinterpret_cast<const char*>(centre) + offset : from + offset};
  }
};

template <class T>
void run(const ClassScatterArgs& args) {
  constexpr int L = 2 * kWidth<T>;
  const Rows& x = args.x;
  const int64_t dim = x.dim, padded = round_up(dim, L), panels = padded / L;
  T* out = static_cast<T*>(args.out);
  if (dim == 0) return;
  // Workspace at most 8 D x D float32, so four chunks in float64, and fewer from D = 4096 on.
  const int64_t most = std::max<int64_t>(1, (dim >= 4096 ? 2 : 8) * 4 / int64_t(sizeof(T)));
  const int64_t chunks = std::max<int64_t>(1, std::min(most, x.rows / (2 * kRows)));
  const int64_t per_chunk = (x.rows + chunks - 1) / chunks;
  const size_t square = size_t(round_up(padded, kTile)) * padded;
  Scratch partial(chunks * square * sizeof(T));
  Scratch packed(std::min<int64_t>(chunks, workers()) * padded * kRows * sizeof(T));
  for_tasks(chunks, [&](int64_t chunk, int worker) {
    T* sum = partial.at<T>() + chunk * square;
    T* panel = packed.at<T>() + worker * padded * kRows;
    std::memset(sum, 0, square * sizeof(T));
    const int64_t begin = chunk * per_chunk, end = std::min(x.rows, begin + per_chunk);
    for (int64_t row = begin; row < end; row += kRows) {
      const int64_t rows = std::min(kRows, end - row);
      pack_columns_first<T>(x, row, rows, [](int64_t) { return true; }, panel);
      RowsAhead<T> ahead{x, row + rows};
      // A panel of lanes stays in the first-level cache, while those before it and itself are broadcast.
      for (int64_t j = 0; j < panels; ++j)
        for (int64_t first = 0; first < (j + 1) * L; first += kTile) {
          const T* features[kTile];
          for (int m = 0; m < kTile; ++m) {
            const int64_t f = std::min(first + m, padded - 1);
            features[m] = panel + f / L * rows * L + f % L;
          }
          // Of the diagonal's lower half only the right one is wanted.
          const bool half = first >= j * L + L / 2;
          T* to = sum + first * padded + j * L;
          if (half) multiply_features<T, 1>(features, panel + j * rows * L + L / 2, rows, to + L / 2, padded, ahead.take());
          else multiply_features<T, 2>(features, panel + j * rows * L, rows, to, padded, ahead.take());
        }
    }
  });
  for_tasks(panels, [&](int64_t i, int) {
    for (int64_t a = i * L; a < std::min(dim, (i + 1) * L); ++a)
      for (int64_t b = a; b < dim; ++b) {
        double total = 0;
        for (int64_t chunk = 0; chunk < chunks; ++chunk) total += double(partial.at<T>()[chunk * square + a * padded + b]);
        out[a * dim + b] = out[b * dim + a] = T(total);
      }
  });
}

}  // namespace

void class_scatter(const ClassScatterArgs& args) {
  with_compute(args.x.dtype, [&](auto t) { run<decltype(t)>(args); });
}

}  // namespace ncops::NCOPS_ISA
