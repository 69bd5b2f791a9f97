// What a ranking is: which entry comes first, and where a score lies among a user's ascending levels (the distinct
// scores of his held-out positives).
#pragma once

#include <cmath>
#include <cstdint>

#include "common/csr.h"

namespace zx {

template <class T>
struct Scored {
  T score;
  int64_t item;
};

// The order of a list: descending scores, of equal ones the lower item first.
template <class T>
ZX_HD bool precedes(const Scored<T>& a, const Scored<T>& b) {
  return a.score > b.score || (a.score == b.score && a.item < b.item);
}

// A score's bin among m levels: 2 j where j levels are below it and none is equal, 2 j + 1 where j are below and level
// j is equal; 2 m + 1 bins. `first` is a number of levels known to be below, and level `last` is known not to be. NaN
// is in no order with anything and counts as below all.
template <class T>
ZX_HD int64_t score_bin(const T* levels, int64_t first, int64_t last, T score) {
  const int64_t j = first + lower_bound(levels + first, last - first, score);
  return 2 * j + (j < last && levels[j] == score);
}

// An item that is excluded, unless it is a held-out positive.
template <class Index>
ZX_HD bool is_candidate(Row<Index> positives, Row<Index> excluded, int64_t item) {
  return !row_contains(excluded, item) || row_contains(positives, item);
}

// ---- metrics of a user's ranks, as zerosum_ext/_ops/ranking.py names and orders them

enum RankMetric { kHit, kRecall, kPrecision, kNdcg, kMrr, kMap, kRankMetrics };
enum class RankTies : int64_t { kAverage, kPessimistic, kOptimistic };

// The rank of the nth positive among `all` candidates of one score, `negatives` of them negative and `positives`
// positive, that come after `above` better ones.
ZX_HD double tied_rank(RankTies ties, double above, double nth, double all, double positives, double negatives) {
  return ties == RankTies::kOptimistic    ? above + nth
         : ties == RankTies::kPessimistic ? above + negatives + nth
                                          : above + nth * (all + 1) / (positives + 1);
}

// What NDCG gives for a hit at a rank.
ZX_HD double rank_gain(double rank) { return 1 / log2(rank + 1); }

}  // namespace zx
