// Weight matrices in their five precisions, packed into panels, and the activations they meet.
//
// A matrix has N outputs and K inputs, filled up with zeros to Np (a multiple of 16) and Kp (of 64
// or, in BF16, of 32; K itself in F32). A panel holds 16 outputs and all inputs; panels follow one another:
//
//     F32, BF16   the panels of gemm.h
//     INT8        (k, n) at ((k / 4) * 16 + n % 16) * 4 + k % 4: 64 inputs are a tile of 1 KiB
//     INT4        0..15 for -8..7. 64 inputs are 512 bytes: byte i holds what an INT8 tile would
//                 have at i in its low half, and what that would have at i + 512 in its high half
//     FP8         e4m3 bytes, each where BF16 has its number
#pragma once

#include "simd.h"

namespace ab {

enum Kind : int64_t { F32 = 0, BF16 = 1, INT8 = 2, INT4 = 3, FP8 = 4 };

constexpr long GROUP = 64;   // inputs of an output that share a scale in INT4
constexpr long BLOCK = 128;  // inputs, and outputs, that share one in FP8

struct Mat {
  int64_t kind, n, k, kp;
  const void* data;
  const float* scale;  // INT8: (Np,). INT4: (Kp / 64, Np). FP8: (N / 128, K / 128), rounded up
  const int32_t* sum;  // INT8: (Np,), each output's sum over its inputs
};

// Rows of activations, kp numbers apart; of every row the forms that the weights at hand need.
struct Act {
  long rows, kp;   // kp: the weights' own or more, zeros behind K
  const float* f;  // for F32
  bf16* b;         // for BF16 and FP8
  int8_t* q;       // for INT8 and INT4: x = q * s, q in -127..127
  float* s;        // (rows,)
};

inline long panels(const Mat& w) { return (w.n + 15) / 16; }

// The largest magnitude of a row; NaN if there is one.
inline float magnitude(const float* x, long k) {
  vi most{};  // bits of numbers that are not negative are ordered like them, NaN last
  long i = 0;
  for (; i < k; i += VF) {
    const vi bits = bits_as<vi>(vabs(k - i < VF ? load_n(x + i, k - i) : load(x + i)));
    most = bits > most ? bits : most;
  }
  int32_t top = 0;
  for (int lane = 0; lane < VF; lane++) top = most[lane] > top ? most[lane] : top;
  return bits_as<float>(top);
}

constexpr float TINY = 1e-30f;  // rows of smaller numbers count as zero, as 1 / x must be finite

// q = x / s rounded to nearest even, s = max |x| / 127. A row with NaN or infinity becomes s = NaN.
inline void quantize(const float* x, long k, long kp, int8_t* q, float* s) {
  const float most = magnitude(x, k);
  const bool finite = most <= 3.4028235e38f, empty = most < TINY;
  *s = empty ? 0.f : finite ? most / 127.f : bits_as<float>(0x7fc00000u);
  const float inverse = empty || !finite ? 0.f : 127.f / most;
  std::memset(q + k, 0, kp - k);
  if (inverse == 0.f) {
    std::memset(q, 0, k);
    return;
  }
  for (long i = 0; i < k; i++) q[i] = (int8_t)(int)__builtin_rintf(x[i] * inverse);
}

// Fill what weights of one kind need of a row (F32: nothing, `f` is the caller's).
inline void prepare(Act& a, long row, const float* x, long k, int kind) {
  if (kind == INT8 || kind == INT4) {
    quantize(x, k, a.kp, a.q + row * a.kp, a.s + row);
  } else if (kind != F32) {
    bf16* b = a.b + row * a.kp;
    long i = 0;
    for (; i + VF <= k; i += VF) store_bf16(b + i, load(x + i));
    if (i < k) store_bf16_n(b + i, load_n(x + i, k - i), k - i);
    std::memset(b + k, 0, (a.kp - k) * sizeof(bf16));
  }
}

}  // namespace ab
