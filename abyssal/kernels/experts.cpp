// Routed experts in BF16, forward: the tokens of each expert gathered, its two products with SwiGLU
// between them, and the weighted sum back. experts_backward.cpp has the way back.
//
// Work comes in blocks of one expert's rows. Products sum in float; what stands between two products
// is BF16.
#include "experts_work.h"
#include "rows.h"

using namespace ab;
using namespace ab::experts;

namespace {

// middle (n, ldm) = silu(first half) * second half of hidden (n, 2F), zeros up to Fp.
void activate(const Sizes& s, const bf16* hidden, long n, bf16* middle, long ldm) {
  for (long r = 0; r < n; r++, hidden += 2 * s.F, middle += ldm) {
    for (long f = 0; f < s.F; f += VF) {
      const vf gate = load_some(hidden + f, s.F - f), up = load_some(hidden + s.F + f, s.F - f);
      store_some(middle + f, gate * sigmoid(gate) * up, s.F - f);
    }
    std::fill(middle + s.F, middle + s.Fp, 0);
  }
}

void forward_block(const Sizes& s, const Plan& plan, const Block& block, const bf16* x,
                   const bf16* gate_up, const bf16* down, bf16* hidden, bf16* y) {
  Desk& mine = desk();
  const long n = block.end - block.begin, ldm = s.Fp + STEP;
  const Gathered rows(s, x, plan, block, mine);
  hidden = hidden ? hidden + block.begin * 2 * s.F : mine.hidden.of(n * 2 * s.F);
  project(s, rows.data, rows.stride, n, gate_up + block.expert * 2 * s.F * s.D, hidden, mine);
  bf16* middle = mine.middle.of(n * ldm);
  activate(s, hidden, n, middle, ldm);
  down += block.expert * s.D * s.F;
  to_hidden_size(s, middle, ldm, n, s.Fp, y + block.begin * s.D, mine,
                 [&](long d, long some, bf16* panels) {
                   pack_rows(down + d * s.F, s.F, some, s.F, panels);
                 });
}

}  // namespace

// x (T, D), experts and weights (T, K), gate_up (E, 2F, D), down (E, D, F) -> out (T, D).
// Written on the way: plan (E + 1 + 2 P), hidden (P, 2F) unless null, y (P, D).
// Returns 0, or 1 for an expert beyond E.
extern "C" int64_t ab_experts_forward(const bf16* x, const int64_t* experts, const float* weights,
                                      const bf16* gate_up, const bf16* down, int64_t T, int64_t K,
                                      int64_t E, int64_t D, int64_t F, int64_t* plan, bf16* hidden,
                                      bf16* y, bf16* out, int64_t threads) {
  const Sizes s{T, K, E, D, F};
  if (!sort(experts, s.P, E, plan)) return 1;
  const Plan sorted(plan, s.P, E);
  const std::vector<Block> blocks = row_blocks(sorted, E, s.rows(threads));
#pragma omp parallel num_threads(threads)
  {
    Unit unit;
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < blocks.size(); i++)
      forward_block(s, sorted, blocks[i], x, gate_up, down, hidden, y);
  }
  sum_choices(y, sorted.rows, weights, T, K, D, out, threads);
  return 0;
}
