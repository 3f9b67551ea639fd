// What the forward and the backward of routed experts share: how work is cut, products of a block of
// rows, and where a thread keeps things.
//
//     T tokens    K choices of each    P = T K rows    E experts    D hidden size    F expert width
#pragma once

#include "experts.h"

namespace ab::experts {

constexpr long ROWS = 512;        // at most of a block: what packing an expert costs, they share
constexpr long FEW_ROWS = 128;    // at least, where there are many threads
constexpr long STRIP = 128;       // rows whose products are in the second cache at once
constexpr long PANELS = 1 << 18;  // numbers packed at once, unless inputs are very many

struct Sizes {
  long T, K, E, D, F;
  long P = T * K;
  long Dp = round_up(D, STEP), Fp = round_up(F, STEP), Hp = round_up(2 * F, STEP);

  // Rows of a block: few enough that every thread gets several.
  long rows(long threads) const {
    return std::clamp(round_up(P / (4 * threads) + 1, 32), FEW_ROWS, ROWS);
  }
};

// Outputs whose panels are packed at once, a multiple of LANES.
inline long packed_at_once(long inputs) {
  return std::clamp(PANELS / inputs / LANES * LANES, 64L, 512L);
}

// What one thread works on.
struct Desk {
  Room<bf16> rows, hidden, middle, panels, turned;
  Room<float> sums, dots;
};

inline Desk& desk() {
  static thread_local Desk mine;
  return mine;
}

inline void to_rows(const float* sums, long lds, long rows, long columns, bf16* out, long ldo) {
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < columns; j += VF)
      store_some(out + i * ldo + j, load(sums + i * lds + j), columns - j);
}

// hidden (n, 2F) = x (n, ldx) times gate_up (2F, D).
inline void project(const Sizes& s, const bf16* x, long ldx, long n, const bf16* gate_up,
                    bf16* hidden, Desk& desk) {
  const long outputs = 2 * s.F, at_once = packed_at_once(s.Dp);
  bf16* panels = desk.panels.of(at_once * s.Dp);
  float* sums = desk.sums.of(STRIP * at_once);
  for (long o = 0; o < outputs; o += at_once) {
    const long some = std::min(at_once, outputs - o), wide = round_up(some, LANES);
    pack_rows(gate_up + o * s.D, s.D, some, s.D, panels);
    for (long r = 0; r < n; r += STRIP) {
      const long m = std::min(STRIP, n - r);
      mm_bf16(m, wide, s.Dp, x + r * ldx, ldx, panels, LANES * s.Dp, sums, wide, false);
      to_rows(sums, wide, m, some, hidden + r * outputs + o, outputs);
    }
  }
}

// y (n, D) = a (n, lda) times B, whose columns [d, d + some) `pack` packs.
template <class Pack>
inline void to_hidden_size(const Sizes& s, const bf16* a, long lda, long n, long inputs, bf16* y,
                           Desk& desk, Pack pack) {
  const long outputs = packed_at_once(inputs);
  bf16* panels = desk.panels.of(outputs * inputs);
  float* sums = desk.sums.of(STRIP * outputs);
  for (long d = 0; d < s.D; d += outputs) {
    const long some = std::min(outputs, s.D - d), wide = round_up(some, LANES);
    pack(d, some, panels);
    for (long r = 0; r < n; r += STRIP) {
      const long m = std::min(STRIP, n - r);
      mm_bf16(m, wide, inputs, a + r * lda, lda, panels, LANES * inputs, sums, wide, false);
      to_rows(sums, wide, m, some, y + r * s.D + d, s.D);
    }
  }
}

// x's rows of a block; the stride is no power of two, so that rows do not fight for one cache set.
struct Gathered {
  long stride;
  bf16* data;
  Gathered(const Sizes& s, const bf16* x, const Plan& plan, const Block& block, Desk& desk)
      : stride(s.Dp + STEP), data(desk.rows.of((block.end - block.begin) * stride)) {
    gather(x, s.D, plan.pairs, s.K, block.begin, block.end, s.D, s.Dp, data, stride);
  }
};

}  // namespace ab::experts
