// Work on the rows of matrices: what the row kernels share, and the rows for others to use.
//
// A row is contiguous numbers of type T, float or bf16; everything between load and store is float.
// A row's result does not depend on its company, nor on who computes it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "simd.h"

namespace ab {

using Full = std::integral_constant<long, VF>;

// f(i, lanes) for the vectors of n numbers: `lanes` is Full, or a long for what is left over.
template <class F>
inline void for_vectors(long n, F f) {
  long i = 0;
  for (; i + VF <= n; i += VF) f(i, Full{});
  if (i < n) f(i, n - i);
}

template <class T>
inline vf get(const T* p, Full) { return load_any(p); }
template <class T>
inline vf get(const T* p, long lanes) { return load_any_n(p, lanes); }
template <class T>
inline void put(T* p, vf v, Full) { store_any(p, v); }
template <class T>
inline void put(T* p, vf v, long lanes) { store_any_n(p, v, lanes); }

inline float to_float(float x) { return x; }

// f(bf16 or float): the code for the type that a flag names.
template <class F>
inline void with_type(int64_t is_bf16, F f) {
  if (is_bf16) f(bf16{});
  else f(float{});
}

// How many threads so many numbers are worth: one costs a few microseconds to wake.
inline int team(int64_t threads, long numbers) {
  return (int)std::max<long>(1, std::min<long>(threads, numbers / 16384));
}

inline vf lane_indices() {
  vf indices;
  for (int i = 0; i < VF; i++) indices[i] = (float)i;
  return indices;
}

// v in the first lanes, `rest` in the others.
inline vf first_or(vf v, Full, float) { return v; }
inline vf first_or(vf v, long lanes, float rest) {
  return lane_indices() < (float)lanes ? v : set1(rest);
}

inline vf sigmoid(vf x) { return 1.f / (1.f + vexp(-x)); }

template <class T>
inline float sum_of_squares(const T* x, long n) {
  vf sum[4] = {};
  long i = 0;
  for (; i + 4 * VF <= n; i += 4 * VF)
    for (int k = 0; k < 4; k++) {
      const vf v = load_any(x + i + k * VF);
      sum[k] = fma(v, v, sum[k]);
    }
  for_vectors(n - i, [&](long j, auto lanes) {
    const vf v = get(x + i + j, lanes);
    sum[0] = fma(v, v, sum[0]);
  });
  return hsum((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

// What an RMSNorm multiplies a row by, before the gain.
template <class T>
inline float rms_scale(const T* x, long n, float eps) {
  return 1.f / std::sqrt(sum_of_squares(x, n) / (float)n + eps);
}

template <class T>
inline void scale_row(const T* x, const T* weight, float scale, T* y, long n) {
  for_vectors(n, [&](long i, auto lanes) {
    put(y + i, get(x + i, lanes) * scale * get(weight + i, lanes), lanes);
  });
}

template <class T>
inline void add_row(const T* x, const T* y, T* out, long n) {
  for_vectors(n, [&](long i, auto lanes) {
    put(out + i, get(x + i, lanes) + get(y + i, lanes), lanes);
  });
}

// silu(gate) * up
template <class T>
inline void swiglu_row(const T* gate, const T* up, T* out, long n) {
  for_vectors(n, [&](long i, auto lanes) {
    const vf g = get(gate + i, lanes);
    put(out + i, g * sigmoid(g) * get(up + i, lanes), lanes);
  });
}

template <class T>
inline void swiglu_row_backward(const T* gate, const T* up, const T* grad, T* grad_gate,
                                T* grad_up, long n) {
  for_vectors(n, [&](long i, auto lanes) {
    const vf g = get(gate + i, lanes), u = get(up + i, lanes), d = get(grad + i, lanes);
    const vf s = sigmoid(g);
    put(grad_gate + i, d * u * s * (1.f + g * (1.f - s)), lanes);
    put(grad_up + i, d * g * s, lanes);
  });
}

// Neighbors (a, b), (a, b), ... taken apart, n pairs at p; and put together again.
struct Pairs {
  vf a, b;
};

inline Pairs get_pairs(const bf16* p, long n) {
  const vu words = bits_as<vu>(load_n(reinterpret_cast<const float*>(p), n));  // a below, b above
  return {bits_as<vf>(words << 16), bits_as<vf>(words & 0xffff0000u)};
}

inline Pairs get_pairs(const float* p, long n) {
  Pairs pairs{};
  for (long i = 0; i < n; i++) pairs.a[i] = p[2 * i], pairs.b[i] = p[2 * i + 1];
  return pairs;
}

inline void put_pairs(bf16* p, Pairs pairs, long n) {
  const vu a = __builtin_convertvector(narrow(pairs.a), vu);
  const vu words = a | __builtin_convertvector(narrow(pairs.b), vu) << 16;
  store_n(reinterpret_cast<float*>(p), bits_as<vf>(words), n);
}

inline void put_pairs(float* p, Pairs pairs, long n) {
  for (long i = 0; i < n; i++) p[2 * i] = pairs.a[i], p[2 * i + 1] = pairs.b[i];
}

// x of n pairs side by side, each turned by its angle -> all first numbers, then all second.
template <class T>
inline void rotate_row(const T* x, const float* cos, const float* sin, T* y, long n) {
  for_vectors(n, [&](long i, auto lanes) {
    const auto [a, b] = get_pairs(x + 2 * i, lanes);
    const vf c = get(cos + i, lanes), s = get(sin + i, lanes);
    put(y + i, a * c - b * s, lanes);
    put(y + n + i, b * c + a * s, lanes);
  });
}

// The way back, for gradients: turned the other way, and pairs side by side again.
template <class From, class To>
inline void rotate_row_back(const From* y, const float* cos, const float* sin, To* x, long n) {
  for_vectors(n, [&](long i, auto lanes) {
    const vf a = get(y + i, lanes), b = get(y + n + i, lanes);
    const vf c = get(cos + i, lanes), s = get(sin + i, lanes);
    put_pairs(x + 2 * i, {a * c + b * s, b * c - a * s}, lanes);
  });
}

}  // namespace ab
