// Absorbed attention over a cache in pages (see latent_attention.py), one thread.
//
//     C kv_lora_rank    R qk_rope_head_dim    W = C + R    H heads
//
// A page holds the latents of 64 tokens, W numbers each. In INT8 a token's numbers are integers
// times two scales, BF16, one for c and one for k_rope; 64 pairs follow the 64 rows of the page.
//
// Scores are computed turned, S^T (tokens, rows) = L q^T, where a row is a head of a query: L is
// read where it lies, and every lane of a vector is a row of its own, so that no sum, maximum or
// mask of the softmax goes across lanes. Blocks of BLOCK tokens are counted from position 0 and
// taken in order, and every sum over tokens has one order: what a query gets depends on nothing but
// itself, its position and its latents, to the last bit.
//
// The mixture P V needs two tokens of one column side by side, where a row of V has two columns of
// one token. On AMX, rather than to turn V, each weight is paired with a zero: (p, 0) times a pair
// of columns gives the even one, (0, p) the odd one. That is twice the products, on a unit that
// waits for memory anyway. Elsewhere V is packed into panels.
#pragma once

#include <cstdlib>
#include <limits>

#include "gemm.h"
#include "pack.h"
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

constexpr long BLOCK = 2 * LATENT_PAGE;  // tokens of one step of the softmax
constexpr long ROWS = 256;  // rows (query, head) that are worked on together, or those of one query
// Panels of values lie a line more apart, or all of them would share a few sets of the cache.
constexpr long PANEL = LANES * BLOCK + 32;
#if defined(__AMX_BF16__)
constexpr bool PAIRED = true;  // mixtures of V as it lies
#else
constexpr bool PAIRED = false;
#endif
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

// Memory of a thread, which grows and stays. Pieces are aligned to lines of the cache.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }

  void begin() { used_ = 0; }

  template <class T>
  T* take(long count) {
    const long at = used_;
    used_ += round_up(count * (long)sizeof(T), 64);
    return reinterpret_cast<T*>(used_ <= size_ ? memory_ + at : nullptr);
  }

  // Whether all pieces were given. If not, there is memory for them now: take them again.
  bool enough() {
    if (used_ <= size_) return true;
    std::free(memory_);
    size_ = round_up(used_, 4096);
    memory_ = static_cast<char*>(std::aligned_alloc(4096, size_));
    used_ = 0;
    return false;
  }

 private:
  char* memory_ = nullptr;
  long size_ = 0, used_ = 0;
};

