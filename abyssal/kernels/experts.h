// Tokens sorted by expert: who stands where, and copies of their rows.
//
// T tokens    K choices of each    P = T K pairs, pair t K + k    E experts
#pragma once

#include <cstdlib>
#include <memory>
#include <vector>

#include "pack.h"

namespace ab::experts {

// Memory of one thread, kept from call to call; what it holds is lost when it grows.
template <class T>
class Room {
 public:
  T* of(long count) {
    if (count > size_) {
      size_ = round_up(count, 4096);
      memory_.reset(static_cast<T*>(std::aligned_alloc(64, size_ * sizeof(T))));
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> memory_;
  long size_ = 0;
};

// The pairs sorted by expert, those of one expert in their own order; no row is padding.
struct Plan {
  const int64_t* starts;  // (E + 1): the rows of expert e are starts[e] to starts[e + 1]
  const int64_t* pairs;   // (P): the pair of each row
  const int64_t* rows;    // (P): the row of each pair
  Plan(const int64_t* plan, long P, long E)
      : starts(plan), pairs(plan + E + 1), rows(plan + E + 1 + P) {}
};

// plan (E + 1 + 2 P) of experts (P). False where an expert is not one of E.
inline bool sort(const int64_t* experts, long P, long E, int64_t* plan) {
  int64_t *starts = plan, *pairs = plan + E + 1, *rows = pairs + P;
  std::fill(starts, starts + E + 1, 0);
  for (long p = 0; p < P; p++) {
    if (experts[p] < 0 || experts[p] >= E) return false;
    starts[experts[p] + 1]++;
  }
  for (long e = 0; e < E; e++) starts[e + 1] += starts[e];
  std::vector<int64_t> next(starts, starts + E);
  for (long p = 0; p < P; p++) {
    rows[p] = next[experts[p]]++;
    pairs[rows[p]] = p;
  }
  return true;
}

// Part of the rows of one expert.
struct Block {
  long expert, begin, end;
};

// All rows, in blocks of at most `most`.
inline std::vector<Block> row_blocks(const Plan& plan, long E, long most) {
  std::vector<Block> blocks;
  for (long e = 0; e < E; e++)
    for (long begin = plan.starts[e]; begin < plan.starts[e + 1]; begin += most)
      blocks.push_back({e, begin, std::min<long>(begin + most, plan.starts[e + 1])});
  return blocks;
}

// out (rows, ldo) = `columns` numbers of the tokens of rows [begin, end), zeros up to `filled`.
inline void gather(const bf16* x, long ldx, const int64_t* pairs, long K, long begin, long end,
                   long columns, long filled, bf16* out, long ldo) {
  for (long row = begin; row < end; row++, out += ldo) {
    std::memcpy(out, x + pairs[row] / K * ldx, columns * 2);
    std::fill(out + columns, out + filled, 0);
  }
}

// A vector of which only the first n lanes are there (1 <= n).
inline vf load_some(const bf16* p, long n) { return n >= VF ? load_bf16(p) : load_bf16_n(p, n); }
inline void store_some(bf16* p, vf v, long n) {
  n >= VF ? store_bf16(p, v) : store_bf16_n(p, v, n);
}

// out (T, D): the sum of each token's rows of y (P, D) in the order of its choices, weighted where
// there are weights (T, K).
inline void sum_choices(const bf16* y, const int64_t* rows, const float* weights, long T, long K,
                        long D, bf16* out, long threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long t = 0; t < T; t++)
    for (long d = 0; d < D; d += VF) {
      vf sum{};
      for (long p = t * K; p < (t + 1) * K; p++) {
        const vf row = load_some(y + rows[p] * D + d, D - d);
        sum += weights ? row * weights[p] : row;
      }
      store_some(out + t * D + d, sum, D - d);
    }
}

}  // namespace ab::experts
