// Latent attention of a training pass, backward.
//
// Probabilities are computed again from the log-sum-exp, as keys by queries like the forward, a
// block of keys against all blocks of queries that see it:
//
//     P^T = 2^(K Q^T c - lse)    dS^T = P^T (V dO^T - delta)    delta = sum of dO * O over a row
//     dV += P^T dO               dK += dS^T Q                   dQ^T += K^T dS^T
#include "attention.h"

#include <atomic>

using namespace ab;
using namespace ab::attention;

namespace {

constexpr long SIDE = 64;  // queries and keys of a block

struct Gradients {
  const bf16 *out, *grad;  // (T, H, V)
  const float* lse;        // (T, H)
  bf16 *dq, *dkv;          // (T, H, N+R), (T, H, N+V)
  float* drope;            // (T, H, R): of the turned k_rope, head by head
};

// What one thread differentiates at a time: keys of a head against queries, in whole blocks.
struct Part {
  Span span;
  long head, row, row_end, key, key_end;
  bool to_queries, to_keys;  // which gradients are wanted

  double cost() const {
    const double height = (double)(row_end - row), last = (double)std::min(key_end, row_end);
    return height * (last - key) * (to_queries ? 3 : 2) + (to_keys ? height * (last - key) : 0);
  }
};

// Whole heads, where that is enough for all threads; long ones are cut by keys for the gradients of
// keys, and by queries for those of queries.
std::vector<Part> parts(const std::vector<Span>& spans, long heads, long threads) {
  double total = 0;
  for (const Span& span : spans) total += work(span) * heads;
  std::vector<Part> all;
  for (const Span& span : spans) {
    const long size = span.nq;
    const bool whole = work(span) * threads <= total * 1.001;
    const long cuts = whole ? 1 : (long)(work(span) * threads * 4 / total) + 1;
    const long step = round_up((size + cuts - 1) / cuts, SIDE);
    for (long head = 0; head < heads; head++) {
      if (whole) all.push_back({span, head, 0, size, 0, size, true, true});
      for (long i = 0; !whole && i < size; i += step) {
        const long end = std::min(i + step, size);
        all.push_back({span, head, i, size, i, end, false, true});
        all.push_back({span, head, i, end, 0, end, true, false});
      }
    }
  }
  std::stable_sort(all.begin(), all.end(),
                   [](const Part& a, const Part& b) { return a.cost() > b.cost(); });
  return all;
}

// Everything the products need of a block of queries; pointers to the first block, one after another.
struct Queries {
  long dp, vp, d16, v16;
  bf16 *by_row, *by_column;            // Q in panels: its sum runs along a query, or down the queries
  bf16 *grad_by_row, *grad_by_column;  // dO likewise
  float *lse, *delta;                  // SIDE each, lse in powers of two
  float* dqt;                          // dQ^T (D, SIDE)

  explicit Queries(const Inputs& in)
      : dp(in.dp()), vp(round_up(in.v, STEP)), d16(round_up(in.d(), LANES)),
        v16(round_up(in.v, LANES)) {}

  void allocate(long blocks, Scratch& s) {
    by_row = s.queries.of<bf16>(blocks * SIDE * dp);
    by_column = s.panels.of<bf16>(blocks * SIDE * d16);
    grad_by_row = s.more[0].of<bf16>(blocks * SIDE * vp);
    grad_by_column = s.more[1].of<bf16>(blocks * SIDE * v16);
    lse = s.more[2].of<float>(blocks * SIDE * 2);
    delta = lse + SIDE;
    dqt = s.sums.of<float>(blocks * SIDE * d16);
  }

