// Products of bytes, summed exactly in int32, over the INT8 panels of formats.h.
//
// As no sum is ever rounded, every path here gives the same bits.
#pragma once

#include "formats.h"
#include "gemm.h"

namespace ab {

typedef uint8_t vq __attribute__((vector_size(VF * 4)));  // four bytes in each lane of a vi

// The VNNI instructions multiply bytes without a sign by bytes with one. So activations x go in as
// x + 128, and 128 times the sum of the weights comes off at the end.
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
constexpr bool BIASED = true;
#else
constexpr bool BIASED = false;
#endif

// sum + the product of four bytes: u without a sign, s with one. Without VNNI, two products must
// fit 16 bits: u up to 127, or s within 64.
inline vi dot_unsigned(vi sum, vi u, vi s) {
#if defined(__AVX512VNNI__)
  return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)u, (__m512i)s);
#elif defined(__AVX512BW__)
  const __m512i pairs = _mm512_maddubs_epi16((__m512i)u, (__m512i)s);
  return sum + (vi)_mm512_madd_epi16(pairs, _mm512_set1_epi16(1));
#elif defined(__AVXVNNI__) && !defined(__AVX512F__)
  return (vi)_mm256_dpbusd_avx_epi32((__m256i)sum, (__m256i)u, (__m256i)s);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i pairs = _mm256_maddubs_epi16((__m256i)u, (__m256i)s);
  return sum + (vi)_mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
#else
  const vu low = bits_as<vu>(u);  // byte i of every lane, with sign: up, then back down
  for (int byte = 0; byte < 4; byte++)
    sum += bits_as<vi>(low >> (8 * byte) & 255u) * (s << (24 - 8 * byte) >> 24);
  return sum;
#endif
}

// sum + the product of four bytes: weights w, and activations x in -127..127, biased if BIASED.
inline vi dot_signed(vi sum, vi w, vi x) {
#if defined(__AVX512VNNI__) || (defined(__AVXVNNI__) && !defined(__AVX512F__))
  return dot_unsigned(sum, x, w);
#elif defined(__AVX512BW__)
  const __m512i zero = _mm512_setzero_si512(), b = (__m512i)x;
  const __mmask64 negative = _mm512_movepi8_mask((__m512i)w);
  const __m512i turned = _mm512_mask_sub_epi8(b, negative, zero, b);
  return dot_unsigned(sum, (vi)_mm512_abs_epi8((__m512i)w), (vi)turned);
#elif defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i turned = _mm256_sign_epi8((__m256i)x, (__m256i)w);
  return dot_unsigned(sum, (vi)_mm256_abs_epi8((__m256i)w), (vi)turned);
#else
  for (int byte = 0; byte < 4; byte++)
    sum += (w << (24 - 8 * byte) >> 24) * (x << (24 - 8 * byte) >> 24);
  return sum;
#endif
}

// Four activations in every lane.
inline vi spread(const int8_t* x) { return vi{} + load_as<int32_t>(x); }
inline vi spread_biased(const int8_t* x) {
  return bits_as<vi>((vu{} + load_as<uint32_t>(x)) ^ (BIASED ? 0x80808080u : 0u));
}

template <int MR, int NP>
inline void block_i8(long K, const int8_t* A, long lda, const int8_t* B, long panel,
                     const int32_t* sums, int32_t* C, long ldc) {
  constexpr int PV = LANES / VF;
  vi sum[MR][NP * PV] = {};
  for (long k = 0; k < K; k += 4) {
    vi b[NP * PV];
    for (int j = 0; j < NP * PV; j++)
      b[j] = load_as<vi>(B + k * LANES + (j / PV) * panel + (j % PV) * VF * 4);
    for (int i = 0; i < MR; i++) {
      const vi a = spread_biased(A + i * lda + k);
      for (int j = 0; j < NP * PV; j++) sum[i][j] = dot_signed(sum[i][j], b[j], a);
    }
  }
  for (int j = 0; j < NP * PV; j++) {
    const vi bias = BIASED ? load_as<vi>(sums + j * VF) * 128 : vi{};
    for (int i = 0; i < MR; i++) {
      const vi c = sum[i][j] - bias;
      std::memcpy(C + i * ldc + j * VF, &c, sizeof c);
    }
  }
}

template <int NP>
inline void rows_i8(long M, long K, const int8_t* A, long lda, const int8_t* B, long panel,
                    const int32_t* sums, int32_t* C, long ldc) {
  constexpr int MR = VF == 16 ? 4 : 2;
  long m = 0;
  for (; m + MR <= M; m += MR)
    block_i8<MR, NP>(K, A + m * lda, lda, B, panel, sums, C + m * ldc, ldc);
  A += m * lda;
  C += m * ldc;
  if (M - m == 3) block_i8<3, NP>(K, A, lda, B, panel, sums, C, ldc);
  if (M - m == 2) block_i8<2, NP>(K, A, lda, B, panel, sums, C, ldc);
  if (M - m == 1) block_i8<1, NP>(K, A, lda, B, panel, sums, C, ldc);
}

inline void mm_i8_vectors(long M, long N, long K, const int8_t* A, long lda, const int8_t* B,
                          long panel, const int32_t* sums, int32_t* C, long ldc) {
  constexpr int NP = VF == 16 ? 4 : 1;
  long n = 0;
  for (; n + NP * LANES <= N; n += NP * LANES)
    rows_i8<NP>(M, K, A, lda, B + n * panel / LANES, panel, sums + n, C + n, ldc);
  for (; n < N; n += LANES)
    rows_i8<1>(M, K, A, lda, B + n * panel / LANES, panel, sums + n, C + n, ldc);
}

constexpr long FEW = 4;  // rows that the vector unit multiplies at the speed of memory

// C (M, N) = A (M, K) B^T in int32; `sums` (N,) of B's outputs. N a multiple of 16, K of 64.
inline void mm_i8(long M, long N, long K, const int8_t* A, long lda, const int8_t* B, long panel,
                  const int32_t* sums, int32_t* C, long ldc) {
#if defined(__AMX_INT8__)
  if (M > FEW) return amx::mm_i8(M, N, K, A, lda, B, panel, C, ldc, false);
#endif
  mm_i8_vectors(M, N, K, A, lda, B, panel, sums, C, ldc);
}

}  // namespace ab