inline Scratch& scratch() {
  static thread_local Scratch mine;
  return mine;
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

// A row of n numbers, filled up with zeros to `width`.
inline void copy_row(const bf16* x, long n, bf16* out, long width) {
#if defined(__AVX512BW__)
  for (long i = 0; i < width; i += 32) {
    const long some = std::clamp(n - i, 0L, 32L);
    const __mmask32 mask = (__mmask32)((1ull << some) - 1);
    _mm512_mask_storeu_epi16(out + i, (__mmask32)((1ull << std::min(32L, width - i)) - 1),
                             _mm512_maskz_loadu_epi16(mask, x + i));
  }
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

// The scales of a row in integers: of all of it, and what its rotary numbers are to be multiplied
// with besides. They have a scale of their own, as they are ten times as large.
struct RowScale {
  float whole, rotary;

  explicit RowScale(const bf16* scales) {
    const float c = to_float(scales[0]), r = to_float(scales[1]);
    whole = c != 0 ? c : r;
    rotary = whole != 0 ? r / whole : 0.f;
  }
};

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

// One call of latent_attend, for the rows of some of its queries.
template <class T>
class Pass {
  static constexpr bool NARROW = std::is_same<T, bf16>::value;
  static constexpr bool PAIRS = NARROW && PAIRED;
  static constexpr long WEIGHTS = PAIRS ? 4 * BLOCK : BLOCK;  // numbers that a row's weights take

 public:
  Pass(const LatentPool& pool, long layer, const int32_t* table, long start, long queries, long h0,
       long h1)
      : pool_(pool), layer_(layer), table_(table), start_(start), queries_(queries), h0_(h0),
        heads_(h1 - h0), rows_(round_up(queries * heads_, LANES)),
        inputs_(NARROW ? round_up(pool.width(), STEP) : pool.width()),
        columns_(round_up(pool.C, NARROW ? 2 * LANES : LANES)),
        in_place_(pool.kind != LATENT_INT8 && inputs_ == pool.width() && columns_ <= inputs_),
        copied_(in_place_ ? columns_ : std::max(inputs_, columns_)) {
    Scratch& own = scratch();
    own.begin();
    do {
      some_q_ = own.take<T>(LANES * inputs_);
      q_ = own.take<T>(rows_ * inputs_);
      copy_ = own.take<T>(BLOCK * copied_);
      weights_ = own.take<T>(rows_ * WEIGHTS);
      values_ = own.take<T>(PAIRS ? 0 : columns_ / LANES * PANEL);
      scores_ = own.take<float>(BLOCK * rows_);
      mixed_ = own.take<float>(rows_ * columns_);
      token_scale_ = own.take<float>(BLOCK);
      highest_ = own.take<float>(rows_);
      total_ = own.take<float>(rows_);
      shrink_ = own.take<float>(rows_);
      position_ = own.take<int32_t>(rows_);
    } while (!own.enough());
  }

  void run(const float* q, long q_stride, float scale, float* out, long out_stride) {
    begin(q, q_stride, scale);
    const long end = start_ + queries_;
    for (long t = 0; t < end; t += BLOCK) block(t, std::min(BLOCK, end - t));
    finish(out, out_stride);
  }

 private:
  void begin(const float* q, long q_stride, float scale) {
    const long W = pool_.width(), count = queries_ * heads_;
    for (long r = 0; r < rows_; r += LANES) {
      for (long i = 0; i < LANES; i++) {
        T* row = some_q_ + i * inputs_;
        const long query = (r + i) / heads_, head = h0_ + (r + i) % heads_;
        const long filled = r + i < count ? W : 0;
        if (filled) convert(q + query * q_stride + head * W, W, scale, row);
        std::memset(row + filled, 0, (inputs_ - filled) * sizeof(T));
        position_[r + i] = (int32_t)(start_ + std::min(query, queries_ - 1));
        highest_[r + i] = NOTHING;
        total_[r + i] = 0;
      }
      pack_rows(some_q_, inputs_, LANES, inputs_, q_ + r * inputs_);
    }
  }

  // Tokens [t0, t0 + count), which the rows from `first` on see, some of them not all.
  void block(long t0, long count) {
    const long unseen = std::max(t0 - start_, 0L) * heads_;
    const long first = unseen / LANES * LANES, padded = round_up(count, PAIRS ? TILE : STEP);
    if (!PAIRS) clear_values(count, padded);
    for (long t = 0; t < count; t += LATENT_PAGE)
      page(t0 + t, std::min(LATENT_PAGE, count - t), first, t);
    softmax(t0, count, padded, first);
    if (t0) rescale(first);
    mix(padded, first, t0 > 0);
  }

  // What no token is in multiplies weights of zero, and must not be NaN.
  void clear_values(long count, long padded) {
    if (count == padded) return;
    const long from = NARROW ? count / 2 * 2 : count;
    for (long p = 0; p < columns_ / LANES; p++)
      std::memset(values_ + p * PANEL + from * LANES, 0, (padded - from) * LANES * sizeof(T));
  }

  // The scores of a page's tokens, token `at` of the block and on, and their values.
  void page(long t0, long count, long first, long at) {
    const long tokens = round_up(count, LANES);  // as many as a page has, whatever they are
    const Latents<T> in = read(table_[t0 / LATENT_PAGE], tokens, at);
    mm(tokens, rows_ - first, inputs_, in.rows, in.stride, q_ + first * inputs_, LANES * inputs_,
       scores_ + at * rows_ + first, rows_, false);
    if constexpr (PAIRS) place_values(in, count, at);
    else pack_values(in, count, columns_, values_ + at * LANES);
  }

  Latents<T> read(long number, long tokens, long at) {
    const long W = pool_.width();
    const char* page = pool_.page(layer_, number);
    if (in_place_) return {reinterpret_cast<const T*>(page), W};
    for (long t = 0; t < tokens; t++) {
      T* row = copy_ + (at + t) * copied_;
      if constexpr (NARROW) {
        if (pool_.kind == LATENT_INT8) {
          const RowScale scale(reinterpret_cast<const bf16*>(page + LATENT_PAGE * W) + 2 * t);
          token_scale_[at + t] = scale.whole;
          const int8_t* integers = reinterpret_cast<const int8_t*>(page) + t * W;
          for (long w = W; w < copied_; w++) row[w] = 0;
          widen_row(integers, pool_.C, row);
          for (long w = pool_.C; w < W; w++) row[w] = to_bf16((float)integers[w] * scale.rotary);
          continue;
        }
      }
      copy_row(reinterpret_cast<const T*>(page) + t * W, W, row, copied_);
    }
    return {copy_ + at * copied_, copied_};
  }

  // Remember where tiles of values lie. In the last one, tokens that are none become zeros.
  void place_values(Latents<T> in, long count, long at) {
    for (long t = 0; t < count; t += TILE)
      tiles_[(at + t) / TILE] = {in.rows + t * in.stride, in.stride};
    const long some = count % TILE;
    if (!some) return;
    Latents<T>& last = tiles_[(at + count) / TILE];
    if (in_place_) {
      for (long t = 0; t < some; t++)
        copy_row(last.rows + t * in.stride, columns_, copy_ + t * copied_, copied_);
      last = {copy_, copied_};
    }
    const long from = last.rows - copy_ + some * copied_;
    std::memset(copy_ + from, 0, (TILE - some) * copied_ * sizeof(T));
  }

  void softmax(long t0, long count, long padded, long first) {
    const bool all_seen = t0 + count <= start_ + 1;
    const bool scaled = pool_.kind == LATENT_INT8;
    for (long r = first; r < rows_; r += LANES) {
      for (long v = r; v < r + LANES; v += VF) {
        if (all_seen && !scaled) lanes<false, false>(t0, count, padded, v);
        else if (all_seen) lanes<false, true>(t0, count, padded, v);
        else if (!scaled) lanes<true, false>(t0, count, padded, v);
        else lanes<true, true>(t0, count, padded, v);
      }
      turn(r, padded);
    }
  }

  // VF rows from v on: scores -> weights, in the same memory.
  template <bool MASKED, bool SCALED>
  void lanes(long t0, long count, long padded, long v) {
    float* column = scores_ + v;
    const vi position = load_as<vi>(position_ + v);
    const vf before = load(highest_ + v);
    vf most[4] = {before, before, before, before};
    for (long t = 0; t < count; t++) {
      vf s = load(column + t * rows_);
      if (SCALED) s *= token_scale_[t];
      if (MASKED) s = vi{} + (int32_t)(t0 + t) <= position ? s : set1(NOTHING);
      if (SCALED || MASKED) store(column + t * rows_, s);
      most[t % 4] = vmax(most[t % 4], s);
    }
    const vf highest = vmax(vmax(most[0], most[1]), vmax(most[2], most[3]));
    const vf shrink = vexp(before - highest);
    vf total = load(total_ + v) * shrink;
    auto weigh = [&](long t) {
      if (t >= count) return vf{};
      const vf p = vexp(load(column + t * rows_) - highest);
      total += p;
      return SCALED ? p * token_scale_[t] : p;
    };
    for (long t = 0; t < padded; t += 2) {
      const vf even = weigh(t), odd = weigh(t + 1);
      if (NARROW && !PAIRS) {
        store(column + t / 2 * rows_, bits_as<vf>(rounded(even) >> 16 | rounded(odd)));
      } else {
        store(column + t * rows_, PAIRS ? bits_as<vf>(rounded(even)) : even);
        store(column + (t + 1) * rows_, PAIRS ? bits_as<vf>(rounded(odd)) : odd);
      }
    }
    store(highest_ + v, highest);
    store(total_ + v, total);
    store(shrink_ + v, shrink);
  }

  // The weights of 16 rows from (token, row) to what the mixture reads.
  void turn(long r, long padded) {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(scores_ + r);
    uint32_t* to = reinterpret_cast<uint32_t*>(weights_ + r * WEIGHTS);
    if constexpr (PAIRS) {
      for (long t = 0; t < padded; t += TILE, to += 2 * TILE * LANES) {
        transpose16(from + t * rows_, rows_, to + TILE * LANES, LANES);
        pair_with_zeros(to);
      }
    } else {
      const long per_word = NARROW ? 2 : 1;
      transpose_words(from, rows_, padded / per_word, LANES, to, BLOCK / per_word);
    }
  }

  void rescale(long first) {
    for (long r = first; r < rows_; r++) {
      if (shrink_[r] == 1) continue;
      float* row = mixed_ + r * columns_;
      for (long c = 0; c < columns_; c += VF) store(row + c, load(row + c) * shrink_[r]);
    }
  }

  void mix(long padded, long first, bool accumulate) {
    if constexpr (PAIRS) {
      for (long r = first; r < rows_; r += LANES)
        mix_rows(padded / TILE, weights_ + r * WEIGHTS, tiles_, columns_, mixed_ + r * columns_,
                 accumulate);
    } else {
      mm(rows_ - first, columns_, padded, weights_ + first * BLOCK, BLOCK, values_, PANEL,
         mixed_ + first * columns_, columns_, accumulate);
    }
  }

  void finish(float* out, long out_stride) {
    for (long r = 0; r < queries_ * heads_; r++) {
      float* row = mixed_ + r * columns_;
      if constexpr (PAIRS)
        for (long c = 0; c < columns_; c += 32) reorder(row + c);
      float* to = out + r / heads_ * out_stride + (h0_ + r % heads_) * pool_.C;
      convert(row, pool_.C, 1 / total_[r], to);
    }
  }

  const LatentPool& pool_;
  const long layer_;
  const int32_t* table_;
  const long start_, queries_, h0_, heads_;
  const long rows_;     // queries * heads, in whole lanes
  const long inputs_;   // W, in whole steps of a product
  const long columns_;  // C, in whole panels
  const bool in_place_;
  const long copied_;                   // the width of a copied row
  Latents<T> tiles_[BLOCK / TILE + 1];  // values as they lie, where they are not packed
  T* some_q_;                           // (16, inputs)
  T* q_;                                // panels of all rows
  T* copy_;                             // (BLOCK, copied)
  T* weights_;                          // (rows, BLOCK), or tiles of 16 rows
  T* values_;                           // panels of `columns` outputs, BLOCK inputs
  float* scores_;                       // (BLOCK, rows); then weights
  float* mixed_;                        // (rows, columns)
  float* token_scale_;                  // (BLOCK,) of INT8
  float *highest_, *total_, *shrink_;   // (rows,)
  int32_t* position_;                   // (rows,)
};

template <class T>
inline void attend(const LatentPool& pool, long layer, const int32_t* table, long start, long nq,
                   long h0, long h1, const float* q, long q_stride, float scale, float* out,
                   long out_stride) {
  const long most = std::max(ROWS / (h1 - h0), 1L);
  for (long i = 0; i < nq; i += most) {
    Pass<T> pass(pool, layer, table, start + i, std::min(most, nq - i), h0, h1);
    pass.run(q + i * q_stride, q_stride, scale, out + i * out_stride, out_stride);
  }
}

// A row as integers times one scale, BF16, rounded up so that none exceeds 127. A row that holds
// anything infinite or NaN becomes NaN.
inline bf16 quantize(const float* x, long n, int8_t* out) {
  uint32_t most = 0;
  for (long i = 0; i < n; i++) most = std::max(most, bits_as<uint32_t>(x[i]) & 0x7fffffffu);
  std::memset(out, 0, n);
  if (most >= 0x7f800000u) return 0x7fc0;
  const bf16 rounded = (bf16)((bits_as<uint32_t>(bits_as<float>(most) / 127.f) + 0xffffu) >> 16);
  const float scale = to_float(rounded);
  if (scale > 0)
    for (long i = 0; i < n; i++) out[i] = (int8_t)std::nearbyint(x[i] / scale);
  return rounded;
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
    int8_t* row = reinterpret_cast<int8_t*>(at) + slot * W;
    bf16* scales = reinterpret_cast<bf16*>(at + LATENT_PAGE * W) + 2 * slot;
    scales[0] = latent::quantize(latent, pool.C, row);
    scales[1] = latent::quantize(latent + pool.C, pool.R, row + pool.C);
  }
}

// One sequence's queries at positions start .. start + nq - 1, heads [h0, h1); query i sees the
// positions 0 .. start + i, whose latents are in pages table[0], table[1], ... Head h of query i
// is q + i * q_stride + h * W and gets out + i * out_stride + h * C. What the pool holds behind the
// last position does not matter; a NaN or an infinity at one of these queries' own positions may
// reach those before it too. The caller holds a Unit.
inline void latent_attend(const LatentPool& pool, long layer, const int32_t* table, long start,
                          long nq, long H, long h0, long h1, const float* q, long q_stride,
                          float scale, float* out, long out_stride) {
  (void)H;
  if (h1 <= h0) return;
  if (pool.kind == LATENT_F32)
    latent::attend<float>(pool, layer, table, start, nq, h0, h1, q, q_stride, scale, out,
                          out_stride);
  else
    latent::attend<bf16>(pool, layer, table, start, nq, h0, h1, q, q_stride, scale, out,
                         out_stride);
}

}  // namespace ab
