// Linear layers over packed weights: out (rows, N) = x (rows, K) W^T, one thread.
//
// Every number of a row is computed in the same order whatever rows and panels it is computed with.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "float8.h"
#include "formats.h"
#include "int8.h"

namespace ab {

constexpr long SPAN = 512;  // outputs at a time, whose sums stay in the second cache

// out = float(sums) * scale of the row * scale of the output; `sums` may be where `out` is.
inline void dequantize(long rows, long n, const int32_t* sums, long lds, const float* s,
                       const float* scale, float* out, long ldo) {
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < n; j += VF) {
      const vf sum = __builtin_convertvector(load_as<vi>(sums + i * lds + j), vf);
      store(out + i * ldo + j, sum * set1(s[i]) * load(scale + j));
    }
}

inline void linear_i8(const Mat& w, const Act& a, long row, long rows, long n, long outputs,
                      float* out, long ldo) {
  const int8_t* data = static_cast<const int8_t*>(w.data);
  for (const long end = n + outputs; n < end; n += SPAN) {
    const long now = std::min(SPAN, end - n);
    int32_t* sums = reinterpret_cast<int32_t*>(out + n);  // int32 and float take turns there
    mm_i8(rows, now, w.kp, a.q + row * a.kp, a.kp, data + n * w.kp, LANES * w.kp, w.sum + n, sums,
          ldo);
    dequantize(rows, now, sums, ldo, a.s + row, w.scale + n, out + n, ldo);
  }
}

// INT4 and FP8 have a scale for each block of inputs: out adds up float(a block's sum) * scale, in
// the order of blocks.
//
// With more than a few rows, some blocks of weights at a time are decoded to numbers that the units
// multiply. The sums of one step are scaled and added while the unit works on the next.

constexpr long ROWS = 32;     // of a step, on
constexpr long WIDE = 32;     // outputs
constexpr long AHEAD = 4096;  // bytes from where weights are read to where they are sent for

inline void fetch(const uint8_t* p) { __builtin_prefetch(p + AHEAD, 0, 2); }

struct Fp8 {
  using number = bf16;
  using sum = float;
  static constexpr long INPUTS = BLOCK, BLOCKS = 2;  // of a step

  static const bf16* rows(const Act& a) { return a.b; }
  static float row_scale(const Act&, long) { return 1.f; }
  static vf scale(const Mat& w, long n, long k) {
    return set1(w.scale[n / BLOCK * ((w.k + BLOCK - 1) / BLOCK) + k / BLOCK]);
  }
  static void decode(const Mat& w, long n, long k, long inputs, bf16* out) {
    const uint8_t* in = static_cast<const uint8_t*>(w.data) + n * w.kp + k * LANES;
    for (long i = 0; i < inputs * LANES; i += 128) {
      fetch(in + i);
      fetch(in + i + 64);
      decode_e4m3(in + i, out + i, 128);
    }
  }
  static void multiply(long rows, long n, long inputs, const bf16* x, long ldx, const bf16* b,
                       float* sums) {
    mm_bf16(rows, n, inputs, x, ldx, b, BLOCKS * INPUTS * LANES, sums, WIDE, false);
  }
};

#if defined(__AMX_INT8__)
struct Int4 {
  using number = int8_t;
  using sum = int32_t;
  static constexpr long INPUTS = GROUP, BLOCKS = 4;

  static const int8_t* rows(const Act& a) { return a.q; }
  static float row_scale(const Act& a, long row) { return a.s[row]; }
  static vf scale(const Mat& w, long n, long k) {
    return load(w.scale + k / GROUP * panels(w) * LANES + n);
  }
  static void decode(const Mat& w, long n, long k, long inputs, int8_t* out) {
    const uint8_t* in = static_cast<const uint8_t*>(w.data) + (n * w.kp + k * LANES) / 2;
    for (const int8_t* end = out + inputs * LANES; out < end; out += 1024, in += 512)
      for (long i = 0; i < 512; i += VF * 4) {
        fetch(in + i);
        const vu both = load_as<vu>(in + i);
        const vq low = bits_as<vq>(both & 0x0f0f0f0fu) - (uint8_t)8;
        const vq high = bits_as<vq>(both >> 4 & 0x0f0f0f0fu) - (uint8_t)8;
        std::memcpy(out + i, &low, sizeof low);
        std::memcpy(out + i + 512, &high, sizeof high);
      }
  }
  static void multiply(long rows, long n, long inputs, const int8_t* x, long ldx, const int8_t* b,
                       int32_t* sums) {
    amx::mm_i8(rows, n, inputs, x, ldx, b, BLOCKS * INPUTS * LANES, sums, WIDE, false);
  }
};
#endif

