// Rankings of a catalogue on the GPU: a block of threads for each user, over scores that a matrix product has left in
// memory. Counts are integers and lists have a strict order (csrc/common/ranking.h), so that the results do not depend
// on which thread saw what.
//
// Positives are compared with the items 32 at a time: lane j of a warp keeps the count of positive j, and a vote of the
// warp compares 32 items with it. Lists are made by as many passes as they are long; a pass asks whether an item is a
// candidate only where it would be the best so far, which is seldom.
#pragma once

#include "common/ranking.h"
#include "cuda/reduce.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kRankThreads = 256;
constexpr int64_t kRankBlocks = 1 << 16;  // at most: more users are walked in strides

template <class S, class Index>
struct RankArgs {
  const S* scores;  // [rows, num_items]
  int64_t row_stride, column_stride;
  int64_t rows, num_items, k;
  const int64_t* users;   // [rows]
  const int64_t* offset;  // [rows + 1], of each user's positives in the results
  const int64_t* positive_indptr;
  const Index* positive_indices;
  const int64_t* excluded_indptr;  // or null
  const Index* excluded_indices;
  arithmetic_t<S>* positive_scores;
  unsigned long long *greater, *equal;
  int64_t* candidates;         // [rows]
  int64_t* top_items;          // [rows, k]
  unsigned long long* failed;  // -1 beforehand; the first row with a candidate scored NaN
};

// The best of all threads' entries, for all of them.
template <class T>
__device__ __forceinline__ Scored<T> best_of_block(Scored<T> best) {
  constexpr int kWarps = kRankThreads / kWarp;
  GPU_SHARED(T, scores, kWarps);
  GPU_SHARED(int64_t, items, kWarps);
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    const Scored<T> other{__shfl_xor_sync(kFullWarp, best.score, offset),
                          __shfl_xor_sync(kFullWarp, best.item, offset)};
    if (precedes(other, best)) best = other;
  }
  __syncthreads();  // the arrays of a call before may still be read
  if (threadIdx.x % kWarp == 0) {
    scores[threadIdx.x / kWarp] = best.score;
    items[threadIdx.x / kWarp] = best.item;
  }
  __syncthreads();
  best = {scores[0], items[0]};
  for (int w = 1; w < kWarps; ++w) {
    const Scored<T> other{scores[w], items[w]};
    if (precedes(other, best)) best = other;
  }
  return best;
}

template <class S, class Index>
__global__ void __launch_bounds__(kRankThreads) rank_kernel(const RankArgs<S, Index> a) {
  using T = arithmetic_t<S>;
  const int lane = threadIdx.x % kWarp;
  const T lowest = -static_cast<T>(INFINITY);
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    const int64_t user = a.users[row], first = a.positive_indptr[user];
    const Row<Index> positives{a.positive_indices + first, a.positive_indptr[user + 1] - first};
    const int64_t excluded_first = a.excluded_indptr != nullptr ? a.excluded_indptr[user] : 0;
    const Row<Index> excluded{a.excluded_indices + excluded_first,
                              a.excluded_indptr != nullptr ? a.excluded_indptr[user + 1] - excluded_first : 0};
    const S* scores = a.scores + row * a.row_stride;
    const auto score = [&](int64_t item) { return widen(scores[item * a.column_stride]); };
    const int64_t out = a.offset[row];

    for (int64_t i = threadIdx.x; i < positives.count; i += kRankThreads) {
      a.positive_scores[out + i] = score(static_cast<int64_t>(positives.items[i]));
      a.greater[out + i] = 0;
      a.equal[out + i] = ~0ull;  // -1: a positive is level with itself
    }
    int64_t removed = 0;
    for (int64_t i = threadIdx.x; i < excluded.count; i += kRankThreads)
      removed += !row_contains(positives, static_cast<int64_t>(excluded.items[i]));
    removed = block_combine<kRankThreads>(removed, Add{});  // and all threads see what was written above
    if (threadIdx.x == 0) a.candidates[row] = a.num_items - removed;

    // Counts, 32 positives at a time; the first turn also looks for NaN, with or without positives.
    for (int64_t group = 0; group == 0 || group < positives.count; group += kWarp) {
      const bool mine = group + lane < positives.count;
      const T level = mine ? score(static_cast<int64_t>(positives.items[group + lane])) : T(0);
      const int in_group = static_cast<int>(positives.count - group < kWarp ? positives.count - group : int64_t(kWarp));
      unsigned above = 0, level_with = 0;
      bool nan = false;
      for (int64_t base = threadIdx.x - lane; base < a.num_items; base += kRankThreads) {
        const int64_t item = base + lane;
        T s = lowest;
        bool candidate = item < a.num_items && is_candidate(positives, excluded, item);
        if (candidate) s = score(item);
        nan |= candidate && !(s == s);
        for (int j = 0; j < in_group; ++j) {
          const T other = __shfl_sync(kFullWarp, level, j);
          const unsigned more = __ballot_sync(kFullWarp, candidate && s > other);
          const unsigned same = __ballot_sync(kFullWarp, candidate && s == other);
          if (lane == j) {
            above += static_cast<unsigned>(__popc(more));
            level_with += static_cast<unsigned>(__popc(same));
          }
        }
      }
      if (mine && above > 0) atomicAdd(a.greater + out + group + lane, static_cast<unsigned long long>(above));
      if (mine && level_with > 0) atomicAdd(a.equal + out + group + lane, static_cast<unsigned long long>(level_with));
      if (nan) atomicMin(a.failed, static_cast<unsigned long long>(row));
    }

    Scored<T> previous{lowest, -1};
    for (int64_t place = 0; place < a.k; ++place) {
      Scored<T> best{lowest, a.num_items};
      if (place == 0 || previous.item < a.num_items)  // else there was none left
        for (int64_t item = threadIdx.x; item < a.num_items; item += kRankThreads) {
          const Scored<T> entry{score(item), item};
          if (entry.score > lowest && precedes(entry, best) && (place == 0 || precedes(previous, entry)) &&
              is_candidate(positives, excluded, item))
            best = entry;
        }
      previous = best_of_block(best);
      if (threadIdx.x == 0) a.top_items[row * a.k + place] = previous.item < a.num_items ? previous.item : -1;
    }
  }
}

template <class S, class Index>
void rank_scores(const RankArgs<S, Index>& a, gpuStream stream) {
  if (a.rows == 0) return;
  const int64_t blocks = a.rows < kRankBlocks ? a.rows : kRankBlocks;
  GPU_LAUNCH((rank_kernel<S, Index>), static_cast<unsigned>(blocks), kRankThreads, 0, stream)(a);
}

}  // namespace GPU_NS
}  // namespace zx
