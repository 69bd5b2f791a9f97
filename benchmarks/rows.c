// What memory gives to training: rows of a table at random places, read or updated, as the training kernels touch them.
// Compiled by bench_bandwidth.py with -O3 -march=native; a row has a multiple of 16 floats.
#include <stdint.h>

enum { kAhead = 32 };  // rows that are on their way to the cache, as two blocks of sixteen samples

static void prefetch(const float* row, int64_t dim) {
  for (int64_t i = 0; i < dim; i += 16) __builtin_prefetch(row + i);
}

// Adds up the rows ids[0 .. n) into sum [dim].
void read_rows(const float* table, int64_t dim, const int32_t* ids, int64_t n, float* sum) {
  for (int64_t r = 0; r < n; ++r) {
    if (r + kAhead < n) prefetch(table + ids[r + kAhead] * dim, dim);
    const float* row = table + ids[r] * dim;
    for (int64_t i = 0; i < dim; ++i) sum[i] += row[i];
  }
}

// row = keep * row + step, for the rows ids[0 .. n): read and written.
void update_rows(float* table, int64_t dim, const int32_t* ids, int64_t n, float keep, float step) {
  for (int64_t r = 0; r < n; ++r) {
    if (r + kAhead < n) prefetch(table + ids[r + kAhead] * dim, dim);
    float* row = table + ids[r] * dim;
    for (int64_t i = 0; i < dim; ++i) row[i] = keep * row[i] + step;
  }
}
