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
    __builtin_prefetch(bytes + at, kWrite, kWrite ? 3 : 2);
}

// Sixteen running sums. As a vector of the compiler's they stay in registers, whatever the width of the machine's; the
// array that other compilers get adds in the same order.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define ZX_VECTORS 1
#endif
#endif
#ifdef ZX_VECTORS
template <class C>
struct Lanes {
  typedef C V16 __attribute__((vector_size(16 * sizeof(C))));

  V16 sum = {};

  // (By reference: a function that returns such a vector has an ABI of its own.)
  template <class S>
  ZX_HD static void load(V16& v, const S* x) {
    C converted[kRowLanes];
    for (int l = 0; l < kRowLanes; ++l) converted[l] = static_cast<C>(x[l]);
    load(v, static_cast<const C*>(converted));
  }
  ZX_HD static void load(V16& v, const C* x) { __builtin_memcpy(&v, x, sizeof(V16)); }
  template <class S, class R>
  ZX_HD void add(const S* x, const R* y) {
    V16 a, b;
    load(a, x);
    load(b, y);
    sum += a * b;
  }
  template <class S>
  ZX_HD void add_scaled(C f, const S* x) {
    V16 a;
    load(a, x);
    sum += f * a;
  }
  ZX_HD void add(const C* x) {
    V16 a;
    load(a, x);
    sum += a;
  }
  ZX_HD void add(const Lanes& other) { sum += other.sum; }
  ZX_HD void scale(C f) { sum *= f; }
  ZX_HD void read(const C* x) { load(sum, x); }
  ZX_HD void write(C* out) const { __builtin_memcpy(out, &sum, sizeof(V16)); }
  ZX_HD C total() const {
    const auto h8 = __builtin_shufflevector(sum, sum, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(sum, sum, 8, 9, 10, 11, 12, 13, 14, 15);
    const auto h4 = __builtin_shufflevector(h8, h8, 0, 1, 2, 3) + __builtin_shufflevector(h8, h8, 4, 5, 6, 7);
    const auto h2 = __builtin_shufflevector(h4, h4, 0, 1) + __builtin_shufflevector(h4, h4, 2, 3);
    return h2[0] + h2[1];
  }
};
#else
template <class C>
struct Lanes {
  C sum[kRowLanes] = {};

  template <class S, class R>
  ZX_HD void add(const S* x, const R* y) {
    for (int l = 0; l < kRowLanes; ++l) sum[l] += static_cast<C>(x[l]) * static_cast<C>(y[l]);
  }
  template <class S>
  ZX_HD void add_scaled(C f, const S* x) {
    for (int l = 0; l < kRowLanes; ++l) sum[l] += f * static_cast<C>(x[l]);
  }
  ZX_HD void add(const C* x) {
    for (int l = 0; l < kRowLanes; ++l) sum[l] += x[l];
  }
  ZX_HD void add(const Lanes& other) { add(static_cast<const C*>(other.sum)); }
  ZX_HD void scale(C f) {
    for (int l = 0; l < kRowLanes; ++l) sum[l] *= f;
  }
  ZX_HD void read(const C* x) {
    for (int l = 0; l < kRowLanes; ++l) sum[l] = x[l];
  }
  ZX_HD void write(C* out) const {
    for (int l = 0; l < kRowLanes; ++l) out[l] = sum[l];
  }
  ZX_HD C total() {
    for (int half = kRowLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    return sum[0];
  }
};
#endif

template <class C, class S, class R>
ZX_HD C dot(const S* __restrict__ x, const R* __restrict__ y, int64_t dim) {
  Lanes<C> lanes;
  int64_t i = 0;
  for (; i + kRowLanes <= dim; i += kRowLanes) lanes.add(x + i, y + i);
  if (i < dim) {
    C a[kRowLanes] = {}, b[kRowLanes] = {};
    for (int64_t l = 0; i + l < dim; ++l) a[l] = static_cast<C>(x[i + l]), b[l] = static_cast<C>(y[i + l]);
    lanes.add(static_cast<const C*>(a), static_cast<const C*>(b));
  }
  return lanes.total();
}

// out = sum over e in [0, n) of f[e] * rows[e][at .. at + 16 kVectors), or out += it.
template <int kVectors, class C, class S>
ZX_HD void weighted_piece(C* out, const C* f, const S* const* rows, int64_t n, int64_t at, bool add) {
  Lanes<C> sum[kVectors];
  if (add)
    for (int v = 0; v < kVectors; ++v) sum[v].read(out + v * kRowLanes);
  for (int64_t e = 0; e < n; ++e)
    for (int v = 0; v < kVectors; ++v) sum[v].add_scaled(f[e], rows[e] + at + v * kRowLanes);
  for (int v = 0; v < kVectors; ++v) sum[v].write(out + v * kRowLanes);
}

// out = sum over e in [0, n) of f[e] * rows[e][0 .. dim), or out += it. A piece of 64 columns at a time stays in
// registers.
template <class C, class S>
ZX_HD void weighted_sum(C* __restrict__ out, const C* f, const S* const* rows, int64_t n, int64_t dim,
                        bool add = false) {
  int64_t at = 0;
  for (; at + 4 * kRowLanes <= dim; at += 4 * kRowLanes) weighted_piece<4>(out + at, f, rows, n, at, add);
  for (; at + kRowLanes <= dim; at += kRowLanes) weighted_piece<1>(out + at, f, rows, n, at, add);
  for (; at < dim; ++at) {
    C sum = add ? out[at] : C(0);
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
