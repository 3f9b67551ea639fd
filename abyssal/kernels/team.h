// Threads that work in phases: each does its share, then waits for the others.
#pragma once

#include <atomic>
#include <sched.h>

#include "simd.h"

namespace ab {

// A barrier that spins for about 20 microseconds and then lets others run: a thread that waits for
// one the system has put to sleep must not keep it from waking.
class Barrier {
 public:
  void among(int threads) { threads_ = threads; }  // before anyone waits

  void wait() {
    if (threads_ == 1) return;
    const int mine = round_.load(std::memory_order_relaxed);
    if (here_.fetch_add(1, std::memory_order_acq_rel) == threads_ - 1) {
      here_.store(0, std::memory_order_relaxed);
      round_.store(mine + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == mine; spins++) {
      if (spins < SPINS) pause();
      else sched_yield();
    }
  }

 private:
  static constexpr int SPINS = 1000;

  static void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  int threads_ = 1;
  alignas(64) std::atomic<int> here_{0};
  alignas(64) std::atomic<int> round_{0};
};

// The share [begin, end) of thread `id` of n things, in whole multiples of `unit`.
struct Share {
  long begin, end;
  Share(long n, int id, int threads, long unit = 1) {
    const long units = (n + unit - 1) / unit;
    begin = units * id / threads * unit;
    end = units * (id + 1) / threads * unit;
    if (begin > n) begin = n;
    if (end > n) end = n;
  }
};

}  // namespace ab
