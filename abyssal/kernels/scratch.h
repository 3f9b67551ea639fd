// Scratch memory of a thread, for what is written and read within one call.
#pragma once

#include <cstdlib>

#include "simd.h"

namespace ab {

// Memory of a thread, which grows and stays. Pieces are aligned to lines of the cache.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }

  void begin() { used_ = 0; }

  template <class T>
  T* take(long count) {
    const long at = used_;
    used_ += round_up(count * (long)sizeof(T), 64);
    return reinterpret_cast<T*>(used_ <= size_ ? memory_ + at : nullptr);
  }

  // Whether all pieces were given. If not, there is memory for them now: take them again.
  bool enough() {
    if (used_ <= size_) return true;
    std::free(memory_);
    size_ = round_up(used_, 4096);
    memory_ = static_cast<char*>(std::aligned_alloc(4096, size_));
    used_ = 0;
    return false;
  }

 private:
  char* memory_ = nullptr;
  long size_ = 0, used_ = 0;
};

inline Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
}

}  // namespace ab
