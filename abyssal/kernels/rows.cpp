// RMSNorm, SwiGLU and rotary embedding, forward and backward, in float32 or BF16.
#include "rows.h"

using namespace ab;

namespace {

constexpr long BLOCK = 32;  // rows whose share of the gain's gradient is summed by one thread

// One row's gradient, and its share of the gain's gradient added to `grad_weight`.
template <class T>
void rms_norm_row_backward(const T* x, const T* weight, float scale, const T* grad,
                           const T* grad_sum, T* grad_x, float* grad_weight, long n) {
  vf dot{};
  for_vectors(n, [&](long i, auto lanes) {
    const vf unit = get(x + i, lanes) * scale, g = get(grad + i, lanes);
    dot = fma(unit * g, get(weight + i, lanes), dot);
    put(grad_weight + i, fma(unit, g, get(grad_weight + i, lanes)), lanes);
  });
  const float along = hsum(dot) / (float)n;
  for_vectors(n, [&](long i, auto lanes) {
    const vf unit = get(x + i, lanes) * scale;
    vf out = (get(grad + i, lanes) * get(weight + i, lanes) - unit * along) * scale;
    if (grad_sum) out += get(grad_sum + i, lanes);
    put(grad_x + i, out, lanes);
  });
}

}  // namespace

extern "C" {

// x (rows, n) with rows ldx apart -> y (rows, n), and the scale (rows,) that backward needs.
// With `other` (rows, n): total = x + other is written, and y is its norm.
void ab_rms_norm(const void* x, int64_t ldx, const void* other, void* total, const void* weight,
                 double eps, void* y, float* scale, int64_t rows, int64_t n, int64_t is_bf16,
                 int64_t threads) {
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for num_threads(team(threads, rows * n)) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      const T* row = (const T*)x + r * ldx;
      if (other) {
        T* sum = (T*)total + r * n;
        add_row(row, (const T*)other + r * n, sum, n);
        row = sum;
      }
      scale[r] = rms_scale(row, n, (float)eps);
      scale_row(row, (const T*)weight, scale[r], (T*)y + r * n, n);
    }
  });
}

// grad (rows, n) of y and, where given, grad_sum (rows, n) of x itself -> grad_x, grad_weight (n,).
// `partial` (ceil(rows / 32), n) is scratch: blocks of rows are summed apart, then in order.
void ab_rms_norm_backward(const void* x, int64_t ldx, const void* weight, const float* scale,
                          const void* grad, const void* grad_sum, void* grad_x, float* partial,
                          void* grad_weight, int64_t rows, int64_t n, int64_t is_bf16,
                          int64_t threads) {
  const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for num_threads(team(threads, rows * n)) schedule(static)
    for (int64_t block = 0; block < blocks; block++) {
      float* sum = partial + block * n;
      std::fill(sum, sum + n, 0.f);
      for (int64_t r = block * BLOCK; r < std::min(rows, (block + 1) * BLOCK); r++)
        rms_norm_row_backward((const T*)x + r * ldx, (const T*)weight, scale[r],
                              (const T*)grad + r * n,
                              grad_sum ? (const T*)grad_sum + r * n : nullptr,
                              (T*)grad_x + r * n, sum, n);
    }
    for_vectors(n, [&](long i, auto lanes) {
      vf sum{};
      for (int64_t block = 0; block < blocks; block++) sum += get(partial + block * n + i, lanes);
      put((T*)grad_weight + i, sum, lanes);
    });
  });
}

// gate_up (rows, 2 n) -> silu(gate) * up (rows, n)
void ab_swiglu(const void* gate_up, void* out, int64_t rows, int64_t n, int64_t is_bf16,
               int64_t threads) {
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for num_threads(team(threads, rows * n)) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      const T* gate = (const T*)gate_up + r * 2 * n;
      swiglu_row(gate, gate + n, (T*)out + r * n, n);
    }
  });
}

void ab_swiglu_backward(const void* gate_up, const void* grad, void* grad_gate_up, int64_t rows,
                        int64_t n, int64_t is_bf16, int64_t threads) {
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for num_threads(team(threads, rows * n)) schedule(static)
    for (int64_t r = 0; r < rows; r++) {
      const T* gate = (const T*)gate_up + r * 2 * n;
      T* out = (T*)grad_gate_up + r * 2 * n;
      swiglu_row_backward(gate, gate + n, (const T*)grad + r * n, out, out + n, n);
    }
  });
}

// x (tokens, heads, 2 pairs), whose tokens and heads begin token_stride and head_stride numbers
// apart, turned by the angles of cos and sin (tokens, pairs) -> y, contiguous. `back` is the way of
// gradients: from y's layout, turned the other way, to x's.
void ab_rotate(const void* x, int64_t token_stride, int64_t head_stride, const float* cos,
               const float* sin, void* y, int64_t tokens, int64_t heads, int64_t pairs,
               int64_t back, int64_t is_bf16, int64_t threads) {
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel for num_threads(team(threads, tokens * heads * pairs)) schedule(static)
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t h = 0; h < heads; h++) {
        const T* in = (const T*)x + t * token_stride + h * head_stride;
        T* out = (T*)y + (t * heads + h) * 2 * pairs;
        const float *c = cos + t * pairs, *s = sin + t * pairs;
        if (back) rotate_row_back(in, c, s, out, pairs);
        else rotate_row(in, c, s, out, pairs);
      }
  });
}

}  // extern "C"
