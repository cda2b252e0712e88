// Stored elements of any dtype, widened to the compute dtype and narrowed from it, one by one and by vectors. Kernels are
// instantiated with float, double, Bf16 or F16, so that a row is read and written as it lies.
#pragma once

#include "vec.h"

namespace ncops::NCOPS_ISA {

template <class To, class From>
NCOPS_INLINE To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  return load_bits<To>(&value);
}

// The arithmetic of all conversions, for one element (F float, I uint32_t) or a vector (I IntVec<float>); narrowing rounds
// to the nearest, ties to even.
template <class F, class I>
NCOPS_INLINE F widen_bits(I bits, Bf16) {
  return bits_as<F>(bits << 16);
}
template <class F, class I>
NCOPS_INLINE F widen_bits(I bits, F16) {
  // Shift exponent and mantissa into place, rescale by 2^112 (exact, also for subnormals), then mend inf and NaN.
  const I scaled = bits_as<I>(bits_as<F>((bits & 0x7fff) << 13) * 5.192296858534828e33f);
  const I special = 0x7f800000 | (bits & 0x3ff) << 13;
  return bits_as<F>(((bits & 0x7c00) == 0x7c00 ? special : scaled) | (bits & 0x8000) << 16);
}
template <class I, class F>
NCOPS_INLINE I narrow_bits(F value, Bf16) {
  const I bits = bits_as<I>(value);
  return value == value ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : I{} + 0x7fc0;
}
template <class I, class F>
NCOPS_INLINE I narrow_bits(F value, F16) {
  const I bits = bits_as<I>(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
  const I special = size > 0x7f800000 ? I{} + 0x7e00 : I{} + 0x7c00;
  const I subnormal = bits_as<I>(bits_as<F>(size) + 0.5f) - 0x3f000000;  // half's last place is that of a float at 1/2
  const I normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
  return sign | (size >= 0x477ff000 ? special : size < 0x38800000 ? subnormal : normal);
}

// One element.
NCOPS_INLINE float widen(float value) { return value; }
NCOPS_INLINE double widen(double value) { return value; }
template <class Half>
NCOPS_INLINE float widen(Half h) {
  return widen_bits<float>(uint32_t(h.bits), h);
}
template <class Half>
NCOPS_INLINE Half narrow(float value, Half h) {
  return {uint16_t(narrow_bits<uint32_t>(value, h))};
}

// As many as a vector of float has lanes.
template <class V>
NCOPS_INLINE IntVec<float> to_ints(V bits) {
  return __builtin_convertvector(bits, IntVec<float>);
}
template <class V>
NCOPS_INLINE Halves to_halves(V bits) {
  return __builtin_convertvector(bits, Halves);
}
template <class Half>
NCOPS_INLINE Vec<float> widen(Halves bits, Half h) {
  return widen_bits<Vec<float>>(to_ints(bits), h);
}
template <class Half>
NCOPS_INLINE Halves narrow(Vec<float> v, Half h) {
  return to_halves(narrow_bits<IntVec<float>>(v, h));
}

NCOPS_INLINE Vec<float> load_stored(const float* p) { return load(p); }
NCOPS_INLINE Vec<double> load_stored(const double* p) { return load(p); }
template <class Half>
NCOPS_INLINE Vec<float> load_stored(const Half* p) {
  return widen(load_bits<Halves>(p), Half{});
}

// As many elements as a vector of float has lanes, in double, and from double.
typedef float HalfVec __attribute__((vector_size(kVectorBytes / 2)));
template <class Stored>
NCOPS_INLINE void load_wide(const Stored* p, Vec<double> (&out)[2]) {
  const Vec<float> v = load_stored(p);
  for (int h = 0; h < 2; ++h)
    out[h] = __builtin_convertvector(load_bits<HalfVec>(reinterpret_cast<const char*>(&v) + h * sizeof(HalfVec)), Vec<double>);
}
NCOPS_INLINE void load_wide(const double* p, Vec<double> (&out)[2]) {
  for (int h = 0; h < 2; ++h) out[h] = load(p + h * kWidth<double>);
}
NCOPS_INLINE void store_narrow(double* p, const Vec<double> (&v)[2]) {
  for (int h = 0; h < 2; ++h) store(p + h * kWidth<double>, v[h]);
}
NCOPS_INLINE void store_narrow(float* p, const Vec<double> (&v)[2]) {
  for (int h = 0; h < 2; ++h) {
    const HalfVec part = __builtin_convertvector(v[h], HalfVec);
    std::memcpy(p + h * kWidth<double>, &part, sizeof part);
  }
}

NCOPS_INLINE void store_as(float* p, Vec<float> v) { store(p, v); }
NCOPS_INLINE void store_as(double* p, Vec<double> v) { store(p, v); }
template <class Half>
NCOPS_INLINE void store_as(Half* p, Vec<float> v) {
  const Halves h = narrow(v, Half{});
  std::memcpy(p, &h, sizeof h);
}

template <class V>
NCOPS_INLINE void stream(void* p, V v) {
  std::memcpy(p, &v, sizeof v);
}
// Past the caches, to an address aligned to the vector: a result that is larger than they are is not read into them first.
template <class Stored, class V>
NCOPS_INLINE void stream_as(Stored* p, V v) {
  if constexpr (sizeof(Stored) >= 4) stream(p, v);
  else stream(p, narrow(v, Stored{}));
}

// Calls f(Stored()) for the type that elements of `dtype` are stored as.
template <class F>
NCOPS_INLINE void with_stored(DType dtype, F f) {
  switch (dtype) {
    case DType::f32: return f(float());
    case DType::f64: return f(double());
    case DType::bf16: return f(Bf16());
    case DType::f16: return f(F16());
  }
}

// n stored elements, `step` apart, to T.
template <class T, class Stored>
NCOPS_INLINE void load_elements(const Stored* in, int64_t step, int64_t n, T* out) {
  constexpr int W = kWidth<float>;
  int64_t i = 0;
  if (step == 1) {
    if constexpr (sizeof(Stored) == 2 && sizeof(T) == 4)
      for (; i + W <= n; i += W) store(out + i, load_stored(in + i));
    if constexpr (sizeof(Stored) == 4 && sizeof(T) == 8)
      for (; i + W / 2 <= n; i += W / 2) store(out + i, __builtin_convertvector(load_bits<HalfVec>(in + i), Vec<double>));
    for (; i < n; ++i) out[i] = T(widen(in[i]));
  } else {
    for (; i < n; ++i) out[i] = T(widen(in[i * step]));
  }
}
// n elements of T, stored side by side as another dtype.
template <class T, class Stored>
NCOPS_INLINE void store_elements(const T* in, int64_t n, Stored* out) {
  constexpr int W = kWidth<float>;
  int64_t i = 0;
  if constexpr (std::is_same_v<T, Stored>) {
    std::memcpy(out, in, n * sizeof(T));
  } else if constexpr (sizeof(Stored) == 2) {
    if constexpr (sizeof(T) == 4)
      for (; i + W <= n; i += W) store_as(out + i, load(in + i));
    for (; i < n; ++i) out[i] = narrow(float(in[i]), Stored{});
  }
}

}  // namespace ncops::NCOPS_ISA
