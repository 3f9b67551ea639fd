// Causal attention over spans of rows, for heads that share one rotary key (latent attention).
//
// Everything is computed the other way around: scores stand as keys by queries, so that the softmax
// runs down the columns (sixteen queries at once, nothing summed across lanes) and its result is
// written straight into the panels of the next product, two keys to a word:
//
//     S^T (keys, ROWS) = K Q^T        P^T = 2^(S^T c - m)        O^T (V, ROWS) += V^T P^T
//
// with c = scale / ln 2. Keys come in blocks, m is the largest score so far, and O^T is scaled down
// whenever m grows. A row of the result does not depend on which rows are computed with it.
#pragma once

#include <limits>

#include "attention_parts.h"

namespace ab::attention {

constexpr float LOG2E = 1.44269504f, LN2 = 0.69314718f;

// 2^x within 3e-6 of its value, as the result is rounded to BF16; exact for whole x, so that a sum
// whose maximum stays is not touched.
inline vf exp2_rough(vf x) {
#if defined(__AVX512DQ__)
  vf part = (vf)_mm512_reduce_ps((__m512)x, 0x09);  // x - floor(x)
#else
  vf cut = x < -126.f ? set1(-126.f) : x;
  vf whole = (cut + 12582912.f) - 12582912.f;
  whole = whole > cut ? whole - 1.f : whole;
  vf part = cut - whole;
#endif
  vf p = set1(1.34266831e-2f);
  p = fma(p, part, set1(5.22424762e-2f));
  p = fma(p, part, set1(2.41280204e-1f));
  p = fma(p, part, set1(6.93044845e-1f));
  p = fma(p, part, set1(1.f));
#if defined(__AVX512DQ__)
  return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
  vi power = (__builtin_convertvector(whole, vi) + 127) << 23;
  return x < -126.f ? vf{} : p * bits_as<vf>(power);
#endif
}

// Two numbers a lane as BF16 in one word, the first in its lower half.
inline vu pair(vf first, vf second) {
#if defined(__AVX512BF16__)
  alignas(64) static const uint16_t order[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                 21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  __m512i both = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  return (vu)_mm512_permutexvar_epi16(_mm512_load_si512(order), both);
#else
  return __builtin_convertvector(narrow(first), vu) |
         __builtin_convertvector(narrow(second), vu) << 16;
#endif
}

inline void store_words(bf16* p, vu words) { std::memcpy(p, &words, sizeof words); }

// What a column of queries has seen so far: its largest score (times c) and the sum of 2^(. - that).
struct Running {
  float most[ROWS], sum[ROWS];
};

// S^T (keys, ROWS) -> P^T in panels of `keys` inputs, for `columns` queries; O^T (V, ROWS) scaled
// to the new maximum. Query `i` sees keys up to edge + i.
inline void softmax(float* S, long keys, long columns, long edge, float c, bool first, Running& run,
                    bf16* P, float* O, long v) {
  const vf never = set1(-std::numeric_limits<float>::infinity());
  vi lane;
  for (int l = 0; l < VF; l++) lane[l] = l;
  for (long i = 0; i < columns; i += VF, edge += VF) {
    const long all = std::clamp(edge + 1, 0L, keys), some = std::clamp(edge + VF, 0L, keys);
    float* column = S + i;
    for (long j = all; j < some; j++) {
      vf x = load(column + j * ROWS);
      store(column + j * ROWS, lane < (int)(j - edge) ? never : x);
    }
    vf top[4] = {never, never, never, never};
    long j = 0;
    for (; j + 4 <= some; j += 4)
      for (int u = 0; u < 4; u++) top[u] = vmax(top[u], load(column + (j + u) * ROWS));
    for (; j < some; j++) top[0] = vmax(top[0], load(column + j * ROWS));
    vf most = vmax(vmax(top[0], top[1]), vmax(top[2], top[3])) * c;
    vf sum[2] = {vf{}, vf{}};
    if (!first) {
      const vf old = load(run.most + i);
      most = vmax(old, most);
      const vf less = exp2_rough(old - most);
      sum[0] = load(run.sum + i) * less;
      bool same = true;
      for (int l = 0; l < VF; l++) same &= old[l] == most[l];
      if (!same)
        for (long k = 0; k < v; k++) store(O + k * ROWS + i, load(O + k * ROWS + i) * less);
    }
    store(run.most + i, most);
    bf16* panel = P + i / LANES * LANES * keys + i % LANES * 2;
    for (j = 0; j + 2 <= some; j += 2) {
      const vf even = exp2_rough(load(column + j * ROWS) * c - most);
      const vf odd = exp2_rough(load(column + (j + 1) * ROWS) * c - most);
      sum[0] += even;
      sum[1] += odd;
      store_words(panel + j * LANES, pair(even, odd));
    }
    if (j < some) {
      const vf even = exp2_rough(load(column + j * ROWS) * c - most);
      sum[0] += even;
      store_words(panel + j * LANES, pair(even, vf{}));
      j += 2;
    }
    for (; j < keys; j += 2) store_words(panel + j * LANES, vu{});
    store(run.sum + i, sum[0] + sum[1]);
  }
}

// O^T += V^T P^T where V has numbers that are not finite: none reaches a query that must not see it.
inline void mix_visible(const bf16* vt, const bf16* P, long keys, long columns, long edge, long v,
                        float* O, bool first) {
  for (long i = 0; i < columns; i++) {
    const bf16* panel = P + i / LANES * LANES * keys + i % LANES * 2;
    const long seen = std::clamp(edge + i + 1, 0L, keys);
    for (long k = 0; k < v; k++) {
      float sum = first ? 0.f : O[k * ROWS + i];
      for (long j = 0; j < seen; j++)
        sum += to_float(panel[j / 2 * LANES * 2 + j % 2]) * to_float(vt[k * KEYS + j]);
      O[k * ROWS + i] = sum;
    }
  }
}

// O^T (V, ROWS) over the sums -> rows of the result.
template <class T>
inline void finish(const Inputs& in, const Outputs<T>& to, const Running& run, float* O, long row,
                   long rows, long head, Scratch& s) {
  const long columns = round_up(rows, LANES), wide = round_up(in.v, LANES);
  for (long i = 0; i < columns; i += VF) {
    const vf share = 1.f / load(run.sum + i);
    for (long k = 0; k < in.v; k++) store(O + k * ROWS + i, load(O + k * ROWS + i) * share);
  }
  float* turned = s.rows.of<float>(ROWS * wide);
  transpose(O, ROWS, in.v, columns, turned, wide);
  for (long i = 0; i < rows; i++) {
    T* out = to.out + (row + i) * to.out_row + head * in.v;
    long k = 0;
    for (; k + VF <= in.v; k += VF) store_any(out + k, load(turned + i * wide + k));
    if (k < in.v) store_any_n(out + k, load_n(turned + i * wide + k, in.v - k), in.v - k);
    if (to.lse)
      to.lse[(row + i) * in.heads + head] = run.most[i] * LN2 + std::log(run.sum[i]);
  }
}

// Attention of one piece: a thread's work, which holds a Unit. Pieces do not share anything.
template <class T>
inline void attend(const Inputs& in, const Outputs<T>& to, const Piece& piece) {
  Scratch& s = scratch();
  const Span& span = piece.span;
  const long past = span.nk - span.nq, dp = in.dp();
  const Keys keys = pack_keys(in, span, piece.head, past + piece.last, s);
  bf16* queries = s.queries.of<bf16>(ROWS * dp);
  bf16* panels = s.panels.of<bf16>(ROWS * dp);
  float* S = s.scores.of<float>(KEYS * ROWS);
  bf16* P = s.weights.of<bf16>(KEYS * ROWS);
  float* O = s.sums.of<float>(in.v * ROWS);
  Running run;
  for (long i = piece.first; i < piece.last; i += ROWS) {
    const long rows = std::min(ROWS, piece.last - i), columns = round_up(rows, LANES);
    gather_queries(in, piece.head, span.q0 + i, rows, queries);
    pack_rows(queries, dp, rows, dp, panels);
    const long seen = past + i + rows;
    for (long key = 0; key < seen; key += KEYS) {
      const long count = round_up(std::min(KEYS, seen - key), STEP), edge = past + i - key;
      const bool first = key == 0;
      mm_bf16(count, columns, dp, keys.k + key * dp, dp, panels, LANES * dp, S, ROWS, false);
      softmax(S, count, columns, edge, in.scale * LOG2E, first, run, P, O, in.v);
      const bf16* vt = keys.vt + key * in.v;
      if (edge >= KEYS || keys.safe[key / KEYS])
        mm_bf16(in.v, columns, count, vt, KEYS, P, LANES * count, O, ROWS, !first);
      else
        mix_visible(vt, P, count, columns, edge, in.v, O, first);
    }
    finish(in, to, run, O, span.q0 + i, rows, piece.head, s);
  }
}

}  // namespace ab::attention
