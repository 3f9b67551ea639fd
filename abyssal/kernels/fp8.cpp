// Tiles of 128 FP8 numbers, and products of matrices made of them: fp8_tiles.py, fp8_product.py.
//
// A matrix has its rows one after another and a scale for each tile of a row, or for the tiles of
// 128 rows (weights). The functions that end in _columns make rows of columns: x (rows, columns)
// becomes (columns, rows), whose tiles are 128 rows of one column.
#include <omp.h>

#include <vector>

#include "fp8.h"
#include "pack.h"

using namespace ab;

namespace {

using bits = vi;  // of magnitudes: ordered like them, NaN last

inline bits larger(bits a, vf v) {
  const bits b = bits_as<bits>(vabs(v));
  return b > a ? b : a;
}

inline float largest(bits most) {
  int32_t top = 0;
  for (int lane = 0; lane < VF; lane++) top = most[lane] > top ? most[lane] : top;
  return bits_as<float>(top);
}

// x / scale, cut to what the format has.
template <Float8 F>
inline bytes quantized(vf x, vf scale) {
  const vf most = set1(F == E4M3 ? 448.f : 57344.f);
  return narrow8<F>(vmin(vmax(x / scale, -most), most));
}

inline void put_bytes(uint8_t* p, bytes v, Full) { std::memcpy(p, &v, sizeof v); }
inline void put_bytes(uint8_t* p, bytes v, long n) { std::memcpy(p, &v, n); }

template <class F>
inline void with_format(int64_t format, F f) {
  if (format == E4M3) f(std::integral_constant<Float8, E4M3>{});
  else f(std::integral_constant<Float8, E5M2>{});
}

// 128 rows (or fewer) of some columns, from `row` on.
template <class T, class F>
void encode_columns(const T* x, long ldx, long rows, long columns, long row, const float* scale,
                    F format, uint8_t* out) {
  const long count = std::min(TILE8, rows - row), block = row / TILE8, blocks = tiles(rows);
  alignas(64) uint8_t turned[TILE8 * VF];
  for_vectors(columns, [&](long j, auto lanes) {
    vf s = set1(1.f);
    for (long lane = 0; lane < (long)lanes; lane++) s[lane] = scale[(j + lane) * blocks + block];
    for (long i = 0; i < count; i++)
      put_bytes(turned + i * VF, quantized<F::value>(get(x + (row + i) * ldx + j, lanes), s),
                Full{});
    for (long lane = 0; lane < (long)lanes; lane++) {
      uint8_t* to = out + (j + lane) * rows + row;
      for (long i = 0; i < count; i++) to[i] = turned[i * VF + lane];
    }
  });
  (void)format;
}

}  // namespace

extern "C" {

// x (rows, columns), rows ldx apart -> the largest magnitude of each tile (rows, tiles).
void ab_fp8_amax(const void* x, int64_t ldx, int64_t rows, int64_t columns, int64_t is_bf16,
                 float* amax, int64_t threads) {
  const long across = tiles(columns);
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for num_threads(team(threads, rows * columns)) schedule(static)
    for (int64_t r = 0; r < rows; r++)
      for (long t = 0; t < across; t++) {
        const T* tile = (const T*)x + r * ldx + t * TILE8;
        bits most{};
        for_vectors(std::min(TILE8, columns - t * TILE8),
                    [&](long i, auto lanes) { most = larger(most, get(tile + i, lanes)); });
        amax[r * across + t] = largest(most);
      }
  });
}

// x (rows, columns) -> the same of its columns' tiles (columns, tiles of rows).
void ab_fp8_amax_columns(const void* x, int64_t ldx, int64_t rows, int64_t columns,
                         int64_t is_bf16, float* amax, int64_t threads) {
  const long down = tiles(rows);
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for num_threads(team(threads, rows * columns)) schedule(static)
    for (int64_t t = 0; t < down; t++)
      for_vectors(columns, [&](long j, auto lanes) {
        bits most{};
        for (long r = t * TILE8; r < std::min(rows, (t + 1) * TILE8); r++)
          most = larger(most, get((const T*)x + r * ldx + j, lanes));
        for (long lane = 0; lane < (long)lanes; lane++)
          amax[(j + lane) * down + t] = bits_as<vf>(most)[lane];
      });
  });
}

// x (rows, columns) and scale (rows, tiles) -> numbers (rows, columns).
void ab_fp8_encode(const void* x, int64_t ldx, int64_t rows, int64_t columns, int64_t is_bf16,
                   const float* scale, int64_t format, void* out, int64_t threads) {
  const long across = tiles(columns);
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
    with_format(format, [&](auto kind) {
#pragma omp parallel for num_threads(team(threads, rows * columns)) schedule(static)
      for (int64_t r = 0; r < rows; r++)
        for (long t = 0; t < across; t++) {
          const T* tile = (const T*)x + r * ldx + t * TILE8;
          uint8_t* to = (uint8_t*)out + r * columns + t * TILE8;
          const vf s = set1(scale[r * across + t]);
          for_vectors(std::min(TILE8, columns - t * TILE8), [&](long i, auto lanes) {
            put_bytes(to + i, quantized<decltype(kind)::value>(get(tile + i, lanes), s), lanes);
          });
        }
    });
  });
}

