// What a binding file (<op>_simt.cpp) needs: tensors as arguments, device memory behind them, and the module itself.
//
//   #include "bind.h"
//   #include "cuda/scale.cuh"
//   SIMT_MODULE(scale, m) {
//     m.def("scale", [](simt::In x, simt::Out y, float factor) {
//       simt::dispatch<float, __half>(x, [&](auto zero) {
//         using T = decltype(zero);
//         ncops::scale(x.data<T>(), y.data<T>(), x.numel(), factor, nullptr);
//       });
//     });
//   }
#pragma once

#include <cstring>
#include <exception>
#include <memory>

#include "cuda/device.cuh"
#include "module.h"

namespace simt {

template <class T>
const char* dtype_name() {
  if constexpr (std::is_same_v<T, float>) return "float32";
  else if constexpr (std::is_same_v<T, double>) return "float64";
  else if constexpr (std::is_same_v<T, __half>) return "float16";
  else if constexpr (std::is_same_v<T, __nv_bfloat16>) return "bfloat16";
  else if constexpr (std::is_same_v<T, bool>) return "bool";
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 8) return std::is_signed_v<T> ? "int64" : "uint64";
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 4) return std::is_signed_v<T> ? "int32" : "uint32";
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 2) return std::is_signed_v<T> ? "int16" : "uint16";
  else if constexpr (std::is_integral_v<T> && sizeof(T) == 1) return std::is_signed_v<T> ? "int8" : "uint8";
  else static_assert(sizeof(T) == 0, "no dtype for this type");
}

// A tensor in device memory, with its strides and with its address modulo 16 kept, so that a view at an odd offset is
// as misaligned as on a GPU. Exactly the span of its elements is accessible.
class Array {
 public:
  Array(const HostArray& host, bool written) : host_(host), written_(written) {
    size_t span = 1;
    std::string name = host.dtype + " array of shape (";
    for (size_t d = 0; d < host.shape.size(); ++d) {
      if (host.strides[d] < 0) throw std::invalid_argument("negative strides do not exist on a GPU");
      if (host.shape[d] == 0) span = 0;
      if (span) span += size_t(host.shape[d] - 1) * size_t(host.strides[d]);
      name += (d ? ", " : "") + std::to_string(host.shape[d]);
    }
    memory_ = std::make_shared<DeviceMemory>(span * host.item_bytes, name + ")",
                                             reinterpret_cast<uintptr_t>(host.data) % 16);
    if (span) std::memcpy(memory_->data(), host.data, memory_->bytes());
  }

  // Checks the dtype.
  template <class T>
  T* data() const {
    const char* expected = dtype_name<std::remove_const_t<T>>();
    if (host_.dtype != expected) {
      throw std::invalid_argument("expected a " + std::string(expected) + " array, got " + host_.dtype);
    }
    return reinterpret_cast<T*>(memory_->data());
  }
  void* raw() const { return memory_->data(); }
  const std::string& dtype() const { return host_.dtype; }
  int64_t dim() const { return int64_t(host_.shape.size()); }
  int64_t size(int64_t d) const { return host_.shape.at(size_t(d)); }
  int64_t stride(int64_t d) const { return host_.strides.at(size_t(d)); }  // in elements
  int64_t numel() const {
    int64_t n = 1;
    for (int64_t s : host_.shape) n *= s;
    return n;
  }

 protected:
  void copy_back() const {
    if (written_ && memory_.use_count() == 1 && memory_->bytes() && !std::uncaught_exceptions()) {
      std::memcpy(host_.data, memory_->data(), memory_->bytes());
    }
  }

 private:
  HostArray host_;
  bool written_;
  std::shared_ptr<DeviceMemory> memory_;
};

// An argument that kernels only read.
struct In : Array {
  explicit In(const HostArray& host) : Array(host, false) {}
};

// An argument that is copied in, and back when the call has ended without an error.
struct Out : Array {
  explicit Out(const HostArray& host) : Array(host, true) {}
  Out(const Out&) = default;
  Out& operator=(const Out&) = default;
  ~Out() { copy_back(); }
};

// Workspace: uninitialised device memory, which is to say NaN.
class Workspace {
 public:
  explicit Workspace(size_t bytes) : memory_(bytes, "the workspace") {}
  void* data() const { return memory_.data(); }

 private:
  DeviceMemory memory_;
};

// Calls f with a value of the one type among Ts that the array holds.
template <class... Ts, class F>
void dispatch(const Array& array, F f) {
  const bool found = ((array.dtype() == dtype_name<Ts>() && (f(Ts{}), true)) || ...);
  if (!found) throw std::invalid_argument("no kernel for " + array.dtype());
}

inline void define_controls(Module& m) {
  m.def("schedule", [](int64_t seed) { seed_schedule(uint64_t(seed)); }, "Seeds the order of blocks and threads.");
  m.def(
      "plant", [](std::string name) { planted_defect = name.empty() ? 0 : defect_id(name.c_str()); },
      "Plants the defect of this name; none if empty.");
}

}  // namespace simt

#define SIMT_MODULE(op, m)                         \
  static void define_##op(simt::Module&);          \
  void simt::define_module(simt::Module& module) { \
    simt::define_controls(module);                 \
    define_##op(module);                           \
  }                                                \
  static void define_##op(simt::Module& m)
