// Groups the positions of a batch by the row that they name, on the GPU: a stable radix sort of (row, position) pairs,
// and the place in it where each row begins. No result depends on the order of threads or blocks, and nothing waits for
// the GPU: how many rows there are is left in memory.
//
// A pass of the sort has three kernels: each block (tile) counts its digits; the counts become offsets; each tile moves
// its pairs. A warp of a tile has 512 consecutive pairs and moves them 32 at a time, in order; lanes of the same digit
// find each other by a vote.
#pragma once

#include "cuda/reduce.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kSortThreads = 256;
constexpr int kSortTurns = 16;                        // pairs of a thread
constexpr int kSortTile = kSortThreads * kSortTurns;  // pairs of a block
constexpr int kSortWarps = kSortThreads / kWarp;
constexpr int kSortDigits = 256;  // at most
static_assert(kSortDigits == kSortThreads, "a thread looks after a digit");
constexpr int64_t kSortMost = (int64_t{1} << 32) - 2;  // rows of a table, and positions

// The ids of position i of a batch: columns of `first`, then those of `second`, sample after sample.
struct BatchIds {
  const int64_t *first, *second;
  int64_t first_columns, second_columns;

  __device__ __forceinline__ int64_t at(int64_t sample, int64_t column) const {
    return column < first_columns ? first[sample * first_columns + column]
                                  : second[sample * second_columns + column - first_columns];
  }
};

// Where a sort works, and what it leaves: keys[0] are the rows in ascending order, order[0] their positions, ascending
// among equal rows. Row number s of those that occur has the places [starts[s], starts[s + 1]); there are *count. Ids
// out of range are sorted behind all rows and belong to none.
struct SortedRows {
  unsigned *keys[2], *order[2];  // [n] each
  unsigned* tiles;               // sort_tile_counts(n)
  unsigned* starts;              // [sort_slots(n, rows) + 1]
  unsigned* count;               // [1]
};

inline int64_t sort_tiles(int64_t n) { return (n + kSortTile - 1) / kSortTile; }
inline int64_t sort_tile_counts(int64_t n) { return kSortDigits * (sort_tiles(n) + 1); }
// Rows that can occur among n positions.
inline int64_t sort_slots(int64_t n, int64_t rows) { return n < rows ? n : rows; }

// The sum of v over the threads before this one, and over all of them.
template <int kThreads>
__device__ __forceinline__ unsigned sum_before(unsigned v, unsigned* total) {
  constexpr int kWarps = kThreads / kWarp;
  GPU_SHARED(unsigned, sums, kWarps);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned x = v;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const unsigned other = __shfl_up_sync(kFullWarp, x, offset);
    if (lane >= offset) x += other;
  }
  __syncthreads();  // the sums of a call before may still be read
  if (lane == kWarp - 1) sums[warp] = x;
  __syncthreads();
  unsigned before = 0, all = 0;
  for (int w = 0; w < kWarps; ++w) {
    const unsigned sum = sums[w];
    if (w < warp) before += sum;
    all += sum;
  }
  *total = all;
  return before + x - v;
}

// The pairs in the order of the batch. A row is an id, or `rows` for one that is out of range.
static __global__ void __launch_bounds__(kSortThreads)
    sort_pairs_kernel(BatchIds ids, int64_t n, int64_t rows, unsigned* keys, unsigned* order) {
  const unsigned columns = static_cast<unsigned>(ids.first_columns + ids.second_columns);
  const int64_t threads = gridDim.x * int64_t(kSortThreads);
  for (int64_t i = blockIdx.x * int64_t(kSortThreads) + threadIdx.x; i < n; i += threads) {
    const unsigned sample = static_cast<unsigned>(i) / columns;
    const int64_t id = ids.at(sample, i - int64_t(sample) * columns);
    keys[i] = static_cast<uint64_t>(id) < static_cast<uint64_t>(rows) ? static_cast<unsigned>(id)
                                                                      : static_cast<unsigned>(rows);
    order[i] = static_cast<unsigned>(i);
  }
}

