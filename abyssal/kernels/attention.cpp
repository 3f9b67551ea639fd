// Latent attention of a training pass, forward; attention_backward.cpp has the way back.
#include "attention.h"

#include <atomic>

using namespace ab;
using namespace ab::attention;

// q (T, H, N+R), kv (T, H, N+V), k_rope (T, R) with rows of rope_row, cos and sin (T, R/2)
// -> turned (T, R): k_rope turned; out (T, H, V); lse (T, H). Sequences lie end to end.
extern "C" void ab_mla_attention(const bf16* q, const bf16* kv, const bf16* k_rope,
                                 int64_t rope_row, const float* cos, const float* sin,
                                 const int64_t* cu_seqlens, int64_t count, int64_t heads, int64_t n,
                                 int64_t r, int64_t v, double scale, bf16* turned, bf16* out,
                                 float* lse, int64_t threads) {
  const std::vector<Span> spans = sequences(cu_seqlens, count);
  const std::vector<Piece> all = pieces(spans.data(), (long)spans.size(), heads, threads);
  const Inputs in{heads, n,  r,           v,      q, heads * (n + r), cos,
                  sin,   kv, heads * (n + v), turned, r, (float)scale};
  const Outputs<bf16> to{out, heads * v, lse};
  std::atomic<size_t> next{0};
#pragma omp parallel num_threads((int)threads)
  {
    Unit unit;
#pragma omp for
    for (int64_t t = cu_seqlens[0]; t < cu_seqlens[count]; t++)
      rotate_row(k_rope + t * rope_row, cos + t * (r / 2), sin + t * (r / 2), turned + t * r, r / 2);
    for (size_t i; (i = next++) < all.size();) attend(in, to, all[i]);
  }
}
