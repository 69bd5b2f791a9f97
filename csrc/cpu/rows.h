// Rows of an embedding table as SIMD code: dot products and weighted sums. C is the type of the arithmetic, S that of
// the table. The additions have one order, whatever the width of the machine's vectors.
#pragma once

#include <cstdint>
#include <type_traits>

#include "common/macros.h"

namespace zx::cpu {

constexpr int64_t kCacheLine = 64;
constexpr int kRowLanes = 16;

// kWrite: the line will be written.
template <bool kWrite>
ZX_HD void prefetch_line(const char* at) {
  __builtin_prefetch(at, kWrite, kWrite ? 3 : 2);
}

// All lines of a row, four a turn: the turns' own instructions would be as many as the fetches.
template <bool kWrite, class S>
ZX_HD void prefetch_row(const S* row, int64_t dim) {
  const char* bytes = reinterpret_cast<const char*>(row);
  const int64_t size = dim * static_cast<int64_t>(sizeof(S));
  int64_t at = 0;
  for (; at + 4 * kCacheLine <= size; at += 4 * kCacheLine) {
    prefetch_line<kWrite>(bytes + at);
    prefetch_line<kWrite>(bytes + at + kCacheLine);
    prefetch_line<kWrite>(bytes + at + 2 * kCacheLine);
    prefetch_line<kWrite>(bytes + at + 3 * kCacheLine);
  }
  for (; at < size; at += kCacheLine) prefetch_line<kWrite>(bytes + at);
}

// Sixteen running sums, in vectors of kBytes: those of the instruction set that the code is compiled for (cpu/simd.h).
// Wider ones than the machine's would live in memory. The additions have one order, whatever the width; the array that
// compilers without such vectors get adds in the same order.
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define ZX_VECTORS 1
#endif
#endif
#ifdef ZX_VECTORS
template <class C, int kBytes>
struct Lanes {
  typedef C Vector __attribute__((vector_size(kBytes)));
  static constexpr int kWidth = kBytes / static_cast<int>(sizeof(C)), kPieces = kRowLanes / kWidth;
  static_assert(kWidth >= 2 && kWidth <= kRowLanes, "a vector holds between two and sixteen of the lanes");

  Vector sum[kPieces] = {};

  // (By reference: a function that returns such a vector has an ABI of its own.)
  template <class S>
  ZX_HD static void load(Vector& v, const S* x) {
    C converted[kWidth];
    for (int l = 0; l < kWidth; ++l) converted[l] = static_cast<C>(x[l]);
    load(v, static_cast<const C*>(converted));
  }
  ZX_HD static void load(Vector& v, const C* x) { __builtin_memcpy(&v, x, sizeof(Vector)); }
  template <class S, class R>
  ZX_HD void add(const S* x, const R* y) {
#pragma GCC unroll 8
    for (int i = 0; i < kPieces; ++i) {
      Vector a, b;
      load(a, x + i * kWidth);
      load(b, y + i * kWidth);
      sum[i] += a * b;
    }
  }
  template <class S>
  ZX_HD void add_scaled(C f, const S* x) {
#pragma GCC unroll 8
    for (int i = 0; i < kPieces; ++i) {
      Vector a;
      load(a, x + i * kWidth);
      sum[i] += f * a;
    }
  }
  ZX_HD void add(const C* x) {
#pragma GCC unroll 8
    for (int i = 0; i < kPieces; ++i) {
      Vector a;
      load(a, x + i * kWidth);
      sum[i] += a;
    }
  }
  ZX_HD void add(const Lanes& other) {
#pragma GCC unroll 8
    for (int i = 0; i < kPieces; ++i) sum[i] += other.sum[i];
  }
  // Each lane to x's number where that is larger.
  ZX_HD void raise(const C* x) {
#pragma GCC unroll 8
    for (int i = 0; i < kPieces; ++i) {
      Vector a;
      load(a, x + i * kWidth);
      sum[i] = a > sum[i] ? a : sum[i];
    }
  }
  ZX_HD void scale(C f) {
#pragma GCC unroll 8
    for (int i = 0; i < kPieces; ++i) sum[i] *= f;
  }
  ZX_HD void read(const C* x) {
#pragma GCC unroll 8
    for (int i = 0; i < kPieces; ++i) load(sum[i], x + i * kWidth);
  }
  ZX_HD void write(C* out) const {
#pragma GCC unroll 8
    for (int i = 0; i < kPieces; ++i) __builtin_memcpy(out + i * kWidth, &sum[i], sizeof(Vector));
  }
  // The upper half of the lanes is added to the lower one until one is left.
  ZX_HD C total() const {
    return fold([](auto& lower, const auto& upper) __attribute__((always_inline)) { lower += upper; });
  }
  // The largest of the lanes, likewise.
  ZX_HD C largest() const {
    return fold([](auto& lower, const auto& upper)
                    __attribute__((always_inline)) { lower = upper > lower ? upper : lower; });
  }

