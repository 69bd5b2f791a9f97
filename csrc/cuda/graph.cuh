// Products with the normalised adjacency matrix of a bipartite graph, and the entries that a step drops, on the GPU:
// the definitions are those of csrc/cpu/graph.cpp.
//
// A warp takes a row; in products its groups of threads (rows.cuh) an entry each, and rows with very many entries, as
// those of popular items, are summed by a whole block. What is summed has one order: the same bits each time.
#pragma once

#include "common/csr.h"
#include "common/philox.h"
#include "cuda/rows.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kGraphThreads = 256;
constexpr int kGraphWarps = kGraphThreads / kWarp;
constexpr int64_t kGraphBlocks = 4096;  // at most: more rows are walked in strides
constexpr int64_t kGraphLong = 1024;    // entries of a row from which on a block sums it
constexpr int64_t kGraphLongBlocks = 512;
// Blocks of a multiprocessor that registers are dealt out for: with three of them sm_120's code keeps two in memory.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1200
constexpr int kGraphResident = 2;
#else
constexpr int kGraphResident = 3;
#endif

// ---- the product ----------------------------------------------------------------------------------------------------

template <class T, class Index>
struct GraphArgs {
  const T *users, *items;             // [num_users, dim], [num_items, dim]
  const T *row_scale, *column_scale;  // [num_users + num_items] or null
  const Index *indptr, *end;          // [nodes + 1]; [nodes], or null for the next row's beginning
  const Index* indices;
  int64_t num_users, num_items, num_entries;
  RowShape shape;
  T factor;
  T *user_out, *item_out;
};

// A row of the matrix: where its entries lie, the table that they are numbers of, and where its sum goes.
template <class T, class Index>
struct GraphRow {
  int64_t begin, end;
  int64_t columns;  // rows of the table
  const T* table;
  const T* scale;  // of the table's rows, or null
  T factor;
  T* out;

  __device__ __forceinline__ GraphRow(const GraphArgs<T, Index>& a, int64_t row) {
    const bool item = row >= a.num_users;
    begin = static_cast<int64_t>(a.indptr[row]);
    end = static_cast<int64_t>(a.end != nullptr ? a.end[row] : a.indptr[row + 1]);
    table = item ? a.users : a.items;
    columns = item ? a.num_users : a.num_items;
    scale = a.column_scale == nullptr ? nullptr : a.column_scale + (item ? 0 : a.num_users);
    factor = a.row_scale == nullptr ? a.factor : a.factor * a.row_scale[row];
    out = item ? a.item_out + (row - a.num_users) * a.shape.dim : a.user_out + row * a.shape.dim;
    // NaN says that the row is none, and nothing of it is read.
    if (!is_row(begin, end, a.num_entries) || (columns == 0 && begin < end))
      begin = end = 0, factor = static_cast<T>(NAN);
  }
};

// Adds a group's entries of a row, every `groups`-th of them, to a piece of its sum; kAtOnce are on their way together.
template <int N, int kAtOnce, class T, class Index>
__device__ __forceinline__ void add_neighbours(const GraphArgs<T, Index>& a, const GraphRow<T, Index>& row, int lane,
                                               int group, int groups, int64_t c0, Sums<N, T>& sums) {
#pragma unroll(kAtOnce)
  for (int64_t e = row.begin + group; e < row.end; e += groups) {
    int64_t column = static_cast<int64_t>(a.indices[e]);
    const bool named = is_item(column, row.columns);
    column = named ? column : 0;
    const T scale = !named ? static_cast<T>(NAN) : row.scale == nullptr ? T(1) : row.scale[column];
    add_row<N>(a.shape, lane, c0, row.table + column * a.shape.dim, scale, sums);
  }
}

template <int N, class T, class Index>
__device__ __forceinline__ void store_row(const GraphArgs<T, Index>& a, const GraphRow<T, Index>& row, int lane,
                                          int64_t c0, Sums<N, T>& sums) {
#pragma unroll
  for (int e = 0; e < 2 * N; ++e) sums.v[e / N][e % N] *= row.factor;
  store_sums<N>(a.shape, lane, c0, row.out, sums);
}

// A warp to a row; rows of more than kGraphLong entries are left to the next kernel.
template <class T, class Index>
__global__ void __launch_bounds__(kGraphThreads, kGraphResident) graph_rows_kernel(const GraphArgs<T, Index> a) {
  const int width = a.shape.width, lane = threadIdx.x % width;
  const int group = threadIdx.x % kWarp / width, groups = kWarp / width;
  const int64_t nodes = a.num_users + a.num_items, step = gridDim.x * int64_t(kGraphWarps);
  for (int64_t r = blockIdx.x * int64_t(kGraphWarps) + threadIdx.x / kWarp; r < nodes; r += step) {
    const GraphRow<T, Index> row(a, r);
    if (row.end - row.begin > kGraphLong) continue;
    with_pack<T>(a.shape, [&](auto size) {
      constexpr int N = decltype(size)::value;
      for (int64_t c0 = 0; c0 < a.shape.dim; c0 += 2 * width * N) {
        Sums<N, T> sums = {};
        add_neighbours<N, 4>(a, row, lane, group, groups, c0, sums);
        combine_warp(a.shape, sums);
        if (group == 0) store_row<N>(a, row, lane, c0, sums);
      }
    });
  }
}

