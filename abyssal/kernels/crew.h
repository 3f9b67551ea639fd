// The threads of a pass, and the steps that every part of a layer is made of.
#pragma once

#include <algorithm>
#include <atomic>

#include "rows.h"
#include "stack.h"
#include "team.h"

namespace ab {

// Work that is handed out piece by piece. Three take turns: whoever begins a phase clears the
// ticket of the next one, which nobody holds any more.
struct alignas(64) Ticket {
  std::atomic<long> next{0};
};
constexpr int TICKETS = 3;

// One thread of those that walk through a pass together.
//
// What belongs to a row (its norm, its route) is little work. In a pass of few rows, `solo`, each
// thread does all of it for itself, in memory of its own, rather than wait for the others; only
// products are shared then.
struct Crew {
  const int id, threads;
  const bool solo;
  Barrier& barrier;
  Ticket* tickets;
  int phase = 0;

  void wait() const { barrier.wait(); }  // until everybody's share is done
  void gather() const {                  // until everybody's rows are
    if (!solo) wait();
  }
  Share share(long n, long unit = 1) const { return Share(n, id, threads, unit); }
  Share rows(long n) const { return solo ? Share(n, 0, 1) : share(n); }

  // Call work(i) for each of n pieces, whoever is free taking the next; ends with all done.
  template <class Work>
  void hand_out(long n, Work work) {
    std::atomic<long>& mine = tickets[phase % TICKETS].next;
    phase++;
    if (id == 0) tickets[phase % TICKETS].next.store(0);
    for (long i = mine.fetch_add(1); i < n; i = mine.fetch_add(1)) work(i);
    wait();
  }
};

constexpr long MANY = 64;  // rows a thread from which on it pays to split rows, not outputs

// out (rows, ldo) = x W^T, all threads together; ends with this thread's share done.
inline void project(const Crew& crew, const Mat& w, const Act& x, long rows, float* out,
                    long ldo) {
  if (rows >= MANY * crew.threads) {
    const Share mine = crew.share(rows, 32);
    if (mine.begin < mine.end)
      linear(w, x, mine.begin, mine.end - mine.begin, 0, panels(w), out + mine.begin * ldo, ldo);
    return;
  }
  const Share mine = crew.share(panels(w), panels(w) >= 8 * crew.threads ? 4 : 1);
  if (mine.begin < mine.end) linear(w, x, 0, rows, mine.begin, mine.end, out, ldo);
}

// out = x / sqrt(mean(x^2) + eps) * weight
inline void norm_row(const float* x, const float* weight, long n, float eps, float* out) {
  scale_row(x, weight, rms_scale(x, n, eps), out, n);
}

// x += scale * y
inline void add_scaled_row(float* x, float scale, const float* y, long n) {
  for_vectors(n, [&](long i, auto lanes) {
    put(x + i, fma(set1(scale), get(y + i, lanes), get(x + i, lanes)), lanes);
  });
}

}  // namespace ab
