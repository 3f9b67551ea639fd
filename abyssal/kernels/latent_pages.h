// Pages of latents: where the numbers of a token are, and INT8 ones made of floats and read again.
//
//     C kv_lora_rank    R qk_rope_head_dim    W = C + R
//
// A page holds the latents of 64 tokens, W numbers each. In INT8 a token's numbers are integers
// times two scales, BF16, one for c and one for k_rope; 4 numbers of k_rope together may count in
// halves of their scale, which a bit says. A page is 64 rows of W integers, then 64 pairs of
// scales, then 64 times the bits, in whole bytes.
#pragma once

#include <algorithm>

#include "simd.h"

namespace ab {

enum LatentKind : long { LATENT_F32 = 0, LATENT_BF16 = 1, LATENT_INT8 = 2 };

constexpr long LATENT_PAGE = 64;  // tokens of a page

struct LatentPool {
  void* base;
  long layer_stride_bytes, page_stride_bytes;
  long kind;  // a LatentKind
  long C, R;

  long width() const { return C + R; }
  char* page(long layer, long page) const {
    return static_cast<char*>(base) + layer * layer_stride_bytes + page * page_stride_bytes;
  }
};

namespace latent {

constexpr long TOGETHER_HALVED = 4;  // numbers of k_rope that one bit is for
constexpr long CANDIDATES = 16;      // scales that are tried
constexpr int POINT = 13;            // bits behind the point of a number over its scale
constexpr int DROPPED = 3;           // ... of which an error does without these

inline long halves_bytes(long R) { return (R + 8 * TOGETHER_HALVED - 1) / (8 * TOGETHER_HALVED); }

// A token of a page of integers.
struct IntegerRow {
  int8_t* numbers;  // (W,)
  bf16* scales;     // (2,)
  uint8_t* halves;  // (halves_bytes(R),)