 private:
  template <class F>
  ZX_HD C fold(const F& join) const {
    Vector all[kPieces];
#pragma GCC unroll 8
    for (int i = 0; i < kPieces; ++i) all[i] = sum[i];
#pragma GCC unroll 4
    for (int half = kPieces / 2; half > 0; half /= 2)
#pragma GCC unroll 4
      for (int i = 0; i < half; ++i) join(all[i], all[i + half]);
    return fold_vector<kWidth>(all[0], join);
  }
  template <int kLeft, class V, class F>
  ZX_HD static C fold_vector(const V& v, const F& join) {
    if constexpr (kLeft == 16) {
      auto half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7);
      join(half, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
      return fold_vector<8>(half, join);
    } else if constexpr (kLeft == 8) {
      auto half = __builtin_shufflevector(v, v, 0, 1, 2, 3);
      join(half, __builtin_shufflevector(v, v, 4, 5, 6, 7));
      return fold_vector<4>(half, join);
    } else if constexpr (kLeft == 4) {
      auto half = __builtin_shufflevector(v, v, 0, 1);
      join(half, __builtin_shufflevector(v, v, 2, 3));
      return fold_vector<2>(half, join);
    } else {
      C one = v[0];
      join(one, v[1]);
      return one;
    }
  }
};
#else
template <class C, int kBytes>
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
  ZX_HD void raise(const C* x) {
    for (int l = 0; l < kRowLanes; ++l) sum[l] = x[l] > sum[l] ? x[l] : sum[l];
  }
  ZX_HD void scale(C f) {
    for (int l = 0; l < kRowLanes; ++l) sum[l] *= f;
  }
  ZX_HD void read(const C* x) {
    for (int l = 0; l < kRowLanes; ++l) sum[l] = x[l];
  }
  ZX_HD void write(C* out) const {
    for (int l = 0; l < kRowLanes; ++l) out[l] = sum[l];
  }
  ZX_HD C total() const {
    C all[kRowLanes];
    write(all);
    for (int half = kRowLanes / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) all[l] += all[l + half];
    return all[0];
  }
  ZX_HD C largest() const {
    C most = sum[0];
    for (int l = 1; l < kRowLanes; ++l) most = sum[l] > most ? sum[l] : most;
    return most;
  }
};
#endif

template <class C, int kBytes, class S, class R>
ZX_HD C dot(const S* __restrict__ x, const R* __restrict__ y, int64_t dim) {
  Lanes<C, kBytes> lanes;
  int64_t i = 0;
  for (; i + kRowLanes <= dim; i += kRowLanes) lanes.add(x + i, y + i);
  if (i < dim) {
    C a[kRowLanes] = {}, b[kRowLanes] = {};
    for (int64_t l = 0; i + l < dim; ++l) a[l] = static_cast<C>(x[i + l]), b[l] = static_cast<C>(y[i + l]);
    lanes.add(static_cast<const C*>(a), static_cast<const C*>(b));
  }
  return lanes.total();
}

// A row that is multiplied with several others; where its width is known and registers suffice, it stays in them.
// Dim: int64_t, or a constant of that type. The same bits as dot's.
template <class C, int kBytes, class S, class Dim>
struct KeptRow {
  const S* row;
  int64_t dim;

