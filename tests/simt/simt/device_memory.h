// Device memory for the tests: exact in size, with guards at both ends that no kernel may touch.
#pragma once

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "error.h"

namespace simt {

// Bytes of global memory. They start as NaN; the guards are poisoned under ASan, else they are checked after every
// launch. `misalignment` puts the start that many bytes after a multiple of 256, cudaMalloc's alignment.
class DeviceMemory {
 public:
  static constexpr size_t guard = 256;

  DeviceMemory(size_t bytes, std::string name, size_t misalignment = 0)
      : name_(std::move(name)),
        bytes_(bytes),
        whole_(2 * guard + (misalignment + bytes + 255) / 256 * 256),
        offset_(guard + misalignment),
        base_(static_cast<char*>(std::aligned_alloc(256, whole_))) {
    std::memset(base_, 0xFF, whole_);
    poison(base_, offset_);
    poison(base_ + offset_ + bytes_, whole_ - offset_ - bytes_);
    all().push_back(this);
  }
  ~DeviceMemory() {
    unpoison(base_, whole_);
    std::free(base_);
    std::erase(all(), this);
  }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // Null if empty, as of an empty tensor on a GPU.
  char* data() const { return bytes_ ? base_ + offset_ : nullptr; }
  size_t bytes() const { return bytes_; }

  void check_guards() const {
    for (size_t i = 0; i < whole_; ++i) {
      if (i == offset_) i += bytes_;
      if (i >= whole_ || base_[i] == char(0xFF)) continue;
      const bool after = i >= offset_;
      std::memset(base_ + (after ? offset_ + bytes_ : 0), 0xFF, after ? whole_ - offset_ - bytes_ : offset_);
      fail(state.launched_at, "global memory written %zu bytes %s %s (%zu bytes)",
           after ? i - offset_ - bytes_ : offset_ - i, after ? "past the end of" : "before", name_.c_str(), bytes_);
    }
  }

  static std::vector<DeviceMemory*>& all() {
    static std::vector<DeviceMemory*> live;
    return live;
  }

 private:
  std::string name_;
  size_t bytes_, whole_, offset_;
  char* base_;
};

inline void check_device_memory() {
#if !defined(__SANITIZE_ADDRESS__)
  for (const DeviceMemory* memory : DeviceMemory::all()) memory->check_guards();
#endif
}

}  // namespace simt
