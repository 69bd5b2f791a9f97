// rank_scores on CUDA tensors. (rank_factors makes the scores by a matrix product of torch's, block by block.)
#include "cuda/rank.cuh"

namespace zx {
template void rank_scores(RankArgs<float>, gpuStream, int64_t, int64_t);
template void rank_scores(RankArgs<double>, gpuStream, int64_t, int64_t);
template void rank_scores(RankArgs<__half>, gpuStream, int64_t, int64_t);
template void rank_scores(RankArgs<__nv_bfloat16>, gpuStream, int64_t, int64_t);
}  // namespace zx

#ifndef __CUDA_ARCH__  // what follows is compiled once, not for each architecture (cuda/call.h)

#include <tuple>

#include "cuda/call.h"

namespace zx::cuda {
namespace {

template <class T>
struct Device {
  using type = T;
};
template <>
struct Device<Half> {
  using type = __half;
};
template <>
struct Device<BFloat16> {
  using type = __nv_bfloat16;
};

void check_csr(const Call& call, const Tensor& indptr, const Tensor& indices, const char* name) {
  call.require_here(indptr, name);
  call.require_here(indices, name);
  ZX_CHECK(
      indptr.dim() == 1 && indptr.size(0) >= 1 && indptr.scalar_type() == ScalarType::Long && indptr.is_contiguous(),
      name, " must have an int64 indptr");
  ZX_CHECK(indices.dim() == 1 && indices.is_contiguous() &&
               (indices.scalar_type() == ScalarType::Int || indices.scalar_type() == ScalarType::Long),
           name, " must have contiguous indices, int32 or int64");
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rank_scores(
    const Tensor& scores, const Tensor& users, const Tensor& offset, const Tensor& indptr, const Tensor& indices,
    std::optional<Tensor> excluded_indptr, std::optional<Tensor> excluded_indices, int64_t k) {
  const Call call(scores);
  call.require_here(users, "users");
  check_csr(call, indptr, indices, "positives");
  ZX_CHECK(scores.dim() == 2 && scores.size(0) == users.size(0), "scores must have one row a user");
  ZX_CHECK(users.dim() == 1 && users.scalar_type() == ScalarType::Long && users.is_contiguous(),
           "users must be a contiguous int64 vector");
  const int64_t rows = users.size(0);
  ZX_CHECK(offset.dim() == 1 && offset.size(0) == rows + 1 && offset.scalar_type() == ScalarType::Long &&
               offset.is_contiguous(),
           "offset must be int64 [users + 1]");
  ZX_CHECK(k >= 0, "k must not be negative");
  ZX_CHECK(scores.size(1) < kRankItems, "scores must be of fewer than 2^32 - 1 items");
  if (excluded_indptr) {
    check_csr(call, *excluded_indptr, *excluded_indices, "excluded");
    ZX_CHECK(excluded_indices->scalar_type() == indices.scalar_type(),
             "positives and excluded must have indices of one dtype");
  }
  // Its last number is the size of the results. Where it lies on the GPU, the op has to wait for that.
  int64_t count = 0;
  Tensor moved = new_tensor(users, {offset.is_cuda() ? 0 : rows + 1}, ScalarType::Long);
  if (offset.is_cuda()) {
    call.require_here(offset, "offset");
    call.check(
        cudaMemcpyAsync(&count, data<int64_t>(offset) + rows, sizeof count, cudaMemcpyDeviceToHost, call.stream()),
        "offset could not be read");
    call.check(cudaStreamSynchronize(call.stream()), "offset could not be read");
  } else {
    // A graph would copy at each replay from where this tensor once was.
    cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
    call.check(cudaStreamIsCapturing(call.stream(), &capturing), "the stream's state could not be read");
    ZX_CHECK(capturing == cudaStreamCaptureStatusNone, "rank_scores cannot be captured in a CUDA graph");
    count = data<int64_t>(offset)[rows];
    call.check(cudaMemcpyAsync(moved.data_ptr(), data<int64_t>(offset), (rows + 1) * sizeof(int64_t),
                               cudaMemcpyHostToDevice, call.stream()),
               "offset could not be copied");
    // Pageable memory has been read when that returns (the runtime may wait for the stream in order to do so). Pinned
    // memory is read when the stream comes to it, and its owner may have changed or freed it by then.
    cudaPointerAttributes place{};
    call.check(cudaPointerGetAttributes(&place, offset.data_ptr()), "offset could not be looked up");
    if (place.type != cudaMemoryTypeUnregistered)
      call.check(cudaStreamSynchronize(call.stream()), "offset could not be copied");
  }
  const ScalarType compute = scores.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor positive_scores = new_tensor(users, {count}, compute);
  Tensor greater = new_tensor(users, {count}, ScalarType::Long), equal = new_tensor(users, {count}, ScalarType::Long);
  Tensor candidates = new_tensor(users, {rows}, ScalarType::Long);
  Tensor top_items = new_tensor(users, {rows, k}, ScalarType::Long);
  Tensor failed = new_tensor(users, {1}, ScalarType::Long);
  call.fill(failed.data_ptr(), 0xff, 8);
  dispatch_floating(scores.scalar_type(), [&](auto zero) {
    using S = typename Device<decltype(zero)>::type;
    RankArgs<S> a{};
    a.scores = data<S>(scores), a.row_stride = scores.stride(0), a.column_stride = scores.stride(1);
    a.rows = rows, a.num_items = scores.size(1), a.k = k;
    a.users = data<int64_t>(users), a.offset = data<int64_t>(offset.is_cuda() ? offset : moved);
    a.positive_indptr = data<int64_t>(indptr), a.positive_indices = indices.data_ptr();
    if (excluded_indptr)
      a.excluded_indptr = data<int64_t>(*excluded_indptr), a.excluded_indices = excluded_indices->data_ptr();
    a.wide = indices.scalar_type() == ScalarType::Long;
    a.positive_scores = data<arithmetic_t<S>>(positive_scores);
    a.greater = data<unsigned long long>(greater), a.equal = data<unsigned long long>(equal);
    a.candidates = data<int64_t>(candidates), a.top_items = data<int64_t>(top_items);
    a.failed = data<unsigned long long>(failed);
    zx::rank_scores(a, call.stream());
  });
  Call::check();
  return {positive_scores, greater, equal, candidates, top_items, failed};
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) { m.impl("rank_scores", ZX_BOX(&zx::cuda::rank_scores)); }

#endif
