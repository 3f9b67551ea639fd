// Routing of a batch of tokens, forward and backward. Letters as in router.h, T tokens.
#include <algorithm>

#include "router.h"

using namespace ab;

namespace {

constexpr long FEW = 1 << 14;  // numbers that one thread is done with before others have begun

int team(long numbers, long threads) { return numbers < FEW ? 1 : (int)threads; }

// One token: grad (E) of its logits. For weights w_k = scale a_k / total, with total the sum of the
// a_k where they are normalized: d w_k / d a_j = scale / total * ([j = k] - a_k / total).
void token_backward(const float* affinity, const int64_t* experts, const float* grad_weights,
                    const float* grad_affinity, long E, long K, bool normalize, float scale,
                    float* grad) {
  if (grad_affinity) std::memcpy(grad, grad_affinity, E * sizeof *grad);
  else std::fill(grad, grad + E, 0.f);
  if (grad_weights) {
    float total = 1.f, along = 0.f;
    if (normalize) {
      float sum = 0.f;
      for (long k = 0; k < K; k++) sum += affinity[experts[k]];
      total = sum + 1e-20f;
      for (long k = 0; k < K; k++) along += grad_weights[k] * affinity[experts[k]] / total;
    }
    for (long k = 0; k < K; k++) grad[experts[k]] += (grad_weights[k] - along) * scale / total;
  }
  for (long e = 0; e < E; e++) grad[e] *= affinity[e] * (1.f - affinity[e]);
}

}  // namespace

// logits (T, E), bias (E) -> experts (T, K), weights (T, K), affinity (T, E).
extern "C" void ab_route(const float* logits, const float* bias, int64_t T, int64_t E,
                         int64_t groups, int64_t kept_groups, int64_t K, int64_t normalize,
                         double scale, int64_t* experts, float* weights, float* affinity,
                         int64_t threads) {
#pragma omp parallel num_threads(team(T * E, threads))
  {
    std::vector<int32_t> chosen(K);
#pragma omp for schedule(static)
    for (long t = 0; t < T; t++) {
      float* scores = affinity + t * E;
      router::affinities(logits + t * E, E, scores);
      router::choose(scores, bias, E, groups, kept_groups, K, chosen.data());
      router::weigh(scores, chosen.data(), K, normalize, (float)scale, weights + t * K);
      std::copy(chosen.begin(), chosen.end(), experts + t * K);
    }
  }
}

// grad (T, E) of the logits, given those of weights and affinity, each of which may be null.
extern "C" void ab_route_backward(const float* affinity, const int64_t* experts,
                                  const float* grad_weights, const float* grad_affinity, int64_t T,
                                  int64_t E, int64_t K, int64_t normalize, double scale,
                                  float* grad, int64_t threads) {
#pragma omp parallel for num_threads(team(T * E, threads)) schedule(static)
  for (long t = 0; t < T; t++)
    token_backward(affinity + t * E, experts + t * K, grad_weights ? grad_weights + t * K : nullptr,
                   grad_affinity ? grad_affinity + t * E : nullptr, E, K, normalize, (float)scale,
                   grad + t * E);
}