// x (rows, columns) and scale (columns, tiles of rows) -> numbers (columns, rows).
void ab_fp8_encode_columns(const void* x, int64_t ldx, int64_t rows, int64_t columns,
                           int64_t is_bf16, const float* scale, int64_t format, void* out,
                           int64_t threads) {
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
    with_format(format, [&](auto kind) {
#pragma omp parallel for num_threads(team(threads, rows * columns)) schedule(static)
      for (int64_t r = 0; r < rows; r += TILE8)
        encode_columns((const T*)x, ldx, rows, columns, r, scale, kind, (uint8_t*)out);
    });
  });
}

// numbers (rows, columns) and scale (rows, tiles) -> x (rows, columns), in float.
void ab_fp8_decode(const void* numbers, const float* scale, int64_t rows, int64_t columns,
                   int64_t format, float* x, int64_t threads) {
  const long across = tiles(columns);
#pragma omp parallel for num_threads(team(threads, rows * columns)) schedule(static)
  for (int64_t r = 0; r < rows; r++)
    for (long t = 0; t < across; t++) {
      const long at = r * columns + t * TILE8, count = std::min(TILE8, columns - t * TILE8);
      alignas(64) bf16 tile[TILE8];
      decode_tile((const uint8_t*)numbers + at, count, format, tile);
      const vf s = set1(scale[r * across + t]);
      for_vectors(count, [&](long i, auto lanes) {
        put(x + at + i, get(tile + i, lanes) * s, lanes);
      });
    }
}

// c (m, n) (+)= a (m, k) b^T, with b (n, k): the sums over each tile of k in float, times the two
// scales, added up in float. `rows_a` rows of a share their scales (m / rows_a, tiles), as `rows_b`
// of b do: 1 or 128.
void ab_fp8_product(const void* a, const float* scale_a, int64_t rows_a, int64_t format_a,
                    const void* b, const float* scale_b, int64_t rows_b, int64_t format_b,
                    int64_t m, int64_t n, int64_t k, float* c, int64_t ldc, int64_t accumulate,
                    int64_t threads) {
  constexpr long STRIP = 32, WIDE = 256;  // rows and outputs whose sums stay in the first caches
  const long blocks = tiles(k), kp = blocks * TILE8, np = round_up(n, LANES);
  static thread_local std::vector<bf16> packed;
  static thread_local std::vector<float> across;
  packed.resize(np * kp);
  across.resize(np * blocks);  // b's scales by block, then output
  bf16* panels = packed.data();
  float* scales = across.data();
#pragma omp parallel num_threads(team(threads, m * n * blocks))
  {
    Unit unit;
    static thread_local std::vector<bf16> held;
    held.resize(STRIP * kp);
    bf16* rows = held.data();
    auto decode = [&](const void* from, long row, long count, int64_t format) {
      for (long i = 0; i < count; i++)
        for (long t = 0; t < blocks; t++)
          decode_tile((const uint8_t*)from + (row + i) * k + t * TILE8,
                      std::min(TILE8, k - t * TILE8), format, rows + i * kp + t * TILE8);
    };
#pragma omp for schedule(static)
    for (long p = 0; p < np; p += LANES) {
      const long outputs = std::min(LANES, n - p);
      decode(b, p, outputs, format_b);
      pack_rows(rows, kp, outputs, kp, panels + p * kp);
      for (long t = 0; t < blocks; t++)
        for (long i = 0; i < LANES; i++)
          scales[t * np + p + i] = i < outputs ? scale_b[(p + i) / rows_b * blocks + t] : 0.f;
    }
    alignas(64) float sums[STRIP * WIDE], totals[STRIP * WIDE];
#pragma omp for schedule(static)
    for (long r = 0; r < m; r += STRIP) {
      const long some = std::min(STRIP, m - r);
      decode(a, r, some, format_a);
      for (long o = 0; o < np; o += WIDE) {
        const long wide = std::min(WIDE, np - o);
        for (long t = 0; t < blocks; t++) {
          mm_bf16(some, wide, std::min(TILE8, round_up(k - t * TILE8, STEP)), rows + t * TILE8, kp,
                  panels + o * kp + t * TILE8 * LANES, LANES * kp, sums, wide, false);
          for (long i = 0; i < some; i++) {
            const vf s = set1(scale_a[(r + i) / rows_a * blocks + t]);
            for (long j = 0; j < wide; j += VF) {
              const vf part = load(sums + i * wide + j) * s;
              float* to = totals + i * wide + j;
              store(to, fma(part, load(scales + t * np + o + j), t ? load(to) : vf{}));
            }
          }
        }
        for (long i = 0; i < some; i++) {
          float* to = c + (r + i) * ldc + o;
          for_vectors(std::min(wide, n - o), [&](long j, auto lanes) {
            const vf total = load(totals + i * wide + j);
            put(to + j, accumulate ? get(to + j, lanes) + total : total, lanes);
          });
        }
      }
    }
  }
}

}  // extern "C"
