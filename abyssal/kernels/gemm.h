// Products of matrices, one thread: C (M, N) = A (M, K) B^T, with B (N, K) packed into panels.
//
// A panel holds 16 outputs n and all inputs k of B. In BF16 two inputs of one output stand side by
// side, so that 32 inputs are one tile of the AMX unit, and 64 bytes are what one VDPBF16PS takes:
//
//     bf16: (k, n) at ((k / 2) * 16 + n % 16) * 2 + k % 2        float: (k, n) at k * 16 + n % 16
//
// Every number of C is summed over k in one order, whatever M is and wherever its row stands: the
// result of a row does not depend on its company.
#pragma once

#include "simd.h"

namespace ab {

constexpr long LANES = 16;  // outputs of a panel
constexpr long STEP = 32;   // inputs of a BF16 tile

}  // namespace ab

#if defined(__AMX_BF16__)
#include "amx.h"
#endif

namespace ab {

// A thread that multiplies holds one of these, from the top of its parallel region on.
#if defined(__AMX_BF16__)
using Unit = amx::Tiles;
#else
struct Unit {
  Unit() {}
};
#endif

// C rows [0, MR), panels [0, NP): the block that fits the registers.
template <int MR, int NP>
inline void block_f32(long K, const float* A, long lda, const float* B, long panel, float* C,
                      long ldc, bool accumulate) {
  constexpr int PV = LANES / VF;  // vectors of a panel
  vf sum[MR][NP * PV];
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NP * PV; j++)
      sum[i][j] = accumulate ? load(C + i * ldc + j * VF) : vf{};
  for (long k = 0; k < K; k++) {
    vf b[NP * PV];
    for (int j = 0; j < NP * PV; j++) b[j] = load(B + (j / PV) * panel + k * LANES + (j % PV) * VF);
    for (int i = 0; i < MR; i++)
      for (int j = 0; j < NP * PV; j++) sum[i][j] = fma(set1(A[i * lda + k]), b[j], sum[i][j]);
  }
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NP * PV; j++) store(C + i * ldc + j * VF, sum[i][j]);
}

template <int MR, int NP>
inline void block_bf16(long K, const bf16* A, long lda, const bf16* B, long panel, float* C,
                       long ldc, bool accumulate) {
  constexpr int PV = LANES / VF;
  vf sum[MR][NP * PV];
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NP * PV; j++)
      sum[i][j] = accumulate ? load(C + i * ldc + j * VF) : vf{};
  for (long k = 0; k < K; k += 2) {
    const bf16* pairs = B + k * LANES;
#if defined(__AVX512BF16__)
    __m512bh b[NP];
    for (int j = 0; j < NP; j++) b[j] = (__m512bh)_mm512_loadu_si512(pairs + j * panel);
    for (int i = 0; i < MR; i++) {
      __m512bh a = (__m512bh)_mm512_set1_epi32(load_as<int32_t>(A + i * lda + k));
      for (int j = 0; j < NP; j++)
        sum[i][j] = (vf)_mm512_dpbf16_ps((__m512)sum[i][j], a, b[j]);
    }
#else
    for (int j = 0; j < NP * PV; j++) {
      vu both = load_as<vu>(pairs + (j / PV) * panel + (j % PV) * 2 * VF);
      vf even = bits_as<vf>(both << 16), odd = bits_as<vf>(both & 0xffff0000u);
      for (int i = 0; i < MR; i++) {
        const bf16* a = A + i * lda + k;
        sum[i][j] = fma(set1(to_float(a[0])), even, sum[i][j]);
        sum[i][j] = fma(set1(to_float(a[1])), odd, sum[i][j]);
      }
    }
#endif
  }
  for (int i = 0; i < MR; i++)
    for (int j = 0; j < NP * PV; j++) store(C + i * ldc + j * VF, sum[i][j]);
}

struct BlockF32 {
  using number = float;
  template <int MR, int NP>
  static void run(long K, const float* A, long lda, const float* B, long panel, float* C, long ldc,
                  bool accumulate) {
    block_f32<MR, NP>(K, A, lda, B, panel, C, ldc, accumulate);
  }
};

struct BlockBF16 {
  using number = bf16;
  template <int MR, int NP>
  static void run(long K, const bf16* A, long lda, const bf16* B, long panel, float* C, long ldc,
                  bool accumulate) {
    block_bf16<MR, NP>(K, A, lda, B, panel, C, ldc, accumulate);
  }
};

// All rows over NP panels, in blocks that keep their sums in registers.
template <class Block, int NP, class T = typename Block::number>
inline void rows_by_panels(long M, long K, const T* A, long lda, const T* B, long panel, float* C,
                           long ldc, bool accumulate) {
  constexpr int MR = VF == 16 ? 6 : 3;
  long m = 0;
  for (; m + MR <= M; m += MR)
    Block::template run<MR, NP>(K, A + m * lda, lda, B, panel, C + m * ldc, ldc, accumulate);
  for (; m + 2 <= M; m += 2)
    Block::template run<2, NP>(K, A + m * lda, lda, B, panel, C + m * ldc, ldc, accumulate);
  if (m < M)
    Block::template run<1, NP>(K, A + m * lda, lda, B, panel, C + m * ldc, ldc, accumulate);
}

template <class Block, class T = typename Block::number>
inline void mm_vectors(long M, long N, long K, const T* A, long lda, const T* B, long panel,
                       float* C, long ldc, bool accumulate) {
  constexpr int NP = VF == 16 ? 4 : 1;
  long n = 0;
  for (; n + NP * LANES <= N; n += NP * LANES)
    rows_by_panels<Block, NP>(M, K, A, lda, B + n / LANES * panel, panel, C + n, ldc, accumulate);
  for (; n < N; n += LANES)
    rows_by_panels<Block, 1>(M, K, A, lda, B + n / LANES * panel, panel, C + n, ldc, accumulate);
}

// C (M, N) (+)= A (M, K) B^T. N a multiple of 16, any K.
inline void mm_f32(long M, long N, long K, const float* A, long lda, const float* B,
                   long panel_stride, float* C, long ldc, bool accumulate) {
  mm_vectors<BlockF32>(M, N, K, A, lda, B, panel_stride, C, ldc, accumulate);
}

// The same in BF16, summed in float. K a multiple of 32: pad both with zeros.
inline void mm_bf16(long M, long N, long K, const bf16* A, long lda, const bf16* B,
                    long panel_stride, float* C, long ldc, bool accumulate) {
#if defined(__AMX_BF16__)
  amx::mm_bf16(M, N, K, A, lda, B, panel_stride, C, ldc, accumulate);
#else
  mm_vectors<BlockBF16>(M, N, K, A, lda, B, panel_stride, C, ldc, accumulate);
#endif
}

}  // namespace ab
