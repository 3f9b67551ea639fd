// Routed experts in BF16, backward.
//
// Work comes in blocks of one expert's rows, or of one expert's outputs where gradients of weights
// are summed over all its rows; no sum is split, so the number of threads changes nothing. Products
// sum in float; what stands between two products is BF16.
#include "experts_work.h"
#include "rows.h"

using namespace ab;
using namespace ab::experts;

namespace {

constexpr long GRAD_ROWS = 256;  // a block of a weight's gradient ...
constexpr long GRAD_COLUMNS = 512;

// What SwiGLU passes back in columns [f, f + some) of one row: `through` is the gradient of the
// middle before the row's weight. Returns the dot product of `through` and the middle.
float swiglu_back(const Sizes& s, const float* through, const bf16* hidden, float weight, long f,
                  long some, bf16* grad_hidden, bf16* weighted) {
  vf dot{};
  for (long j = 0; j < some; j += VF) {
    const long n = some - j, at = f + j;
    const vf gate = load_some(hidden + at, n), up = load_some(hidden + s.F + at, n);
    const vf past = load(through + j), grad = past * weight;
    const vf part = sigmoid(gate), silu = gate * part, middle = silu * up;
    store_some(grad_hidden + at, grad * up * part * (1.f + gate * (1.f - part)), n);
    store_some(grad_hidden + s.F + at, grad * silu, n);
    store_some(weighted + at, middle * weight, n);
    dot += past * middle;
  }
  return hsum(dot);
}

// Columns of some rows: of those that stand in the plan's order from row `first` on, or, where
// there is no such place, of the tokens that the plan names.
struct Side {
  const bf16* data;
  long stride, first;
  static constexpr long OF_TOKENS = -1;
};

// A block of the gradient of one expert's matrix.
struct Patch {
  bool of_down;
  long expert, row, column;  // where it begins
  long rows, columns;
};

void cut(std::vector<Patch>& patches, bool of_down, long expert, long rows, long columns, long high,
         long wide) {
  for (long i = 0; i < rows; i += high)
    for (long j = 0; j < columns; j += wide)
      patches.push_back(
          {of_down, expert, i, j, std::min(high, rows - i), std::min(wide, columns - j)});
}

// out (patch of a matrix with `ldo` columns) = left^T right, summed over the rows of an expert.
void patch_gradient(const Sizes& s, const Plan& plan, const Patch& patch, const Side& left,
                    const Side& right, bf16* out, long ldo) {
  Desk& mine = desk();
  const long begin = plan.starts[patch.expert], end = plan.starts[patch.expert + 1];
  const long high = patch.rows, wide = round_up(patch.columns, LANES), turned_stride = ROWS + STEP;
  float* sums = mine.sums.of(GRAD_ROWS * GRAD_COLUMNS);
  bf16 *turned = mine.turned.of(GRAD_ROWS * turned_stride);
  bf16* panels = mine.panels.of(GRAD_COLUMNS * ROWS);
  out += patch.row * ldo + patch.column;

  // `columns` from `at` on of rows [first, first + n), in place or gathered.
  auto part = [&](const Side& side, long first, long n, long at, long columns) {
    if (side.first != Side::OF_TOKENS)
      return Side{side.data + (first - side.first) * side.stride + at, side.stride, first};
    bf16* rows = mine.rows.of(ROWS * GRAD_COLUMNS);
    gather(side.data + at, side.stride, plan.pairs, s.K, first, first + n, columns, columns, rows,
           columns);
    return Side{rows, columns, first};
  };

  for (long first = begin; first < end; first += ROWS) {
    const long n = std::min(ROWS, end - first), filled = round_up(n, STEP);
    const Side a = part(left, first, n, patch.row, high);
    transpose(a.data, a.stride, n, high, turned, turned_stride);
    for (long i = 0; i < high; i++)
      std::fill(turned + i * turned_stride + n, turned + i * turned_stride + filled, 0);
    const Side b = part(right, first, n, patch.column, patch.columns);
    pack_columns(b.data, b.stride, n, patch.columns, panels);
    mm_bf16(high, wide, filled, turned, turned_stride, panels, LANES * filled, sums, wide,
            first > begin);
  }
  if (begin == end) std::fill(sums, sums + high * wide, 0.f);
  to_rows(sums, wide, high, patch.columns, out, ldo);
}

struct Backward {
  Sizes s;
  Plan plan;
  long threads;
  const bf16 *grad, *x, *gate_up, *down, *hidden;  // hidden (P, 2F), or null: computed again
  const float* weights;
  bf16 *grad_hidden, *weighted;  // (P, Hp), (P, Fp): of hidden; the middle times its weight
  bf16* grad_rows;               // (P, D): of the gathered x
  float* grad_weights;
  bf16 *grad_gate_up, *grad_down;  // or null

  // Whether one block has all rows of its expert, of which no thread need wait for another's.
  bool is_alone(long expert) const {
    const long n = plan.starts[expert + 1] - plan.starts[expert];
    return n && n <= s.rows(threads) && !is_crowded(expert);
  }
  // Whether an expert has so many rows that threads must share its outputs.
  bool is_crowded(long expert) const {
    return threads > 1 && (plan.starts[expert + 1] - plan.starts[expert]) * threads * 2 > s.P;
  }

