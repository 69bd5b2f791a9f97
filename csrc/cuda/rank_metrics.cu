// user_metrics and list_metrics on CUDA tensors.
#include "cuda/rank_metrics.cuh"

#ifndef __CUDA_ARCH__  // what follows is compiled once, not for each architecture (cuda/call.h)

#include <tuple>

#include "checks.h"
#include "cuda/call.h"

namespace zx::cuda {
namespace {

void check_vector(const Call& call, const Tensor& t, int64_t size, ScalarType dtype, const char* name) {
  call.require_here(t, name);
  check_metric_vector(t, size, dtype, name);
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> user_metrics(const Tensor& offset, const Tensor& greater,
                                                                        const Tensor& equal, const Tensor& candidates,
                                                                        const Tensor& popularity, const Tensor& cutoffs,
                                                                        int64_t ties) {
  const Call call(offset);
  UserMetricsArgs a{};
  a.users = candidates.size(0), a.num_cutoffs = cutoffs.size(0);
  const int64_t count = a.positives = greater.size(0);
  check_vector(call, offset, a.users + 1, ScalarType::Long, "offset");
  check_vector(call, greater, count, ScalarType::Long, "greater");
  check_vector(call, equal, count, ScalarType::Long, "equal");
  check_vector(call, candidates, a.users, ScalarType::Long, "candidates");
  check_vector(call, popularity, count, ScalarType::Double, "popularity");
  check_vector(call, cutoffs, a.num_cutoffs, ScalarType::Long, "cutoffs");
  a.ties = checked_ties(ties);
  Tensor at_k = new_tensor(offset, {kRankMetrics, a.num_cutoffs, a.users}, ScalarType::Double);
  std::array<Tensor, 4> whole;
  for (Tensor& t : whole) t = new_tensor(offset, {a.users}, ScalarType::Double);
  Tensor quantile = new_tensor(offset, {count}, ScalarType::Double);
  const Tensor rank = new_tensor(offset, {count}, ScalarType::Double);
  const Tensor number = new_tensor(offset, {count}, ScalarType::Long);
  a.offset = data<int64_t>(offset), a.greater = data<int64_t>(greater), a.equal = data<int64_t>(equal);
  a.candidates = data<int64_t>(candidates), a.cutoffs = data<int64_t>(cutoffs);
  a.popularity = data<double>(popularity);
  a.at_k = data<double>(at_k), a.quantile = data<double>(quantile);
  a.auc = data<double>(whole[0]), a.right = data<double>(whole[1]);
  a.correlation = data<double>(whole[2]), a.top_quantile = data<double>(whole[3]);
  a.rank = data<double>(rank), a.number = data<int64_t>(number);
  zx::user_metrics(a, call.stream());
  Call::check();
  return {at_k, whole[0], whole[1], whole[2], whole[3], quantile};
}

std::tuple<Tensor, Tensor, Tensor> list_metrics(const Tensor& lists, const Tensor& values, const Tensor& cutoffs) {
  const Call call(lists);
  call.require_here(values, "values");
  check_lists(lists, values);
  ListMetricsArgs a{};
  a.users = lists.size(0), a.width = lists.size(1), a.kinds = values.size(0), a.num_items = values.size(1);
  a.num_cutoffs = cutoffs.size(0);
  check_vector(call, cutoffs, a.num_cutoffs, ScalarType::Long, "cutoffs");
  Tensor sums = new_tensor(lists, {a.kinds, a.num_cutoffs, a.users}, ScalarType::Double);
  Tensor lengths = new_tensor(lists, {a.num_cutoffs, a.users}, ScalarType::Long);
  Tensor exposure = new_tensor(lists, {a.num_cutoffs, a.num_items}, ScalarType::Long);
  call.fill(exposure.data_ptr(), 0, exposure.numel() * 8);
  a.lists = data<int64_t>(lists), a.cutoffs = data<int64_t>(cutoffs), a.values = data<double>(values);
  a.sums = data<double>(sums), a.lengths = data<int64_t>(lengths), a.exposure = data<unsigned long long>(exposure);
  zx::list_metrics(a, call.stream());
  Call::check();
  return {sums, lengths, exposure};
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) {
  m.impl("user_metrics", ZX_BOX(&zx::cuda::user_metrics));
  m.impl("list_metrics", ZX_BOX(&zx::cuda::list_metrics));
}

#endif
