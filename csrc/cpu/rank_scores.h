// Scores of blocks of users for tiles of items: the matrix product of the ranking pass.
//
// Tables are packed, coordinate by coordinate, into panels of as many rows as the kernel keeps in registers. Every
// score is one chain of multiply-adds over the coordinates in order, then the item's bias: the same bits wherever a
// user or an item lies in a block, and the same as score_pairs computes for single pairs. Ties are therefore exact.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>

#include "cpu/intrinsics.h"

namespace zx::cpu {

constexpr int64_t kScoreAlignment = 64;

struct AlignedDelete {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{kScoreAlignment}); }
};
// An uninitialised array aligned for SIMD.
template <class T>
using AlignedArray = std::unique_ptr<T[], AlignedDelete>;
template <class T>
AlignedArray<T> aligned_array(int64_t size) {
  const size_t bytes = sizeof(T) * static_cast<size_t>(std::max<int64_t>(size, 1));
  return AlignedArray<T>(static_cast<T*>(::operator new(bytes, std::align_val_t{kScoreAlignment})));
}

// Rows and columns of the kernel: kUsers x (2 vectors of kBytes) sums in registers.
template <class T, int kBytes, int kUsers>
struct ScoreKernel {
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));
  static constexpr int kItems = 2 * kLanes;
  typedef T Vector __attribute__((vector_size(kBytes), aligned(alignof(T)), may_alias));

  // out[u * stride + i] for user_panels of kUsers users and item_panels of kItems items. An item panel is read once and
  // stays in the nearest cache for all users of the block.
  ZX_HD static void run(const T* users, int64_t user_panels, const T* items, const T* bias, int64_t item_panels,
                        int64_t dim, T* out, int64_t stride) {
    for (int64_t p = 0; p < item_panels; ++p)
      for (int64_t q = 0; q < user_panels; ++q)
        panel(users + q * dim * kUsers, items + p * dim * kItems, bias + p * kItems, dim,
              out + q * kUsers * stride + p * kItems, stride);
  }

  ZX_HD static void panel(const T* users, const T* items, const T* bias, int64_t dim, T* out, int64_t stride) {
    Vector sum[kUsers][2];
#pragma GCC unroll 16
    for (int u = 0; u < kUsers; ++u) sum[u][0] = sum[u][1] = Vector{};
    for (int64_t d = 0; d < dim; ++d) {
      const Vector left = *reinterpret_cast<const Vector*>(items + d * kItems);
      const Vector right = *reinterpret_cast<const Vector*>(items + d * kItems + kLanes);
#pragma GCC unroll 16
      for (int u = 0; u < kUsers; ++u) {
        const T x = users[d * kUsers + u];
        sum[u][0] = x * left + sum[u][0];
        sum[u][1] = x * right + sum[u][1];
      }
    }
    const Vector left = *reinterpret_cast<const Vector*>(bias);
    const Vector right = *reinterpret_cast<const Vector*>(bias + kLanes);
#pragma GCC unroll 16
    for (int u = 0; u < kUsers; ++u) {
      *reinterpret_cast<Vector*>(out + u * stride) = sum[u][0] + left;
      *reinterpret_cast<Vector*>(out + u * stride + kLanes) = sum[u][1] + right;
    }
  }
};

// The sizes in use on this processor.
struct ScorePanels {
  int users, items;
};
constexpr int kWideUsers = 12, kNarrowUsers = 6;  // of 32 and of 16 vector registers

template <class T>
ScorePanels score_panels() {
  switch (isa()) {
    case Isa::kAvx512:
      return {kWideUsers, 2 * 64 / static_cast<int>(sizeof(T))};
    case Isa::kAvx2:
      return {kNarrowUsers, 2 * 32 / static_cast<int>(sizeof(T))};
    default:
      return {kNarrowUsers, 2 * 16 / static_cast<int>(sizeof(T))};
  }
}

template <class T>
void score_tile(const T* users, int64_t user_panels, const T* items, const T* bias, int64_t item_panels, int64_t dim,
                T* out, int64_t stride) {
#if ZX_X86
  if (isa() == Isa::kAvx512)
    return run_avx512<ScoreKernel<T, 64, kWideUsers>>(users, user_panels, items, bias, item_panels, dim, out, stride);
  if (isa() == Isa::kAvx2)
    return run_avx2<ScoreKernel<T, 32, kNarrowUsers>>(users, user_panels, items, bias, item_panels, dim, out, stride);
#endif
  run_baseline<ScoreKernel<T, 16, kNarrowUsers>>(users, user_panels, items, bias, item_panels, dim, out, stride);
}

// Packs up to `width` rows of a table into one panel, coordinate by coordinate; missing rows are zero.
template <class T>
ZX_HD void pack_panel(const T* const* rows, int64_t count, int64_t width, int64_t dim, T* panel) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t d = 0; d < dim; ++d) panel[d * width + r] = rows[r][d];
  for (int64_t d = 0; d < dim; ++d)
    for (int64_t r = count; r < width; ++r) panel[d * width + r] = T(0);
}

// Scores of one user for listed items, bit for bit those of score_tile. The lanes of a vector are different items, as
// there: in a loop over scalars compilers may fuse multiplications and additions in another way.
template <class T, class Index, int kBytes>
struct PairKernel {
  static constexpr int kLanes = kBytes / static_cast<int>(sizeof(T));
  static constexpr int64_t kDepth = 64;  // coordinates that are packed at a time
  typedef T Vector __attribute__((vector_size(kBytes)));

