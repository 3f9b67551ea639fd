// What attention reads, and who computes which part of it: queries, keys and values gathered by
// head and laid out for products.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "pack.h"
#include "rows.h"

namespace ab::attention {

constexpr long ROWS = 32;   // queries of a block: what they need stays in the first cache
constexpr long KEYS = 128;  // keys of a block

// Rows q0 .. q0 + nq of the queries see rows k0 .. k0 + nk of the keys: query i, keys up to
// nk - nq + i.
struct Span {
  long q0, nq, k0, nk;
};

// Queries [first, last) of a span, for one head: what one thread does at a time.
struct Piece {
  Span span;
  long head, first, last;
};

// What is attended to. A row of q holds (N + R) numbers a head, one of kv (N + V), k_rope R for all.
struct Inputs {
  long heads, n, r, v;
  const bf16* q;
  long q_row;              // from a row to the next, in numbers
  const float *cos, *sin;  // (rows of q, R / 2): turns queries by these; null if they are turned
  const bf16* kv;
  long kv_row;
  const bf16* k_rope;  // turned
  long rope_row;
  float scale;  // above 0

  long d() const { return n + r; }
  long dp() const { return round_up(n + r, STEP); }
};

template <class T>  // float or bf16
struct Outputs {
  T* out;  // a row holds V numbers a head
  long out_row;
  float* lse;  // (rows of q, heads): log of the sum of e^score; or null
};

// Memory that grows, aligned for tiles.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  ~Buffer() { std::free(data_); }

  template <class T>
  T* of(long count) {
    const long bytes = round_up(count * (long)sizeof(T), 64);
    if (bytes > size_) {
      std::free(data_);
      data_ = std::aligned_alloc(64, bytes);
      size_ = data_ ? bytes : 0;
      if (!data_) std::abort();
    }
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  long size_ = 0;
};

// The numbers of a head: so few that calling memcpy would take longer.
inline void copy(const bf16* from, long n, bf16* to) {
  long i = 0;
  for (; i + 16 <= n; i += 16) std::memcpy(to + i, from + i, 32);
  for (; i < n; i++) to[i] = from[i];
}

inline void blank(bf16* to, long n) {
  for (long i = 0; i < n; i++) to[i] = 0;
}

// Keys [key, key + rows) of a head, k_nope and k_rope together, in rows of dp.
inline void gather_keys(const Inputs& in, long head, long key, long rows, bf16* out) {
  const long d = in.d(), dp = in.dp();
  for (long j = 0; j < rows; j++, out += dp) {
    copy(in.kv + (key + j) * in.kv_row + head * (in.n + in.v), in.n, out);
    copy(in.k_rope + (key + j) * in.rope_row, in.r, out + in.n);
    blank(out + d, dp - d);
  }
}

// Queries [row, row + rows) of a head, turned, in rows of dp.
inline void gather_queries(const Inputs& in, long head, long row, long rows, bf16* out) {
  const long d = in.d(), dp = in.dp(), half = in.r / 2;
  for (long i = 0; i < rows; i++, out += dp) {
    const bf16* q = in.q + (row + i) * in.q_row + head * d;
    if (in.cos) {
      copy(q, in.n, out);
      const long angles = (row + i) * half;
      rotate_row(q + in.n, in.cos + angles, in.sin + angles, out + in.n, half);
    } else {
      copy(q, d, out);
    }
    blank(out + d, dp - d);
  }
}

// X (rows, columns) -> out (columns, rows), rows filled up to a multiple of 32 with zeros.
inline void transpose_filled(const bf16* X, long ldx, long rows, long columns, bf16* out,
                             long ldo) {
  transpose(X, ldx, rows, columns, out, ldo);
  const long filled = round_up(rows, STEP);
  for (long j = 0; j < columns && rows < filled; j++)
    std::fill(out + j * ldo + rows, out + j * ldo + filled, 0);
}

// Whether all of X (rows, columns) are numbers that zero times them is zero.
inline bool finite(const bf16* X, long ldx, long rows, long columns) {
  for (long i = 0; i < rows; i++) {
    int bad = 0;
    for (long j = 0; j < columns; j++) bad |= (X[i * ldx + j] & 0x7f80) == 0x7f80;
    if (bad) return false;
  }
  return true;
}

// The keys and values of a head, as many as a piece sees.
struct Keys {
  bf16* k;     // (keys, dp)
  bf16* vt;    // blocks of (V, KEYS)
  char* safe;  // of each block: its values are finite
};

struct Scratch {
  Buffer keys, values, safe, queries, panels, scores, weights, sums, rows, more[8];
};

inline Scratch& scratch() {
  static thread_local Scratch one;
  return one;
}

inline Keys pack_keys(const Inputs& in, const Span& span, long head, long seen, Scratch& s) {
  const long blocks = (seen + KEYS - 1) / KEYS, dp = in.dp();
  Keys keys{s.keys.of<bf16>(blocks * KEYS * dp), s.values.of<bf16>(blocks * KEYS * in.v),
            s.safe.of<char>(blocks)};
  gather_keys(in, head, span.k0, seen, keys.k);
  std::memset(keys.k + seen * dp, 0, (blocks * KEYS - seen) * dp * 2);
  for (long block = 0; block < blocks; block++) {
    const long key = block * KEYS, rows = std::min(KEYS, seen - key);
    const bf16* v = in.kv + (span.k0 + key) * in.kv_row + head * (in.n + in.v) + in.n;
    transpose_filled(v, in.kv_row, rows, in.v, keys.vt + key * in.v, KEYS);
    keys.safe[block] = finite(v, in.kv_row, rows, in.v);
  }
  return keys;
}

// The spans of sequences laid end to end.
inline std::vector<Span> sequences(const int64_t* cu_seqlens, int64_t count) {
  std::vector<Span> spans;
  for (int64_t i = 0; i < count; i++) {
    const long start = cu_seqlens[i], size = cu_seqlens[i + 1] - start;
    if (size > 0) spans.push_back({start, size, start, size});
  }
  return spans;
}

// How much work a span is, in pairs of a query and a key.
inline double work(const Span& span) {
  return (double)span.nq * (span.nk - span.nq) + (double)span.nq * (span.nq + 1) / 2;
}

// All pieces of spans and heads, the largest first; long spans are cut so that `threads` threads,
// each taking the next, end together.
inline std::vector<Piece> pieces(const Span* spans, long count, long heads, long threads) {
  double total = 0;
  for (long i = 0; i < count; i++) total += work(spans[i]) * heads;
  const double most = total / (4 * threads);
  std::vector<Piece> all;
  for (long i = 0; i < count; i++) {
    const Span& span = spans[i];
    if (span.nq < 1) continue;
    const long cuts = std::min((long)(work(span) / most * 0.999), (span.nq - 1) / (8 * ROWS)) + 1;
    const long rows = round_up((span.nq + cuts - 1) / cuts, ROWS);
    for (long first = 0; first < span.nq; first += rows)
      for (long head = 0; head < heads; head++)
        all.push_back({span, head, first, std::min(first + rows, span.nq)});
  }
  auto cost = [](const Piece& p) {
    return (double)(p.last - p.first) * (p.span.nk - p.span.nq + (p.first + p.last) / 2);
  };
  std::stable_sort(all.begin(), all.end(),
                   [&](const Piece& a, const Piece& b) { return cost(a) > cost(b); });
  return all;
}

}  // namespace ab::attention
