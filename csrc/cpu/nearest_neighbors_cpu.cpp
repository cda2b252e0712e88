// nearest_neighbors: the k largest of x.r - |r|^2 / 2 over centred rows, with some to spare, ordered by direct differences.
#include "blocks/load.h"
#include "kernels.h"
#include "largest.h"

namespace ncops::NCOPS_ISA {
namespace {

// Rounding of products may have ordered neighbours of nearly equal distance wrongly: so many more are looked at.
constexpr int64_t kSpare = 8;

template <class T, int NV>
struct Neighbors {
  static constexpr int L = NV * kWidth<T>;
  static constexpr T inf = std::numeric_limits<T>::infinity();
  struct State {
    Largest<T, L> largest;
    int64_t row, count;
  };
  const NearestNeighborsArgs& args;
  int64_t first_row;
  const T* bias;  // -|r|^2 / 2 of the centred row, -inf where it is no candidate
  const Candidates<T>& candidates;

  void begin(State& s, int64_t row, int64_t count, int64_t split, const T*) const {
    s.largest.begin(candidates, row, count, split);
    s.row = first_row + row, s.count = count;
  }

  void tile(State& s, T* tile, int64_t first, int64_t count) const {
    for (int64_t j = 0; j < count; ++j)
      for (int lane = 0; lane < L; lane += kWidth<T>) {
        T* p = tile + j * L + lane;
        store(p, load(p) + bias[first + j]);
      }
    if (args.exclude_self)
      for (int64_t i = std::max<int64_t>(0, first - s.row); i < std::min(s.count, first + count - s.row); ++i)
        tile[(s.row + i - first) * L + i] = -inf;
    for (int lane = 0; lane < L; lane += kWidth<T>) {
      Vec<T> top = splat<T>(-inf);
      for (int64_t j = 0; j < count; ++j) top = max_of(load(tile + j * L + lane), top);
      s.largest.add(tile + lane, lane, top, first, count);
    }
  }

  void end(State& s, int64_t row, int64_t count, int64_t split) const { s.largest.end(candidates, row, count, split); }
};

struct Neighbor {
  double sqdist;
  int64_t index;
};

// The row's neighbours in order, from its candidates: insertion, since they nearly are.
template <class T>
void write_row(const NearestNeighborsArgs& args, int64_t row, const Candidates<T>& candidates, int64_t at, Key<T>* best,
               Neighbor* found) {
  const bool finite = std::isfinite(squared_norm<T>(args.x, row));
  const int64_t number = finite ? candidates.best(at, best) : 0;
  for (int64_t j = 0; j < number; ++j) {
    const int64_t index = class_of<T>(best[j]);
    const Neighbor mine{square_distance(args.x, row, args.rows, index), index};
    int64_t i = j;
    for (; i > 0 && (found[i - 1].sqdist > mine.sqdist || (found[i - 1].sqdist == mine.sqdist && found[i - 1].index > index)); --i)
      found[i] = found[i - 1];
    found[i] = mine;
  }
  for (int64_t j = 0; j < args.k; ++j) {
    const bool there = j < number;
    static_cast<T*>(args.sqdist)[row * args.k + j] = there ? T(found[j].sqdist) : std::numeric_limits<T>::quiet_NaN();
    args.index[row * args.k + j] = there ? found[j].index : -1;
  }
}

template <class T, int NV>
void some_rows(const NearestNeighborsArgs& args, int64_t k, const Plan& plan, int64_t first_row, const Rows& part, const T* bias) {
  const Candidates<T> candidates(k, part.rows, plan.splits);
  Neighbors<T, NV> epilogue{args, first_row, bias, candidates};
  run_product<Plain<T>, NV>(part, args.rows, plan, epilogue);
  const size_t share = round_up(k * sizeof(Neighbor), 64);
  Scratch found(share * part.rows);
  for_each_best(candidates, [&](int64_t row, Key<T>* memory) {
    write_row<T>(args, first_row + row, candidates, row, memory, found.at<Neighbor>(row * share));
  });
}

// Up to 63 rows that are candidates, evenly spaced, whose median is the origin: none of them is NaN or infinite.
template <class T>
int64_t sample_rows(const NearestNeighborsArgs& args, int64_t* index) {
  constexpr int64_t most = 63;
  const int64_t rows = args.rows.rows;
  int64_t count = 0, next = 0;
  for (int64_t i = 0; i < most; ++i)
    for (next = std::max(next, i * rows / most); next < rows; ++next)
      if ((!args.valid || args.valid[next]) && std::isfinite(squared_norm<T>(args.rows, next))) {
        index[count++] = next++;
        break;
      }
  return count;
}

template <class T, int NV>
void run(NearestNeighborsArgs args) {
  const int64_t n = args.x.rows, rows = args.rows.rows, k = std::min(rows, args.k + kSpare);
  int64_t sample[63];
  Scratch origin(args.x.dim * sizeof(double));
  Rows some = args.rows;
  some.index = sample;
  some.rows = sample_rows<T>(args, sample);
  row_center({some, origin.at<double>()});
  args.x.offset = args.rows.offset = origin.at<double>();
  Scratch bias(rows * sizeof(T));
  for_blocks(rows, 64, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const double square = !args.valid || args.valid[r] ? squared_norm<T>(args.rows, r) : HUGE_VAL;
      bias.at<T>()[r] = std::isfinite(square) ? T(-0.5 * square) : -std::numeric_limits<T>::infinity();
    }
  });
  const auto plan_of = [&](int64_t count) {
    return plan_product<T>(count, rows, args.x.dim, NV * kWidth<T>, Candidates<T>::most_splits(k, rows));
  };
  const int64_t at_once = Candidates<T>::rows_at_once(k, plan_of(n).splits);
  for (int64_t row = 0; row < n; row += at_once) {
    const Rows part = args.x.some(row, std::min(at_once, n - row));
    some_rows<T, NV>(args, k, plan_of(part.rows), row, part, bias.at<T>());
  }
}

}  // namespace

void nearest_neighbors(const NearestNeighborsArgs& args) {
  if (args.x.rows == 0) return;
  with_compute(args.x.dtype, [&](auto t) {
    using T = decltype(t);
    with_vectors<T>(args.x.rows, [&](auto nv) { run<T, nv>(args); });
  });
}

}  // namespace ncops::NCOPS_ISA
