// A DeepSeek-V3 of packed matrices, and what one pass of it over tokens of many sequences is given.
//
//     D hidden    H heads    N nope    R rope    V value    C latent    Q query rank (0: none)
//     E experts   K chosen   F expert width      T tokens of the pass    W = C + R
//
// kernels/stack_structures.py mirrors these structures field by field.
#pragma once

#include <algorithm>
#include <vector>

#include "latent_attention.h"
#include "linear.h"

namespace ab {

// The three matrices of a SwiGLU; n = 0 where there is none.
struct Feed {
  Mat gate, up, down;  // (F, D), (F, D), (D, F)
};

struct Layer {
  const float *input_norm, *post_norm;  // (D,)
  const float *q_norm, *kv_norm;        // (Q,), (C,)
  Mat q_a, q_b, kv_a;                   // (Q, D), (H (N+R), Q or D), (W, D)
  const Mat* absorb;                    // H of (C, N): a head's query as a query for latents
  const Mat *keys, *values;             // H of (N, C) and (V, C): latents unfolded
  Mat o;                                // (D, H V)
  Feed dense;                           // of a dense layer, or the shared experts
  Mat router;                           // (E, D), F32; n = 0 in a dense layer
  const float* bias;                    // (E,)
  const Feed* experts;                  // E
};

// A multi-token prediction module: join(norm(embedding), norm(hidden)), a layer, a norm.
struct Ahead {
  const float *embed_norm, *hidden_norm, *norm;  // (D,)
  Mat join;                                      // (D, 2 D)
  Layer layer;
};

struct Model {
  int64_t hidden, heads, nope, rope, value, latent, query;
  int64_t vocab, experts, chosen, groups, kept_groups, normalize;
  double eps, latent_eps, route_scale, softmax_scale;
  int64_t embed_kind;          // F32 or BF16
  const void* embed;           // (vocab, D)
  const float *cosine, *sine;  // (positions, R/2)
  int64_t layers;
  const Layer* layer;
  const float* norm;  // (D,)
  Mat head;           // (vocab, D)
  const Ahead* ahead;
};

// What Python says of a pass.
struct Given {
  int64_t tokens, sequences, threads;
  int64_t absorbed;  // 1: never unfold latents, so that bits do not depend on how a prompt is cut
  const int32_t* token;            // (T,)
  const int32_t *count, *start;    // (S,): the rows of a sequence, and the position of the first
  const int32_t* pages;            // those that each sequence fills, one sequence after the other
  LatentPool pool;
  const float* before;  // (T, D): hidden states, what a prediction module starts from
  float* hidden;        // (T, D): what comes out, normed
  int64_t* met;         // (MoE layers, E): tokens that met each expert are added here
  int32_t* chosen;      // (MoE layers, T, K): the experts of each token, or null
  int64_t scored;       // rows whose scores are wanted:
  const int32_t* scored_row;  // (scored,)
  float* scores;              // (scored, vocab rounded up to 16)
};

// The same with what follows from it.
struct Pass : Given {
  const int32_t *first, *table;    // (S,): a sequence's first row, and where its pages begin
  const int32_t *position, *slot;  // (T,): a token's, and where its latent goes: page * 64 + place
};

// Memory that grows to the largest use so far; aligned to a line of the caches.
template <class T>
class Buffer {
 public:
  T* get(long count) {
    if (count > count_) {
      held_.resize(count * sizeof(T) + 64);
      count_ = count;
    }
    const auto address = reinterpret_cast<uintptr_t>(held_.data());
    return reinterpret_cast<T*>((address + 63) / 64 * 64);
  }

 private:
  std::vector<char> held_;
  long count_ = 0;
};

// The forms of an activation that matrices multiply: several where kinds are mixed.
enum Form { FLOATS = 1, HALVES = 2, BYTES = 4 };

inline int form(const Mat& m) {
  if (!m.n) return 0;
  return m.kind == F32 ? FLOATS : m.kind == BF16 || m.kind == FP8 ? HALVES : BYTES;
}
inline int form_in(const Feed& feed) { return form(feed.gate) | form(feed.up); }

// Activations whose floats are their own.
struct Rows : Act {
  float* floats;
};

// Fill one row in each form.
inline void prepare_forms(Rows& act, long row, const float* x, long k, int forms) {
  if (forms & FLOATS) {
    float* floats = act.floats + row * act.kp;
    std::memcpy(floats, x, k * sizeof(float));
    std::fill(floats + k, floats + act.kp, 0.f);
  }
  if (forms & HALVES) prepare(act, row, x, k, BF16);
  if (forms & BYTES) prepare(act, row, x, k, INT8);
}

class RowsBuffer {
 public:
  Rows get(long rows, long k, int forms) {
    const long kp = round_up(k, 64);
    Rows act{{rows, kp, nullptr, nullptr, nullptr, nullptr}, nullptr};
    if (forms & FLOATS) act.f = act.floats = floats_.get(rows * kp);
    if (forms & HALVES) act.b = halves_.get(rows * kp);
    if (forms & BYTES) {
      act.q = bytes_.get(rows * kp);
      act.s = scales_.get(rows);
    }
    return act;
  }

 private:
  Buffer<float> floats_, scales_;
  Buffer<bf16> halves_;
  Buffer<int8_t> bytes_;
};

}  // namespace ab