  Queries at(long block) const {
    Queries here = *this;
    here.by_row += block * SIDE * dp;
    here.by_column += block * SIDE * d16;
    here.grad_by_row += block * SIDE * vp;
    here.grad_by_column += block * SIDE * v16;
    here.lse += block * SIDE * 2;
    here.delta += block * SIDE * 2;
    here.dqt += block * SIDE * d16;
    return here;
  }
};

// X (rows, columns) -> panels whose sum runs down SIDE rows; missing rows are zeros.
void pack_down(const bf16* X, long row, long rows, long columns, bf16* out) {
  if (rows < SIDE) std::memset(out, 0, round_up(columns, LANES) * SIDE * 2);
  for (long n = 0; n < columns; n += LANES, out += LANES * SIDE)
    pack_columns(X + n, row, rows, std::min(LANES, columns - n), out);
}

float dot(const bf16* a, const bf16* b, long n) {
  vf sum{};
  long i = 0;
  for (; i + VF <= n; i += VF) sum = fma(load_bf16(a + i), load_bf16(b + i), sum);
  if (i < n) sum = fma(load_bf16_n(a + i, n - i), load_bf16_n(b + i, n - i), sum);
  return hsum(sum);
}

void pack_queries(const Inputs& in, const Gradients& g, long head, long row, long rows,
                  const Queries& to, bf16* gathered) {
  gather_queries(in, head, row, rows, gathered);
  std::memset(gathered + rows * to.dp, 0, (SIDE - rows) * to.dp * 2);
  pack_rows(gathered, to.dp, SIDE, to.dp, to.by_row);
  pack_down(gathered, to.dp, SIDE, in.d(), to.by_column);
  const long wide = in.heads * in.v;
  const bf16 *grad = g.grad + row * wide + head * in.v, *out = g.out + row * wide + head * in.v;
  if (rows < SIDE) std::memset(to.grad_by_row, 0, SIDE * to.vp * 2);
  pack_rows(grad, wide, rows, in.v, to.grad_by_row);
  pack_down(grad, wide, rows, in.v, to.grad_by_column);
  for (long i = 0; i < SIDE; i++) {
    to.lse[i] = i < rows ? g.lse[(row + i) * in.heads + head] * LOG2E : 0.f;
    to.delta[i] = i < rows ? dot(grad + i * wide, out + i * wide, in.v) : 0.f;
  }
}

// S^T and dP^T (keys, SIDE) -> P^T and dS^T (keys, SIDE), and dS^T in panels of `keys` inputs.
// Query i sees keys up to edge + i.
void weigh(const float* S, const float* dP, long keys, long edge, float c, const Queries& q,
           bf16* P, bf16* dS, bf16* panels) {
  vi lane;
  for (int l = 0; l < VF; l++) lane[l] = l;
  for (long i = 0; i < SIDE; i += VF) {
    const vf lse = load(q.lse + i), delta = load(q.delta + i);
    bf16* panel = panels + i / LANES * LANES * keys + i % LANES * 2;
    for (long j = 0; j < keys; j += 2) {
      vf score[2];
      for (long u = 0; u < 2; u++) {
        const long at = (j + u) * SIDE + i;
        vf p = exp2_rough(load(S + at) * c - lse);
        vf ds = p * (load(dP + at) - delta);
        if (j + u > edge + i) {  // some of these queries come before this key
          const vi hidden = lane < (int)std::min(j + u - edge - i, (long)VF);
          p = hidden ? vf{} : p;
          ds = hidden ? vf{} : ds;
        }
        store_bf16(P + at, p);
        store_bf16(dS + at, ds);
        score[u] = ds;
      }
      store_words(panel + j * LANES, pair(score[0], score[1]));
    }
  }
}

// A block of keys: what the products need of it, and the sums of its gradients.
struct KeyBlock {
  bf16 *k, *v, *kt;  // (SIDE, dp), (SIDE, vp), (D, SIDE)
  float *dk, *dv;    // (SIDE, d16), (SIDE, v16)
};

void pack_block(const Inputs& in, const Span& span, long head, long key, long rows,
                const Queries& q, const KeyBlock& to) {
  gather_keys(in, head, span.k0 + key, rows, to.k);
  std::memset(to.k + rows * q.dp, 0, (SIDE - rows) * q.dp * 2);
  std::memset(to.v, 0, SIDE * q.vp * 2);
  for (long j = 0; j < rows; j++)
    copy(in.kv + (span.k0 + key + j) * in.kv_row + head * (in.n + in.v) + in.n, in.v,
         to.v + j * q.vp);
  transpose_filled(to.k, q.dp, SIDE, in.d(), to.kt, SIDE);
  std::memset(to.dk, 0, SIDE * q.d16 * 4);
  std::memset(to.dv, 0, SIDE * q.v16 * 4);
}

void round_to(const float* x, float factor, long n, bf16* out) {
  long i = 0;
  for (; i + VF <= n; i += VF) store_bf16(out + i, load(x + i) * factor);
  if (i < n) store_bf16_n(out + i, load_n(x + i, n - i) * factor, n - i);
}

void finish_keys(const Inputs& in, const Gradients& g, long head, long key, long rows,
                 const Queries& q, const KeyBlock& from) {
  for (long j = 0; j < rows; j++) {
    const float* dk = from.dk + j * q.d16;
    bf16* dkv = g.dkv + (key + j) * in.kv_row + head * (in.n + in.v);
    round_to(dk, in.scale, in.n, dkv);
    round_to(from.dv + j * q.v16, 1.f, in.v, dkv + in.n);
    float* drope = g.drope + ((key + j) * in.heads + head) * in.r;
    for (long i = 0; i < in.r; i++) drope[i] = dk[in.n + i] * in.scale;
  }
}

void finish_queries(const Inputs& in, const Gradients& g, long head, long row, long rows,
                    const Queries& q, float* turned) {
  transpose(q.dqt, SIDE, in.d(), SIDE, turned, q.d16);
  for (long i = 0; i < rows; i++) {
    float* from = turned + i * q.d16;
    bf16* dq = g.dq + (row + i) * in.q_row + head * in.d();
    round_to(from, in.scale, in.n, dq);
    const long angles = (row + i) * (in.r / 2);
    for (long k = in.n; k < in.d(); k++) from[k] *= in.scale;
    rotate_row_back(from + in.n, in.cos + angles, in.sin + angles, dq + in.n, in.r / 2);
  }
}

void differentiate(const Inputs& in, const Gradients& g, const Part& part) {
  Scratch& s = scratch();
  const long head = part.head, start = part.span.q0;
  const long first = part.row / SIDE, blocks = (part.row_end - part.row + SIDE - 1) / SIDE;
  Queries all(in);
  all.allocate(blocks, s);
  bf16* gathered = s.rows.of<bf16>(SIDE * std::max(all.dp, 2 * all.d16));
  for (long b = 0; b < blocks; b++) {
    const long row = part.row + b * SIDE, rows = std::min(SIDE, part.row_end - row);
    pack_queries(in, g, head, start + row, rows, all.at(b), gathered);
  }
  const KeyBlock keys{s.keys.of<bf16>(SIDE * all.dp), s.values.of<bf16>(SIDE * all.vp),
                      s.more[3].of<bf16>(SIDE * all.d16), s.more[4].of<float>(SIDE * all.d16),
                      s.more[5].of<float>(SIDE * all.v16)};
  float* S = s.scores.of<float>(2 * SIDE * SIDE);
  float* dP = S + SIDE * SIDE;
  bf16* P = s.weights.of<bf16>(3 * SIDE * SIDE);
  bf16 *dS = P + SIDE * SIDE, *panels = dS + SIDE * SIDE;
  for (long key = part.key; key < part.key_end; key += SIDE) {
    const long held = std::min(SIDE, part.key_end - key);
    pack_block(in, part.span, head, key, held, all, keys);
    for (long b = std::max(key / SIDE - first, 0L); b < blocks; b++) {
      const Queries q = all.at(b);
      const long row = part.row + b * SIDE, edge = row - key;
      const long seen = std::min(row + SIDE, part.row_end) - key;
      const long count = round_up(std::min(held, seen), STEP);
      mm_bf16(count, SIDE, q.dp, keys.k, q.dp, q.by_row, LANES * q.dp, S, SIDE, false);
      mm_bf16(count, SIDE, q.vp, keys.v, q.vp, q.grad_by_row, LANES * q.vp, dP, SIDE, false);
      weigh(S, dP, count, edge, in.scale * LOG2E, q, P, dS, panels);
      if (part.to_keys) {
        mm_bf16(count, q.v16, SIDE, P, SIDE, q.grad_by_column, LANES * SIDE, keys.dv, q.v16, true);
        mm_bf16(count, q.d16, SIDE, dS, SIDE, q.by_column, LANES * SIDE, keys.dk, q.d16, true);
      }
      if (part.to_queries)
        mm_bf16(in.d(), SIDE, count, keys.kt, SIDE, panels, LANES * count, q.dqt, SIDE, key > 0);
    }
    if (part.to_keys) finish_keys(in, g, head, start + key, held, all, keys);
  }
  if (!part.to_queries) return;
  float* turned = reinterpret_cast<float*>(gathered);
  for (long b = 0; b < blocks; b++) {
    const long row = part.row + b * SIDE, rows = std::min(SIDE, part.row_end - row);
    finish_queries(in, g, head, start + row, rows, all.at(b), turned);
  }
}

// drope (H, R) of one token -> dk_rope (R): heads summed, turned back. Uses drope for the sum.
void sum_heads(float* drope, long heads, long r, const float* cos, const float* sin, bf16* out) {
  for (long head = 1; head < heads; head++)
    for (long i = 0; i < r; i++) drope[i] += drope[head * r + i];
  rotate_row_back(drope, cos, sin, out, r / 2);
}

}  // namespace