  // Everything that belongs to the rows of a block; and to the expert, if these are all it has, as
  // they are in the cache now.
  void rows(const Block& block) const {
    Desk& mine = desk();
    const long n = block.end - block.begin, e = block.expert;
    const bf16* projected = hidden_of(block, mine);
    const Gathered above(s, grad, plan, block, mine);
    bf16* below = grad_hidden + block.begin * s.Hp;
    through_down(block, above, down + e * s.D * s.F, projected, below, mine);
    const bf16* matrix = gate_up + e * 2 * s.F * s.D;
    to_hidden_size(s, below, s.Hp, n, s.Hp, grad_rows + block.begin * s.D, mine,
                   [&](long d, long some, bf16* panels) {
                     pack_columns(matrix + d, s.D, 2 * s.F, some, panels);
                   });
    if (!is_alone(e)) return;
    for (const Patch& patch : patches_of(e, true))
      of_patch(patch, {above.data, above.stride, block.begin});
    const Gathered below_it(s, x, plan, block, mine);  // in the place of `above`
    for (const Patch& patch : patches_of(e, false))
      of_patch(patch, {below_it.data, below_it.stride, block.begin});
  }

  std::vector<Patch> patches_of(long e, bool of_down) const {
    const long part = is_crowded(e) ? 2 : 1;
    std::vector<Patch> patches;
    if (of_down && grad_down)
      cut(patches, true, e, s.D, s.F, GRAD_ROWS / part, GRAD_COLUMNS / part);
    if (!of_down && grad_gate_up)
      cut(patches, false, e, 2 * s.F, s.D, GRAD_ROWS / part, GRAD_COLUMNS / part);
    return patches;
  }

  void of_patch(const Patch& patch) const {
    of_patch(patch, {patch.of_down ? grad : x, s.D, Side::OF_TOKENS});
  }

  void of_patch(const Patch& patch, const Side& side) const {
    const long matrix = patch.expert * s.D * s.F;
    if (patch.of_down)
      patch_gradient(s, plan, patch, side, {weighted, s.Fp, 0}, grad_down + matrix, s.F);
    else
      patch_gradient(s, plan, patch, {grad_hidden, s.Hp, 0}, side, grad_gate_up + 2 * matrix, s.D);
  }

  const bf16* hidden_of(const Block& block, Desk& mine) const {
    if (hidden) return hidden + block.begin * 2 * s.F;
    const long n = block.end - block.begin;
    const Gathered rows(s, x, plan, block, mine);
    bf16* again = mine.hidden.of(n * 2 * s.F);
    project(s, rows.data, rows.stride, n, gate_up + block.expert * 2 * s.F * s.D, again, mine);
    return again;
  }

  void through_down(const Block& block, const Gathered& above, const bf16* matrix,
                    const bf16* projected, bf16* below, Desk& mine) const {
    const long n = block.end - block.begin;
    const long at_once = packed_at_once(s.Dp);
    bf16* panels = mine.panels.of(at_once * s.Dp);
    float *sums = mine.sums.of(STRIP * at_once), *dots = mine.dots.of(n);
    bf16* scaled = weighted + block.begin * s.Fp;
    std::fill(dots, dots + n, 0.f);
    for (long f = 0; f < s.F; f += at_once) {
      const long some = std::min(at_once, s.F - f), wide = round_up(some, LANES);
      pack_columns(matrix + f, s.F, s.D, some, panels);
      for (long r = 0; r < n; r += STRIP) {
        const long m = std::min(STRIP, n - r);
        mm_bf16(m, wide, s.Dp, above.data + r * above.stride, above.stride, panels, LANES * s.Dp,
                sums, wide, false);
        for (long i = r; i < r + m; i++)
          dots[i] += swiglu_back(s, sums + (i - r) * wide, projected + i * 2 * s.F,
                                 weights[plan.pairs[block.begin + i]], f, some, below + i * s.Hp,
                                 scaled + i * s.Fp);
      }
    }
    for (long i = 0; i < n; i++) {
      grad_weights[plan.pairs[block.begin + i]] = dots[i];
      std::fill(below + i * s.Hp + 2 * s.F, below + (i + 1) * s.Hp, 0);
      std::fill(scaled + i * s.Fp + s.F, scaled + (i + 1) * s.Fp, 0);
    }
  }
};

}  // namespace

// The gradients of ab_experts_forward given that of out (T, D): grad_x, grad_weights (T, K), and
// those of the matrices unless null. hidden (P, 2F) is the forward's, or null. Written on the way:
// grad_hidden (P, 2F rounded up to 32), weighted (P, F rounded up to 32), grad_rows (P, D).
extern "C" void ab_experts_backward(const bf16* grad, const bf16* x, const float* weights,
                                    const bf16* gate_up, const bf16* down, const int64_t* plan,
                                    const bf16* hidden, int64_t T, int64_t K, int64_t E, int64_t D,
                                    int64_t F, bf16* grad_hidden, bf16* weighted, bf16* grad_rows,
                                    bf16* grad_x, float* grad_weights, bf16* grad_gate_up,
                                    bf16* grad_down, int64_t threads) {
  const Sizes s{T, K, E, D, F};
  const Plan sorted(plan, s.P, E);
  const Backward backward{s,        sorted,    threads,      grad,         x,
                          gate_up,  down,      hidden,       weights,      grad_hidden,
                          weighted, grad_rows, grad_weights, grad_gate_up, grad_down};
  const std::vector<Block> blocks = row_blocks(sorted, E, s.rows(threads));
  std::vector<Patch> patches;
  for (long e = 0; e < E; e++)
    for (bool of_down : {true, false})
      if (!backward.is_alone(e))
        for (const Patch& patch : backward.patches_of(e, of_down)) patches.push_back(patch);
#pragma omp parallel num_threads(threads)
  {
    Unit unit;
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < blocks.size(); i++) backward.rows(blocks[i]);
#pragma omp for schedule(dynamic)
    for (size_t i = 0; i < patches.size(); i++) backward.of_patch(patches[i]);
  }
  sum_choices(grad_rows, sorted.rows, nullptr, T, K, D, grad_x, threads);
}
