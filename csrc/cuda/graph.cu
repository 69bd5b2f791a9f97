// graph_propagate and graph_dropout on CUDA tensors.
#include "cuda/graph.cuh"

namespace zx {
template void graph_product(GraphArgs<float, int32_t>, gpuStream);
template void graph_product(GraphArgs<float, int64_t>, gpuStream);
template void graph_product(GraphArgs<double, int32_t>, gpuStream);
template void graph_product(GraphArgs<double, int64_t>, gpuStream);
template void graph_drop(const GraphDropout<int32_t>&, gpuStream);
template void graph_drop(const GraphDropout<int64_t>&, gpuStream);
}  // namespace zx

#ifndef __CUDA_ARCH__  // what follows is compiled once, not for each architecture (cuda/call.h)

#include <tuple>

#include "checks.h"
#include "cuda/call.h"

namespace zx::cuda {

std::tuple<Tensor, Tensor> graph_propagate(const Tensor& users, const Tensor& items, const Tensor& indptr,
                                           std::optional<Tensor> end, const Tensor& indices,
                                           std::optional<Tensor> row_scale, std::optional<Tensor> column_scale,
                                           double factor) {
  const Call call(users);
  call.require_here(items, "items");
  call.require_here(indptr, "indptr");
  call.require_here(end, "end");
  call.require_here(indices, "indices");
  call.require_here(row_scale, "row_scale");
  call.require_here(column_scale, "column_scale");
  check_graph_product(users, items, indptr, end, indices, row_scale, column_scale);
  const ScalarType dtype = users.scalar_type();
  Tensor user_out = new_tensor(users, {users.size(0), users.size(1)}, dtype);
  Tensor item_out = new_tensor(users, {items.size(0), items.size(1)}, dtype);
  dispatch_index(indices.scalar_type(), [&](auto index) {
    const auto run = [&](auto element) {
      using T = decltype(element);
      using Index = decltype(index);
      GraphArgs<T, Index> a{};
      a.users = data<T>(users), a.items = data<T>(items);
      a.row_scale = data_or_null<T>(row_scale), a.column_scale = data_or_null<T>(column_scale);
      a.indptr = data<Index>(indptr), a.end = data_or_null<Index>(end), a.indices = data<Index>(indices);
      a.num_users = users.size(0), a.num_items = items.size(0), a.num_entries = indices.size(0),
      a.shape.dim = users.size(1);
      a.factor = static_cast<T>(factor);
      a.user_out = data<T>(user_out), a.item_out = data<T>(item_out);
      graph_product(a, call.stream());
    };
    if (dtype == ScalarType::Double)
      run(double{});
    else
      run(float{});
  });
  Call::check();
  return {user_out, item_out};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> graph_dropout(const Tensor& indptr, const Tensor& indices,
                                                         const Tensor& by_item, int64_t num_users, const Tensor& seed,
                                                         double share) {
  const Call call(indptr);
  call.require_here(indices, "indices");
  call.require_here(by_item, "by_item");
  call.require_here(seed, "seed");
  check_graph_dropout(indptr, indices, by_item, num_users, seed, share);
  const ScalarType dtype = indices.scalar_type();
  const int64_t nodes = indptr.numel() - 1, entries = indices.numel();
  Tensor end = new_tensor(indptr, {nodes}, dtype), transposed_end = new_tensor(indptr, {nodes}, dtype);
  Tensor list = new_tensor(indptr, {entries}, dtype), transposed_list = new_tensor(indptr, {entries}, dtype);
  dispatch_index(dtype, [&](auto index) {
    using Index = decltype(index);
    GraphDropout<Index> a{};
    a.indptr = data<Index>(indptr), a.indices = data<Index>(indices), a.by_item = data<Index>(by_item);
    a.num_users = num_users, a.nodes = nodes, a.interactions = by_item.numel();
    a.seed = data<int64_t>(seed), a.threshold = drop_threshold(share);
    a.end = data<Index>(end), a.list = data<Index>(list);
    a.transposed_end = data<Index>(transposed_end), a.transposed_list = data<Index>(transposed_list);
    graph_drop(a, call.stream());
  });
  Call::check();
  return {end, list, transposed_end, transposed_list};
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) {
  m.impl("graph_propagate", ZX_BOX(&zx::cuda::graph_propagate));
  m.impl("graph_dropout", ZX_BOX(&zx::cuda::graph_dropout));
}

#endif
