// Mixtures of latents: values V as AMX reads them, or in the panels of gemm.h.
//
// The mixture P V needs two tokens of one column side by side, where a row of V has two columns of
// one token. On AMX, rather than to turn V, each weight is paired with a zero: (p, 0) times a pair
// of columns gives the even one, (0, p) the odd one. That is twice the products, on a unit that
// waits for memory anyway. Elsewhere V is packed into panels.
#pragma once

#include "gemm.h"
#include "latent_pages.h"
#include "pack.h"

namespace ab {
namespace latent {

constexpr long BLOCK = 2 * LATENT_PAGE;  // tokens of one step of the softmax
// Panels of values lie a line more apart, or all of them would share a few sets of the cache.
constexpr long PANEL = LANES * BLOCK + 32;
#if defined(__AMX_BF16__)
constexpr bool PAIRED = true;  // mixtures of V as it lies
#else
constexpr bool PAIRED = false;
#endif

// A row of n numbers, filled up with zeros to `width`.
inline void copy_row(const bf16* x, long n, bf16* out, long width) {
#if defined(__AVX512BW__)
  const auto first = [](long count) { return (__mmask32)((1ull << std::clamp(count, 0L, 32L)) - 1); };
  for (long i = 0; i < width; i += 32)
    _mm512_mask_storeu_epi16(out + i, first(width - i), _mm512_maskz_loadu_epi16(first(n - i), x + i));
#else
  std::memcpy(out, x, n * sizeof(bf16));
  std::memset(out + n, 0, (width - n) * sizeof(bf16));
#endif
}

inline void copy_row(const float* x, long n, float* out, long width) {
  std::memcpy(out, x, n * sizeof(float));
  std::memset(out + n, 0, (width - n) * sizeof(float));
}

inline void mm(long M, long N, long K, const float* A, long lda, const float* B, long panel,
               float* C, long ldc, bool accumulate) {
  mm_f32(M, N, K, A, lda, B, panel, C, ldc, accumulate);
}
inline void mm(long M, long N, long K, const bf16* A, long lda, const bf16* B, long panel, float* C,
               long ldc, bool accumulate) {
  mm_bf16(M, N, K, A, lda, B, panel, C, ldc, accumulate);
}

// Rows of latents that lie `stride` numbers apart, a multiple of 32 in BF16.
template <class T>
struct Latents {
  const T* rows;
  long stride;
};

constexpr long TILE = 16;  // tokens of a tile of V

#if defined(__AMX_BF16__)
// 16 rows of a mixture, 32 GROUPS columns from `column` on, even and odd ones of 32 apart. A tile
// of weights is 16 rows of 16 words (p, 0), then the same of words (0, p).
template <int GROUPS>
inline void mix_columns(long tiles, const bf16* weights, const Latents<bf16>* values, long column,
                        float* mixed, long columns, bool accumulate) {
  const long out = columns * 4;
  if (accumulate) {
    _tile_loadd(0, mixed, out);
    _tile_loadd(1, mixed + 16, out);
    if (GROUPS > 1) _tile_loadd(2, mixed + 32, out);
    if (GROUPS > 1) _tile_loadd(3, mixed + 48, out);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    if (GROUPS > 1) _tile_zero(2);
    if (GROUPS > 1) _tile_zero(3);
  }
  for (long t = 0; t < tiles; t++, weights += 2 * TILE * 32) {
    const bf16* rows = values[t].rows + column;
    const long in = values[t].stride * 2;
    _tile_loadd(6, rows, in);
    _tile_loadd(4, weights, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, weights + TILE * 32, 64);
    _tile_dpbf16ps(1, 5, 6);
    if (GROUPS > 1) {
      _tile_loadd(7, rows + 32, in);
      _tile_dpbf16ps(2, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, mixed, out);
  _tile_stored(1, mixed + 16, out);
  if (GROUPS > 1) _tile_stored(2, mixed + 32, out);
  if (GROUPS > 1) _tile_stored(3, mixed + 48, out);
}

// 16 rows of the mixture of all columns.
inline void mix_rows(long tiles, const bf16* weights, const Latents<bf16>* values, long columns,
                     float* mixed, bool accumulate) {
  amx::shape(16, 16);
  long c = 0;
  for (; c + 64 <= columns; c += 64)
    mix_columns<2>(tiles, weights, values, c, mixed + c, columns, accumulate);
  if (c < columns) mix_columns<1>(tiles, weights, values, c, mixed + c, columns, accumulate);
}

// The words p in the upper half -> (p, 0) in front of (0, p), 16 tokens by 16 rows each.
inline void pair_with_zeros(uint32_t* tile) {
  for (long i = 0; i < TILE; i++) {
    const vu p = load_as<vu>(tile + (TILE + i) * 16);
    store(reinterpret_cast<float*>(tile + i * 16), bits_as<vf>(p >> 16));
  }
}

// 16 even columns, then 16 odd ones -> in order.
inline void reorder(float* columns) {
  const __m512 even = _mm512_loadu_ps(columns), odd = _mm512_loadu_ps(columns + 16);
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  _mm512_storeu_ps(columns, _mm512_permutex2var_ps(even, low, odd));
  _mm512_storeu_ps(columns + 16, _mm512_permutex2var_ps(even, high, odd));
}
#else
void mix_rows(long, const bf16*, const Latents<bf16>*, long, float*, bool);  // not called
void pair_with_zeros(uint32_t*);
void reorder(float*);
#endif

// Pairs of tokens k side by side, columns in panels of 16; a token behind the last is zeros.
inline void pack_values(Latents<bf16> in, long count, long columns, bf16* out) {
  for (long k = 0; k < count; k += 2) {
    const bf16 *first = in.rows + k * in.stride, *second = first + in.stride;
    const uint32_t keep = k + 1 < count ? 0xffff0000u : 0u;
    for (long c = 0; c < columns; c += LANES) {
      uint32_t* pairs = reinterpret_cast<uint32_t*>(out + c / LANES * PANEL + k * LANES);
      for (long i = 0; i < LANES; i += VF) {
        const vu even = __builtin_convertvector(load_as<vh>(first + c + i), vu);
        const vu odd = __builtin_convertvector(load_as<vh>(second + c + i), vu) << 16;
        store(reinterpret_cast<float*>(pairs + i), bits_as<vf>(even | (odd & keep)));
      }
    }
  }
}

inline void pack_values(Latents<float> in, long count, long columns, float* out) {
  for (long k = 0; k < count; k++)
    for (long c = 0; c < columns; c += LANES)
      std::memcpy(out + c / LANES * PANEL + k * LANES, in.rows + k * in.stride + c, LANES * 4);
}

// A weight, never negative, to the nearest BF16; its bits in the upper half of a word.
inline vu rounded(vf p) { return (bits_as<vu>(p) + 0x8000u) & 0xffff0000u; }

}  // namespace latent
}  // namespace ab
