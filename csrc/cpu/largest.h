// The k largest of each row's numbers, tile by tile of a product: of linear_topk's logits, and of what nearest_neighbors orders by.
//
// A row collects the numbers above its k-th largest so far, twice as many as it needs before it looks for those to keep: after the
// first k there are about k log(V / k) more, which is what selecting costs beside a comparison per number. What one split has
// found, others need not beat: whatever has been told to whom, the k largest of all that were collected are the same.
// (2048 rows of 50257 with 8 features, k = 20: 193 ms where each split began anew, 89 ms.)
#pragma once

#include "blocks/product.h"

namespace ncops::NCOPS_ISA {

// A number and its class (row of w) as one integer, the lower the larger the number, of equal ones the lower the class. Integers,
// since the standard library's algorithms, compiled for any machine, cannot inline a comparison of ours.
template <class T>
struct KeyOf;
template <>
struct KeyOf<float> {
  using Key = uint64_t;
  using Bits = uint32_t;
};
template <>
struct KeyOf<double> {
  using Key = unsigned __int128;
  using Bits = uint64_t;
};
template <class T>
using Key = typename KeyOf<T>::Key;

template <class T>
NCOPS_INLINE Key<T> key_of(T z, int64_t c) {
  using Bits = typename KeyOf<T>::Bits;
  constexpr int width = 8 * sizeof(Bits);
  constexpr Bits sign = Bits(1) << (width - 1);
  const T unsigned_zero = z + T(0);
  Bits bits;
  std::memcpy(&bits, &unsigned_zero, sizeof bits);
  return Key<T>(bits & sign ? bits : Bits(~(bits | sign))) << width | Bits(c);
}
template <class T>
inline T value_of(Key<T> key) {
  using Bits = typename KeyOf<T>::Bits;
  constexpr int width = 8 * sizeof(Bits);
  constexpr Bits sign = Bits(1) << (width - 1);
  const Bits high = Bits(key >> width), bits = high & sign ? high : Bits(~high & ~sign);
  T z;
  std::memcpy(&z, &bits, sizeof z);
  return z;
}
template <class T>
inline int64_t class_of(Key<T> key) {
  return int64_t(typename KeyOf<T>::Bits(key));
}

// What the splits of a range of rows have collected.
template <class T>
struct Candidates {
  int64_t k, rows, splits, room;  // room: for those of a row and split
  Layout layout;
  size_t keys_at, counts_at, floors_at;
  Scratch memory;

  // Splits that begin with k candidates which mean little have at least eight times as many classes.
  static int64_t most_splits(int64_t k, int64_t classes) {
    return std::min(kMostSplits, std::max<int64_t>(1, classes / (8 * k)));
  }
  // As many rows as keep the candidates of all splits within 64 MB, or 1024.
  static int64_t rows_at_once(int64_t k, int64_t splits) {
    const int64_t row_bytes = splits * room_for(k) * int64_t(sizeof(Key<T>));
    return std::max<int64_t>(1024, (int64_t(64) << 20) / row_bytes / 1024 * 1024);
  }

  Candidates(int64_t k, int64_t rows, int64_t splits)
      : k(k), rows(rows), splits(splits), room(room_for(k)), keys_at(layout.add<Key<T>>(splits * rows * room)),
        counts_at(layout.add<int64_t>(splits * rows)), floors_at(layout.add<std::atomic<T>>(rows)), memory(layout.bytes) {
    for (int64_t row = 0; row < rows; ++row) new (&floor(row)) std::atomic<T>(-std::numeric_limits<T>::infinity());
  }

  Key<T>* keys(int64_t split, int64_t row) const { return memory.at<Key<T>>(keys_at) + (split * rows + row) * room; }
  int64_t& count(int64_t split, int64_t row) const { return memory.at<int64_t>(counts_at)[split * rows + row]; }
  // What is above this is among the k largest so far of some split, or as large as those.
  std::atomic<T>& floor(int64_t row) const { return memory.at<std::atomic<T>>(floors_at)[row]; }

  // The k best of what all splits have of a row (or as many as there are) in order at the begin of `all`, which has room for
  // splits * room of them; returns how many.
  int64_t best(int64_t row, Key<T>* all) const {
    int64_t number = 0;
    for (int64_t split = 0; split < splits; ++split) {
      std::memcpy(all + number, keys(split, row), count(split, row) * sizeof(Key<T>));
      number += count(split, row);
    }
    if (number > k) std::nth_element(all, all + k - 1, all + number);
    number = std::min(k, number);
    std::sort(all, all + number);
    return number;
  }

 private:
  static int64_t room_for(int64_t k) { return k + std::max<int64_t>(k, 32); }
};

// The candidates of L rows (lanes) in one split.
template <class T, int L>
struct Largest {
  alignas(64) T floor[L];  // the k-th largest when it was last looked for
  int64_t count[L], k, room;
  Key<T>* keys[L];
  std::atomic<T>* told[L];

  void begin(const Candidates<T>& of, int64_t row, int64_t rows, int64_t split) {
    k = of.k, room = of.room;
    for (int i = 0; i < L; ++i) {
      count[i] = 0;
      floor[i] = std::numeric_limits<T>::infinity();  // nothing is above it in lanes without a row
      if (i >= rows) continue;
      keys[i] = of.keys(split, row + i);
      told[i] = &of.floor(row + i);
      floor[i] = told[i]->load(std::memory_order_relaxed);
    }
  }

  // Lanes [lane, lane + W) of a tile [count][L], of which `top` are the largest numbers.
  NCOPS_INLINE void add(const T* tile, int lane, Vec<T> top, int64_t first, int64_t classes) {
    if (any<T>(top > load(floor + lane))) collect(tile, lane, first, classes);
  }

  void end(const Candidates<T>& of, int64_t row, int64_t rows, int64_t split) {
    for (int i = 0; i < rows; ++i) {
      if (count[i] > k) keep_largest(i);
      of.count(split, row + i) = count[i];
    }
  }

 private:
  void collect(const T* tile, int lane, int64_t first, int64_t classes) {
    for (int64_t j = 0; j < classes; ++j)
      for (unsigned above = lane_bits((IntVec<T>)(load(tile + j * L) > load(floor + lane))); above; above &= above - 1) {
        const int i = __builtin_ctz(above);
        keys[lane + i][count[lane + i]++] = key_of(tile[j * L + i], first + j);
        if (count[lane + i] == room) keep_largest(lane + i);
      }
  }

  void keep_largest(int i) {
    std::nth_element(keys[i], keys[i] + k - 1, keys[i] + count[i]);
    count[i] = k;
    const T least = value_of<T>(keys[i][k - 1]), known = told[i]->load(std::memory_order_relaxed);
    floor[i] = std::max(least, known);  // what equals it later is of a higher class; elsewhere it may be of a lower one
    const T below = std::nextafter(least, -std::numeric_limits<T>::infinity());
    if (below > known) told[i]->store(below, std::memory_order_relaxed);
  }
};

// Calls f(row, memory) for every row, with room for what Candidates::best wants.
template <class T, class F>
void for_each_best(const Candidates<T>& candidates, F f) {
  const size_t share = round_up(candidates.splits * candidates.room * sizeof(Key<T>), 64);
  Scratch memory(share * workers());
  for_blocks(candidates.rows, 16, [&](int64_t begin, int64_t end, int worker) {
    for (int64_t row = begin; row < end; ++row) f(row, memory.at<Key<T>>(worker * share));
  });
}

}  // namespace ncops::NCOPS_ISA
