// Which experts a token goes to, and how much each counts (DeepSeek-V3, eq. 13-16).
//
//     affinity = sigmoid(logits)                      eq. 15
//     experts = the K greatest of affinity + bias     eq. 16, within the best groups only
//     weights = affinity of these, over their sum     eq. 13
//
// E experts stand in equal groups; a group's score is the sum of its two best. Equal scores go to
// the lower index; torch.topk leaves that open. A NaN counts as the greatest, as in torch.topk.
// Experts come in descending order of their score.
#pragma once

#include <limits>
#include <vector>

#include "simd.h"

namespace ab::router {

constexpr float INF = std::numeric_limits<float>::infinity();
constexpr float TAKEN = std::numeric_limits<float>::quiet_NaN();  // compares as less than any score

// The greatest lane of a vector without NaN.
inline float greatest(vf v) {
  for (int width = VF / 2; width; width /= 2)
    for (int i = 0; i < width; i++) v[i] = v[i + width] > v[i] ? v[i + width] : v[i];
  return v[0];
}

// The first lane equal to x, or VF.
inline int first_equal(vf v, float x) {
#if defined(__AVX512F__)
  const unsigned mask = _mm512_cmp_ps_mask((__m512)v, _mm512_set1_ps(x), _CMP_EQ_OQ);
  return mask ? __builtin_ctz(mask) : VF;
#elif defined(__AVX__)
  const int mask = _mm256_movemask_ps((__m256)(v == set1(x)));
  return mask ? __builtin_ctz(mask) : VF;
#else
  int lane = 0;
  while (lane < VF && !(v[lane] == x)) lane++;
  return lane;
#endif
}

inline vf sigmoid(vf x) { return 1.f / (1.f + vexp(-x)); }

// affinity (E) = sigmoid(logits (E)).
inline void affinities(const float* logits, long E, float* affinity) {
  long e = 0;
  for (; e + VF <= E; e += VF) store(affinity + e, sigmoid(load(logits + e)));
  if (e < E) store_n(affinity + e, sigmoid(load_n(logits + e, E - e)), E - e);
}

// The sum of the two greatest of a group's slots (the only one, of a group of one).
inline float group_score(const float* slots, long padded, long size) {
  vf first = set1(-INF), second = set1(-INF);  // of each lane
  for (long i = 0; i < padded; i += VF) {
    vf score = load(slots + i);
    score = score == score ? score : set1(-INF);
    second = vmax(second, vmin(first, score));
    first = vmax(first, score);
  }
  const float best = greatest(first);
  if (size == 1) return best;
  const int lane = first_equal(first, best);
  first[lane] = second[lane];
  return best + greatest(first);
}

// Give the slots of all but the `kept` best groups the score of minus infinity: not zero, as a
// biased score may itself be negative.
inline void drop_groups(float* slots, long groups, long padded, long size, long kept,
                        float* score) {
  for (long g = 0; g < groups; g++) score[g] = group_score(slots + g * padded, padded, size);
  for (long g = 0; g < groups; g++) {
    long better = 0;
    for (long h = 0; h < groups; h++)
      better += score[h] > score[g] || (score[h] == score[g] && h < g);
    if (better < kept) continue;
    for (long i = 0; i < size; i++) slots[g * padded + i] = -INF;
  }
}

// The first slot that holds the greatest of `count` scores (a multiple of VF).
inline long best_slot(const float* slots, long count) {
  vf most = set1(-INF);
  for (long i = 0; i < count; i += VF) most = vmax(most, load(slots + i));
  const float best = greatest(most);
  for (long i = 0; i < count; i += VF) {
    const int lane = first_equal(load(slots + i), best);
    if (lane < VF) return i + lane;
  }
  return 0;
}

// experts (K): the K best of affinity + bias (E), K <= E. No bias where it is null.
inline void choose(const float* affinity, const float* bias, long E, long groups, long kept_groups,
                   long K, int32_t* experts) {
  if (kept_groups >= groups) groups = 1;
  const long size = E / groups, padded = round_up(size, VF), count = groups * padded;
  static thread_local std::vector<float> scratch;
  if ((long)scratch.size() < count + groups) scratch.resize(count + groups);
  float* slots = scratch.data();  // groups by `padded`; what fills up the last vector is TAKEN
  for (long g = 0; g < groups; g++)
    for (long i = 0; i < padded; i += VF) {
      const long n = size - i < VF ? size - i : VF, e = g * size + i;
      vf score = load_n(affinity + e, n);
      if (bias) score += load_n(bias + e, n);
      score = score == score ? score : set1(INF);
      store(slots + g * padded + i, score);
      for (long j = n; j < VF; j++) slots[g * padded + i + j] = TAKEN;
    }
  if (groups > 1) drop_groups(slots, groups, padded, size, kept_groups, slots + count);
  for (long k = 0; k < K; k++) {
    const long slot = best_slot(slots, count);
    slots[slot] = TAKEN;
    experts[k] = (int32_t)(slot / padded * size + slot % padded);
  }
}

// weights (K) of the chosen: the bias steers the choice, never the mixture.
inline void weigh(const float* affinity, const int32_t* experts, long K, bool normalize,
                  float scale, float* weights) {
  float sum = 0;
  for (long k = 0; k < K; k++) sum += weights[k] = affinity[experts[k]];
  const float total = normalize ? sum + 1e-20f : 1.f;
  for (long k = 0; k < K; k++) weights[k] = weights[k] / total * scale;
}

}  // namespace ab::router

namespace ab {

// One token: logits (E), bias (E) or null -> experts (K), weights (K).
inline void route(const float* logits, const float* bias, long E, long groups, long kept_groups,
                  long K, bool normalize, float scale, int32_t* experts, float* weights) {
  static thread_local std::vector<float> affinity;
  if ((long)affinity.size() < E) affinity.resize(E);
  router::affinities(logits, E, affinity.data());
  router::choose(affinity.data(), bias, E, groups, kept_groups, K, experts);
  router::weigh(affinity.data(), experts, K, normalize, scale, weights);
}

}  // namespace ab