  ZX_HD KeptRow(const S* x, Dim d) : row(x), dim(d) {}
  template <class R>
  ZX_HD C dot_with(const R* y) const {
    return dot<C, kBytes>(row, y, dim);
  }
};
#ifdef ZX_VECTORS
template <int kBytes, int64_t kDim>
struct KeptRow<float, kBytes, float, std::integral_constant<int64_t, kDim>> {
  using Sums = Lanes<float, kBytes>;
  using Vector = typename Sums::Vector;
  static constexpr int kVectors = static_cast<int>(kDim) / Sums::kWidth;
  static constexpr bool kKept = kVectors <= 8;  // of the sixteen registers that AVX2 has
  static_assert(kDim % kRowLanes == 0, "a width that is known is one of whole steps");

  const float* row;
  Vector part[kKept ? kVectors : 1];

  ZX_HD KeptRow(const float* x, std::integral_constant<int64_t, kDim>) : row(x) {
#pragma GCC unroll 8
    for (int i = 0; kKept && i < kVectors; ++i) Sums::load(part[i], x + i * Sums::kWidth);
  }
  ZX_HD float dot_with(const float* y) const {
    Sums sums;
#pragma GCC unroll 32
    for (int i = 0; i < kVectors; ++i) {
      Vector a, b;
      if constexpr (kKept)
        a = part[i];
      else
        Sums::load(a, row + i * Sums::kWidth);
      Sums::load(b, y + i * Sums::kWidth);
      sums.sum[i % Sums::kPieces] += a * b;
    }
    return sums.total();
  }
};
#endif

// Calls f(dim), with a constant for widths that models often have: loops over such rows are unrolled as far as they go.
// f is always inlined.
template <class F>
ZX_HD auto with_width(int64_t dim, const F& f) {
  if (dim == 64) return f(std::integral_constant<int64_t, 64>{});
  if (dim == 32) return f(std::integral_constant<int64_t, 32>{});
  if (dim == 128) return f(std::integral_constant<int64_t, 128>{});
  return f(dim);
}

// out = sum over e in [0, n) of f[e] * rows[e][at .. at + 16 kVectors), or out += it. (All loops over the sums must be
// unrolled, that they are registers: else they are cleared, and copied to `out`, in memory.)
template <int kVectors, int kBytes, class C, class S>
ZX_HD void weighted_piece(C* out, const C* f, const S* const* rows, int64_t n, int64_t at, bool add) {
  Lanes<C, kBytes> sum[kVectors];
  if (add)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v].read(out + v * kRowLanes);
  for (int64_t e = 0; e < n; ++e)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v].add_scaled(f[e], rows[e] + at + v * kRowLanes);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v].write(out + v * kRowLanes);
}

// out = sum over e in [0, n) of f[e] * rows[e][0 .. dim), or out += it. A piece of 64 columns at a time stays in
// registers.
template <int kBytes, class C, class S>
ZX_HD void weighted_sum(C* __restrict__ out, const C* f, const S* const* rows, int64_t n, int64_t dim,
                        bool add = false) {
  int64_t at = 0;
  for (; at + 4 * kRowLanes <= dim; at += 4 * kRowLanes) weighted_piece<4, kBytes>(out + at, f, rows, n, at, add);
  for (; at + kRowLanes <= dim; at += kRowLanes) weighted_piece<1, kBytes>(out + at, f, rows, n, at, add);
  for (; at < dim; ++at) {
    C sum = add ? out[at] : C(0);
    for (int64_t e = 0; e < n; ++e) sum += f[e] * static_cast<C>(rows[e][at]);
    out[at] = sum;
  }
}

// out = x. (A loop would become a call of memcpy.)
template <int kBytes>
ZX_HD void copy_row(float* __restrict__ out, const float* __restrict__ x, int64_t dim) {
  int64_t i = 0;
  for (; i + kRowLanes <= dim; i += kRowLanes) {
    Lanes<float, kBytes> lanes;
    lanes.read(x + i);
    lanes.write(out + i);
  }
  for (; i < dim; ++i) out[i] = x[i];
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
