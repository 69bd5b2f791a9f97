// Rows of embedding tables, by groups of neighbouring threads.
//
// A group is `width` lanes of one warp, a power of two: as many as a row keeps busy with two accesses each, so that
// short rows share a warp. An access is 16 bytes where the rows of all tables start at multiples of 16, else one
// element. The order of the additions depends on that and on the row's length alone.
#pragma once

#include <initializer_list>
#include <type_traits>

#include "cuda/reduce.cuh"

namespace zx {
inline namespace GPU_NS {

template <class S>
constexpr int kRowPack = 16 / int(sizeof(S));

struct RowShape {
  int64_t dim;
  int width;
  bool packed;
};

// Of rows of `dim` elements in these tables.
template <class S>
RowShape row_shape(int64_t dim, std::initializer_list<const void*> tables, int least_width = 1) {
  RowShape shape{dim, least_width, dim % kRowPack<S> == 0};
  for (const void* table : tables) shape.packed &= table == nullptr || aligned16(table);
  const int64_t per_lane = 2 * (shape.packed ? kRowPack<S> : 1);
  while (shape.width < kWarp && shape.width * per_lane < dim) shape.width *= 2;
  return shape;
}

// Calls f with the number of elements of an access, as a constant.
template <class S, class F>
__device__ __forceinline__ void with_pack(const RowShape& shape, const F& f) {
  if (shape.packed)
    f(std::integral_constant<int, kRowPack<S>>{});
  else
    f(std::integral_constant<int, 1>{});
}

// A row by its number; -1, which stands for a number out of range, gets row 0. (Of an empty table nothing is read: its
// caller sets dim to 0.)
template <class S>
__device__ __forceinline__ const S* row_at(const S* table, int64_t id, int64_t dim) {
  return table + (id < 0 ? 0 : id) * dim;
}

// Products of a row with kRows others at once, whose loads are then all on their way together. Every lane of the group
// gets them; all lanes of the warp must be here.
template <int kRows, class S>
__device__ __forceinline__ void dots(const RowShape& shape, int lane, const S* row, const S* const (&others)[kRows],
                                     arithmetic_t<S> (&out)[kRows]) {
  using C = arithmetic_t<S>;
#pragma unroll
  for (int m = 0; m < kRows; ++m) out[m] = 0;
  with_pack<S>(shape, [&](auto size) {
    constexpr int N = decltype(size)::value;
    for (int64_t i = lane * N; i < shape.dim; i += shape.width * N) {
      const Pack<S, N> x = load_pack<S, N>(row + i);
      Pack<S, N> y[kRows];
#pragma unroll
      for (int m = 0; m < kRows; ++m) y[m] = load_pack<S, N>(others[m] + i);
#pragma unroll
      for (int m = 0; m < kRows; ++m)
#pragma unroll
        for (int n = 0; n < N; ++n) out[m] += widen(x.v[n]) * widen(y[m].v[n]);
    }
  });
#pragma unroll
  for (int m = 0; m < kRows; ++m) out[m] = warp_combine(static_cast<C>(out[m]), shape.width, Add{});
}

// This lane's part of a row's squared norm.
template <class S>
__device__ __forceinline__ arithmetic_t<S> squared_part(const RowShape& shape, int lane, const S* row) {
  using C = arithmetic_t<S>;
  C sum = 0;
  with_pack<S>(shape, [&](auto size) {
    constexpr int N = decltype(size)::value;
    for (int64_t i = lane * N; i < shape.dim; i += shape.width * N) {
      const Pack<S, N> x = load_pack<S, N>(row + i);
#pragma unroll
      for (int n = 0; n < N; ++n) sum += widen(x.v[n]) * widen(x.v[n]);
    }
  });
  return sum;
}

// Calls f for the rows of a block, blockIdx.x and every gridDim.x-th after it, for which chosen(row) says so: one after
// the other, by all threads. Each thread looks whether another row is one. (All of them looking at the same would wait
// for memory once for each row, and few are chosen.)
template <int kThreads, class Chosen, class F>
__device__ __forceinline__ void each_chosen_row(int64_t rows, const Chosen& chosen, const F& f) {
  constexpr int kWarps = kThreads / kWarp;
  GPU_SHARED(unsigned, votes, kWarps);
  const int64_t step = gridDim.x;
#pragma unroll 1
  for (int64_t first = blockIdx.x; first < rows; first += step * kThreads) {
    const int64_t own = first + step * threadIdx.x;
    const unsigned vote = __ballot_sync(kFullWarp, own < rows && chosen(own));
    __syncthreads();  // the votes before may still be read
    if (threadIdx.x % kWarp == 0) votes[threadIdx.x / kWarp] = vote;
    __syncthreads();
#pragma unroll 1
    for (int w = 0; w < kWarps; ++w)
#pragma unroll 1
      for (unsigned left = votes[w]; left != 0; left &= left - 1)
        f(first + step * (w * kWarp + __ffs(static_cast<int>(left)) - 1));
  }
}

// ---- weighted sums of rows ------------------------------------------------------------------------------------------

// What a row is multiplied by.
template <class C>
struct Term {
  int64_t row;
  C factor;
};

// Elements that a lane sums up at a time: two accesses, so that the columns of a piece are 2 * width * N.
template <int N, class C>
struct Sums {
  C v[2][N];
};

// The column of this lane's access q in the piece that begins at column c0.
template <int N>
__device__ __forceinline__ int64_t piece_column(const RowShape& shape, int lane, int64_t c0, int q) {
  return c0 + (q * shape.width + lane) * N;
}

template <int N, class S, class C>
__device__ __forceinline__ void add_row(const RowShape& shape, int lane, int64_t c0, const S* row, C factor,
                                        Sums<N, C>& sums) {
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    const int64_t c = piece_column<N>(shape, lane, c0, q);
    if (c >= shape.dim) continue;
    const Pack<S, N> x = load_pack<S, N>(row + c);
#pragma unroll
    for (int n = 0; n < N; ++n) sums.v[q][n] += factor * widen(x.v[n]);
  }
}

// Adds up what the groups of a warp have summed, as a tree; each of them has the result. All lanes must be here.
template <int N, class C>
__device__ __forceinline__ void combine_warp(const RowShape& shape, Sums<N, C>& sums) {
  for (int offset = shape.width; offset < kWarp; offset *= 2)
#pragma unroll
    for (int e = 0; e < 2 * N; ++e) sums.v[e / N][e % N] += __shfl_xor_sync(kFullWarp, sums.v[e / N][e % N], offset);
}

// Stores a piece of a sum in its row.
template <int N, class S>
__device__ __forceinline__ void store_sums(const RowShape& shape, int lane, int64_t c0, S* row,
                                           const Sums<N, arithmetic_t<S>>& sums) {
#pragma unroll
  for (int q = 0; q < 2; ++q) {
    const int64_t c = piece_column<N>(shape, lane, c0, q);
    if (c >= shape.dim) continue;
    Pack<S, N> out;
#pragma unroll
    for (int n = 0; n < N; ++n) out.v[n] = narrow<S>(sums.v[q][n]);
    store_pack(row + c, out);
  }
}

// Adds the terms [0, n) to a piece of the sum, and their factors to `total` (of which each lane has a part). Groups
// share a sum by taking turns of `width` terms: a group takes turn number `first` of every `groups`. `most` is the
// largest n in the warp, all lanes of which must be here.
template <int N, class S, class C, class TermOf>
__device__ __forceinline__ void add_terms(const RowShape& shape, int lane, int64_t c0, const S* table, int64_t n,
                                          int64_t most, int first, int groups, const TermOf& term, Sums<N, C>& sums,
                                          C& total) {
  const int width = shape.width;
  for (int64_t base = 0; base < most; base += int64_t(groups) * width) {
    const int64_t t0 = base + first * width;
    const Term<C> mine = t0 + lane < n ? term(t0 + lane) : Term<C>{0, C(0)};
    total += mine.factor;
    const int turns = most - base < width ? int(most - base) : width;
#pragma unroll 4
    for (int i = 0; i < turns; ++i) {
      const int64_t row = __shfl_sync(kFullWarp, mine.row, i, width);
      const C factor = __shfl_sync(kFullWarp, mine.factor, i, width);
      if (t0 + i < n) add_row<N>(shape, lane, c0, table + row * shape.dim, factor, sums);
    }
  }
}

// Where the groups of a block leave their sums: one place, however many widths of an access a kernel is compiled for.
template <int kThreads, int kMost, class C>
__device__ __forceinline__ C* parts_of_groups() {
  GPU_SHARED(C, parts, kThreads * 2 * kMost);
  return parts;
}

// Adds up what the groups of a block have summed, in their order; the first group has the result. All threads must be
// here.
template <int kThreads, int kMost, int N, class C>
__device__ __forceinline__ void combine_groups(const RowShape& shape, Sums<N, C>& sums) {
  static_assert(N <= kMost);
  C* const parts = parts_of_groups<kThreads, kMost, C>();
  __syncthreads();  // the parts of a call before may still be read
#pragma unroll
  for (int e = 0; e < 2 * N; ++e) parts[e * kThreads + threadIdx.x] = sums.v[e / N][e % N];
  __syncthreads();
  if (threadIdx.x >= unsigned(shape.width)) return;
#pragma unroll
  for (int e = 0; e < 2 * N; ++e) {
    C sum = parts[e * kThreads + threadIdx.x];
    for (int t = threadIdx.x + shape.width; t < kThreads; t += shape.width) sum += parts[e * kThreads + t];
    sums.v[e / N][e % N] = sum;
  }
}

}  // namespace GPU_NS
}  // namespace zx
