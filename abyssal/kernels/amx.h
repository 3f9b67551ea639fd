// Products on Intel's AMX unit: eight tiles of 16 rows by 64 bytes.
//
// Numbers are BF16 or int8, with sums in float or int32. Tiles 0-3 sum, 4-5 hold rows of A, 6-7
// panels of B. A product takes 16 cycles and its sum is
// ready after 52, so four sums must be under way at once.
#pragma once

#include <algorithm>

#include "simd.h"

namespace ab::amx {

struct alignas(64) Config {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t columns_bytes[16] = {};
  uint8_t rows[16] = {};
};

// What this thread's tiles are shaped for; -1 where somebody else may have shaped them.
inline thread_local int shaped = -1;

// Hold the unit for as long as this lives: at the top of every parallel region.
struct Tiles {
  Tiles() { shaped = -1; }
  ~Tiles() {
    if (shaped >= 0) _tile_release();
  }
};

// GCC 12 does not know that tile loads and ldtilecfg read memory: what was written must be there.
inline void settle() { asm volatile("" ::: "memory"); }

// Give the tiles their shapes, unless they have them: `upper` rows of A in tile 4, `lower` in 5.
// Every tile is 64 bytes wide: 16 floats of C, or a tile of panels.
inline void shape(int upper, int lower) {
  const int wanted = upper * 32 + lower;
  if (wanted == shaped) return;
  Config config;
  const int rows[8] = {upper, upper, lower, lower, upper, lower, 16, 16};
  for (int t = 0; t < 8; t++) {
    config.columns_bytes[t] = 64;
    config.rows[t] = (uint8_t)rows[t];
  }
  settle();
  _tile_loadconfig(&config);
  shaped = wanted;
}

// C += A B on tiles, in the precision of T. A macro, as the instructions want plain digits.
#define AB_DOT(T, c, a, b)                               \
  if constexpr (sizeof(T) == 2) _tile_dpbf16ps(c, a, b); \
  else _tile_dpbssd(c, a, b)

// Up to 32 rows of A: the tile of inputs k .. of rows 0-15 is at upper + k / TILE * step.
template <class T>
struct Left {
  const T *upper, *lower;
  long stride, step;  // bytes from row to row; numbers from tile to tile
};

template <class T>
constexpr long TILE = 64 / sizeof(T);  // inputs of a tile

// Up to 16 rows over NP panels.
template <int NP, class T, class S>
inline void one_by(long K, const Left<T>& left, const T* B, long panel, S* C, long ldc,
                   bool accumulate) {
  const long out = ldc * 4;
  if (accumulate) {
    _tile_loadd(0, C, out);
    if (NP > 1) _tile_loadd(1, C + 16, out);
    if (NP > 2) _tile_loadd(2, C + 32, out);
    if (NP > 3) _tile_loadd(3, C + 48, out);
  } else {
    _tile_zero(0);
    if (NP > 1) _tile_zero(1);
    if (NP > 2) _tile_zero(2);
    if (NP > 3) _tile_zero(3);
  }
  const T* a = left.upper;
  for (long k = 0; k < K; k += TILE<T>, a += left.step, B += 16 * TILE<T>) {
    _tile_loadd(4, a, left.stride);
    _tile_loadd(6, B, 64);
    AB_DOT(T, 0, 4, 6);
    if (NP > 1) {
      _tile_loadd(7, B + panel, 64);
      AB_DOT(T, 1, 4, 7);
    }
    if (NP > 2) {
      _tile_loadd(6, B + 2 * panel, 64);
      AB_DOT(T, 2, 4, 6);
    }
    if (NP > 3) {
      _tile_loadd(7, B + 3 * panel, 64);
      AB_DOT(T, 3, 4, 7);
    }
  }
  _tile_stored(0, C, out);
  if (NP > 1) _tile_stored(1, C + 16, out);
  if (NP > 2) _tile_stored(2, C + 32, out);
  if (NP > 3) _tile_stored(3, C + 48, out);
}

// 17 to 32 rows over one panel or two.
template <int NP, class T, class S>
inline void two_by(long K, const Left<T>& left, const T* B, long panel, S* C, long ldc,
                   bool accumulate) {
  const long out = ldc * 4;
  S* D = C + 16 * ldc;
  if (accumulate) {
    _tile_loadd(0, C, out);
    _tile_loadd(2, D, out);
    if (NP > 1) _tile_loadd(1, C + 16, out);
    if (NP > 1) _tile_loadd(3, D + 16, out);
  } else {
    _tile_zero(0);
    _tile_zero(2);
    if (NP > 1) _tile_zero(1);
    if (NP > 1) _tile_zero(3);
  }
  const T *upper = left.upper, *lower = left.lower;
  for (long k = 0; k < K; k += TILE<T>, B += 16 * TILE<T>) {
    _tile_loadd(4, upper, left.stride);
    _tile_loadd(6, B, 64);
    AB_DOT(T, 0, 4, 6);
    _tile_loadd(5, lower, left.stride);
    AB_DOT(T, 2, 5, 6);
    if (NP > 1) {
      _tile_loadd(7, B + panel, 64);
      AB_DOT(T, 1, 4, 7);
      AB_DOT(T, 3, 5, 7);
    }
    upper += left.step;
    lower += left.step;
  }
  _tile_stored(0, C, out);
  _tile_stored(2, D, out);
  if (NP > 1) _tile_stored(1, C + 16, out);
  if (NP > 1) _tile_stored(3, D + 16, out);
}

constexpr long FEW = 4;  // rows

// Up to 32 rows over all panels.
template <class T, class S>
inline void rows_by(long rows, long N, long K, const Left<T>& left, const T* B, long panel, S* C,
                    long ldc, bool accumulate) {
  settle();
  long n = 0;
  if (rows > 16) {
    shape(16, (int)rows - 16);
    for (; n + 32 <= N; n += 32)
      two_by<2>(K, left, B + n / 16 * panel, panel, C + n, ldc, accumulate);
    for (; n < N; n += 16)
      two_by<1>(K, left, B + n / 16 * panel, panel, C + n, ldc, accumulate);
    return;
  }
  shape((int)rows, (int)rows);
  // With so few rows memory is the limit, and it gives most where it is read from end to end.
  if (rows <= FEW)
    for (; n < N; n += 16)
      one_by<1>(K, left, B + n / 16 * panel, panel, C + n, ldc, accumulate);
  for (; n + 64 <= N; n += 64)
    one_by<4>(K, left, B + n / 16 * panel, panel, C + n, ldc, accumulate);
  const T* rest = B + n / 16 * panel;
  if (N - n == 48) one_by<3>(K, left, rest, panel, C + n, ldc, accumulate);
  if (N - n == 32) one_by<2>(K, left, rest, panel, C + n, ldc, accumulate);
  if (N - n == 16) one_by<1>(K, left, rest, panel, C + n, ldc, accumulate);
}

constexpr long CHUNK_BYTES = 2048;  // of a row at a time: 32 rows of them stay in a thread's caches
constexpr long OUTPUTS = 512;       // at a time: their panels stay in the second cache

// Rows copied to tiles that follow one another. Where they lie, they may be a power of two apart,
// and then they would share a few lines of the first cache.
template <class T>
inline Left<T> tiles_of(const T* A, long lda, long rows, long K) {
  alignas(64) static thread_local T held[32 * CHUNK_BYTES / sizeof(T)];
  const long tile = 16 * TILE<T>, half = K / TILE<T> * tile;
  for (long i = 0; i < rows; i++) {
    T* to = held + (i / 16) * half + (i % 16) * TILE<T>;
    const T* row = A + i * lda;
    for (long k = 0; k < K; k += TILE<T>, to += tile)
      _mm512_store_si512(to, _mm512_loadu_si512(row + k));
  }
  return {held, held + half, 64, tile};
}

template <class T, class S>
inline void mm(long M, long N, long K, const T* A, long lda, const T* B, long panel, S* C, long ldc,
               bool accumulate) {
  constexpr long CHUNK = CHUNK_BYTES / sizeof(T);
  const long outputs = M > 32 ? OUTPUTS : N;
  for (long k = 0; k < K; k += CHUNK)
    for (long n = 0; n < N; n += outputs)
      for (long m = 0; m < M; m += 32) {
        const long rows = std::min(32L, M - m), deep = std::min(CHUNK, K - k);
        const T* a = A + m * lda + k;
        const Left<T> left = rows > 8 && N >= 64
                                 ? tiles_of(a, lda, rows, deep)
                                 : Left<T>{a, a + 16 * lda, lda * (long)sizeof(T), TILE<T>};
        rows_by(rows, std::min(outputs, N - n), deep, left, B + n / 16 * panel + k * 16, panel,
                C + m * ldc + n, ldc, accumulate || k);
      }
}

inline void mm_bf16(long M, long N, long K, const bf16* A, long lda, const bf16* B, long panel,
                    float* C, long ldc, bool accumulate) {
  mm(M, N, K, A, lda, B, panel, C, ldc, accumulate);
}

// The same of int8, K a multiple of 64.
inline void mm_i8(long M, long N, long K, const int8_t* A, long lda, const int8_t* B, long panel,
                  int32_t* C, long ldc, bool accumulate) {
  mm(M, N, K, A, lda, B, panel, C, ldc, accumulate);
}

#undef AB_DOT

}  // namespace ab::amx
