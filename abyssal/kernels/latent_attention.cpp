// Absorbed attention for Python: the sequences of a pass, over all threads.
#include "latent_attention.h"

#include <vector>

using namespace ab;

namespace {

// Queries of one sequence, [first, first + count) of the pass, the first at position `start`.
struct Piece {
  long sequence, first, count, start;
};

// Pieces as long as attention takes at once; kept, so that a call allocates nothing.
const std::vector<Piece>& cut(const int64_t* starts, const int64_t* offsets, long S, long H) {
  static thread_local std::vector<Piece> pieces;
  pieces.clear();
  const long most = std::max(latent::ROWS / H, 1L);
  for (long s = 0; s < S; s++)
    for (long i = offsets[s]; i < offsets[s + 1]; i += most)
      pieces.push_back({s, i, std::min(most, offsets[s + 1] - i), starts[s] + i - offsets[s]});
  return pieces;
}

LatentPool one_layer(void* pages, long kind, long page_bytes, long C, long R) {
  return {pages, 0, page_bytes, kind, C, R};
}

}  // namespace

extern "C" {

// q (T, H, W) of S sequences after each other -> out (T, H, C). Sequence s has queries offsets[s]
// to offsets[s + 1] - 1, from position starts[s] on, and pages table[s * P], table[s * P + 1], ...
void ab_latent_attention(const float* q, void* pages, int64_t kind, int64_t page_bytes, int64_t C,
                         int64_t R, const int32_t* table, int64_t P, const int64_t* starts,
                         const int64_t* offsets, int64_t S, int64_t H, double scale, float* out,
                         int64_t threads) {
  const LatentPool pool = one_layer(pages, kind, page_bytes, C, R);
  const std::vector<Piece>& pieces = cut(starts, offsets, S, H);
  const long W = C + R, count = (long)pieces.size();
  const long parts = count < threads ? std::min<long>(threads, H) : 1;  // of the heads
#pragma omp parallel num_threads((int)std::min<long>(threads, count * parts))
  {
    Unit unit;
#pragma omp for schedule(dynamic, 1)
    for (long i = 0; i < count * parts; i++) {
      const Piece& piece = pieces[i / parts];
      const long part = i % parts, h0 = part * H / parts, h1 = (part + 1) * H / parts;
      latent_attend(pool, 0, table + piece.sequence * P, piece.start, piece.count, h0, h1,
                    q + piece.first * H * W, H * W, (float)scale, out + piece.first * H * C, H * C);
    }
  }
}

// latents (T, W) -> slot places[t] % 64 of page places[t] / 64 each.
void ab_latent_append(const float* latents, void* pages, int64_t kind, int64_t page_bytes,
                      int64_t C, int64_t R, const int64_t* places, int64_t T) {
  const LatentPool pool = one_layer(pages, kind, page_bytes, C, R);
  for (long t = 0; t < T; t++)
    latent_append(pool, 0, places[t] / LATENT_PAGE, places[t] % LATENT_PAGE,
                  latents + t * (C + R));
}

}  // extern "C"
