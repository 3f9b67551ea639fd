// Numbers of 8 bits, e4m3: sign, 4 bits of exponent (bias 7), 3 of mantissa. No infinity; NaN is
// 0x7f and 0xff. BF16 holds all of them exactly.
#pragma once

#include "simd.h"

namespace ab {

#if defined(__AVX512VBMI__) && defined(__AVX512BW__) && defined(__GFNI__)

// Bit i of a byte becomes the parity of the bits that `rows[i]` selects.
constexpr long long bit_matrix(const int (&rows)[8]) {
  unsigned long long m = 0;
  for (int i = 0; i < 8; i++) m |= (unsigned long long)rows[i] << (8 * (7 - i));
  return (long long)m;
}

// What bytes with exponent 0 or 15 need, by their lower 6 bits.
struct Exceptions {
  alignas(64) uint8_t low[64] = {};   // the lower byte
  alignas(64) uint8_t flip[64] = {};  // bits to flip in the upper byte that a normal number has
  constexpr Exceptions() {
    constexpr uint8_t subnormal[8] = {0, 0, 0x80, 0xc0, 0, 0x20, 0x40, 0x60};
    for (int m = 0; m < 8; m++) {
      low[m] = subnormal[m];
      flip[m] = m == 0 ? 0x3c : m < 4 ? 0x3c ^ 0x3b : 0;
      low[56 + m] = (uint8_t)(0x80 | m << 4);
      flip[56 + m] = m == 7 ? 0x43 ^ 0x7f : 0;
    }
  }
};

// 64 numbers as lower and upper bytes.
struct Halves {
  __m512i low, up;
  __mmask64 exceptions;  // wrong as yet

  // A normal number's BF16 has the exponent e + 120, so its lower byte is the lower half of the
  // e4m3 byte, and its upper byte the sign and 60 + e / 2: bits 2 to 5 are opposite to bit 6.
  explicit Halves(__m512i x) {
    constexpr long long lower = bit_matrix({0, 0, 0, 0, 0x01, 0x02, 0x04, 0x08});
    constexpr long long upper = bit_matrix({0x10, 0x20, 0x40, 0x40, 0x40, 0x40, 0x40, 0x80});
    low = _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(lower), 0);
    up = _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(upper), 0x3c);
    const __m512i next = _mm512_add_epi8(x, _mm512_set1_epi8(8));  // exponent + 1
    exceptions = _mm512_testn_epi8_mask(next, _mm512_set1_epi8(0x70));
  }

  void mend(__m512i x) {
    static constexpr Exceptions tables;
    const __m512i flip = _mm512_load_si512(tables.flip);
    low = _mm512_mask_permutexvar_epi8(low, exceptions, x, _mm512_load_si512(tables.low));
    up = _mm512_xor_si512(up, _mm512_maskz_permutexvar_epi8(exceptions, x, flip));
  }

  void store(bf16* out) const {
    _mm512_storeu_si512(out, _mm512_unpacklo_epi8(low, up));
    _mm512_storeu_si512(out + 32, _mm512_unpackhi_epi8(low, up));
  }
};

// n numbers, a multiple of 128. Of weights scaled to the range of e4m3 few are zero or subnormal,
// so it is worth to look.
inline void decode_e4m3(const uint8_t* in, bf16* out, long n) {
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);  // unpacking works in quarters
  for (long i = 0; i < n; i += 128) {
    const __m512i x = _mm512_maskz_permutexvar_epi64(0xff, order, _mm512_loadu_si512(in + i));
    const __m512i y = _mm512_maskz_permutexvar_epi64(0xff, order, _mm512_loadu_si512(in + i + 64));
    Halves first(x), second(y);
    if (__builtin_expect((first.exceptions | second.exceptions) != 0, 0)) {
      first.mend(x);
      second.mend(y);
    }
    first.store(out + i);
    second.store(out + i + 64);
  }
}

#else

inline void decode_e4m3(const uint8_t* in, bf16* out, long n) {
  typedef uint8_t bytes __attribute__((vector_size(VF)));
  for (long i = 0; i < n; i += VF) {
    const vu x = __builtin_convertvector(load_as<bytes>(in + i), vu);
    const vu size = x & 0x7fu, normal = (size << 20) + (120u << 23);
    const vf small = __builtin_convertvector(bits_as<vi>(size), vf) * 0x1p-9f;
    vu bits = size < 8u ? bits_as<vu>(small) : normal;
    bits = size == 0x7fu ? vu{} + 0x7ff00000u : bits;
    const vh number = __builtin_convertvector((bits | (x & 0x80u) << 24) >> 16, vh);
    std::memcpy(out + i, &number, sizeof number);
  }
}

#endif

}  // namespace ab