  IntegerRow(const LatentPool& pool, long layer, long page, long slot) {
    char* at = pool.page(layer, page);
    const long W = pool.width();
    numbers = reinterpret_cast<int8_t*>(at) + slot * W;
    scales = reinterpret_cast<bf16*>(at + LATENT_PAGE * W) + 2 * slot;
    halves = reinterpret_cast<uint8_t*>(at + LATENT_PAGE * (W + 4)) + slot * halves_bytes(pool.R);
  }
};

inline vi nearest(vf x) {
#if defined(__AVX512F__)
  return (vi)_mm512_cvtps_epi32((__m512)x);
#else
  vi out;
  for (int i = 0; i < VF; i++) out[i] = (int32_t)std::nearbyint(x[i]);
  return out;
#endif
}

constexpr int32_t ONE = 1 << POINT;
constexpr long PIECE_OF_ROW = 64;  // numbers that are worked on together

// The integer next to a fixed-point number, and the square of what it lacks.
template <class I>
inline I whole(I x) { return (x + ONE / 2) >> POINT; }
inline vi squared_error(vi x) {
  const vi lacks = (((x + ONE / 2) & (ONE - 1)) - ONE / 2) >> DROPPED;
  return lacks * lacks;
}

// Below this, a number twice as large is still an integer of 7 bits and a sign.
constexpr int32_t CAN_HALVE = (127 * ONE + ONE / 2) / 2;

// What the integers lack at each candidate, squared, in units that a candidate's own square has.
// Lanes are candidates; sums are of integers, so that their order does not matter.
template <bool HALVES>
inline void errors(const float* x, long n, float base, const float* ratio, int32_t* error) {
  float t[PIECE_OF_ROW];
  for (long begin = 0; begin < n; begin += PIECE_OF_ROW) {
    const long count = std::min(PIECE_OF_ROW, n - begin);
    for (long j = 0; j < count; j++) t[j] = x[begin + j] / base;
    for (long c = 0; c < CANDIDATES; c += VF) {
      const vf factor = load(ratio + c);
      vi sum = load_as<vi>(error + c);
      for (long at = 0; at < count; at += TOGETHER_HALVED) {
        vi coarse{}, fine{}, highest{};
        for (long j = at; j < std::min(at + TOGETHER_HALVED, count); j++) {
          const vi g = nearest(t[j] * factor), size = g < 0 ? -g : g;
          coarse += squared_error(g);
          if (!HALVES) continue;
          fine += squared_error(2 * g);
          highest = size > highest ? size : highest;
        }
        sum += HALVES ? (highest < CAN_HALVE ? fine : 4 * coarse) : coarse;
      }
      std::memcpy(error + c, &sum, sizeof sum);
    }
  }
}

// The integers at one candidate; with HALVES, those of small ones are of twice the number.
template <bool HALVES>
inline void place_integers(const float* x, long n, float base, float ratio, int8_t* out,
                           uint8_t* halves) {
  int32_t g[PIECE_OF_ROW] = {};
  for (long begin = 0; begin < n; begin += PIECE_OF_ROW) {
    const long count = std::min(PIECE_OF_ROW, n - begin);
    for (long j = 0; j < count; j += VF) {
      const vi fixed = nearest(load_n(x + begin + j, std::min<long>(VF, count - j)) / base * ratio);
      std::memcpy(g + j, &fixed, sizeof fixed);
    }
    for (long at = 0; HALVES && at < count; at += TOGETHER_HALVED) {
      const long end = std::min(at + TOGETHER_HALVED, count), block = (begin + at) / TOGETHER_HALVED;
      bool fits = true;
      for (long j = at; j < end; j++) fits &= std::abs(g[j]) < CAN_HALVE;
      for (long j = at; j < end; j++) g[j] *= 1 + fits;
      halves[block / 8] |= (uint8_t)(fits << block % 8);
    }
    for (long j = 0; j < count; j++) out[begin + j] = (int8_t)whole(g[j]);
  }
}

// Numbers as integers times one scale, which is returned: of the 16 BF16 numbers from a 127th of
// the largest on, the one that leaves the least squared error. With HALVES, 4 numbers together
// count in halves of it where that fits. Anything infinite or NaN makes the scale NaN.
template <bool HALVES>
inline bf16 quantize(const float* x, long n, int8_t* out, uint8_t* halves) {
  uint32_t most = 0;
  for (long i = 0; i < n; i++) most = std::max(most, bits_as<uint32_t>(x[i]) & 0x7fffffffu);
  for (long i = 0; i < n; i++) out[i] = 0;
  for (long i = 0; HALVES && i < halves_bytes(n); i++) halves[i] = 0;
  if (most >= 0x7f800000u) return 0x7fc0;
  const uint32_t first = (bits_as<uint32_t>(bits_as<float>(most) / 127.f) + 0xffffu) >> 16;
  if (!first) return 0;
  const float base = to_float((bf16)first);
  float ratio[CANDIDATES];
  for (long i = 0; i < CANDIDATES; i++) ratio[i] = base / to_float((bf16)(first + i)) * ONE;
  int32_t error[CANDIDATES] = {};
  errors<HALVES>(x, n, base, ratio, error);
  long best = 0;
  double least = 0;
  for (long i = 0; i < CANDIDATES; i++) {
    const double scale = to_float((bf16)(first + i)), square = error[i] * (scale * scale);
    if (i == 0 || square < least) best = i, least = square;
  }
  place_integers<HALVES>(x, n, base, ratio[best], out, halves);
  return (bf16)(first + best);
}

inline void convert(const float* x, long n, float factor, float* out) {
  for (long i = 0; i < n; i++) out[i] = x[i] * factor;
}

inline void convert(const float* x, long n, float factor, bf16* out) {
  for (; n >= VF; n -= VF, x += VF, out += VF) store_bf16(out, load(x) * factor);
  store_bf16_n(out, load_n(x, n) * factor, n);
}

// Integers to BF16, which holds them exactly.
inline void widen_row(const int8_t* x, long n, bf16* out) {
#if defined(__AVX512F__)
  for (; n >= VF; n -= VF, x += VF, out += VF) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(x));
    store_bf16(out, (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)));
  }
#endif
  for (long i = 0; i < n; i++) out[i] = (bf16)(bits_as<uint32_t>((float)x[i]) >> 16);
}

// VF integers of k_rope from the i-th on, some of them there, times a factor or its half.
inline vf rotary_numbers(const IntegerRow& row, const int8_t* numbers, long i, long some,
                         float factor) {
  vu block;
  for (int l = 0; l < VF; l++) block[l] = l / TOGETHER_HALVED;
  block += (uint32_t)(i % (8 * TOGETHER_HALVED) / TOGETHER_HALVED);
  const uint32_t byte = row.halves[i / (8 * TOGETHER_HALVED)];
  const vu is_halved = (vu{} + byte) >> block & 1;
  int8_t bytes[VF] = {};
  if (some == VF) std::memcpy(bytes, numbers + i, VF);
  else std::memcpy(bytes, numbers + i, some);
#if defined(__AVX512F__)
  const vi integers = (vi)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)bytes));
