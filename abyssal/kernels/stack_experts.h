// The feed-forward of a layer, dense or routed (eq. 12-16 of arXiv 2412.19437), for all threads.
//
// Tokens are sorted by expert. Where many experts have work, each thread takes whole experts, some
// rows at a time; where few have, all threads share the outputs of one expert after the other.
#pragma once

#include "crew.h"
#include "router.h"

namespace ab {

// Rows of one expert that one thread does at once.
struct Piece {
  int32_t expert;  // E: the shared experts
  int32_t begin, end;
};

struct ExpertWork {
  Rows x;                // (T,) normed input
  float* logits;         // (T, Ep)
  int32_t* chosen;       // (T, K)
  float* weight;         // (T, K)
  int32_t *row, *token;  // (T, K) the sorted row of each choice; (T K,) the token of each row
  int32_t* start;        // (E + 1,) first row of each expert
  Piece* piece;          // what there is to do ...
  long* pieces;          // ... and how much
  float *gate, *up;      // (T (K+1), Fp)
  float* y;              // (T (K+1), Dp): of each row; the shared experts' come last
  Rows* gathered;        // of each thread: the inputs of a piece
  Buffer<float>* scratch;
};

constexpr long PIECE = 64;  // rows

// What a pass tells of the routing of a layer; null where nobody asks.
struct Told {
  int64_t* met;     // (E,): tokens of each expert are added
  int32_t* chosen;  // (T, K)
};

// Choices of each token; a dense layer is one whose shared experts do it all.
inline long choices(const Model& model, const Layer& layer) {
  return layer.router.n ? model.chosen : 0;
}

// Sort the choices of T tokens by expert, and cut them into pieces. One thread does it.
inline void sort_by_expert(const Model& model, const Layer& layer, long T, int64_t* met,
                           const ExpertWork& work) {
  const long E = model.experts, K = choices(model, layer);
  std::fill(work.start, work.start + E + 1, 0);
  for (long i = 0; i < T * K; i++) work.start[work.chosen[i] + 1]++;
  long pieces = 0;
  const auto cut = [&](long expert, long begin, long end) {
    for (long at = begin; at < end; at += PIECE)
      work.piece[pieces++] = {(int32_t)expert, (int32_t)at, (int32_t)std::min(at + PIECE, end)};
  };
  if (layer.dense.gate.n) cut(E, T * K, T * K + T);
  for (long e = 0; e < E; e++) {
    if (met) met[e] += work.start[e + 1];
    work.start[e + 1] += work.start[e];
    cut(e, work.start[e], work.start[e + 1]);
  }
  *work.pieces = pieces;
  std::vector<int32_t> next(work.start, work.start + E);
  for (long i = 0; i < T * K; i++) {
    const int32_t row = next[work.chosen[i]]++;
    work.row[i] = row;
    work.token[row] = (int32_t)(i / K);
  }
}

inline void copy_row(const Rows& from, long i, const Rows& to, long j) {
  const long kp = from.kp;
  if (to.f && from.f) std::memcpy(to.floats + j * kp, from.f + i * kp, kp * sizeof(float));
  if (to.b && from.b) std::memcpy(to.b + j * kp, from.b + i * kp, kp * sizeof(bf16));
  if (to.q && from.q) std::memcpy(to.q + j * kp, from.q + i * kp, kp);
  if (to.s && from.s) to.s[j] = from.s[i];
}

inline const Feed& feed_of(const Layer& layer, long expert, long E) {
  return expert == E ? layer.dense : layer.experts[expert];
}

// The inputs of a piece, in rows 0 .. of this thread's own buffer.
inline const Rows& gather_piece(const Model& model, const Layer& layer, long T,
                               const Piece& piece, const ExpertWork& work, int thread) {
  Rows& mine = work.gathered[thread];
  mine.kp = work.x.kp;
  for (long i = piece.begin; i < piece.end; i++) {
    const long row = i - T * choices(model, layer);
    copy_row(work.x, piece.expert == model.experts ? row : work.token[i], mine, i - piece.begin);
  }
  return mine;
}

// A whole piece by one thread: gate, up, their product, down.
inline void run_piece(const Model& model, const Layer& layer, long T, const Piece& piece,
                      const ExpertWork& work, int thread) {
  const Feed& feed = feed_of(layer, piece.expert, model.experts);
  const long rows = piece.end - piece.begin, F = feed.gate.n, Fp = round_up(F, 16);
  const Rows& x = gather_piece(model, layer, T, piece, work, thread);
  float* gate = work.scratch[thread].get(2 * rows * Fp);
  float* up = gate + rows * Fp;
  linear(feed.gate, x, 0, rows, 0, panels(feed.gate), gate, Fp);
  linear(feed.up, x, 0, rows, 0, panels(feed.up), up, Fp);
  Rows& middle = work.gathered[thread];
  middle.kp = round_up(F, 64);
  for (long i = 0; i < rows; i++) {
    swiglu_row(gate + i * Fp, up + i * Fp, gate + i * Fp, F);
    prepare_forms(middle, i, gate + i * Fp, F, form(feed.down));
  }
  const long Dp = round_up(model.hidden, 16);
  linear(feed.down, middle, 0, rows, 0, panels(feed.down), work.y + piece.begin * Dp, Dp);
}

// All threads on each piece in turn, every one with its share of the outputs.
inline void share_pieces(const Crew& crew, const Model& model, const Layer& layer, long T,
                         const ExpertWork& work) {
  const long Dp = round_up(model.hidden, 16), n = *work.pieces;
  long Fp = 0;
  for (long p = 0; p < n; p++)
    Fp = std::max(Fp, round_up(feed_of(layer, work.piece[p].expert, model.experts).gate.n, 16));
  const auto each = [&](auto step) {
    for (long p = 0; p < n; p++) {
      const Piece& piece = work.piece[p];
      step(piece, feed_of(layer, piece.expert, model.experts), piece.end - piece.begin);
    }
  };
  each([&](const Piece& piece, const Feed& feed, long rows) {
    const Share mine = crew.share(panels(feed.gate));
    if (mine.begin == mine.end) return;
    const Rows& x = gather_piece(model, layer, T, piece, work, crew.id);
    float *gate = work.gate + piece.begin * Fp, *up = work.up + piece.begin * Fp;
    linear(feed.gate, x, 0, rows, mine.begin, mine.end, gate, Fp);
    linear(feed.up, x, 0, rows, mine.begin, mine.end, up, Fp);
    const long begin = mine.begin * 16, end = std::min<long>(mine.end * 16, feed.gate.n);
    for (long i = 0; i < rows; i++) {
      float* row = gate + i * Fp + begin;
      swiglu_row(row, up + i * Fp + begin, row, end - begin);
    }
  });
  crew.wait();
  each([&](const Piece& piece, const Feed& feed, long rows) {
    const Share mine = crew.share(panels(feed.down));
    if (mine.begin == mine.end) return;
    Rows& middle = work.gathered[crew.id];
    middle.kp = round_up(feed.gate.n, 64);
    for (long i = 0; i < rows; i++)
      prepare_forms(middle, i, work.gate + (piece.begin + i) * Fp, feed.gate.n,
                    form(feed.down));
    linear(feed.down, middle, 0, rows, mine.begin, mine.end, work.y + piece.begin * Dp, Dp);
  });
}

// x (T, D) += shared(x) + sum over k of weight_k expert_k(x)
inline void add_experts(const Crew& crew, const Model& model, const Layer& layer, long T,
                        const ExpertWork& work, float* x) {
  const long K = choices(model, layer), D = model.hidden, Dp = round_up(D, 16);
  const Share mine = crew.rows(T);
  for (long t = mine.begin; t < mine.end; t++) {
    for (long k = 0; k < K; k++)
      add_scaled_row(x + t * D, work.weight[t * K + k], work.y + work.row[t * K + k] * Dp, D);
    if (layer.dense.gate.n) add_row(x + t * D, work.y + (T * K + t) * Dp, x + t * D, D);
  }
}

// x += the layer's feed-forward of work.x, the normed input; work.logits are the router's.
inline void feed_forward(Crew& crew, const Model& model, const Layer& layer, long T,
                        const Told& told, const ExpertWork& work, float* x) {
  const long E = model.experts, K = choices(model, layer), Ep = round_up(E, 16);
  const Share mine = crew.rows(K ? T : 0);
  for (long t = mine.begin; t < mine.end; t++)
    route(work.logits + t * Ep, layer.bias, E, model.groups, model.kept_groups, K,
          model.normalize != 0, (float)model.route_scale, work.chosen + t * K,
          work.weight + t * K);
  crew.gather();
  int64_t* counted = K && crew.id == 0 ? told.met : nullptr;
  if (told.chosen && crew.id == 0) std::copy_n(work.chosen, T * K, told.chosen);
  if (crew.solo || crew.id == 0) sort_by_expert(model, layer, T, counted, work);
  crew.gather();
  if (*work.pieces >= 8 * crew.threads) {
    crew.hand_out(*work.pieces, [&](long p) {
      run_piece(model, layer, T, work.piece[p], work, crew.id);
    });
  } else {
    share_pieces(crew, model, layer, T, work);
    crew.wait();
  }
  add_experts(crew, model, layer, T, work, x);
}

}  // namespace ab
