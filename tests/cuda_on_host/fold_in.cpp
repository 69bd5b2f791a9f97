// The launcher of csrc/cuda/fold_in.cuh.
#include "cuda/fold_in.cuh"

#include "host_call.h"

namespace {

// workspace: as many bytes as fold_in_bytes says. pos, neg: scores, as positives and negatives. rows [users, dim].
template <class T>
void run(const Tensor& item, const Tensor& bias, const Tensor& indptr, const Tensor& positives, const Tensor& negatives,
         const Tensor& constants, const Tensor& pos, const Tensor& neg, const Tensor& next, const Tensor& workspace,
         const Tensor& rows, const zx::FoldIn& settings) {
  zx::FoldInArgs<T> a{};
  a.item = item.ptr<T>(), a.bias = bias.ptr<T>(), a.constants = constants.ptr<T>();
  a.num_items = item.size(0), a.row_dim = item.size(1);
  a.indptr = indptr.ptr<int64_t>(), a.users = indptr.size(0) - 1, a.samples = positives.size(0);
  a.positives = positives.ptr<int64_t>(), a.negatives = negatives.ptr<int64_t>();
  a.num_positives = positives.sizes.size() == 2 ? positives.size(1) : 1;
  a.k = negatives.sizes.size() == 2 ? negatives.size(1) : 1;
  a.settings = settings;
  a.pos = pos.ptr<T>(), a.neg = neg.ptr<T>(), a.next = next.ptr<unsigned long long>(), a.rows = rows.ptr<T>();
  zx::fold_in(a, workspace.ptr<double>(), nullptr);
}

hostcall::Function fold_in("fold_in", [](Tensor item, Tensor bias, Tensor indptr, Tensor positives, Tensor negatives,
                                         Tensor constants, Tensor pos, Tensor neg, Tensor next, Tensor workspace,
                                         Tensor rows, int64_t loss, double a, double b, double c, double kink,
                                         double l2, double tolerance, int64_t max_iterations) {
  const zx::FoldIn settings{static_cast<zx::Loss>(loss), a, b, c, kink, l2, tolerance, max_iterations};
  if (item.dtype == hostcall::DType::f64)
    run<double>(item, bias, indptr, positives, negatives, constants, pos, neg, next, workspace, rows, settings);
  else
    run<float>(item, bias, indptr, positives, negatives, constants, pos, neg, next, workspace, rows, settings);
});

// out [3]: blocks, bytes of shared memory, and bytes of the workspace.
hostcall::Function grid("fold_in_grid", [](Tensor out, int64_t users, int64_t dim, bool wide) {
  const zx::FoldInGrid g = wide ? zx::fold_in_grid<double>(users, dim) : zx::fold_in_grid<float>(users, dim);
  out.ptr<int64_t>()[0] = g.blocks, out.ptr<int64_t>()[1] = g.shared, out.ptr<int64_t>()[2] = g.workspace;
});

}  // namespace
