// Integer atomics: relaxed, as on the GPU; they order nothing else.
#pragma once

#include <atomic>
#include <concepts>

// Adding floats in an order that changes from run to run changes the bits of the result (the design forbids it).
template <std::floating_point T, class V>
T atomicAdd(T*, V) = delete;

template <std::integral T>
inline T atomicAdd(T* p, std::type_identity_t<T> value) {
  static_assert(sizeof(T) == 4 || std::unsigned_integral<T>, "CUDA adds int, unsigned and unsigned long long");
  return std::atomic_ref<T>(*p).fetch_add(value, std::memory_order_relaxed);
}

namespace simt {

template <class T, class F>
inline T atomic_update(T* p, F update) {
  std::atomic_ref<T> shared(*p);
  T seen = shared.load(std::memory_order_relaxed);
  while (!shared.compare_exchange_weak(seen, update(seen), std::memory_order_relaxed)) {
  }
  return seen;
}

}  // namespace simt

template <std::integral T>
inline T atomicMax(T* p, std::type_identity_t<T> value) {
  return simt::atomic_update(p, [&](T seen) { return seen < value ? value : seen; });
}
template <std::integral T>
inline T atomicMin(T* p, std::type_identity_t<T> value) {
  return simt::atomic_update(p, [&](T seen) { return value < seen ? value : seen; });
}
template <std::integral T>
inline T atomicOr(T* p, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*p).fetch_or(value, std::memory_order_relaxed);
}
template <std::integral T>
inline T atomicExch(T* p, std::type_identity_t<T> value) {
  return std::atomic_ref<T>(*p).exchange(value, std::memory_order_relaxed);
}
template <std::integral T>
inline T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  std::atomic_ref<T>(*p).compare_exchange_strong(expected, value, std::memory_order_relaxed);
  return expected;
}
