// Metrics of each user from the places of his held-out positives and from his list: what zerosum_ext/metrics
// defines, for all users, all metrics and all cut-offs in one pass over the counts.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <tuple>
#include <vector>

#include "checks.h"
#include "common/csr.h"
#include "cpu/parallel.h"
#include "cpu/places.h"

namespace zx::cpu {
namespace {

constexpr int64_t kUsersPerTask = 256;
constexpr double kUndefined = std::numeric_limits<double>::quiet_NaN();

struct UserProblem {
  int64_t users, num_cutoffs, last_cutoff;
  const int64_t *offset, *greater, *equal, *candidates, *cutoffs;
  const double* popularity;  // of the positives
  RankTies ties;
  double* at_k;  // [kRankMetrics, num_cutoffs, users]
  double *auc, *right, *correlation, *top_quantile;
  double* quantile;                // [P]
  std::vector<double> gain, best;  // of ranks 1 .. the largest cut-off or number of positives; sums of the gains
};

// What is known of one user's positives, kept from user to user for its memory.
struct Scratch {
  Places<double> places;
  std::vector<int32_t> level, member;  // at the first place of a tie: positives that share it, one of them
  std::vector<double> place, popularity_rank;

  // Average ranks of the n numbers that were given to places.start, ascending.
  void average_ranks(int64_t n, std::vector<double>& ranks) {
    const int32_t* below = places.below();
    level.assign(static_cast<size_t>(n), 0);
    member.resize(static_cast<size_t>(n));
    ranks.resize(static_cast<size_t>(n));
    for (int64_t i = n - 1; i >= 0; --i) {
      ++level[static_cast<size_t>(below[i])];
      member[static_cast<size_t>(below[i])] = static_cast<int32_t>(i);  // the first one stays
    }
    for (int64_t i = 0; i < n; ++i)
      ranks[static_cast<size_t>(i)] = below[i] + (level[static_cast<size_t>(below[i])] + 1) / 2.0;
  }
};

// Whether the counts of a user's n positives can be those of a ranking.
bool is_sound(const UserProblem& p, int64_t u, int64_t first, int64_t n) {
  const int64_t candidates = p.candidates[u];
  bool sound = n <= candidates;
  for (int64_t i = first; i < first + n; ++i)
    sound &= (p.greater[i] >= 0) & (p.equal[i] >= 0) & (p.greater[i] < candidates) & (p.equal[i] < candidates) &
             (p.popularity[i] == p.popularity[i]);
  return sound;
}

// False, and nothing done, where the counts contradict each other.
bool user_metrics_of(const UserProblem& p, int64_t u, Scratch& scratch) {
  const int64_t first = p.offset[u], n = p.offset[u + 1] - first;
  if (!is_sound(p, u, first, n)) return false;
  const double size = static_cast<double>(n);
  // Popularity among the positives, descending.
  double* values = scratch.places.start(n);
  for (int64_t i = 0; i < n; ++i) values[i] = -p.popularity[first + i];
  scratch.average_ranks(n, scratch.popularity_rank);
  values = scratch.places.start(n);
  for (int64_t i = 0; i < n; ++i) values[i] = static_cast<double>(p.greater[first + i]);
  scratch.average_ranks(n, scratch.place);

  const auto at_k = [&](int metric, int64_t cut) -> double& {
    return p.at_k[(metric * p.num_cutoffs + cut) * p.users + u];
  };
  for (int64_t c = 0; c < p.num_cutoffs; ++c)
    for (int metric = 0; metric < kRankMetrics; ++metric) at_k(metric, c) = 0;

  // Blocks of positives that are level: m of them among N candidates of one score, after g candidates above.
  const double negatives = static_cast<double>(p.candidates[u] - n);
  double right = 0, level = 0;
  for (int64_t begin = 0, end; begin < n; begin = end) {
    const int64_t position = first + scratch.member[static_cast<size_t>(begin)];
    end = begin + scratch.level[static_cast<size_t>(begin)];
    const double m = static_cast<double>(end - begin), g = static_cast<double>(p.greater[position]);
    const double all = static_cast<double>(p.equal[position] + 1);
    const double level_negatives = all - m;
    right += m * (negatives - (g - static_cast<double>(begin)) - level_negatives);
    level += m * level_negatives;
    if (p.greater[position] >= p.last_cutoff) continue;
    for (int64_t j = begin; j < end; ++j) {
      const double nth = static_cast<double>(j - begin + 1);
      const double rank = tied_rank(p.ties, g, nth, all, m, level_negatives);
      const int64_t whole = static_cast<int64_t>(rank);
      const bool exact = static_cast<double>(whole) == rank && is_item(whole, static_cast<int64_t>(p.gain.size()));
      for (int64_t c = 0; c < p.num_cutoffs; ++c) {
        if (rank > static_cast<double>(p.cutoffs[c])) continue;
        if (at_k(kHit, c) == 0) at_k(kMrr, c) = 1 / rank;  // places ascend
        at_k(kHit, c) += 1;
        at_k(kNdcg, c) += exact ? p.gain[static_cast<size_t>(whole)] : rank_gain(rank);
        at_k(kMap, c) += static_cast<double>(j + 1) / rank;
      }
    }
  }
  for (int64_t c = 0; c < p.num_cutoffs; ++c) {
    const double hits = at_k(kHit, c);
    const int64_t best = std::min(n, p.cutoffs[c]);
    at_k(kHit, c) = hits > 0;
    at_k(kRecall, c) = hits / size;
    at_k(kPrecision, c) = hits / static_cast<double>(p.cutoffs[c]);
    at_k(kNdcg, c) /= p.best[static_cast<size_t>(best)];
    at_k(kMap, c) /= static_cast<double>(best);
  }
  p.right[u] = right;
  p.auc[u] = (right + level / 2) / (size * negatives);

  // The correlation of the two descending ranks is that of popularity and score.
  const double middle = (size + 1) / 2;
  double xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    p.quantile[first + static_cast<int64_t>(i)] = n > 1 ? (scratch.place[i] - 1) / (size - 1) : kUndefined;
    const double x = scratch.popularity_rank[i] - middle, y = scratch.place[i] - middle;
    xy += x * y, xx += x * x, yy += y * y;
  }
  p.correlation[u] = xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : kUndefined;
  p.top_quantile[u] =
      n > 1 ? (scratch.popularity_rank[static_cast<size_t>(scratch.member[0])] - 1) / (size - 1) : kUndefined;
  return true;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> user_metrics(const Tensor& offset, const Tensor& greater,
                                                                        const Tensor& equal, const Tensor& candidates,
                                                                        const Tensor& popularity, const Tensor& cutoffs,
                                                                        int64_t ties) {
  UserProblem p;
  p.users = candidates.size(0);
  p.num_cutoffs = cutoffs.size(0);
  check_metric_vector(offset, p.users + 1, ScalarType::Long, "offset");
  const int64_t count = check_offsets(data<int64_t>(offset), p.users);
  check_metric_vector(greater, count, ScalarType::Long, "greater");
  check_metric_vector(equal, count, ScalarType::Long, "equal");
  check_metric_vector(candidates, p.users, ScalarType::Long, "candidates");
  check_metric_vector(popularity, count, ScalarType::Double, "popularity");
  check_metric_vector(cutoffs, p.num_cutoffs, ScalarType::Long, "cutoffs");
  p.ties = checked_ties(ties);
  Tensor at_k = new_tensor(offset, {kRankMetrics, p.num_cutoffs, p.users}, ScalarType::Double);
  std::array<Tensor, 4> whole;
  for (Tensor& t : whole) t = new_tensor(offset, {p.users}, ScalarType::Double);
  Tensor quantile = new_tensor(offset, {count}, ScalarType::Double);
  p.offset = data<int64_t>(offset), p.greater = data<int64_t>(greater), p.equal = data<int64_t>(equal);
  p.candidates = data<int64_t>(candidates), p.cutoffs = data<int64_t>(cutoffs);
  p.popularity = data<double>(popularity);
  p.at_k = data<double>(at_k), p.quantile = data<double>(quantile);
  p.auc = data<double>(whole[0]), p.right = data<double>(whole[1]);
  p.correlation = data<double>(whole[2]), p.top_quantile = data<double>(whole[3]);
  // Ranks in use and numbers of positives are bounded by the candidates; a cut-off may be larger.
  int64_t longest = 0, most = 0;
  check_cutoffs(p.cutoffs, p.num_cutoffs);
  for (int64_t c = 0; c < p.num_cutoffs; ++c) longest = std::max(longest, p.cutoffs[c]);
  for (int64_t u = 0; u < p.users; ++u) most = std::max(most, p.candidates[u]);
  p.last_cutoff = longest;
  longest = std::min(longest, most);
  p.gain.assign(static_cast<size_t>(longest) + 1, 0);
  p.best.assign(static_cast<size_t>(longest) + 1, 0);
  for (size_t r = 1; r < p.gain.size(); ++r) {
    p.gain[r] = rank_gain(static_cast<double>(r));
    p.best[r] = p.best[r - 1] + p.gain[r];
  }
  std::atomic<bool> sound{true};
  for_each_block((p.users + kUsersPerTask - 1) / kUsersPerTask, 1, [&](int64_t task) {
    Scratch scratch;
    const int64_t end = std::min(p.users, (task + 1) * kUsersPerTask);
    for (int64_t u = task * kUsersPerTask; u < end; ++u)
      if (!user_metrics_of(p, u, scratch)) sound = false;
  });
  ZX_CHECK(sound, "greater, equal and candidates contradict each other, or a popularity is NaN");
  return {at_k, whole[0], whole[1], whole[2], whole[3], quantile};
}

// sums[v, c, u]: of values[v, item] over the first cutoffs[c] items of list u. lengths[c, u]: how many these are, -1
// being padding at the end. exposure[c, item]: in how many of these lists an item is.
std::tuple<Tensor, Tensor, Tensor> list_metrics(const Tensor& lists, const Tensor& values, const Tensor& cutoffs) {
  check_lists(lists, values);
  const int64_t users = lists.size(0), width = lists.size(1), kinds = values.size(0), num_items = values.size(1);
  const int64_t num_cutoffs = cutoffs.size(0);
  check_metric_vector(cutoffs, num_cutoffs, ScalarType::Long, "cutoffs");
  Tensor sums = new_tensor(lists, {kinds, num_cutoffs, users}, ScalarType::Double);
  Tensor lengths = new_tensor(lists, {num_cutoffs, users}, ScalarType::Long);
  Tensor exposure = new_tensor(lists, {num_cutoffs, num_items}, ScalarType::Long);
  const int64_t *list = data<int64_t>(lists), *cut = data<int64_t>(cutoffs);
  check_cutoffs(cut, num_cutoffs);
  std::atomic<bool> sound{true};
  const double* value = data<double>(values);
  double* sum = data<double>(sums);
  int64_t *length = data<int64_t>(lengths), *seen = data<int64_t>(exposure);
  for_each_block((users + kUsersPerTask - 1) / kUsersPerTask, 1, [&](int64_t task) {
    const int64_t end = std::min(users, (task + 1) * kUsersPerTask);
    for (int64_t u = task * kUsersPerTask; u < end; ++u) {
      const int64_t* items = list + u * width;
      int64_t filled = 0;
      while (filled < width && items[filled] >= 0 && items[filled] < num_items) ++filled;
      if (filled < width && items[filled] >= 0) {
        sound = false;
        return;
      }
      for (int64_t c = 0; c < num_cutoffs; ++c) {
        const int64_t n = std::min(filled, cut[c]);
        length[c * users + u] = n;
        for (int64_t v = 0; v < kinds; ++v) {
          double total = 0;
          for (int64_t j = 0; j < n; ++j) total += value[v * num_items + items[j]];
          sum[(v * num_cutoffs + c) * users + u] = total;
        }
      }
    }
  });
  ZX_CHECK(sound, "lists hold items that values have no column for");
  for_each_block(num_cutoffs, 1, [&](int64_t c) {
    int64_t* counts = seen + c * num_items;
    std::fill_n(counts, num_items, int64_t{0});
    for (int64_t u = 0; u < users; ++u)
      for (int64_t j = 0; j < length[c * users + u]; ++j) ++counts[list[u * width + j]];
  });
  return {sums, lengths, exposure};
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) {
  m.impl("user_metrics", ZX_BOX(&zx::cpu::user_metrics));
  m.impl("list_metrics", ZX_BOX(&zx::cpu::list_metrics));
}
