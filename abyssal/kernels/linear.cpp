// Weights into panels, and linear layers over them: linear.py.
#include <omp.h>

#include "linear.h"
#include "pack.h"
#include "team.h"

namespace ab {
namespace {

// 16 rows by 64 bytes, row-major, of one panel: inputs from `k` on of the outputs from `n` on.
// INT4 comes as a byte a number, or (halves) two: the even one in the low half.
struct Source {
  int64_t kind;
  const uint8_t* data;
  long n, k, row_bytes;
  bool halves;

  long size() const { return kind == F32 ? 4 : kind == BF16 ? 2 : 1; }

  void copy(long output, long k0, uint8_t* to) const {
    const long inputs = std::clamp(k - k0, 0L, 64 / size());
    const uint8_t* row = data + output * row_bytes;
    if (!halves) {
      std::memcpy(to, row + k0 * size(), inputs * size());
    } else {
      const uint8_t* pairs = row + k0 / 2;
      for (long i = 0; i < inputs / 2; i++) {
        to[2 * i] = pairs[i] & 15;
        to[2 * i + 1] = pairs[i] >> 4;
      }
      if (inputs % 2) to[inputs - 1] = pairs[inputs / 2] & 15;
    }
  }

  // The words transposed: 16 rows of 16 outputs.
  void read(long output, long k0, uint32_t* tile) const {
    const long outputs = std::min(LANES, n - output), bytes = (k - k0) * size();
    const uint8_t* from = data + output * row_bytes + k0 * size();
    const bool whole = outputs == LANES && bytes >= 64 && !halves && row_bytes % 4 == 0;
    if (whole && reinterpret_cast<uintptr_t>(from) % 4 == 0)
      return transpose16(reinterpret_cast<const uint32_t*>(from), row_bytes / 4, tile, LANES);
    alignas(64) uint32_t rows[LANES * 16];
    std::memset(rows, kind == INT4 ? 8 : 0, sizeof rows);  // 8 is INT4's zero
    for (long i = 0; i < outputs; i++)
      copy(output + i, k0, reinterpret_cast<uint8_t*>(rows + i * 16));
    transpose16(rows, 16, tile, LANES);
  }
};

// A tile in the order of INT8 becomes what stands in the panel; returns what it takes.
long write(int64_t kind, const uint32_t* tile, uint8_t* out) {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(tile);
  if (kind == INT4) {
    for (long i = 0; i < 512; i++) out[i] = (uint8_t)(bytes[i] | bytes[i + 512] << 4);
    return 512;
  }
  if (kind == FP8) {  // pairs of inputs, where INT8 has four
    uint16_t* pairs = reinterpret_cast<uint16_t*>(out);
    for (long i = 0; i < 16; i++, pairs += 2 * LANES)
      for (long n = 0; n < LANES; n++) {
        pairs[n] = (uint16_t)tile[i * LANES + n];
        pairs[LANES + n] = (uint16_t)(tile[i * LANES + n] >> 16);
      }
    return 1024;
  }
  std::memcpy(out, bytes, 1024);
  return 1024;
}

void pack_panel(const Source& from, long n, long kp, uint8_t* out, int32_t* sums) {
  const long step = 64 / from.size();
  vi sum[LANES / VF] = {};
  alignas(64) uint32_t tile[LANES * 16];
  for (long k = 0; k < kp; k += step) {
    from.read(n, k, tile);
    if (from.kind == F32 && kp - k < step) {
      std::memcpy(out, tile, (kp - k) * LANES * 4);
    } else {
      out += write(from.kind, tile, out);
    }
    if (sums)
      for (long i = 0; i < LANES * 16; i += VF)
        sum[i / VF % (LANES / VF)] =
            dot_unsigned(sum[i / VF % (LANES / VF)], vi{} + 0x01010101, load_as<vi>(tile + i));
  }
  if (sums) std::memcpy(sums, sum, sizeof sum);
}

}  // namespace
}  // namespace ab

// W (n, k) in rows, `row_bytes` apart, to panels; `sums` (Np,) of INT8's outputs, or null.
extern "C" void ab_pack_linear(int64_t kind, const void* weight, int64_t row_bytes, int64_t halves,
                               int64_t n, int64_t k, int64_t kp, void* out, int32_t* sums,
                               int64_t threads) {
  using namespace ab;
  const Source from{kind, static_cast<const uint8_t*>(weight), n, k, row_bytes, halves != 0};
  const long number = kind == FP8 ? 1 : from.size(), panel = LANES * kp * number;
  const long stride = kind == INT4 ? panel / 2 : panel, count = (n + LANES - 1) / LANES;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long p = 0; p < count; p++)
    pack_panel(from, p * LANES, kp, static_cast<uint8_t*>(out) + p * stride,
               sums ? sums + p * LANES : nullptr);
}

// x (rows, k) -> out (rows, Np), threads side by side over the panels, or over the rows.
extern "C" void ab_linear(const void* mat, const float* x, int64_t rows, float* out,
                          int64_t by_rows, int64_t threads) {
  using namespace ab;
  static thread_local std::vector<float> f, s;
  static thread_local std::vector<bf16> b;
  static thread_local std::vector<int8_t> q;
  Mat w;
  std::memcpy(&w, mat, sizeof w);
  const long kp = round_up(w.k, GROUP), count = panels(w);
  f.assign(w.kind == F32 ? rows * kp : 0, 0.f);
  b.resize(rows * kp);
  q.resize(rows * kp);
  s.resize(rows);
  for (long i = 0; i < (w.kind == F32 ? rows : 0); i++)
    std::copy(x + i * w.k, x + (i + 1) * w.k, f.data() + i * kp);
  Act a{rows, kp, f.data(), b.data(), q.data(), s.data()};
#pragma omp parallel num_threads(threads)
  {
    Unit unit;
    const int id = omp_get_thread_num(), all = omp_get_num_threads();
    const Share mine(rows, id, all);
    for (long i = mine.begin; i < mine.end; i++) prepare(a, i, x + i * w.k, w.k, (int)w.kind);
#pragma omp barrier
    const Share share(by_rows ? rows : count, id, all);
    const long begin = share.begin, many = share.end - share.begin;
    if (by_rows)
      linear(w, a, begin, many, 0, count, out + begin * count * LANES, count * LANES);
    else
      linear(w, a, 0, rows, begin, share.end, out, count * LANES);
  }
}