// What the forward took and gave, and grad (T, H, V) -> dq, dkv, dk_rope (T, R), as q and so on came.
// drope (T, H, R) is for what stands between.
extern "C" void ab_mla_attention_backward(const bf16* q, const bf16* kv, const bf16* turned,
                                          const float* cos, const float* sin,
                                          const int64_t* cu_seqlens, int64_t count, int64_t heads,
                                          int64_t n, int64_t r, int64_t v, double scale,
                                          const bf16* out, const float* lse, const bf16* grad,
                                          bf16* dq, bf16* dkv, bf16* dk_rope, float* drope,
                                          int64_t threads) {
  const std::vector<Span> spans = sequences(cu_seqlens, count);
  const std::vector<Part> all = parts(spans, heads, threads);
  const Inputs in{heads, n,  r,           v,      q, heads * (n + r), cos,
                  sin,   kv, heads * (n + v), turned, r, (float)scale};
  const Gradients g{out, grad, lse, dq, dkv, drope};
  std::atomic<size_t> next{0};
#pragma omp parallel num_threads((int)threads)
  {
    Unit unit;
    for (size_t i; (i = next++) < all.size();) differentiate(in, g, all[i]);
#pragma omp barrier
#pragma omp for
    for (int64_t t = cu_seqlens[0]; t < cu_seqlens[count]; t++)
      sum_heads(drope + t * heads * r, heads, r, cos + t * (r / 2), sin + t * (r / 2),
                dk_rope + t * r);
  }
}
