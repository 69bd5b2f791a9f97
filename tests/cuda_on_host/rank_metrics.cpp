// The launchers of csrc/cuda/rank_metrics.cuh.
#include "cuda/rank_metrics.cuh"

#include "host_call.h"

namespace {

hostcall::Function user_metrics("user_metrics", [](Tensor offset, Tensor greater, Tensor equal, Tensor candidates,
                                                   Tensor popularity, Tensor cutoffs, int64_t ties, Tensor at_k,
                                                   Tensor auc, Tensor right, Tensor correlation, Tensor top_quantile,
                                                   Tensor quantile, Tensor rank, Tensor number) {
  zx::UserMetricsArgs a{};
  a.users = candidates.size(0), a.num_cutoffs = cutoffs.size(0), a.positives = greater.size(0);
  a.offset = offset.ptr<int64_t>(), a.greater = greater.ptr<int64_t>(), a.equal = equal.ptr<int64_t>();
  a.candidates = candidates.ptr<int64_t>(), a.cutoffs = cutoffs.ptr<int64_t>();
  a.popularity = popularity.ptr<double>(), a.ties = static_cast<zx::RankTies>(ties);
  a.at_k = at_k.ptr<double>(), a.auc = auc.ptr<double>(), a.right = right.ptr<double>();
  a.correlation = correlation.ptr<double>(), a.top_quantile = top_quantile.ptr<double>();
  a.quantile = quantile.ptr<double>(), a.rank = rank.ptr<double>(), a.number = number.ptr<int64_t>();
  zx::user_metrics(a, nullptr);
});

hostcall::Function list_metrics("list_metrics", [](Tensor lists, Tensor values, Tensor cutoffs, Tensor sums,
                                                   Tensor lengths, Tensor exposure) {
  zx::ListMetricsArgs a{};
  a.users = lists.size(0), a.width = lists.size(1), a.kinds = values.size(0), a.num_items = values.size(1);
  a.num_cutoffs = cutoffs.size(0);
  a.lists = lists.ptr<int64_t>(), a.cutoffs = cutoffs.ptr<int64_t>(), a.values = values.ptr<double>();
  a.sums = sums.ptr<double>(), a.lengths = lengths.ptr<int64_t>(), a.exposure = exposure.ptr<unsigned long long>();
  zx::list_metrics(a, nullptr);
});

}  // namespace
