// Cross-entropy of rows of logits, which become their own gradient in place.
#include <omp.h>

#include <limits>

#include "rows.h"

using namespace ab;

namespace {

constexpr float INF = std::numeric_limits<float>::infinity();

template <class T>
float largest(const T* x, long n) {
  vf most = set1(-INF);
  for_vectors(n, [&](long i, auto lanes) {
    most = vmax(most, first_or(get(x + i, lanes), lanes, -INF));
  });
  return hmax(most);
}

// exps[i] = e^(x[i] - most), and their sum
template <class T>
float exponentials(const T* x, float most, float* exps, long n) {
  vf sum[2] = {};
  for_vectors(n, [&](long i, auto lanes) {
    const vf e = first_or(vexp(get(x + i, lanes) - most), lanes, 0.f);
    put(exps + i, e, lanes);
    sum[i / VF % 2] += e;
  });
  return hsum(sum[0] + sum[1]);
}

// -log softmax(x)[label]; with `learning`, x becomes softmax(x) - onehot(label).
template <class T>
float row_loss(T* x, long label, float* exps, long n, bool learning) {
  const float most = largest(x, n), sum = exponentials(x, most, exps, n);
  const float loss = (most - to_float(x[label])) + std::log(sum);
  if (!learning) return loss;
  exps[label] -= sum;
  const float inverse = 1.f / sum;
  for_vectors(n, [&](long i, auto lanes) { put(x + i, get(exps + i, lanes) * inverse, lanes); });
  return loss;
}

}  // namespace

extern "C" {

// logits (rows, n) against labels (rows,): the losses (rows,), and their sum added to *total. With
// `learning`, logits become the gradient of that sum. Rows labeled `ignored` cost nothing and get
// zeros. `exps` (threads, n) is scratch. Returns how many labels are neither that nor below n; with
// any, nothing is done.
int64_t ab_cross_entropy(void* logits, const int64_t* labels, int64_t ignored, float* losses,
                      double* total, float* exps, int64_t rows, int64_t n, int64_t learning,
                      int64_t is_bf16, int64_t threads) {
  const auto is_wrong = [&](int64_t label) {
    return label != ignored && (label < 0 || label >= n);
  };
  if (const int64_t wrong = std::count_if(labels, labels + rows, is_wrong)) return wrong;
  const int members = team(threads, rows * n);
  with_type(is_bf16, [&](auto zero) {
    using T = decltype(zero);
#pragma omp parallel num_threads(members)
    {
      float* mine = exps + omp_get_thread_num() * n;
#pragma omp for schedule(static)
      for (int64_t r = 0; r < rows; r++) {
        T* row = (T*)logits + r * n;
        losses[r] = 0.f;
        if (labels[r] != ignored) losses[r] = row_loss(row, labels[r], mine, n, learning);
        else if (learning) std::fill(row, row + n, T{});
      }
    }
  });
  for (int64_t r = 0; r < rows; r++) *total += losses[r];
  return 0;
}

}  // extern "C"