// The rows of more entries, a block to each.
template <class T, class Index>
__global__ void __launch_bounds__(kGraphThreads, 3) graph_long_rows_kernel(const GraphArgs<T, Index> a) {
  const int width = a.shape.width, lane = threadIdx.x % width;
  const int group = threadIdx.x / width, groups = kGraphThreads / width;
  const auto is_long = [&](int64_t r) {
    const GraphRow<T, Index> row(a, r);
    return row.end - row.begin > kGraphLong;
  };
  each_chosen_row<kGraphThreads>(a.num_users + a.num_items, is_long, [&](int64_t r) {
    const GraphRow<T, Index> row(a, r);
    with_pack<T>(a.shape, [&](auto size) {
      constexpr int N = decltype(size)::value;
      for (int64_t c0 = 0; c0 < a.shape.dim; c0 += 2 * width * N) {
        Sums<N, T> sums = {};
        add_neighbours<N, 1>(a, row, lane, group, groups, c0, sums);
        combine_groups<kGraphThreads, kRowPack<T>>(a.shape, sums);
        if (group == 0) store_row<N>(a, row, lane, c0, sums);
      }
    });
  });
}

// ---- dropped entries ------------------------------------------------------------------------------------------------

template <class Index>
struct GraphDropout {
  const Index *indptr, *indices;  // [nodes + 1], [2 interactions]
  const Index* by_item;           // [interactions], the number of each in the order of users
  int64_t num_users, nodes, interactions;
  const int64_t* seed;
  uint64_t threshold;  // a word of Philox below it drops
  Index *end, *list, *transposed_end, *transposed_list;
};

// What each row keeps, of the matrix and of its transpose: there both sides' decisions change places. Interaction e has
// two words of Philox's block e / 2, the first or the last: one for its user's row, one for its item's.
template <class Index>
__global__ void __launch_bounds__(kGraphThreads, 4) graph_dropout_kernel(const GraphDropout<Index> a) {
  const uint64_t seed = static_cast<uint64_t>(*a.seed);
  const int lane = threadIdx.x % kWarp;
  const unsigned before = (1u << lane) - 1;
  const int64_t step = gridDim.x * int64_t(kGraphWarps);
  for (int64_t row = blockIdx.x * int64_t(kGraphWarps) + threadIdx.x / kWarp; row < a.nodes; row += step) {
    const bool item = row >= a.num_users;
    int64_t begin = static_cast<int64_t>(a.indptr[row]), last = static_cast<int64_t>(a.indptr[row + 1]);
    // A row that is none keeps nothing, and begins behind its end, which graph_product takes for one that is none.
    const bool sound = is_row(begin, last, 2 * a.interactions) && begin >= (item ? a.interactions : 0);
    if (!sound) begin = last = 0;
    int64_t at = begin, transposed_at = begin;
    for (int64_t first = begin; first < last; first += kWarp) {
      const int64_t e = first + lane;
      bool mine = false, mirrored = false;
      if (e < last) {
        const int64_t interaction = item ? static_cast<int64_t>(a.by_item[e - a.interactions]) : e;
        // (An interaction that is none is drawn for as any number is: nothing is read at it.)
        const uint64_t block = static_cast<uint64_t>(interaction) / 2;
        const PhiloxBlock words = philox4x32(static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32), 0,
                                             static_cast<uint32_t>(Stream::kNodeDropout) << 24,
                                             static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
        const bool odd = interaction % 2 != 0;
        const bool by_user = (odd ? words.word[2] : words.word[0]) >= a.threshold;
        const bool by_its_item = (odd ? words.word[3] : words.word[1]) >= a.threshold;
        mine = item ? by_its_item : by_user;
        mirrored = item ? by_user : by_its_item;
      }
      const unsigned kept = __ballot_sync(kFullWarp, mine), transposed = __ballot_sync(kFullWarp, mirrored);
      if (mine) a.list[at + __popc(kept & before)] = a.indices[e];
      if (mirrored) a.transposed_list[transposed_at + __popc(transposed & before)] = a.indices[e];
      at += __popc(kept);
      transposed_at += __popc(transposed);
    }
    if (lane == 0) {
      a.end[row] = sound ? static_cast<Index>(at) : Index(-1);
      a.transposed_end[row] = sound ? static_cast<Index>(transposed_at) : Index(-1);
    }
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

inline unsigned graph_blocks(int64_t nodes) {
  const int64_t blocks = (nodes + kGraphWarps - 1) / kGraphWarps;
  return static_cast<unsigned>(blocks < kGraphBlocks ? blocks : kGraphBlocks);
}

template <class T, class Index>
void graph_product(GraphArgs<T, Index> a, gpuStream stream) {
  const int64_t nodes = a.num_users + a.num_items;
  if (nodes == 0 || a.shape.dim == 0) return;
  a.shape = row_shape<T>(a.shape.dim, {a.users, a.items, a.user_out, a.item_out});
  GPU_LAUNCH((graph_rows_kernel<T, Index>), graph_blocks(nodes), kGraphThreads, 0, stream)(a);
  GPU_LAUNCH((graph_long_rows_kernel<T, Index>),
             static_cast<unsigned>(nodes < kGraphLongBlocks ? nodes : kGraphLongBlocks), kGraphThreads, 0, stream)
  (a);
}

template <class Index>
void graph_drop(const GraphDropout<Index>& a, gpuStream stream) {
  if (a.nodes > 0) GPU_LAUNCH((graph_dropout_kernel<Index>), graph_blocks(a.nodes), kGraphThreads, 0, stream)(a);
}

}  // namespace GPU_NS
}  // namespace zx
