// The memory of a pass: what it writes on its way, and how much of each.
#pragma once

#include <optional>

#include "stack_attention.h"
#include "stack_experts.h"

namespace ab {

// What belongs to the rows of a pass: one for all threads, or in a solo pass one for each.
struct RowWork {
  Buffer<float> x, weight, logits;
  Buffer<int32_t> chosen, row, token, start;
  Buffer<Piece> piece;
  RowsBuffer input, low, heads, head;
  long pieces = 0;
};

// What the layers of a pass have in common: the most that any of them needs.
struct Needs {
  int input = 0, low = 0, heads = 0, narrow = 0, experts = 0;  // forms
  long width = 0;                                              // of the widest SwiGLU
  bool routed = false;
};

// Everything a pass writes on its way; it stays for the next pass of the same stack.
struct Work {
  std::vector<RowWork> rows;
  Buffer<int32_t> first, table, position, slot;
  Buffer<float> y, logits, gate, up, experts;
  Buffer<float> down, latent, q, mixed, absorbed, sum;
  Buffer<bf16> turned, kv, k_rope;
  std::vector<Buffer<float>> scratch;
  std::vector<RowsBuffer> narrow_buffers, gathered_buffers;
  std::vector<Rows> narrow, gathered;
  std::optional<Needs> needs, needs_ahead;  // of the one model this works for
};

inline void add_needs(Needs& needs, const Layer& layer) {
  needs.input |= form(layer.q_a) | form(layer.kv_a) | form(layer.router);
  if (!layer.q_a.n) needs.input |= form(layer.q_b);
  needs.low |= form(layer.q_b);
  needs.heads |= form(layer.o);
  needs.narrow |= form(layer.absorb[0]) | form(layer.values[0]);
  for (const Feed* feed : {&layer.dense, layer.router.n ? layer.experts : &layer.dense}) {
    needs.input |= form_in(*feed);
    needs.experts |= form_in(*feed) | form(feed->down);
    needs.width = std::max<long>(needs.width, feed->gate.n);
  }
  needs.routed |= layer.router.n != 0;
}

inline const Needs& needs_of(const Model& model, const Pass& pass, Work& work) {
  std::optional<Needs>& needs = pass.before ? work.needs_ahead : work.needs;
  if (needs) return *needs;
  needs.emplace();
  if (pass.before) add_needs(*needs, model.ahead->layer);
  for (long i = 0; i < model.layers && !pass.before; i++) add_needs(*needs, model.layer[i]);
  return *needs;
}

inline AttentionWork attention_work(Work& work, RowWork& rows, const Model& m, const Pass& pass,
                                    const Needs& needs, const Rows& x) {
  const long T = pass.tokens, H = m.heads, W = m.latent + m.rope, ndv = m.nope + m.value;
  AttentionWork a{};
  a.x = x;
  a.low = rows.low.get(T, std::max<long>(m.query, 1), needs.low);
  a.down = work.down.get(T * round_up(m.query, 16) + 1);
  a.latent = work.latent.get(T * round_up(W, 16));
  a.q = work.q.get(T * round_up(H * (m.nope + m.rope), 16));
  a.mixed = work.mixed.get(T * H * m.value);
  long decoded = 0, longest = 0, unfolded = 0;
  for (long s = 0; s < pass.sequences; s++) {
    if (!is_unfolded(pass, s)) {
      decoded = 1;
      continue;
    }
    longest = std::max<long>(longest, pass.start[s] + pass.count[s]);
    unfolded = std::max<long>(unfolded, pass.count[s]);
  }
  if (decoded) {
    a.absorbed = work.absorbed.get(T * H * W);
    a.sum = work.sum.get(T * H * m.latent);
  }
  if (unfolded) {
    a.turned = work.turned.get(unfolded * H * (m.nope + m.rope));
    a.kv = work.kv.get(std::max(longest * ndv, std::min(longest * ndv * H, UNFOLDED_BYTES / 2)));
    a.k_rope = work.k_rope.get(longest * m.rope);
  }
  a.scratch = work.scratch.data();
  a.narrow = work.narrow.data();
  return a;
}

inline ExpertWork expert_work(Work& work, RowWork& rows, const Model& m, long T, const Needs& needs,
                              const Rows& x) {
  const long E = m.experts, K = needs.routed ? m.chosen : 0, all = T * (K + 1);
  ExpertWork e{};
  e.x = x;
  e.logits = (E <= LANES ? rows.logits : work.logits).get(T * round_up(E, 16));
  e.chosen = rows.chosen.get(T * K);
  e.weight = rows.weight.get(T * K);
  e.row = rows.row.get(T * K);
  e.token = rows.token.get(T * K);
  e.start = rows.start.get(E + 1);
  e.piece = rows.piece.get(all / PIECE + E + 2);
  e.pieces = &rows.pieces;
  e.gate = work.gate.get(all * round_up(needs.width, 16));
  e.up = work.up.get(all * round_up(needs.width, 16));
  e.y = work.experts.get(all * round_up(m.hidden, 16));
  e.gathered = work.gathered.data();
  e.scratch = work.scratch.data();
  return e;
}

inline void prepare_threads(Work& work, const Model& m, const Pass& pass, const Needs& needs) {
  const long threads = pass.threads;
  work.scratch.resize(threads);
  work.narrow_buffers.resize(threads);
  work.gathered_buffers.resize(threads);
  work.narrow.clear();
  work.gathered.clear();
  const long wide = std::max(m.hidden, needs.width);
  for (long i = 0; i < threads; i++) {
    work.narrow.push_back(
        work.narrow_buffers[i].get(TOGETHER, std::max(m.nope, m.latent), needs.narrow | HALVES));
    work.gathered.push_back(work.gathered_buffers[i].get(PIECE, wide, needs.experts));
  }
}

}  // namespace ab