inline vf as_float(vf v) { return v; }
inline vf as_float(vi v) { return __builtin_convertvector(v, vf); }

// Some blocks of inputs, from k on, of some rows and outputs: their sums, and where these go.
template <class Format>
struct Step {
  alignas(64) typename Format::sum sums[Format::BLOCKS][ROWS * WIDE];
  long row = 0, rows = 0, n = 0, outputs = 0, k = 0, blocks = 0;

  // out += sums * scale; whoever brings the last block multiplies by the scales of the rows.
  void add(const Mat& w, const Act& a, float* out, long ldo) const {
    for (long j = 0; j < outputs; j += VF) {
      vf scale[Format::BLOCKS] = {};
      for (long b = 0; b < blocks; b++) scale[b] = Format::scale(w, n + j, k + b * Format::INPUTS);
      if (blocks == Format::BLOCKS) {
        add_lanes<Format::BLOCKS>(scale, w, a, j, out, ldo);
      } else {
        for (long b = 0; b < blocks; b++) add_lanes<1>(scale + b, w, a, j, out, ldo, b);
      }
    }
  }

 private:
  template <int COUNT>
  void add_lanes(const vf* scale, const Mat& w, const Act& a, long j, float* out, long ldo,
                 long block = 0) const {
    using v = std::conditional_t<std::is_same_v<typename Format::sum, float>, vf, vi>;
    const bool first = k + block == 0, last = k + (block + COUNT) * Format::INPUTS >= w.kp;
    for (long i = 0; i < rows; i++) {
      float* to = out + i * ldo + n + j;
      vf total = first ? vf{} : load(to);
      for (int b = 0; b < COUNT; b++)
        total = fma(as_float(load_as<v>(sums[block + b] + i * WIDE + j)), scale[b], total);
      store(to, last ? total * Format::row_scale(a, row + i) : total);
    }
  }
};

template <class Format>
inline void linear_blocks(const Mat& w, const Act& a, long row, long rows, long n, long outputs,
                          float* out, long ldo) {
  constexpr long INPUTS = Format::INPUTS, SPREAD = Format::BLOCKS * INPUTS;
  alignas(64) typename Format::number weights[WIDE * SPREAD];
  Step<Format> steps[2];
  Step<Format>*now = steps, *before = steps + 1;
  const auto* x = Format::rows(a);
  auto finish = [&](const Step<Format>& step) {
    if (step.rows) step.add(w, a, out + (step.row - row) * ldo, ldo);
  };
  const long most = rows <= 16 ? LANES : WIDE;  // one stream from memory, if memory is the limit
  for (const long end = n + outputs; n < end; n += most)
    for (long k = 0; k < w.kp; k += SPREAD) {
      const long wide = std::min(most, end - n), inputs = std::min(SPREAD, (long)w.kp - k);
      for (long p = 0; p < wide; p += LANES)
        Format::decode(w, n + p, k, inputs, weights + p * SPREAD);
      for (long m = row; m < row + rows; m += ROWS) {
        now->row = m, now->rows = std::min(ROWS, row + rows - m);
        now->n = n, now->outputs = wide;
        now->k = k, now->blocks = (inputs + INPUTS - 1) / INPUTS;
        for (long b = 0; b < now->blocks; b++)
          Format::multiply(now->rows, wide, std::min(INPUTS, inputs - b * INPUTS),
                           x + m * a.kp + k + b * INPUTS, a.kp, weights + b * INPUTS * LANES,
                           now->sums[b]);
        finish(*before);
        std::swap(now, before);
      }
    }
  finish(*before);
}