#else
  const vi integers = __builtin_convertvector(load_as<vb>(bytes), vi);
#endif
  return __builtin_convertvector(integers, vf) * factor * bits_as<vf>(0x3f800000u - (is_halved << 23));
}

// A row of integers as [c, high k, low k, high k] over the scale that is returned, which is that of
// c: k_rope as a BF16, and what that lacks as another.
inline float read_integers(const LatentPool& pool, const IntegerRow& row, bf16* out) {
  const float c = to_float(row.scales[0]), r = to_float(row.scales[1]);
  const float scale = c != 0 ? c : r, rotary = scale != 0 ? r / scale : 0.f;
  widen_row(row.numbers, pool.C, out);
  const long R = pool.R;
  out += pool.C;
  for (long i = 0; i < R; i += VF) {
    const long some = std::min<long>(VF, R - i);
    const vf x = rotary_numbers(row, row.numbers + pool.C, i, some, rotary);
    const vf rest = x - widen(narrow(x));
    if (some == VF) {
      store_bf16(out + i, x);
      store_bf16(out + R + i, rest);
      store_bf16(out + 2 * R + i, x);
    } else {
      store_bf16_n(out + i, x, some);
      store_bf16_n(out + R + i, rest, some);
      store_bf16_n(out + 2 * R + i, x, some);
    }
  }
  return scale;
}

// A head's query times a factor, as it meets such a row or one of floats.
template <class T>
inline void place_query(const LatentPool& pool, const float* q, float factor, T* out) {
  if constexpr (sizeof(T) == sizeof(bf16)) {
    if (pool.kind == LATENT_INT8) {
      const long C = pool.C, R = pool.R;
      convert(q, C, factor, out);
      out += C;
      for (long i = 0; i < R; i += VF) {
        const long some = std::min<long>(VF, R - i);
        const vf x = load_n(q + C + i, some) * factor, rest = x - widen(narrow(x));
        store_bf16_n(out + i, x, some);
        store_bf16_n(out + R + i, x, some);
        store_bf16_n(out + 2 * R + i, rest, some);
      }
      return;
    }
  }
  convert(q, pool.width(), factor, out);
}

}  // namespace latent

// Write a token's latent (W,): the normed c_kv, then the turned k_rope.
inline void latent_append(const LatentPool& pool, long layer, long page, long slot,
                          const float* latent) {
  char* at = pool.page(layer, page);
  const long W = pool.width();
  if (pool.kind == LATENT_F32) {
    std::memcpy(at + slot * W * 4, latent, W * 4);
  } else if (pool.kind == LATENT_BF16) {
    latent::convert(latent, W, 1.f, reinterpret_cast<bf16*>(at) + slot * W);
  } else {
    const latent::IntegerRow row(pool, layer, page, slot);
    row.scales[0] = latent::quantize<false>(latent, pool.C, row.numbers, nullptr);
    row.scales[1] =
        latent::quantize<true>(latent + pool.C, pool.R, row.numbers + pool.C, row.halves);
  }
}

// A cached latent of BF16 or INT8 as BF16: c (C,) and k_rope (R,).
inline void latent_read(const LatentPool& pool, long layer, long page, long slot, bf16* c,
                        bf16* k_rope) {
  const long C = pool.C, R = pool.R;
  if (pool.kind == LATENT_BF16) {
    const bf16* row = reinterpret_cast<const bf16*>(pool.page(layer, page)) + slot * pool.width();
    std::memcpy(c, row, C * sizeof(bf16));
    std::memcpy(k_rope, row + C, R * sizeof(bf16));
    return;
  }
  const latent::IntegerRow row(pool, layer, page, slot);
  const float scale = to_float(row.scales[0]), rotary = to_float(row.scales[1]);
  for (long i = 0; i < C; i++) c[i] = to_bf16((float)row.numbers[i] * scale);
  for (long i = 0; i < R; i += VF) {
    const long some = std::min<long>(VF, R - i);
    store_bf16_n(k_rope + i, latent::rotary_numbers(row, row.numbers + C, i, some, rotary), some);
  }
}

}  // namespace ab
