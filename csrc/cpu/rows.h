// Rows of an embedding table as SIMD code: dot products and weighted sums. C is the type of the arithmetic, S that of
// the table. The additions have one order, whatever the width of the machine's vectors.
#pragma once

#include <cstdint>

#include "common/macros.h"

namespace zx::cpu {

constexpr int64_t kCacheLine = 64;
constexpr int kRowLanes = 16;

// kWrite: the row will be written.
template <bool kWrite, class S>
ZX_HD void prefetch_row(const S* row, int64_t dim) {
  const char* bytes = reinterpret_cast<const char*>(row);
  for (int64_t at = 0; at < dim * static_cast<int64_t>(sizeof(S)); at += kCacheLine)
    __builtin_prefetch(bytes + at, kWrite, 3);
}

// Sixteen running sums, added up as a tree.
template <class C, class S, class R>
ZX_HD C dot(const S* __restrict__ x, const R* __restrict__ y, int64_t dim) {
  C lanes[kRowLanes] = {};
  int64_t i = 0;
  for (; i + kRowLanes <= dim; i += kRowLanes)
    for (int l = 0; l < kRowLanes; ++l) lanes[l] += static_cast<C>(x[i + l]) * static_cast<C>(y[i + l]);
  for (int l = 0; i < dim; ++i, ++l) lanes[l] += static_cast<C>(x[i]) * static_cast<C>(y[i]);
  for (int half = kRowLanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

// out = sum over e in [0, n) of f[e] * rows[e][0 .. dim). A piece of 64 columns at a time stays in registers.
template <class C, class S>
ZX_HD void weighted_sum(C* __restrict__ out, const C* f, const S* const* rows, int64_t n, int64_t dim) {
  constexpr int kPiece = 64;
  int64_t at = 0;
  for (; at + kPiece <= dim; at += kPiece) {
    C sum[kPiece] = {};
    for (int64_t e = 0; e < n; ++e) {
      const S* row = rows[e] + at;
      for (int l = 0; l < kPiece; ++l) sum[l] += f[e] * static_cast<C>(row[l]);
    }
    for (int l = 0; l < kPiece; ++l) out[at + l] = sum[l];
  }
  for (; at + kRowLanes <= dim; at += kRowLanes) {
    C sum[kRowLanes] = {};
    for (int64_t e = 0; e < n; ++e) {
      const S* row = rows[e] + at;
      for (int l = 0; l < kRowLanes; ++l) sum[l] += f[e] * static_cast<C>(row[l]);
    }
    for (int l = 0; l < kRowLanes; ++l) out[at + l] = sum[l];
  }
  for (; at < dim; ++at) {
    C sum = 0;
    for (int64_t e = 0; e < n; ++e) sum += f[e] * static_cast<C>(rows[e][at]);
    out[at] = sum;
  }
}

// out += f * x
template <class C, class S>
ZX_HD void add_scaled(C* __restrict__ out, C f, const S* __restrict__ x, int64_t dim) {
  int64_t i = 0;
  for (; i + kRowLanes <= dim; i += kRowLanes)
    for (int l = 0; l < kRowLanes; ++l) out[i + l] += f * static_cast<C>(x[i + l]);
  for (; i < dim; ++i) out[i] += f * static_cast<C>(x[i]);
}

}  // namespace zx::cpu
