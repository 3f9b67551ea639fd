// AdamW over flat arrays: each number's master, moments and working copy in one pass.
#include <vector>

#include "rows.h"

using namespace ab;

namespace {

constexpr long BLOCK = 1 << 14;  // numbers of one piece of work; sums of blocks are added in order

inline vf vsqrt(vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif defined(__AVX__)
  return (vf)_mm256_sqrt_ps((__m256)x);
#elif defined(__SSE__)
  return (vf)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < VF; i++) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

// f(begin, count) for every block of n numbers, shared out among threads.
template <class F>
void for_blocks(long n, int64_t threads, F f) {
  const long blocks = (n + BLOCK - 1) / BLOCK;
#pragma omp parallel for num_threads(team(threads, n)) schedule(static)
  for (long b = 0; b < blocks; b++) f(b * BLOCK, std::min(BLOCK, n - b * BLOCK));
}

struct Step {
  float rate, keep, eps, scale;                    // scale: of the gradient
  float add_first, keep_second, add_second, inverse_root;  // 1 - b1, b2, 1 - b2
};

template <class G, class M>
void move(const Step& s, float* master, const G* grad, M* first, M* second, bf16* working, long n) {
  for_vectors(n, [&](long i, auto lanes) {
    const vf g = grad ? get(grad + i, lanes) * s.scale : vf{};
    vf m = get(first + i, lanes), v = get(second + i, lanes);
    m = fma(g - m, set1(s.add_first), m);
    v = fma(g * g, set1(s.add_second), v * s.keep_second);
    put(first + i, m, lanes);
    put(second + i, v, lanes);
    const vf w = get(master + i, lanes) * s.keep - m / (vsqrt(v) * s.inverse_root + s.eps) * s.rate;
    put(master + i, w, lanes);
    if (working) put(working + i, w, lanes);
  });
}

}  // namespace

extern "C" {

// One step of n numbers: float32 masters; moments in BF16 or float32; the gradient in BF16 or
// float32, or null for zeros, taken times grad_scale; `working`, null or BF16, becomes the rounded
// master.
// rate: lr / (1 - b1^t), keep: 1 - lr * decay, root: sqrt(1 - b2^t).
void ab_adamw(float* master, const void* grad, int64_t grad_bf16, double grad_scale, void* first,
              void* second, int64_t moments_bf16, bf16* working, int64_t n, double rate,
              double keep, double b1, double b2, double eps, double root, int64_t threads) {
  const Step step{(float)rate,     (float)keep, (float)eps,      (float)grad_scale,
                  (float)(1 - b1), (float)b2,   (float)(1 - b2), (float)(1 / root)};
  with_type(grad_bf16, [&](auto g) {
    with_type(moments_bf16, [&](auto m) {
      using G = decltype(g);
      using M = decltype(m);
      for_blocks(n, threads, [&](long i, long count) {
        move(step, master + i, grad ? (const G*)grad + i : nullptr, (M*)first + i,
             (M*)second + i, working ? working + i : nullptr, count);
      });
    });
  });
}

// *total += the sum of squares of x (n,)
void ab_sum_of_squares(const void* x, double* total, int64_t n, int64_t is_bf16, int64_t threads) {
  static thread_local std::vector<double> sums;
  sums.resize((n + BLOCK - 1) / BLOCK);
  double* const out = sums.data();
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
    for_blocks(n, threads, [&](long i, long count) {
      out[i / BLOCK] = sum_of_squares((const T*)x + i, count);
    });
  });
  for (double sum : sums) *total += sum;
}

// sum (n,) = x + y, in float32
void ab_sum(const void* x, int64_t x_bf16, const void* y, int64_t y_bf16, float* sum, int64_t n,
            int64_t threads) {
  with_type(x_bf16, [&](auto a) {
    with_type(y_bf16, [&](auto b) {
      using X = decltype(a);
      using Y = decltype(b);
      for_blocks(n, threads, [&](long begin, long count) {
        for_vectors(count, [&](long i, auto lanes) {
          const long at = begin + i;
          put(sum + at, get((const X*)x + at, lanes) + get((const Y*)y + at, lanes), lanes);
        });
      });
    });
  });
}

// out (n,) BF16 = x (n,) float32 * factor
void ab_scaled(const float* x, double factor, bf16* out, int64_t n, int64_t threads) {
  for_blocks(n, threads, [&](long begin, long count) {
    for_vectors(count, [&](long i, auto lanes) {
      put(out + begin + i, get(x + begin + i, lanes) * (float)factor, lanes);
    });
  });
}

}  // extern "C"
