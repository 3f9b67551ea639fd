/* How fast this machine reads memory now: benchmarks/speed/calibration.py compiles and calls it.

   Every thread reads its own share of the buffer, in steps of a line of the caches and with eight
   accumulators, so that loads wait for memory and never for each other. */

#include <omp.h>
#include <stdint.h>
#include <time.h>

enum { LINES = 8, WORDS = 8 }; /* lines of 64 bytes a step, words of 8 bytes a line */
enum { AHEAD = 4096 };         /* bytes fetched ahead */

typedef uint64_t line __attribute__((vector_size(64), aligned(64)));

static double now_s(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds to read `bytes` at `data` (aligned to 64) `times` times; *sum keeps the reads alive. */
double read_s(const char *data, int64_t bytes, int64_t times, int threads, uint64_t *sum) {
  const int64_t step = LINES * sizeof(line), share = bytes / threads / step * step;
  double start = 0, end = 0;
  uint64_t total = 0;
#pragma omp parallel num_threads(threads) reduction(+ : total)
  {
    const char *mine = data + omp_get_thread_num() * share;
    line sums[LINES] = {{0}};
#pragma omp barrier
#pragma omp master
    start = now_s();
    for (int64_t t = 0; t < times; t++) {
      for (int64_t at = 0; at < share; at += step) {
        for (int i = 0; i < LINES; i++) {
          __builtin_prefetch(mine + at + AHEAD + i * sizeof(line));
          sums[i] ^= *(const line *)(mine + at + i * sizeof(line));
        }
      }
      __asm__ volatile("" ::: "memory"); /* read it again next time */
    }
    for (int i = 0; i < LINES; i++)
      for (int w = 0; w < WORDS; w++) total += sums[i][w];
#pragma omp barrier
#pragma omp master
    end = now_s();
  }
  *sum = total;
  return end - start;
}
