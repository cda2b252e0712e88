// What an instruction set's header gives, on numbers from standard input, for tests/test_isa.py to hold against NumPy:
// three arrays of float32. Built with NCOPS_ISA and a table of one set; with an argument, also what bf16_products() is asked for.
#include <cstdio>

#include "cpu/isa/convert.h"

using namespace ncops::NCOPS_ISA;

constexpr int kTriples = 4096, kHalves = 1 << 16, W = kWidth<float>, V = kWidth<double>;
alignas(64) static float a[kTriples], b[kTriples], c[kTriples], floats[kHalves];
alignas(64) static double doubles[kTriples];
alignas(64) static uint16_t halves[kHalves];
alignas(64) static uint32_t words[kTriples];

template <class T>
static void put(const T* values, size_t count) {
  if (std::fwrite(values, sizeof(T), count, stdout) != count) std::abort();
}

template <class Half>
static void conversions() {
  for (int i = 0; i < kHalves; ++i) halves[i] = uint16_t(i);
  const Half* stored = reinterpret_cast<const Half*>(halves);
  for (int i = 0; i < kHalves; i += W) store(floats + i, load_stored(stored + i));
  put(floats, kHalves);
  for (int i = 0; i < kHalves; ++i) floats[i] = widen(stored[i]);
  put(floats, kHalves);
  for (int i = 0; i < kTriples; i += W) store_as(reinterpret_cast<Half*>(halves) + i, load(a + i));
  put(halves, kTriples);
  for (int i = 0; i < kTriples; ++i) halves[i] = narrow(a[i], Half{}).bits;
  put(halves, kTriples);
  std::memset(halves, 0, sizeof halves);
  for (int i = 0; i < kTriples; i += W) stream_as(reinterpret_cast<Half*>(halves) + i, load(a + i));
  finish_streams();
  put(halves, kTriples);
}

template <class F>
static void each_float(F f) {
  for (int i = 0; i < kTriples; i += W) store(floats + i, f(load(a + i), load(b + i), load(c + i)));
  put(floats, kTriples);
}

// One word for each vector: the lanes in which a > b, and above them whether there is one.
template <class T>
static void masks() {
  const auto wide = [](const float* p) {
    Vec<T> v;
    for (int i = 0; i < kWidth<T>; ++i) v[i] = T(p[i]);
    return v;
  };
  for (int i = 0; i < kTriples; i += kWidth<T>) {
    const IntVec<T> above = (IntVec<T>)(wide(a + i) > wide(b + i));
    words[i / kWidth<T>] = lane_bits(above) | uint32_t(any<T>(above)) << 16;
  }
  put(words, kTriples / kWidth<T>);
}

int main(int argc, char**) {
  for (float* in : {a, b, c})
    if (std::fread(in, sizeof *in, kTriples, stdin) != kTriples) return 1;
  conversions<Bf16>();
  conversions<F16>();
  each_float([](auto x, auto y, auto z) { return fma(x, y, z); });
  for (int i = 0; i < kTriples; i += V) {
    Vec<double> x, y, z;
    for (int j = 0; j < V; ++j) x[j] = a[i + j] / 3.0, y[j] = b[i + j] / 3.0, z[j] = -(x[j] * y[j]);
    store(doubles + i, fma(x, y, z));
  }
  put(doubles, kTriples);
  each_float([](auto x, auto y, auto) { return max_of(x, y); });
  masks<float>();
  masks<double>();
  for (int i = 0; i < kTriples; i += W) {
    const IntVec<float> above = count_above(load_bits<IntVec<float>>(c + i), load(a + i), load(b + i));
    std::memcpy(words + i, &above, sizeof above);
  }
  put(words, kTriples);
  for (int i = 0; i < kTriples; i += W) store(floats + i, broadcast(a + i));
  put(floats, kTriples);
  for (int i = 0; i < kTriples; i += W) stream(floats + i, load(b + i));
  finish_streams();
  put(floats, kTriples);
  if (argc > 1) each_float([](auto x, auto y, auto z) { return multiply_add_pairs(x, y, z); });
  else put(floats, kTriples);
}
