// Metrics of each user from the places of his held-out positives, and of his list, on the GPU: what
// csrc/cpu/rank_metrics.cpp computes.
//
// A warp takes a user. A positive's place among the user's is found by comparing it with all of them, which needs no
// sort and no memory of its own, and is soon done: most users hold out a few. Every sum has one order.
#pragma once

#include "common/ranking.h"
#include "cuda/reduce.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kMetricThreads = 256;
constexpr int kMetricWarps = kMetricThreads / kWarp;
constexpr int64_t kMetricBlocks = 1 << 14;  // at most: more users are walked in strides

struct UserMetricsArgs {
  int64_t users, num_cutoffs, positives;
  const int64_t *offset, *greater, *equal, *candidates, *cutoffs;
  const double* popularity;  // of the positives
  RankTies ties;
  double* at_k;  // [kRankMetrics, num_cutoffs, users]
  double *auc, *right, *correlation, *top_quantile;
  double* quantile;  // [P]
  double* rank;      // [P], to work with: each positive's rank among the candidates,
  int64_t* number;   // [P], and its number, from 1, among the user's positives by place
};

__global__ void __launch_bounds__(kMetricThreads, 3) user_metrics_kernel(const UserMetricsArgs a) {
  const int lane = threadIdx.x % kWarp;
  const double undefined = static_cast<double>(NAN);
  for (int64_t user = blockIdx.x * int64_t(kMetricWarps) + threadIdx.x / kWarp; user < a.users;
       user += gridDim.x * int64_t(kMetricWarps)) {
    const int64_t begin = a.offset[user], end = a.offset[user + 1];
    // A user whose positives are none has results that are NaN, as if there were nothing.
    const bool sound = is_row(begin, end, a.positives);
    const int64_t first = sound ? begin : 0, n = sound ? end - begin : 0;
    const double size = static_cast<double>(n), middle = (size + 1) / 2;
    const double negatives = static_cast<double>(a.candidates[user] - n);
    double right = 0, level = 0, xy = 0, xx = 0, yy = 0;
    for (int64_t i = lane; i < n; i += kWarp) {
      const int64_t above = a.greater[first + i];
      const double popularity = a.popularity[first + i];
      // Positives that are above this one, level with it, and of those the ones up to it; more popular, as popular.
      int64_t before = 0, same = 0, nth = 0, more = 0, as_many = 0;
      for (int64_t j = 0; j < n; ++j) {
        const int64_t other = a.greater[first + j];
        const double count = a.popularity[first + j];
        before += other < above;
        same += other == above;
        nth += other == above && j <= i;
        more += count > popularity;
        as_many += count == popularity;
      }
      const double m = static_cast<double>(same), g = static_cast<double>(above);
      const double all = static_cast<double>(a.equal[first + i] + 1), level_negatives = all - m;
      right += negatives - (g - static_cast<double>(before)) - level_negatives;
      level += level_negatives;
      a.rank[first + i] = tied_rank(a.ties, g, static_cast<double>(nth), all, m, level_negatives);
      a.number[first + i] = before + nth;
      const double place = static_cast<double>(before) + (m + 1) / 2;
      const double popularity_rank = static_cast<double>(more) + (static_cast<double>(as_many) + 1) / 2;
      a.quantile[first + i] = n > 1 ? (place - 1) / (size - 1) : undefined;
      if (before + nth == 1) a.top_quantile[user] = n > 1 ? (popularity_rank - 1) / (size - 1) : undefined;
      const double x = popularity_rank - middle, y = place - middle;
      xy += x * y, xx += x * x, yy += y * y;
    }
    right = warp_combine(right, kWarp, Add{}), level = warp_combine(level, kWarp, Add{});
    xy = warp_combine(xy, kWarp, Add{}), xx = warp_combine(xx, kWarp, Add{}), yy = warp_combine(yy, kWarp, Add{});
    if (lane == 0) {
      a.right[user] = right;
      a.auc[user] = (right + level / 2) / (size * negatives);
      a.correlation[user] = xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : undefined;
      if (n == 0) a.top_quantile[user] = undefined;
      if (!sound) a.right[user] = undefined;
    }

    for (int64_t c = 0; c < a.num_cutoffs; ++c) {
      const int64_t cutoff = a.cutoffs[c], best = n < cutoff ? n : cutoff;
      double hits = 0, least = static_cast<double>(INFINITY), gain = 0, precision = 0, most = 0;
      for (int64_t i = lane; i < n; i += kWarp) {  // what this lane has written above
        const double rank = a.rank[first + i];
        if (!(rank <= static_cast<double>(cutoff))) continue;
        hits += 1;
        least = rank < least ? rank : least;
        gain += rank_gain(rank);
        precision += static_cast<double>(a.number[first + i]) / rank;
      }
      for (int64_t r = lane; r < best; r += kWarp) most += rank_gain(static_cast<double>(r + 1));
      hits = warp_combine(hits, kWarp, Add{}), least = warp_combine(least, kWarp, Smaller{});
      gain = warp_combine(gain, kWarp, Add{}), precision = warp_combine(precision, kWarp, Add{});
      most = warp_combine(most, kWarp, Add{});
      if (lane != 0) continue;
      double* const out = a.at_k + c * a.users + user;
      const int64_t step = a.num_cutoffs * a.users;
      out[kHit * step] = hits > 0;
      out[kRecall * step] = hits / size;
      out[kPrecision * step] = hits / static_cast<double>(cutoff);
      out[kNdcg * step] = gain / most;
      out[kMrr * step] = hits > 0 ? 1 / least : 0;
      out[kMap * step] = precision / static_cast<double>(best);
    }
  }
}