// Rows over a panel of INT4 as it is: its bytes' halves are numbers without a sign, 8 too large.
// `eights` (MR, kp / 64) holds 8 times the sum of the activations of each group.
template <int MR>
inline void panel_i4(const Mat& w, const Act& a, long row, long n, const int32_t* eights,
                     float* out, long ldo) {
  constexpr int PV = LANES / VF;
  const uint8_t* in = static_cast<const uint8_t*>(w.data) + n * w.kp / 2;
  const long groups = w.kp / GROUP, np = panels(w) * LANES;
  vf total[MR][PV] = {};
  for (long g = 0; g < groups; g++, in += 512) {
    vi sum[MR][PV] = {};
    for (long c = 0; c < 8; c++) {
      fetch(in + c * 64);
      for (int j = 0; j < PV; j++) {
        const vu both = load_as<vu>(in + c * 64 + j * VF * 4);
        const vi low = bits_as<vi>(both & 0x0f0f0f0fu);
        const vi high = bits_as<vi>(both >> 4 & 0x0f0f0f0fu);
        for (int i = 0; i < MR; i++) {
          const int8_t* q = a.q + (row + i) * a.kp + g * GROUP + c * 4;
          sum[i][j] = dot_unsigned(sum[i][j], low, spread(q));
          sum[i][j] = dot_unsigned(sum[i][j], high, spread(q + 32));
        }
      }
    }
    for (int j = 0; j < PV; j++) {
      const vf scale = load(w.scale + g * np + n + j * VF);
      for (int i = 0; i < MR; i++)
        total[i][j] = fma(as_float(sum[i][j] - eights[i * groups + g]), scale, total[i][j]);
    }
  }
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < PV; j++)
      store(out + i * ldo + n + j * VF, total[i][j] * a.s[row + i]);
}

template <int MR>
inline void rows_i4(const Mat& w, const Act& a, long row, long n, long outputs, float* out,
                    long ldo) {
  static thread_local std::vector<int32_t> eights;
  const long groups = w.kp / GROUP;
  eights.assign(MR * groups, 0);
  for (long i = 0; i < MR; i++)
    for (long k = 0; k < w.kp; k++)
      eights[i * groups + k / GROUP] += 8 * a.q[(row + i) * a.kp + k];
  for (const long end = n + outputs; n < end; n += LANES)
    panel_i4<MR>(w, a, row, n, eights.data(), out, ldo);
}

// Up to MR rows at once.
template <int MR>
inline void few_rows_i4(const Mat& w, const Act& a, long row, long rows, long n, long outputs,
                        float* out, long ldo) {
  if (rows == MR) return rows_i4<MR>(w, a, row, n, outputs, out, ldo);
  if constexpr (MR > 1) few_rows_i4<MR - 1>(w, a, row, rows, n, outputs, out, ldo);
}

inline void linear_i4(const Mat& w, const Act& a, long row, long rows, long n, long outputs,
                      float* out, long ldo) {
  constexpr int MR = VF == 16 ? 4 : 2;
#if defined(__AMX_INT8__)
  if (rows > MR) return linear_blocks<Int4>(w, a, row, rows, n, outputs, out, ldo);
#endif
  for (; rows > 0; row += MR, rows -= MR, out += MR * ldo)
    few_rows_i4<MR>(w, a, row, std::min((long)MR, rows), n, outputs, out, ldo);
}

inline void linear_some(const Mat& w, const Act& a, long row, long rows, long n, long outputs,
                        float* out, long ldo) {
  switch (w.kind) {
    case F32:
      mm_f32(rows, outputs, w.k, a.f + row * a.kp, a.kp,
             static_cast<const float*>(w.data) + n * w.k, LANES * w.k, out + n, ldo, false);
      break;
    case BF16:
      mm_bf16(rows, outputs, w.kp, a.b + row * a.kp, a.kp,
              static_cast<const bf16*>(w.data) + n * w.kp, LANES * w.kp, out + n, ldo, false);
      break;
    case INT8:
      linear_i8(w, a, row, rows, n, outputs, out, ldo);
      break;
    case INT4:
      linear_i4(w, a, row, rows, n, outputs, out, ldo);
      break;
    case FP8:
      linear_blocks<Fp8>(w, a, row, rows, n, outputs, out, ldo);
      break;
  }
}

// out[i][n] for the rows row .. row + rows and the outputs 16 panel .. 16 end; `out` is output 0 of
// the first of these rows. Outputs from N on become zeros.
inline void linear(const Mat& w, const Act& a, long row, long rows, long panel, long end,
                   float* out, long ldo) {
  if (rows <= 0 || end <= panel) return;
  constexpr long CACHE = 1 << 20;  // of activations that meet all weights: half a second cache
  const long bytes = w.kind == F32 ? 4 : w.kind == BF16 || w.kind == FP8 ? 2 : 1;
  const long some = std::max(ROWS, CACHE / (w.kp * bytes) / ROWS * ROWS);
  for (long i = 0; i < rows; i += some)
    linear_some(w, a, row + i, std::min(some, rows - i), panel * LANES, (end - panel) * LANES,
                out + i * ldo, ldo);
  if (end * LANES > w.n)  // zero weights do not make zeros of NaN and infinity
    for (long i = 0; i < rows; i++)
      std::fill(out + i * ldo + w.n, out + i * ldo + end * LANES, 0.f);
}

}  // namespace ab
