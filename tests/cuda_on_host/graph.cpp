// The launchers of csrc/cuda/graph.cuh.
#include "cuda/graph.cuh"

#include "host_call.h"

namespace zx {
inline namespace GPU_NS {

// How often a row is called for, and by which block.
__global__ void chosen_rows_kernel(const int* chosen, int64_t rows, int* calls, int* block) {
  each_chosen_row<64>(
      rows, [&](int64_t row) { return chosen[row] != 0; },
      [&](int64_t row) {
        __syncthreads();  // all threads are here
        if (threadIdx.x == 0) ++calls[row], block[row] = static_cast<int>(blockIdx.x);
      });
}

}  // namespace GPU_NS
}  // namespace zx

namespace {

hostcall::Function chosen_rows("chosen_rows", [](Tensor chosen, int64_t blocks, Tensor calls, Tensor block) {
  GPU_LAUNCH((zx::chosen_rows_kernel), static_cast<unsigned>(blocks), 64, 0, nullptr)
  (chosen.ptr<int>(), chosen.size(0), calls.ptr<int>(), block.ptr<int>());
});

hostcall::Function product("graph_product", [](Tensor users, Tensor items, Tensor indptr, Tensor end, Tensor indices,
                                               Tensor row_scale, Tensor column_scale, double factor, Tensor user_out,
                                               Tensor item_out) {
  const auto call = [&](auto element, auto index) {
    using T = decltype(element);
    using Index = decltype(index);
    zx::GraphArgs<T, Index> a{};
    a.users = users.ptr<T>(), a.items = items.ptr<T>();
    a.row_scale = row_scale.ptr<T>(), a.column_scale = column_scale.ptr<T>();
    a.indptr = indptr.ptr<Index>(), a.end = end.ptr<Index>(), a.indices = indices.ptr<Index>();
    a.num_users = users.size(0), a.num_items = items.size(0), a.num_entries = indices.size(0);
    a.shape.dim = users.size(1);
    a.factor = T(factor), a.user_out = user_out.ptr<T>(), a.item_out = item_out.ptr<T>();
    zx::graph_product(a, nullptr);
  };
  const bool wide = indices.dtype == hostcall::DType::i64;
  if (users.dtype == hostcall::DType::f64)
    wide ? call(double{}, int64_t{}) : call(double{}, int32_t{});
  else
    wide ? call(float{}, int64_t{}) : call(float{}, int32_t{});
});

hostcall::Function drop("graph_drop", [](Tensor indptr, Tensor indices, Tensor by_item, int64_t num_users, Tensor seed,
                                         int64_t threshold, Tensor end, Tensor list, Tensor transposed_end,
                                         Tensor transposed_list) {
  const auto call = [&](auto index) {
    using Index = decltype(index);
    zx::GraphDropout<Index> a{};
    a.indptr = indptr.ptr<Index>(), a.indices = indices.ptr<Index>(), a.by_item = by_item.ptr<Index>();
    a.num_users = num_users, a.nodes = indptr.size(0) - 1, a.interactions = by_item.size(0);
    a.seed = seed.ptr<int64_t>(), a.threshold = static_cast<uint64_t>(threshold);
    a.end = end.ptr<Index>(), a.list = list.ptr<Index>();
    a.transposed_end = transposed_end.ptr<Index>(), a.transposed_list = transposed_list.ptr<Index>();
    zx::graph_drop(a, nullptr);
  };
  indices.dtype == hostcall::DType::i64 ? call(int64_t{}) : call(int32_t{});
});

}  // namespace
