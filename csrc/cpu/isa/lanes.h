// Vectors of one register's width, as compiler vector types: the same source serves every instruction set.
#pragma once

namespace ncops::NCOPS_ISA {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(kVectorBytes)));
  typedef int32_t mask __attribute__((vector_size(kVectorBytes)));
  using Int = int32_t;
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(kVectorBytes)));
  typedef int64_t mask __attribute__((vector_size(kVectorBytes)));
  using Int = int64_t;
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
using IntVec = typename VecOf<T>::mask;  // integers of the lane's width; also what comparisons return (0 or -1)
template <class T>
using LaneInt = typename VecOf<T>::Int;
template <class T>
constexpr int kWidth = kVectorBytes / sizeof(T);

// Stored elements of 16 bits, and as many of them as a vector of float has lanes.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));

template <class V>
NCOPS_INLINE V load_bits(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
template <class T>
NCOPS_INLINE Vec<T> load(const T* p) {
  return load_bits<Vec<T>>(p);
}
template <class T>
NCOPS_INLINE void store(T* p, Vec<T> v) {
  std::memcpy(p, &v, sizeof v);
}
template <class T>
NCOPS_INLINE IntVec<T> load_int(const LaneInt<T>* p) {
  return load_bits<IntVec<T>>(p);
}
template <class T>
NCOPS_INLINE void store_int(LaneInt<T>* p, IntVec<T> v) {
  std::memcpy(p, &v, sizeof v);
}

}  // namespace ncops::NCOPS_ISA