struct ListMetricsArgs {
  int64_t users, width, kinds, num_items, num_cutoffs;
  const int64_t *lists, *cutoffs;  // [users, width], [num_cutoffs]
  const double* values;            // [kinds, num_items]
  double* sums;                    // [kinds, num_cutoffs, users]
  int64_t* lengths;                // [num_cutoffs, users]
  unsigned long long* exposure;    // [num_cutoffs, num_items], 0 beforehand
};

// A thread to a list and a cut-off.
__global__ void __launch_bounds__(kMetricThreads) list_metrics_kernel(const ListMetricsArgs a) {
  const int64_t work = a.num_cutoffs * a.users, threads = gridDim.x * int64_t(kMetricThreads);
  for (int64_t i = blockIdx.x * int64_t(kMetricThreads) + threadIdx.x; i < work; i += threads) {
    const int64_t c = i / a.users, user = i - c * a.users;
    const int64_t* const list = a.lists + user * a.width;
    const int64_t most = a.cutoffs[c] < a.width ? a.cutoffs[c] : a.width;
    int64_t n = 0;
    for (; n < most && is_item(list[n], a.num_items); ++n) atomicAdd(a.exposure + c * a.num_items + list[n], 1ull);
    // A length of -1 says that the list holds an item that there is no column for.
    a.lengths[i] = n < most && list[n] >= 0 ? -1 : n;
    for (int64_t v = 0; v < a.kinds; ++v) {
      double total = 0;
      for (int64_t j = 0; j < n; ++j) total += a.values[v * a.num_items + list[j]];
      a.sums[v * work + i] = total;
    }
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

inline unsigned metric_blocks(int64_t work, int64_t per_block) {
  const int64_t blocks = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < kMetricBlocks ? blocks : kMetricBlocks);
}

inline void user_metrics(const UserMetricsArgs& a, gpuStream stream) {
  if (a.users == 0) return;
  GPU_LAUNCH((user_metrics_kernel), metric_blocks(a.users, kMetricWarps), kMetricThreads, 0, stream)(a);
}

inline void list_metrics(const ListMetricsArgs& a, gpuStream stream) {
  if (a.users == 0 || a.num_cutoffs == 0) return;
  GPU_LAUNCH((list_metrics_kernel), metric_blocks(a.num_cutoffs * a.users, kMetricThreads), kMetricThreads, 0, stream)
  (a);
}

}  // namespace GPU_NS
}  // namespace zx
