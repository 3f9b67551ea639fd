// Attention of a layer over the latent cache (eq. 1-11 of arXiv 2412.19437), for all threads.
//
//     c, k_rope -> cache        q = W_UQ norm(W_DQ x)
//     decoding: o = W_UV (softmax(W_UK^T q . l) c)        long spans: the same with keys unfolded
#pragma once

#include "attention.h"
#include "crew.h"

namespace ab {

constexpr long UNFOLD = 48;           // queries of a sequence from which on keys are unfolded
constexpr long UNFOLDED_BYTES = 1 << 26;  // keys and values of some heads, together in memory

// What the threads of a pass share while they are in the attention of a layer.
struct AttentionWork {
  Rows x, low;           // normed input; normed query of rank Q
  float *down, *latent;  // (T, Qp) and (T, Wp)
  float *q, *mixed;      // (T, H (N+R)) queries; (T, H V) padded
  float *absorbed, *sum; // (T, H, W) and (T, H, C) of decoding sequences
  bf16 *turned, *kv, *k_rope;  // queries of an unfolded sequence; its keys and values; its k_rope
  Buffer<float>* scratch;  // of each thread
  Rows* narrow;          // of each thread: rows of one head
};

// Which sequences of a pass are decoded over latents, and which are unfolded.
inline bool is_unfolded(const Pass& pass, long sequence) {
  return !pass.absorbed && pass.pool.kind != LATENT_F32 && pass.count[sequence] >= UNFOLD;
}

// Queries (not yet turned) of every token; its latent goes to the cache, normed and turned.
inline void project_down(const Crew& crew, const Model& model, const Pass& pass,
                         const Layer& layer, long number, const AttentionWork& work) {
  const long T = pass.tokens, Wp = round_up(model.latent + model.rope, 16);
  const long Qp = round_up(model.query, 16);
  if (model.query) project(crew, layer.q_a, work.x, T, work.down, Qp);
  project(crew, layer.kv_a, work.x, T, work.latent, Wp);
  crew.wait();
  const Share mine = crew.rows(T);
  Rows low = work.low;
  float* normed = work.scratch[crew.id].get(std::max(Qp, Wp));
  for (long t = mine.begin; t < mine.end; t++) {
    if (model.query) {
      norm_row(work.down + t * Qp, layer.q_norm, model.query, (float)model.latent_eps, normed);
      prepare_forms(low, t, normed, model.query, form(layer.q_b));
    }
    if (crew.solo && crew.id != t % crew.threads) continue;  // somebody else's to write
    const float* latent = work.latent + t * Wp;
    const long angle = pass.position[t] * (model.rope / 2);
    norm_row(latent, layer.kv_norm, model.latent, (float)model.latent_eps, normed);
    rotate_row(latent + model.latent, model.cosine + angle, model.sine + angle,
               normed + model.latent, model.rope / 2);
    latent_append(pass.pool, number, pass.slot[t] / LATENT_PAGE, pass.slot[t] % LATENT_PAGE,
                  normed);
  }
  crew.gather();
  project(crew, layer.q_b, model.query ? work.low : work.x, T, work.q,
          round_up(model.heads * (model.nope + model.rope), 16));
}

// Rows [begin, end) of the pass through head h's W_UK, and their turned halves beside.
inline void absorb(const Model& model, const Pass& pass, const Layer& layer, long h, long begin,
                   long end, const AttentionWork& work, int thread) {
  const long N = model.nope, R = model.rope, C = model.latent, W = C + R, H = model.heads;
  const long ldq = round_up(H * (N + R), 16), Cp = round_up(C, 16);
  const Mat& w = layer.absorb[h];
  Rows& x = work.narrow[thread];
  x.kp = round_up(N, 64);
  float* out = work.scratch[thread].get((end - begin) * Cp);
  for (long t = begin; t < end; t++)
    prepare_forms(x, t - begin, work.q + t * ldq + h * (N + R), N, form(w));
  linear(w, x, 0, end - begin, 0, panels(w), out, Cp);
  for (long t = begin; t < end; t++) {
    float* q = work.absorbed + (t * H + h) * W;
    std::memcpy(q, out + (t - begin) * Cp, C * sizeof(float));
    const long angle = pass.position[t] * (R / 2);
    rotate_row(work.q + t * ldq + h * (N + R) + N, model.cosine + angle, model.sine + angle, q + C,
               R / 2);
  }
}

// Rows [begin, end) of head h from mixed latents to values.
inline void unabsorb(const Model& model, const Layer& layer, long h, long begin, long end,
                     const AttentionWork& work, int thread) {
  const long C = model.latent, V = model.value, H = model.heads, Vp = round_up(V, 16);
  const Mat& w = layer.values[h];
  Rows& x = work.narrow[thread];
  x.kp = round_up(C, 64);
  float* out = work.scratch[thread].get((end - begin) * Vp);
  for (long t = begin; t < end; t++)
    prepare_forms(x, t - begin, work.sum + (t * H + h) * C, C, form(w));
  linear(w, x, 0, end - begin, 0, panels(w), out, Vp);
  for (long t = begin; t < end; t++)
    std::memcpy(work.mixed + t * H * V + h * V, out + (t - begin) * Vp, V * sizeof(float));
}

constexpr long TOGETHER = 64;  // of one head at a time

// Call work(begin, end) for runs of rows that belong to sequences of one sort.
template <class Work>
inline void decoded_rows(const Pass& pass, Work work) {
  for (long s = 0; s < pass.sequences;) {
    if (is_unfolded(pass, s)) {
      s++;
      continue;
    }
    const long begin = pass.first[s];
    while (s < pass.sequences && !is_unfolded(pass, s)) s++;
    const long end = s < pass.sequences ? pass.first[s] : pass.tokens;
    for (long t = begin; t < end; t += TOGETHER) work(t, std::min(t + TOGETHER, end));
  }
}

// The queries of one sequence, heads [h0, h1), against its latents.
inline void attend_latents(const Model& model, const Pass& pass, long number, long s, long h0,
                           long h1, const AttentionWork& work) {
  const long H = model.heads, W = model.latent + model.rope, t = pass.first[s];
  latent_attend(pass.pool, number, pass.pages + pass.table[s], pass.start[s], pass.count[s], h0,
                h1, work.absorbed + t * H * W, H * W, (float)model.softmax_scale,
                work.sum + t * H * model.latent, H * model.latent);
}

constexpr long FETCHED = 1 << 16;  // bytes of latents that are worth sending for

// Send for the latents of decoded sequences, to arrive while their queries are absorbed.
inline void fetch_latents(const Pass& pass, long number) {
  long left = FETCHED;
  for (long s = 0; s < pass.sequences; s++) {
    if (is_unfolded(pass, s)) continue;
    const long end = pass.start[s] + pass.count[s];
    for (long t = 0; t < end && left > 0; t += LATENT_PAGE) {
      const char* page = pass.pool.page(number, pass.pages[pass.table[s] + t / LATENT_PAGE]);
      const long tokens = std::min(LATENT_PAGE, end - t);
      const long bytes = tokens * pass.pool.page_stride_bytes / LATENT_PAGE;
      for (long i = 0; i < bytes; i += 64) __builtin_prefetch(page + i, 0, 2);
      left -= bytes;
    }
  }
}

// Sequences with few queries: every head reads the same latents.
inline void attend_absorbed(Crew& crew, const Model& model, const Pass& pass, const Layer& layer,
                            long number, const AttentionWork& work) {
  const long H = model.heads;
  long decoded = 0;
  for (long s = 0; s < pass.sequences; s++) decoded += !is_unfolded(pass, s);
  if (!decoded) return;
  const auto on_rows = [&](auto step) {
    return [&, step](long h) {
      decoded_rows(pass, [&](long begin, long end) { step(h, begin, end); });
    };
  };
  const auto into = on_rows([&](long h, long begin, long end) {
    absorb(model, pass, layer, h, begin, end, work, crew.id);
  });
  const auto out_of = on_rows([&](long h, long begin, long end) {
    unabsorb(model, layer, h, begin, end, work, crew.id);
  });
  if (decoded < 2 * crew.threads && H >= crew.threads) {  // few pages: each thread, its own heads
    const Share mine = crew.share(H);
    fetch_latents(pass, number);
    for (long h = mine.begin; h < mine.end; h++) into(h);
    for (long s = 0; s < pass.sequences; s++)
      if (!is_unfolded(pass, s)) attend_latents(model, pass, number, s, mine.begin, mine.end, work);
    for (long h = mine.begin; h < mine.end; h++) out_of(h);
    crew.wait();
    return;
  }
  crew.hand_out(H, into);
  crew.hand_out(pass.sequences, [&](long s) {
    if (!is_unfolded(pass, s)) attend_latents(model, pass, number, s, 0, H, work);
  });
  crew.hand_out(H, out_of);
}

// Positions [begin, end) of a sequence, heads [h0, h1): keys and values from their latents.
inline void unfold(const Model& model, const Pass& pass, const Layer& layer, long number, long s,
                   long begin, long end, long h0, long h1, const AttentionWork& work, int thread) {
  const long N = model.nope, V = model.value, C = model.latent, R = model.rope;
  const long width = (h1 - h0) * (N + V), Cp = round_up(C, 64), most = round_up(std::max(N, V), 16);
  Rows& x = work.narrow[thread];
  x.kp = Cp;
  std::memset(x.b, 0, (end - begin) * Cp * sizeof(bf16));
  for (long at = begin; at < end; at++)
    latent_read(pass.pool, number, pass.pages[pass.table[s] + at / 64], at % 64,
                x.b + (at - begin) * Cp, work.k_rope + at * R);
  float* out = work.scratch[thread].get((end - begin) * most);
  for (long h = h0; h < h1; h++)
    for (const bool value : {false, true}) {
      const Mat& w = value ? layer.values[h] : layer.keys[h];
      linear(w, x, 0, end - begin, 0, panels(w), out, most);
      for (long at = begin; at < end; at++) {
        bf16* to = work.kv + at * width + (h - h0) * (N + V) + (value ? N : 0);
        const float* from = out + (at - begin) * most;
        for (long i = 0; i < w.n; i += VF) {
          const long some = std::min<long>(VF, w.n - i);
          store_bf16_n(to + i, load_n(from + i, some), some);
        }
      }
    }
}

// One sequence with many queries, some heads at a time.
inline void attend_unfolded(Crew& crew, const Model& model, const Pass& pass,
                            const Layer& layer, long number, long s, const AttentionWork& work) {
  const long N = model.nope, R = model.rope, V = model.value, H = model.heads;
  const long nq = pass.count[s], nk = pass.start[s] + nq, ldq = round_up(H * (N + R), 16);
  const long together = std::clamp(UNFOLDED_BYTES / (nk * (N + V) * 2), 1L, H);
  crew.hand_out(nq, [&](long i) {
    const long t = pass.first[s] + i, angle = pass.position[t] * (R / 2);
    float* turned = work.scratch[crew.id].get(R);
    for (long h = 0; h < H; h++) {
      const float* q = work.q + t * ldq + h * (N + R);
      bf16* to = work.turned + (i * H + h) * (N + R);
      rotate_row(q + N, model.cosine + angle, model.sine + angle, turned, R / 2);
      for (long j = 0; j < N; j++) to[j] = to_bf16(q[j]);
      for (long j = 0; j < R; j++) to[N + j] = to_bf16(turned[j]);
    }
  });
  for (long h0 = 0; h0 < H; h0 += together) {
    const long h1 = std::min(h0 + together, H);
    crew.hand_out((nk + TOGETHER - 1) / TOGETHER, [&](long block) {
      unfold(model, pass, layer, number, s, block * TOGETHER, std::min((block + 1) * TOGETHER, nk), h0, h1,
             work, crew.id);
    });
    const attention::Inputs in{h1 - h0, N, R, V, work.turned + h0 * (N + R), H * (N + R), nullptr,
                               nullptr, work.kv, (h1 - h0) * (N + V), work.k_rope, R,
                               (float)model.softmax_scale};
    const attention::Outputs<float> out{work.mixed + (pass.first[s] * H + h0) * V, H * V, nullptr};
    const attention::Span span{0, nq, 0, nk};
    const auto pieces = attention::pieces(&span, 1, h1 - h0, crew.threads);
    crew.hand_out((long)pieces.size(), [&](long i) { attention::attend(in, out, pieces[i]); });
  }
}

}  // namespace ab
