// The scores of all entries of a CSR matrix, <row vector, column vector> (+ biases), on the GPU: their moments, and
// sums of column vectors weighted by an affine function of the score. No score is stored.
//
// A warp takes a row, its groups of threads (rows.cuh) an entry each; sums of rows with very many entries, as those of
// popular items, are made by a whole block. What is summed has one order: the same bits each time.
#pragma once

#include "common/csr.h"
#include "cuda/loss_common.cuh"
#include "cuda/rows.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kCsrThreads = 256;
constexpr int kCsrWarps = kCsrThreads / kWarp;
constexpr int64_t kCsrBlocks = 2048;  // at most: more rows are walked in strides
constexpr int64_t kCsrLong = 1024;    // entries of a row from which on a block sums it
constexpr int64_t kCsrLongBlocks = 512;
// Blocks of a multiprocessor that registers are dealt out for: with one more, sums would be kept in memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
constexpr int kCsrResident = 2;
#else
constexpr int kCsrResident = 3;
#endif

template <class T, class Index>
struct CsrArgs {
  const T *rows, *columns;          // [num_rows, dim], [num_columns, dim]
  const T *row_bias, *column_bias;  // or null
  const int64_t* indptr;            // [num_rows + 1]
  const Index* indices;
  const T *row_x, *column_x;  // constants of rows or columns
  int64_t num_rows, num_columns, num_entries;
  RowShape shape;
  double* partials;  // [3, blocks], for moments
  double* moments;   // [3]
  T slope;
  T* out;       // [num_rows, dim]
  T* out_bias;  // [num_rows]
};

// Entries of a group whose loads are on their way together: an entry is two loads that wait for each other.
constexpr int kCsrAtOnce = 4;

// The columns and scores of the entries first, first + step, ... of a row, for all lanes of a group; from `end` on
// there are none, and what is said of them means nothing. All lanes of the warp must be here, with entries or without,
// in a row that has any.
template <class T, class Index>
struct CsrEntries {
  int64_t column[kCsrAtOnce];  // 0 where an entry names none; its score is NaN
  T score[kCsrAtOnce];

  __device__ __forceinline__ CsrEntries(const CsrArgs<T, Index>& a, int lane, int64_t row, int64_t first, int64_t step,
                                        int64_t end) {
    const T* vectors[kCsrAtOnce];
    bool named[kCsrAtOnce];
#pragma unroll
    for (int m = 0; m < kCsrAtOnce; ++m) {
      const int64_t at = first + m * step;
      const int64_t entry = static_cast<int64_t>(a.indices[at < end ? at : end - 1]);
      named[m] = is_item(entry, a.num_columns);
      column[m] = named[m] ? entry : 0;
      vectors[m] = a.columns + column[m] * a.shape.dim;
    }
    dots<kCsrAtOnce>(a.shape, lane, a.rows + row * a.shape.dim, vectors, score);
#pragma unroll
    for (int m = 0; m < kCsrAtOnce; ++m) {
      if (a.row_bias != nullptr) score[m] += a.row_bias[row];
      if (a.column_bias != nullptr) score[m] += a.column_bias[column[m]];
      if (!named[m]) score[m] = static_cast<T>(NAN);
    }
  }
};

// Where a row's entries begin and end: nowhere, where the row is none or there is no column to name.
struct CsrRow {
  int64_t begin, end;
  bool sound;
};
template <class T, class Index>
__device__ __forceinline__ CsrRow csr_row(const CsrArgs<T, Index>& a, int64_t row) {
  const int64_t begin = a.indptr[row], end = a.indptr[row + 1];
  const bool sound = is_row(begin, end, a.num_entries) && (a.num_columns > 0 || begin == end);
  return sound ? CsrRow{begin, end, true} : CsrRow{0, 0, false};
}

