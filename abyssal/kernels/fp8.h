// Numbers of 8 bits made and read: e4m3, and e5m2 (5 bits of exponent, bias 15, 2 of mantissa).
#pragma once

#include "float8.h"
#include "rows.h"

namespace ab {

enum Float8 : int64_t { E4M3 = 0, E5M2 = 1 };

constexpr long TILE8 = 128;  // numbers that share a scale

typedef uint8_t bytes __attribute__((vector_size(VF)));

// To the nearest, ties to even, NaN to NaN. No number is beyond the largest of the format.
template <Float8 F>
inline bytes narrow8(vf v) {
  constexpr int drop = F == E4M3 ? 20 : 21;  // bits of mantissa that go
  constexpr uint32_t bias = F == E4M3 ? 120u << 3 : 112u << 2;
  constexpr float least = F == E4M3 ? 0x1p-6f : 0x1p-14f;  // that is normal
  constexpr float magic = F == E4M3 ? 0x1p14f : 0x1p7f;    // whose last bit is the least number
  const vf size = vabs(v);
  const vu a = bits_as<vu>(size), sign = bits_as<vu>(v) >> 24 & 0x80u;
  const vu half = (vu{} + ((1u << (drop - 1)) - 1)) + (a >> drop & 1u);
  const vu normal = ((a + half) >> drop) - bias;
  const vu small = bits_as<vu>(size + magic) - bits_as<uint32_t>(magic);
  vu byte = size < least ? small : normal;
  byte = a > 0x7f800000u ? vu{} + 0x7fu : byte;
  return __builtin_convertvector(byte | sign, bytes);
}

inline void decode_e5m2(const uint8_t* in, bf16* out, long n) {
  for (long i = 0; i < n; i += VF) {
    const vu x = __builtin_convertvector(load_as<bytes>(in + i), vu);
    const vu size = x & 0x7fu, normal = (size << 21) + (112u << 23);
    const vf small = __builtin_convertvector(bits_as<vi>(size), vf) * 0x1p-16f;
    vu number = size < 4u ? bits_as<vu>(small) : normal;
    number = size == 0x7cu ? vu{} + 0x7f800000u : number;
    number = size > 0x7cu ? vu{} + 0x7fc00000u : number;
    const vh narrowed = __builtin_convertvector((number | (x & 0x80u) << 24) >> 16, vh);
    std::memcpy(out + i, &narrowed, sizeof narrowed);
  }
}

// A tile of up to 128 numbers, zeros behind.
inline void decode_tile(const uint8_t* in, long count, int64_t format, bf16* out) {
  alignas(64) uint8_t whole[TILE8];
  if (count < TILE8) {
    std::memset(whole, 0, sizeof whole);
    std::memcpy(whole, in, count);
    in = whole;
  }
  if (format == E4M3) decode_e4m3(in, out, TILE8);
  else decode_e5m2(in, out, TILE8);
}

inline long tiles(long n) { return (n + TILE8 - 1) / TILE8; }

}  // namespace ab
