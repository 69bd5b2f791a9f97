// fold_in on CUDA tensors.
#include "cuda/fold_in.cuh"

namespace zx {
template void fold_in(FoldInArgs<float>, void*, gpuStream);
template void fold_in(FoldInArgs<double>, void*, gpuStream);
}  // namespace zx

#ifndef __CUDA_ARCH__  // what follows is compiled once, not for each architecture (cuda/call.h)

#include "cuda/tensors.h"

namespace zx::cuda {

Tensor fold_in(const Tensor& item_embedding, std::optional<Tensor> item_bias, const Tensor& indptr,
               const Tensor& positives, const Tensor& negatives, std::optional<Tensor> constants, int64_t loss,
               double a, double b, double c, double kink, double l2, double tolerance, int64_t max_iterations) {
  const Call call(item_embedding);
  const FoldIn settings = checked_fold_in(loss, a, b, c, kink, l2, tolerance, max_iterations);
  call.require_here(item_bias, "item_bias");
  call.require_here(indptr, "indptr");
  call.require_here(positives, "positives");
  call.require_here(negatives, "negatives");
  call.require_here(constants, "constants");
  check_fold_in_samples(settings.kind, item_embedding, indptr, positives, negatives, item_bias, constants);
  const ScalarType dtype = item_embedding.scalar_type();
  const int64_t users = indptr.size(0) - 1, samples = positives.size(0), dim = item_embedding.size(1);
  const int64_t num_positives = columns_of(positives), k = columns_of(negatives);
  Tensor rows = new_tensor(item_embedding, {users, dim}, dtype);
  const Tensor pos = new_tensor(item_embedding, {samples * num_positives}, dtype);
  const Tensor neg = new_tensor(item_embedding, {samples * k}, dtype);
  const Tensor next = new_tensor(item_embedding, {1}, ScalarType::Long);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const FoldInGrid grid = fold_in_grid<T>(users, dim);
    const Tensor workspace = new_tensor(item_embedding, {(grid.workspace + 7) / 8}, ScalarType::Double);
    FoldInArgs<T> args{};
    args.item = data<T>(item_embedding), args.bias = data_or_null<T>(item_bias);
    args.constants = data_or_null<T>(constants);
    args.num_items = item_embedding.size(0), args.row_dim = dim;
    args.indptr = data<int64_t>(indptr), args.users = users, args.samples = samples;
    args.positives = data<int64_t>(positives), args.negatives = data<int64_t>(negatives);
    args.num_positives = num_positives, args.k = k, args.settings = settings;
    args.pos = data<T>(pos), args.neg = data<T>(neg), args.rows = data<T>(rows);
    args.next = data<unsigned long long>(next);
    zx::fold_in(args, grid.workspace > 0 ? workspace.data_ptr() : nullptr, call.stream());
  };
  if (dtype == ScalarType::Double)
    run(double{});
  else
    run(float{});
  Call::check();
  return rows;
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) { m.impl("fold_in", ZX_BOX(&zx::cuda::fold_in)); }

#endif