// Sums of s, s^2 and s x, x a constant of the column. They are NaN if the matrix names rows or columns that are none.
template <class T, class Index>
__global__ void __launch_bounds__(kCsrThreads, kCsrResident) csr_moments_kernel(const CsrArgs<T, Index> a) {
  const int width = a.shape.width, lane = threadIdx.x % width, warp = threadIdx.x / kWarp;
  const int group = threadIdx.x % kWarp / width, groups = kWarp / width;
  double sums[3] = {};
  for (int64_t row = blockIdx.x * int64_t(kCsrWarps) + warp; row < a.num_rows; row += gridDim.x * int64_t(kCsrWarps)) {
    const CsrRow entries = csr_row(a, row);
    if (!entries.sound) sums[0] = sums[1] = sums[2] = static_cast<double>(NAN);
    for (int64_t first = entries.begin; first < entries.end; first += kCsrAtOnce * groups) {
      const CsrEntries<T, Index> some(a, lane, row, first + group, groups, entries.end);
#pragma unroll
      for (int m = 0; m < kCsrAtOnce; ++m) {
        if (lane != 0 || first + group + m * groups >= entries.end) continue;
        const double s = static_cast<double>(some.score[m]);
        sums[0] += s;
        sums[1] += s * s;
        sums[2] += s * static_cast<double>(a.column_x[some.column[m]]);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const double sum = block_combine<kCsrThreads>(sums[i], Add{});
    if (threadIdx.x == 0) (gridDim.x == 1 ? a.moments + i : a.partials + i * gridDim.x + blockIdx.x)[0] = sum;
  }
}

// Adds the entries first, first + step, ... of a row, `groups` of them a turn, to a piece of its sum; factors go to
// total.
template <int N, class T, class Index>
__device__ __forceinline__ void add_entries(const CsrArgs<T, Index>& a, int lane, int64_t row, int64_t begin,
                                            int64_t end, int group, int groups, int64_t c0, Sums<N, T>& sums,
                                            T& total) {
  for (int64_t first = begin; first < end; first += int64_t(kCsrAtOnce) * groups) {
    const CsrEntries<T, Index> some(a, lane, row, first + group, groups, end);
#pragma unroll
    for (int m = 0; m < kCsrAtOnce; ++m) {
      if (first + group + int64_t(m) * groups >= end) continue;
      const int64_t column = some.column[m];
      const T g = a.slope * some.score[m] + (a.row_x != nullptr ? a.row_x[row] : a.column_x[column]);
      add_row<N>(a.shape, lane, c0, a.columns + column * a.shape.dim, g, sums);
      if (lane == 0) total += g;
    }
  }
}

// out[row] = sum over its entries of g times the column vector, out_bias[row] the sum of g, with g = x + slope * score.
// A warp to a row; rows of more than kCsrLong entries are left to the next kernel.
template <class T, class Index>
__global__ void __launch_bounds__(kCsrThreads, kCsrResident) csr_columns_kernel(const CsrArgs<T, Index> a) {
  const int width = a.shape.width, lane = threadIdx.x % width, warp = threadIdx.x / kWarp;
  const int group = threadIdx.x % kWarp / width, groups = kWarp / width;
  for (int64_t row = blockIdx.x * int64_t(kCsrWarps) + warp; row < a.num_rows; row += gridDim.x * int64_t(kCsrWarps)) {
    const CsrRow entries = csr_row(a, row);
    const int64_t begin = entries.begin, end = entries.end;
    if (end - begin > kCsrLong) continue;
    T total = 0;
    with_pack<T>(a.shape, [&](auto size) {
      constexpr int N = decltype(size)::value;
      for (int64_t c0 = 0; c0 < a.shape.dim || c0 == 0; c0 += 2 * width * N) {
        Sums<N, T> sums = {};
        T factors = 0;
        add_entries<N>(a, lane, row, begin, end, group, groups, c0, sums, factors);
        if (c0 == 0) total = factors;
        combine_warp(a.shape, sums);
        if (group == 0) store_sums<N>(a.shape, lane, c0, a.out + row * a.shape.dim, sums);
      }
    });
    total = warp_combine(total, kWarp, Add{});
    if (threadIdx.x % kWarp == 0) a.out_bias[row] = entries.sound ? total : static_cast<T>(NAN);
  }
}

// The rows of more entries, a block to each.
template <class T, class Index>
__global__ void __launch_bounds__(kCsrThreads, kCsrResident) csr_long_columns_kernel(const CsrArgs<T, Index> a) {
  const int width = a.shape.width, lane = threadIdx.x % width;
  const int group = threadIdx.x / width, groups = kCsrThreads / width;
  const auto is_long = [&](int64_t row) {
    const CsrRow entries = csr_row(a, row);
    return entries.end - entries.begin > kCsrLong;
  };
  each_chosen_row<kCsrThreads>(a.num_rows, is_long, [&](int64_t row) {
    const CsrRow entries = csr_row(a, row);
    const int64_t begin = entries.begin, end = entries.end;
    T total = 0;
    with_pack<T>(a.shape, [&](auto size) {
      constexpr int N = decltype(size)::value;
      for (int64_t c0 = 0; c0 < a.shape.dim || c0 == 0; c0 += 2 * width * N) {
        Sums<N, T> sums = {};
        T factors = 0;
        add_entries<N>(a, lane, row, begin, end, group, groups, c0, sums, factors);
        if (c0 == 0) total = factors;
        combine_groups<kCsrThreads, kRowPack<T>>(a.shape, sums);
        if (group == 0) store_sums<N>(a.shape, lane, c0, a.out + row * a.shape.dim, sums);
      }
    });
    total = block_combine<kCsrThreads>(total, Add{});
    if (threadIdx.x == 0) a.out_bias[row] = total;
  });
}

// ---- launching ------------------------------------------------------------------------------------------------------

inline unsigned csr_blocks(int64_t num_rows) {
  const int64_t blocks = (num_rows + kCsrWarps - 1) / kCsrWarps;
  return static_cast<unsigned>(blocks < 1 ? 1 : blocks < kCsrBlocks ? blocks : kCsrBlocks);
}

// The second step of a sum: one block adds the partial sums of all others.
__global__ void __launch_bounds__(kLossThreads, 2)
    add_partials_kernel(const double* partials, int blocks, double scale, double* value) {
  double total = 0;
  for (int i = threadIdx.x; i < blocks; i += kLossThreads) total += partials[i];
  total = block_combine<kLossThreads>(total, Add{});
  if (threadIdx.x == 0) *value = total * scale;
}

// partials: 3 * csr_blocks(num_rows) numbers.
template <class T, class Index>
void csr_moments(CsrArgs<T, Index> a, gpuStream stream) {
  a.shape = row_shape<T>(a.shape.dim, {a.rows, a.columns});
  const unsigned blocks = csr_blocks(a.num_rows);
  GPU_LAUNCH((csr_moments_kernel<T, Index>), blocks, kCsrThreads, 0, stream)(a);
  if (blocks == 1) return;
  for (int i = 0; i < 3; ++i) GPU_LAUNCH((add_partials_kernel), 1, kLossThreads, 0, stream)
  (a.partials + i * int64_t(blocks), static_cast<int>(blocks), 1.0, a.moments + i);
}

template <class T, class Index>
void csr_columns(CsrArgs<T, Index> a, gpuStream stream) {
  if (a.num_rows == 0) return;
  a.shape = row_shape<T>(a.shape.dim, {a.rows, a.columns, a.out});
  GPU_LAUNCH((csr_columns_kernel<T, Index>), csr_blocks(a.num_rows), kCsrThreads, 0, stream)(a);
  GPU_LAUNCH((csr_long_columns_kernel<T, Index>),
             static_cast<unsigned>(a.num_rows < kCsrLongBlocks ? a.num_rows : kCsrLongBlocks), kCsrThreads, 0, stream)
  (a);
}

}  // namespace GPU_NS
}  // namespace zx
