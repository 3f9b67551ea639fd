// Absorbed attention over a cache in pages (see latent_attention.py), one thread.
//
//     C kv_lora_rank    R qk_rope_head_dim    W = C + R    H heads
//
// Scores are computed turned, S^T (tokens, rows) = L q^T, where a row is a head of a query: L is
// read where it lies, and every lane of a vector is a row of its own, so that no sum, maximum or
// mask of the softmax goes across lanes. Blocks of BLOCK tokens are counted from position 0 and
// taken in order, and every sum over tokens has one order: what a query gets depends on nothing but
// itself, its position and its latents, to the last bit.
//
// Latents of integers are read as BF16 over the scale of their c, which makes c exact; k_rope and
// the queries' part for it are not, and take two BF16 each, so that they keep 16 bits:
//     [c, high k, low k, high k] . [q, high q_rope, high q_rope, low q_rope]
#pragma once

#include <limits>

#include "latent_pages.h"
#include "latent_values.h"
#include "pack.h"
#include "scratch.h"

namespace ab {
namespace latent {

constexpr long ROWS = 256;  // rows (query, head) that are worked on together, or those of one query
constexpr float NOTHING = -std::numeric_limits<float>::infinity();

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
        read_(pool.kind == LATENT_INT8 ? pool.C + 3 * pool.R : pool.width()),
        inputs_(NARROW ? round_up(read_, STEP) : read_),
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
        const long filled = r + i < count ? read_ : 0;
        if (filled) place_query(pool_, q + query * q_stride + head * W, scale, row);
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
    const T* page = reinterpret_cast<const T*>(pool_.page(layer_, number));
    if (in_place_) return {page, W};
    for (long t = 0; t < tokens; t++) {
      T* row = copy_ + (at + t) * copied_;
      if constexpr (NARROW) {
        if (pool_.kind == LATENT_INT8) {
          for (long w = read_; w < copied_; w++) row[w] = 0;
          token_scale_[at + t] = read_integers(pool_, IntegerRow(pool_, layer_, number, t), row);
          continue;
        }
      }
      copy_row(page + t * W, W, row, copied_);
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
  const long read_;     // numbers of a token that scores are made of
  const long inputs_;   // the same, in whole steps of a product
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

}  // namespace latent

// One sequence's queries at positions start .. start + nq - 1, heads [h0, h1); query i sees the
// positions 0 .. start + i, whose latents are in pages table[0], table[1], ... Head h of query i
// is q + i * q_stride + h * W and gets out + i * out_stride + h * C. What the pool holds behind the
// last position does not matter; a NaN or an infinity at one of these queries' own positions may
// reach those before it too. The caller holds a Unit.
inline void latent_attend(const LatentPool& pool, long layer, const int32_t* table, long start,
                          long nq, long h0, long h1, const float* q, long q_stride, float scale,
                          float* out, long out_stride) {
  if (h1 <= h0) return;
  if (pool.kind == LATENT_F32)
    latent::attend<float>(pool, layer, table, start, nq, h0, h1, q, q_stride, scale, out,
                          out_stride);
  else
    latent::attend<bf16>(pool, layer, table, start, nq, h0, h1, q, q_stride, scale, out,
                         out_stride);
}

}  // namespace ab