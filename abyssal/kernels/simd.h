// Vectors of floats by the compiler's vector extensions: one source for AVX-512, AVX2 and the rest.
//
// The width is what -march allows. Anything a compiler does well from plain operators stays plain
// operators; intrinsics stand only where there is an instruction it would not find.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace ab {

using bf16 = uint16_t;  // the upper half of a float's bits

#if defined(__AVX512F__)
constexpr int VF = 16;  // floats of a vector
#elif defined(__AVX__)
constexpr int VF = 8;
#else
constexpr int VF = 4;
#endif

typedef float vf __attribute__((vector_size(VF * 4)));
typedef int32_t vi __attribute__((vector_size(VF * 4)));
typedef uint32_t vu __attribute__((vector_size(VF * 4)));
typedef uint16_t vh __attribute__((vector_size(VF * 2)));
typedef int8_t vb __attribute__((vector_size(VF)));

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "bits_as changes the type, not the size");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
inline V load_as(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

inline vf load(const float* p) { return load_as<vf>(p); }
inline void store(float* p, vf v) { std::memcpy(p, &v, sizeof v); }
inline vf set1(float x) { return vf{} + x; }

// The first n lanes (0 <= n <= VF); the others are zero and touch no memory.
inline vf load_n(const float* p, long n) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
#else
  vf v{};
  std::memcpy(&v, p, n * 4);
  return v;
#endif
}
inline void store_n(float* p, vf v, long n) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
#else
  std::memcpy(p, &v, n * 4);
#endif
}

// a * b + c, rounded once where the CPU can. Nothing else is: left to itself, a compiler joins this
// product with that sum in one loop and not in the next, and an answer's bits depend on its company.
inline vf fma(vf a, vf b, vf c) {
#if defined(__AVX512F__)
  return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_FEATURE_FMA) && defined(__ARM_NEON)
  return (vf)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
inline vf vmax(vf a, vf b) { return b > a ? b : a; }   // a NaN in a stays
inline vf vmin(vf a, vf b) { return b < a ? b : a; }
inline vf vabs(vf x) { return bits_as<vf>(bits_as<vu>(x) & 0x7fffffffu); }

inline float hsum(vf v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  for (int width = VF / 2; width; width /= 2)
    for (int i = 0; i < width; i++) v[i] += v[i + width];
  return v[0];
#endif
}

inline float hmax(vf v) {
  float most = v[0];
  for (int i = 1; i < VF; i++) most = v[i] > most ? v[i] : most;
  return most;
}

// e^x within 2e-7 of its value; 0 below -87.3, infinity never (x is cut at 88.7), NaN for NaN.
inline vf vexp(vf x) {
  const vf low = set1(-87.3f), magic = set1(12582912.f);  // 1.5 * 2^23: adding it rounds
  vf cut = vmin(vmax(x, low), set1(88.7f));
  vf n = (cut * 1.44269504f + magic) - magic;
  vf r = fma(n, set1(-0.693359375f), cut);
  r = fma(n, set1(2.12194440e-4f), r);  // ln 2 in two parts
  vf p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p * r, r, r + 1.f);
  vi power = (__builtin_convertvector(n, vi) + 127) << 23;
  return x < low ? vf{} : p * bits_as<vf>(power);
}

// bfloat16

inline float to_float(bf16 x) { return bits_as<float>((uint32_t)x << 16); }

inline bf16 to_bf16(float x) {  // to the nearest, ties to even; NaN stays NaN
  uint32_t u = bits_as<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (bf16)(u >> 16 | 0x40);
  return (bf16)((u + 0x7fffu + ((u >> 16) & 1)) >> 16);
}

inline vu words(vh v) {  // each number in a word
#if defined(__AVX512F__)
  return (vu)_mm512_cvtepu16_epi32((__m256i)v);  // g++ 12 would take both halves by themselves
#else
  return __builtin_convertvector(v, vu);
#endif
}

inline vf widen(vh v) { return bits_as<vf>(words(v) << 16); }

inline vh narrow(vf v) {
#if defined(__AVX512BF16__)
  return (vh)_mm512_cvtneps_pbh((__m512)v);
#else
  vu u = bits_as<vu>(v);
  vu rounded = (u + 0x7fffu + ((u >> 16) & 1)) >> 16;
  vu quiet = u >> 16 | 0x40;
  return __builtin_convertvector((u & 0x7fffffffu) > 0x7f800000u ? quiet : rounded, vh);
#endif
}

inline vf load_bf16(const bf16* p) { return widen(load_as<vh>(p)); }
inline void store_bf16(bf16* p, vf v) {
  vh h = narrow(v);
  std::memcpy(p, &h, sizeof h);
}
inline vf load_bf16_n(const bf16* p, long n) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  return widen((vh)_mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), p));
#else
  vh h{};
  std::memcpy(&h, p, n * 2);
  return widen(h);
#endif
}
inline void store_bf16_n(bf16* p, vf v, long n) {
  vh h = narrow(v);
#if defined(__AVX512BW__) && defined(__AVX512VL__)
  _mm256_mask_storeu_epi16(p, (__mmask16)((1u << n) - 1), (__m256i)h);
#else
  std::memcpy(p, &h, n * 2);
#endif
}

// One name for both precisions, for templates over the type of a tensor's numbers.
inline vf load_any(const float* p) { return load(p); }
inline vf load_any(const bf16* p) { return load_bf16(p); }
inline vf load_any_n(const float* p, long n) { return load_n(p, n); }
inline vf load_any_n(const bf16* p, long n) { return load_bf16_n(p, n); }
inline void store_any(float* p, vf v) { store(p, v); }
inline void store_any(bf16* p, vf v) { store_bf16(p, v); }
inline void store_any_n(float* p, vf v, long n) { store_n(p, v, n); }
inline void store_any_n(bf16* p, vf v, long n) { store_bf16_n(p, v, n); }

inline long round_up(long n, long to) { return (n + to - 1) / to * to; }

}  // namespace ab