  ZX_HD static void run(const T* user, const T* items, const T* bias, const Index* wanted, int64_t n, int64_t dim,
                        T* out) {
    for (int64_t i = 0; i < n; i += kLanes) {
      const int count = static_cast<int>(std::min<int64_t>(kLanes, n - i));
      Vector sum{}, panel[kDepth];
      for (int64_t begin = 0; begin < dim; begin += kDepth) {
        const int64_t depth = std::min(kDepth, dim - begin);
        const T* row[kLanes];
        for (int l = 0; l < count; ++l) row[l] = items + static_cast<int64_t>(wanted[i + l]) * dim + begin;
        pack_panel<T>(row, count, kLanes, depth, reinterpret_cast<T*>(panel));
        for (int64_t d = 0; d < depth; ++d) sum = user[begin + d] * panel[d] + sum;
      }
      for (int l = 0; l < count; ++l) out[i + l] = sum[l] + (bias != nullptr ? bias[wanted[i + l]] : T(0));
    }
  }
};

#if ZX_X86

// Transposes 16 vectors of 16 numbers.
ZX_TARGET_AVX512 __attribute__((always_inline)) inline void transpose(__m512* v) {
  __m512 a[16];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    a[2 * i] = _mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]);
    a[2 * i + 1] = _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]);
  }
  // v[4 q + c]: in each quarter l of a vector, coordinate 4 l + c of rows 4 q .. 4 q + 3.
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q)
#pragma GCC unroll 2
    for (int h = 0; h < 2; ++h) {
      const __m512d first = _mm512_castps_pd(a[4 * q + h]), second = _mm512_castps_pd(a[4 * q + 2 + h]);
      v[4 * q + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(first, second));
      v[4 * q + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(first, second));
    }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 even_low = _mm512_shuffle_f32x4(v[c], v[4 + c], 0x88),
                 odd_low = _mm512_shuffle_f32x4(v[c], v[4 + c], 0xdd);
    const __m512 even_high = _mm512_shuffle_f32x4(v[8 + c], v[12 + c], 0x88);
    const __m512 odd_high = _mm512_shuffle_f32x4(v[8 + c], v[12 + c], 0xdd);
    a[c] = _mm512_shuffle_f32x4(even_low, even_high, 0x88);
    a[8 + c] = _mm512_shuffle_f32x4(even_low, even_high, 0xdd);
    a[4 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0x88);
    a[12 + c] = _mm512_shuffle_f32x4(odd_low, odd_high, 0xdd);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) v[i] = a[i];
}

// The same for AVX-512 and floats, three times as fast: rows are transposed in registers.
template <class Index>
ZX_TARGET_AVX512 inline void score_pairs_avx512(const float* user, const float* items, const float* bias,
                                                const Index* wanted, int64_t n, int64_t dim, float* out) {
  for (int64_t i = 0; i < n; i += 16) {
    const int64_t count = n - i < 16 ? n - i : 16;
    const float* row[16];
    for (int64_t l = 0; l < 16; ++l) row[l] = items + static_cast<int64_t>(wanted[i + (l < count ? l : 0)]) * dim;
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < dim; d += 16) {
      const int64_t depth = dim - d < 16 ? dim - d : 16;
      __m512 v[16];
      if (depth == 16) {
#pragma GCC unroll 16
        for (int l = 0; l < 16; ++l) v[l] = _mm512_loadu_ps(row[l] + d);
        transpose(v);
#pragma GCC unroll 16
        for (int l = 0; l < 16; ++l) sum = _mm512_fmadd_ps(_mm512_set1_ps(user[d + l]), v[l], sum);
      } else {
        const __mmask16 there = static_cast<__mmask16>((1u << depth) - 1);
#pragma GCC unroll 16
        for (int l = 0; l < 16; ++l) v[l] = _mm512_maskz_loadu_ps(there, row[l] + d);
        transpose(v);
        for (int64_t l = 0; l < depth; ++l) sum = _mm512_fmadd_ps(_mm512_set1_ps(user[d + l]), v[l], sum);
      }
    }
    float scores[16];
    _mm512_storeu_ps(scores, sum);
    for (int64_t l = 0; l < count; ++l) out[i + l] = scores[l] + (bias != nullptr ? bias[wanted[i + l]] : 0.0f);
  }
}

#endif

template <class T, class Index>
void score_pairs(const T* user, const T* items, const T* bias, const Index* wanted, int64_t n, int64_t dim, T* out) {
#if ZX_X86
  if (isa() == Isa::kAvx512) {
    if constexpr (std::is_same_v<T, float>)
      return score_pairs_avx512(user, items, bias, wanted, n, dim, out);
    else
      return run_avx512<PairKernel<T, Index, 64>>(user, items, bias, wanted, n, dim, out);
  }
  if (isa() == Isa::kAvx2) return run_avx2<PairKernel<T, Index, 32>>(user, items, bias, wanted, n, dim, out);
#endif
  run_baseline<PairKernel<T, Index, 16>>(user, items, bias, wanted, n, dim, out);
}

}  // namespace zx::cpu
