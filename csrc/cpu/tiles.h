// Products of small matrices that stay in the caches: a tile of the result is kept in registers while the depth goes
// by.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "cpu/rows.h"

namespace zx::cpu {

// Columns of a tile: two vectors' worth. Matrices on the right, and results, have a multiple of it, filled up with
// zeros.
template <int kBytes>
constexpr int64_t kTileColumns = 2 * kBytes / static_cast<int64_t>(sizeof(float));
constexpr int kTileRows = 6;
// Numbers from one packed column of a tile's rows to the next.
constexpr int kPackedColumn = 8;

inline int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

#ifdef ZX_VECTORS
// out[r, :] = sum over k of a[r * a_row + k * a_column] b[k, :] for kRows rows and one tile's columns.
template <int kRows, int kBytes>
ZX_HD void product_tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, int64_t depth,
                        float* out, int64_t out_row) {
  typedef float Vector __attribute__((vector_size(kBytes)));
  constexpr int kWidth = kBytes / static_cast<int>(sizeof(float));
  Vector sum[kRows][2] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vector left, right;
    __builtin_memcpy(&left, b + k * b_row, kBytes);
    __builtin_memcpy(&right, b + k * b_row + kWidth, kBytes);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const float f = a[r * a_row + k * a_column];
      sum[r][0] += f * left;
      sum[r][1] += f * right;
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < kRows; ++r) {
    __builtin_memcpy(out + r * out_row, &sum[r][0], kBytes);
    __builtin_memcpy(out + r * out_row + kWidth, &sum[r][1], kBytes);
  }
}
#else
template <int kRows, int kBytes>
ZX_HD void product_tile(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, int64_t depth,
                        float* out, int64_t out_row) {
  for (int r = 0; r < kRows; ++r)
    for (int64_t c = 0; c < kTileColumns<kBytes>; ++c) {
      float sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += a[r * a_row + k * a_column] * b[k * b_row + c];
      out[r * out_row + c] = sum;
    }
}
#endif

#ifdef ZX_VECTORS
// A square of as many rows as a vector has lanes, transposed in place. Each step exchanges the off-diagonal quarters of
// squares of twice its size.
template <int kBytes>
struct Square {
  typedef float Vector __attribute__((vector_size(kBytes)));
  static constexpr int kWidth = kBytes / static_cast<int>(sizeof(float));

  Vector row[kWidth];

  ZX_HD void transpose() { exchange<kWidth / 2>(std::make_index_sequence<kWidth>{}); }

 private:
  template <int kStep, size_t... kLane>
  ZX_HD void exchange(std::index_sequence<kLane...> lanes) {
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) {
      if ((i & kStep) != 0) continue;
      const Vector upper = row[i], lower = row[i + kStep];
      row[i] = __builtin_shufflevector(upper, lower, (kLane & kStep ? kWidth + kLane - kStep : kLane)...);
      row[i + kStep] = __builtin_shufflevector(upper, lower, (kLane & kStep ? kWidth + kLane : kLane + kStep)...);
    }
    if constexpr (kStep > 1) exchange<kStep / 2>(lanes);
  }
};
#endif

// out[c, r] = in[r, c] for rows and columns [0, rows) and [0, columns), in squares where there are whole ones.
template <int kBytes>
ZX_HD void transpose(const float* in, int64_t in_row, int64_t rows, int64_t columns, float* out, int64_t out_row) {
  int64_t r = 0;
#ifdef ZX_VECTORS
  constexpr int kWidth = Square<kBytes>::kWidth;
  for (; r + kWidth <= rows; r += kWidth) {
    int64_t c = 0;
    for (; c + kWidth <= columns; c += kWidth) {
      Square<kBytes> square;
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) __builtin_memcpy(&square.row[i], in + (r + i) * in_row + c, kBytes);
      square.transpose();
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) __builtin_memcpy(out + (c + i) * out_row + r, &square.row[i], kBytes);
    }
    for (; c < columns; ++c)
      for (int i = 0; i < kWidth; ++i) out[c * out_row + r + i] = in[(r + i) * in_row + c];
  }
#endif
  for (; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) out[c * out_row + r] = in[r * in_row + c];
}

// packed[k, i] = a[i * a_row + k * a_column] for the rows i < some of a tile. readable: how many numbers there are from
// a on.
ZX_HD void pack_rows(const float* a, int64_t a_row, int64_t a_column, int64_t some, int64_t depth, int64_t readable,
                     float* packed) {
  int64_t k = 0;
  if (a_row == 1 && some == kTileRows)  // a whole vector is as cheap as one number
    for (; k < depth && k * a_column + kPackedColumn <= readable; ++k)
      __builtin_memcpy(packed + k * kPackedColumn, a + k * a_column, kPackedColumn * sizeof(float));
  for (; k < depth; ++k)
    for (int64_t i = 0; i < some; ++i) packed[k * kPackedColumn + i] = a[i * a_row + k * a_column];
}

// out [rows, columns] = a [rows, depth] b [depth, columns], where a's entry (r, k) is a[r * a_row + k * a_column];
// columns are a multiple of kTileColumns. packed: scratch of kPackedColumn * depth. The additions of an entry are in
// the order of the depth.
template <int kBytes>
ZX_HD void product(const float* a, int64_t a_row, int64_t a_column, const float* b, int64_t b_row, int64_t rows,
                   int64_t columns, int64_t depth, float* out, int64_t out_row, float* packed) {
  for (int64_t r = 0; r < rows; r += kTileRows) {
    const int64_t some = std::min<int64_t>(kTileRows, rows - r);
    const float* from = a + r * a_row;
    int64_t from_row = a_row, from_column = a_column;
    if (a_column != 1) {  // rows of columns far apart: each line is fetched once, not for each tile
      pack_rows(from, a_row, a_column, some, depth, (rows - r - 1) * a_row + (depth - 1) * a_column + 1, packed);
      from = packed, from_row = 1, from_column = kPackedColumn;
    }
    for (int64_t c = 0; c < columns; c += kTileColumns<kBytes>) {
      float* to = out + r * out_row + c;
      switch (some) {
        case 1:
          product_tile<1, kBytes>(from, from_row, from_column, b + c, b_row, depth, to, out_row);
          break;
        case 2:
          product_tile<2, kBytes>(from, from_row, from_column, b + c, b_row, depth, to, out_row);
          break;
        case 3:
          product_tile<3, kBytes>(from, from_row, from_column, b + c, b_row, depth, to, out_row);
          break;
        case 4:
          product_tile<4, kBytes>(from, from_row, from_column, b + c, b_row, depth, to, out_row);
          break;
        case 5:
          product_tile<5, kBytes>(from, from_row, from_column, b + c, b_row, depth, to, out_row);
          break;
        default:
          product_tile<6, kBytes>(from, from_row, from_column, b + c, b_row, depth, to, out_row);
      }
    }
  }
}

}  // namespace zx::cpu
