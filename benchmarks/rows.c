// What memory gives to training: rows of a table at random places, read or updated, as the training kernels touch them.
// Compiled by bench_bandwidth.py with -O3 -march=native and DIM, a multiple of 16.
#include <stdint.h>

enum { kAhead = 48 };  // rows that are on their way to the cache, as sixteen samples of three rows

// Into the L2 cache: it waits for more lines at once than the L1 does, and random rows of large tables come up to twice
// as fast.
static inline void prefetch(const float* row) {
  for (int i = 0; i < DIM; i += 16) __builtin_prefetch(row + i, 0, 2);
}

// Adds up the rows ids[0 .. n) into sum [DIM], which stays in registers.
void read_rows(const float* table, const int32_t* ids, int64_t n, float* sum) {
  float total[DIM] = {0};
  for (int64_t r = 0; r < n; ++r) {
    if (r + kAhead < n) prefetch(table + (int64_t)ids[r + kAhead] * DIM);
    const float* row = table + (int64_t)ids[r] * DIM;
    for (int i = 0; i < DIM; ++i) total[i] += row[i];
  }
  for (int i = 0; i < DIM; ++i) sum[i] = total[i];
}

// row = keep * row + step, for the rows ids[0 .. n): read and written.
void update_rows(float* table, const int32_t* ids, int64_t n, float keep, float step) {
  for (int64_t r = 0; r < n; ++r) {
    if (r + kAhead < n) prefetch(table + (int64_t)ids[r + kAhead] * DIM);
    float* row = table + (int64_t)ids[r] * DIM;
    for (int i = 0; i < DIM; ++i) row[i] = keep * row[i] + step;
  }
}

// a * x + y on 16 numbers at a time, twelve chains of them: 384 n floating-point operations, none of them in memory.
void multiply_add(int64_t n, float* out) {
  typedef float Vector __attribute__((vector_size(64)));
  Vector a[12], x, y;
  for (int j = 0; j < 16; ++j) x[j] = 0.5f, y[j] = out[j];
  for (int i = 0; i < 12; ++i) a[i] = y * (float)i;
  for (int64_t r = 0; r < n; ++r)
    for (int i = 0; i < 12; ++i) a[i] = a[i] * x + y;
  Vector sum = a[0];
  for (int i = 1; i < 12; ++i) sum += a[i];
  for (int j = 0; j < 16; ++j) out[j] = sum[j];
}