// tiles[digit, tile]: how often the tile has the digit.
static __global__ void __launch_bounds__(kSortThreads)
    digit_counts_kernel(const unsigned* keys, int64_t n, int shift, unsigned mask, unsigned* tiles) {
  GPU_SHARED(unsigned, counts, kSortDigits);
  counts[threadIdx.x] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * int64_t(kSortTile);
  for (int turn = 0; turn < kSortTurns; ++turn) {
    const int64_t i = begin + turn * kSortThreads + threadIdx.x;
    if (i < n) atomicAdd(counts + (keys[i] >> shift & mask), 1u);
  }
  __syncthreads();
  if (threadIdx.x <= mask) tiles[threadIdx.x * int64_t(gridDim.x) + blockIdx.x] = counts[threadIdx.x];
}

// Counts become the sums of those before them, a block to a line of `width`; totals[line] is the line's sum.
static __global__ void __launch_bounds__(kSortThreads)
    offsets_kernel(unsigned* counts, int64_t width, unsigned* totals) {
  unsigned* line = counts + blockIdx.x * width;
  unsigned before = 0;
  for (int64_t first = 0; first < width; first += kSortThreads) {
    const int64_t i = first + threadIdx.x;
    unsigned sum;
    const unsigned offset = sum_before<kSortThreads>(i < width ? line[i] : 0u, &sum);
    if (i < width) line[i] = before + offset;
    before += sum;
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = before;
}

static __global__ void __launch_bounds__(kSortThreads)
    move_pairs_kernel(const unsigned* keys, const unsigned* order, int64_t n, int shift, unsigned mask,
                      const unsigned* tiles, const unsigned* totals, unsigned* new_keys, unsigned* new_order) {
  // Where a warp's next pair of each digit goes.
  GPU_SHARED(unsigned, next, kSortWarps* kSortDigits);
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  unsigned* own = next + warp * kSortDigits;
  for (int i = threadIdx.x; i < kSortWarps * kSortDigits; i += kSortThreads) next[i] = 0;
  __syncthreads();
  const int64_t begin = blockIdx.x * int64_t(kSortTile) + warp * (kWarp * kSortTurns) + lane;
  for (int turn = 0; turn < kSortTurns; ++turn) {
    const int64_t i = begin + turn * kWarp;
    if (i < n) atomicAdd(own + (keys[i] >> shift & mask), 1u);
  }
  unsigned all;
  const unsigned smaller = sum_before<kSortThreads>(threadIdx.x <= mask ? totals[threadIdx.x] : 0u, &all);
  __syncthreads();
  unsigned place = smaller + (threadIdx.x <= mask ? tiles[threadIdx.x * int64_t(gridDim.x) + blockIdx.x] : 0u);
  for (int w = 0; w < kSortWarps; ++w) {
    const unsigned count = next[w * kSortDigits + threadIdx.x];
    next[w * kSortDigits + threadIdx.x] = place;
    place += count;
  }
  __syncthreads();
  for (int turn = 0; turn < kSortTurns; ++turn) {
    const int64_t i = begin + turn * kWarp;
    const bool here = i < n;
    const unsigned key = here ? keys[i] : 0u;
    const unsigned digit = here ? key >> shift & mask : unsigned(kSortDigits);
    const unsigned equals = __match_any_sync(kFullWarp, digit);
    const unsigned below = static_cast<unsigned>(__popc(equals & ((1u << lane) - 1)));
    const unsigned to = here ? own[digit] + below : 0u;
    __syncwarp();
    if (here && below == 0) own[digit] += static_cast<unsigned>(__popc(equals));
    __syncwarp();
    if (here) {
      new_keys[to] = key;
      new_order[to] = order[i];
    }
  }
}

// Whether a row begins at place i.
__device__ __forceinline__ bool begins(const unsigned* keys, int64_t i, int64_t n, int64_t rows) {
  return i < n && keys[i] < rows && (i == 0 || keys[i - 1] != keys[i]);
}

static __global__ void __launch_bounds__(kSortThreads)
    row_counts_kernel(const unsigned* keys, int64_t n, int64_t rows, unsigned* tiles) {
  int count = 0;
  for (int turn = 0; turn < kSortTurns; ++turn)
    count += begins(keys, blockIdx.x * int64_t(kSortTile) + turn * kSortThreads + threadIdx.x, n, rows);
  count = block_combine<kSortThreads>(count, Add{});
  if (threadIdx.x == 0) tiles[blockIdx.x] = static_cast<unsigned>(count);
}

static __global__ void __launch_bounds__(kSortThreads)
    row_starts_kernel(const unsigned* keys, int64_t n, int64_t rows, const unsigned* tiles, unsigned* starts) {
  unsigned before = tiles[blockIdx.x];
  for (int turn = 0; turn < kSortTurns; ++turn) {
    const int64_t i = blockIdx.x * int64_t(kSortTile) + turn * kSortThreads + threadIdx.x;
    const bool first = begins(keys, i, n, rows);
    unsigned sum;
    const unsigned number = before + sum_before<kSortThreads>(first ? 1u : 0u, &sum);
    if (first) starts[number] = static_cast<unsigned>(i);
    // The end of the last row.
    if (i < n && keys[i] < rows && (i + 1 == n || keys[i + 1] >= rows))
      starts[number + (first ? 1u : 0u)] = static_cast<unsigned>(i + 1);
    before += sum;
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

// Sorts n positions by their ids in [0, rows). Afterwards keys[0] and order[0] of the result are the sorted ones.
inline SortedRows sort_rows(const BatchIds& ids, int64_t n, int64_t rows, SortedRows s, gpuStream stream) {
  if (n == 0) {
    GPU_LAUNCH((offsets_kernel), 1, kSortThreads, 0, stream)(s.tiles, int64_t(0), s.count);
    return s;
  }
  const unsigned tiles = static_cast<unsigned>(sort_tiles(n));
  unsigned* totals = s.tiles + kSortDigits * int64_t(tiles);
  GPU_LAUNCH((sort_pairs_kernel), tiles, kSortThreads, 0, stream)(ids, n, rows, s.keys[0], s.order[0]);
  int bits = 1;
  while ((int64_t{1} << bits) <= rows) ++bits;
  const int passes = (bits + 7) / 8, width = (bits + passes - 1) / passes;
  const unsigned mask = (1u << width) - 1;
  for (int pass = 0; pass < passes; ++pass) {
    const int shift = pass * width;
    GPU_LAUNCH((digit_counts_kernel), tiles, kSortThreads, 0, stream)(s.keys[0], n, shift, mask, s.tiles);
    GPU_LAUNCH((offsets_kernel), mask + 1, kSortThreads, 0, stream)(s.tiles, int64_t(tiles), totals);
    GPU_LAUNCH((move_pairs_kernel), tiles, kSortThreads, 0, stream)
    (s.keys[0], s.order[0], n, shift, mask, s.tiles, totals, s.keys[1], s.order[1]);
    unsigned* const keys = s.keys[0];
    unsigned* const order = s.order[0];
    s.keys[0] = s.keys[1], s.keys[1] = keys;
    s.order[0] = s.order[1], s.order[1] = order;
  }
  GPU_LAUNCH((row_counts_kernel), tiles, kSortThreads, 0, stream)(s.keys[0], n, rows, s.tiles);
  GPU_LAUNCH((offsets_kernel), 1, kSortThreads, 0, stream)(s.tiles, int64_t(tiles), s.count);
  GPU_LAUNCH((row_starts_kernel), tiles, kSortThreads, 0, stream)(s.keys[0], n, rows, s.tiles, s.starts);
  return s;
}

}  // namespace GPU_NS
}  // namespace zx
