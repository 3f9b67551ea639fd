// Matrices into the panels of gemm.h, and transposed.
#pragma once

#include <algorithm>
#include <type_traits>

#include "gemm.h"

namespace ab {

// out[j][i] = in[i][j] for 16 by 16 words.
inline void transpose16(const uint32_t* in, long ldi, uint32_t* out, long ldo) {
#if defined(__AVX512F__)
  __m512i r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(in + i * ldi);
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 2; j++) {
      r[4 * i + 2 * j] = _mm512_unpacklo_epi64(t[4 * i + j], t[4 * i + 2 + j]);
      r[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(t[4 * i + j], t[4 * i + 2 + j]);
    }
  for (int j = 0; j < 4; j++) {  // r[4 i + j]: columns j, j+4, j+8, j+12 of rows 4i to 4i+3
    t[j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
    t[4 + j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
    t[8 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
  }
  for (int j = 0; j < 4; j++) {
    _mm512_storeu_si512(out + j * ldo, _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88));
    _mm512_storeu_si512(out + (4 + j) * ldo, _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0x88));
    _mm512_storeu_si512(out + (8 + j) * ldo, _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd));
    _mm512_storeu_si512(out + (12 + j) * ldo, _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0xdd));
  }
#else
  for (int i = 0; i < 16; i++)
    for (int j = 0; j < 16; j++) out[j * ldo + i] = in[i * ldi + j];
#endif
}

// out[j][i] = in[i][j] for rows by columns words; what is missing of 16 by 16 is not touched.
inline void transpose_words(const uint32_t* in, long ldi, long rows, long columns, uint32_t* out,
                            long ldo) {
  for (long i = 0; i < rows; i += 16)
    for (long j = 0; j < columns; j += 16) {
      const long m = std::min(16L, rows - i), n = std::min(16L, columns - j);
      if (m == 16 && n == 16) {
        transpose16(in + i * ldi + j, ldi, out + j * ldo + i, ldo);
      } else {
        for (long a = 0; a < m; a++)
          for (long b = 0; b < n; b++) out[(j + b) * ldo + i + a] = in[(i + a) * ldi + j + b];
      }
    }
}

// W (N, K) in rows -> panels of N outputs, K inputs; K and N are filled up with zeros.
// `ldw` and K may be odd only if the last input is copied by hand, so rows of BF16 are read in
// pairs as far as there are pairs.
inline void pack_rows(const bf16* W, long ldw, long N, long K, bf16* out) {
  const long Kp = round_up(K, STEP);
  for (long n = 0; n < N; n += LANES, out += LANES * Kp) {
    const long outputs = std::min(LANES, N - n);
    uint32_t* pairs = reinterpret_cast<uint32_t*>(out);
    if (outputs < LANES || K < Kp) std::memset(out, 0, LANES * Kp * 2);
    if (ldw % 2 == 0 && reinterpret_cast<uintptr_t>(W) % 4 == 0) {
      transpose_words(reinterpret_cast<const uint32_t*>(W + n * ldw), ldw / 2, outputs, K / 2,
                      pairs, LANES);
    } else {
      for (long i = 0; i < outputs; i++)
        for (long k = 0; k + 1 < K; k += 2)
          pairs[k / 2 * LANES + i] = load_as<uint32_t>(W + (n + i) * ldw + k);
    }
    if (K % 2)
      for (long i = 0; i < outputs; i++) pairs[K / 2 * LANES + i] = W[(n + i) * ldw + K - 1];
  }
}

// out (16) = numbers of two rows side by side, as panels have them; 0 beyond `count` (up to 16) and
// where there is no second row.
inline void pair_up(const bf16* first, const bf16* second, long count, uint32_t* out) {
  if (count == LANES && second) {
    for (long i = 0; i < LANES; i += VF) {
      const vu both = words(load_as<vh>(first + i)) | words(load_as<vh>(second + i)) << 16;
      std::memcpy(out + i, &both, sizeof both);
    }
  } else {
    for (long i = 0; i < LANES; i++)
      out[i] = i >= count ? 0u : first[i] | (second ? (uint32_t)second[i] << 16 : 0u);
  }
}

// W (K, N) in rows -> panels of N outputs, K inputs: the product's sum runs down the columns of W.
inline void pack_columns(const bf16* W, long ldw, long K, long N, bf16* out) {
  const long Kp = round_up(K, STEP);
  for (long n = 0; n < N; n += LANES, out += LANES * Kp) {
    const long outputs = std::min(LANES, N - n);
    uint32_t* pairs = reinterpret_cast<uint32_t*>(out);
    for (long k = 0; k < K; k += 2) {
      const bf16* first = W + k * ldw + n;
      pair_up(first, k + 1 < K ? first + ldw : nullptr, outputs, pairs + k / 2 * LANES);
    }
    const long done = round_up(K, 2);
    std::fill(out + done * LANES, out + Kp * LANES, 0);
  }
}

inline void pack_rows(const float* W, long ldw, long N, long K, float* out) {
  for (long n = 0; n < N; n += LANES, out += LANES * K)
    for (long i = 0; i < LANES; i++)
      for (long k = 0; k < K; k++) out[k * LANES + i] = n + i < N ? W[(n + i) * ldw + k] : 0.f;
}

inline void pack_columns(const float* W, long ldw, long K, long N, float* out) {
  for (long n = 0; n < N; n += LANES)
    for (long k = 0; k < K; k++, out += LANES)
      for (long i = 0; i < LANES; i++) out[i] = n + i < N ? W[k * ldw + n + i] : 0.f;
}

// X (rows, columns) -> out (columns, rows).
inline void transpose(const bf16* X, long ldx, long rows, long columns, bf16* out, long ldo) {
  for (long i = 0; i < rows; i += 32)
    for (long j = 0; j < columns; j += 16) {
      const long m = std::min(32L, rows - i), n = std::min(16L, columns - j);
      uint32_t pairs[16 * 16], turned[16 * 16];
      for (long a = 0; a < m; a += 2) {
        const bf16* first = X + (i + a) * ldx + j;
        pair_up(first, a + 1 < m ? first + ldx : nullptr, n, pairs + a / 2 * 16);
      }
      std::fill(pairs + (m + 1) / 2 * 16, pairs + 16 * 16, 0u);
      transpose16(pairs, 16, turned, 16);
      for (long b = 0; b < n; b++) {
        bf16* to = out + (j + b) * ldo + i;
        if (m == 32) std::memcpy(to, turned + b * 16, 64);
        else std::memcpy(to, turned + b * 16, m * 2);
      }
    }
}

inline void transpose(const float* X, long ldx, long rows, long columns, float* out, long ldo) {
  transpose_words(reinterpret_cast<const uint32_t*>(X), ldx, rows, columns,
                  reinterpret_cast<uint32_t*>(out), ldo);
}

}  // namespace ab
