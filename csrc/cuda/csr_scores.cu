// csr_score_moments and csr_weighted_columns on CUDA tensors.
#include "cuda/csr_scores.cuh"

namespace zx {
template void csr_moments(CsrArgs<float, int32_t>, gpuStream);
template void csr_moments(CsrArgs<float, int64_t>, gpuStream);
template void csr_moments(CsrArgs<double, int32_t>, gpuStream);
template void csr_moments(CsrArgs<double, int64_t>, gpuStream);
template void csr_columns(CsrArgs<float, int32_t>, gpuStream);
template void csr_columns(CsrArgs<float, int64_t>, gpuStream);
template void csr_columns(CsrArgs<double, int32_t>, gpuStream);
template void csr_columns(CsrArgs<double, int64_t>, gpuStream);
}  // namespace zx

#ifndef __CUDA_ARCH__  // what follows is compiled once, not for each architecture (cuda/call.h)

#include <tuple>

#include "checks.h"
#include "cuda/call.h"

namespace zx::cuda {
namespace {

void check_vector(const Call& call, const std::optional<Tensor>& t, int64_t size, ScalarType dtype, const char* name) {
  call.require_here(t, name);
  check_csr_vector(t, size, dtype, name);
}

void check_csr(const Call& call, const Tensor& rows, const Tensor& columns, const Tensor& indptr,
               const Tensor& indices) {
  call.require_here(columns, "columns");
  call.require_here(indptr, "indptr");
  call.require_here(indices, "indices");
  check_csr_scores(rows, columns, indptr, indices);
}

// Calls f with the problem, typed; biases, constants and results are left to it.
template <class F>
void with_problem(const Tensor& rows, const Tensor& columns, const Tensor& indptr, const Tensor& indices, const F& f) {
  dispatch_index(indices.scalar_type(), [&](auto index) {
    const auto call = [&](auto element) {
      using T = decltype(element);
      using Index = decltype(index);
      CsrArgs<T, Index> a{};
      a.rows = data<T>(rows), a.columns = data<T>(columns);
      a.indptr = data<int64_t>(indptr), a.indices = data<Index>(indices);
      a.num_rows = rows.size(0), a.num_columns = columns.size(0), a.num_entries = indices.size(0),
      a.shape.dim = rows.size(1);
      f(a);
    };
    if (rows.scalar_type() == ScalarType::Double)
      call(double{});
    else
      call(float{});
  });
}

}  // namespace

Tensor csr_score_moments(const Tensor& rows, const Tensor& columns, std::optional<Tensor> column_bias,
                         const Tensor& indptr, const Tensor& indices, const Tensor& column_x) {
  const Call call(rows);
  check_csr(call, rows, columns, indptr, indices);
  check_vector(call, column_bias, columns.size(0), rows.scalar_type(), "column_bias");
  check_vector(call, column_x, columns.size(0), rows.scalar_type(), "column_x");
  Tensor result = new_tensor(rows, {3}, ScalarType::Double);
  const Tensor partials = new_tensor(rows, {3 * int64_t(csr_blocks(rows.size(0)))}, ScalarType::Double);
  with_problem(rows, columns, indptr, indices, [&](auto a) {
    using T = std::decay_t<decltype(*a.rows)>;
    a.column_bias = data_or_null<T>(column_bias), a.column_x = data<T>(column_x);
    a.partials = data<double>(partials), a.moments = data<double>(result);
    csr_moments(a, call.stream());
  });
  Call::check();
  return result;
}

std::tuple<Tensor, Tensor> csr_weighted_columns(const Tensor& rows, const Tensor& columns,
                                                std::optional<Tensor> row_bias, std::optional<Tensor> column_bias,
                                                const Tensor& indptr, const Tensor& indices,
                                                std::optional<Tensor> row_x, std::optional<Tensor> column_x,
                                                double slope) {
  const Call call(rows);
  check_csr(call, rows, columns, indptr, indices);
  const ScalarType dtype = rows.scalar_type();
  check_vector(call, row_bias, rows.size(0), dtype, "row_bias");
  check_vector(call, column_bias, columns.size(0), dtype, "column_bias");
  check_vector(call, row_x, rows.size(0), dtype, "row_x");
  check_vector(call, column_x, columns.size(0), dtype, "column_x");
  ZX_CHECK(row_x.has_value() != column_x.has_value(), "expected either row_x or column_x");
  Tensor out = new_tensor(rows, {rows.size(0), rows.size(1)}, dtype);
  Tensor out_bias = new_tensor(rows, {rows.size(0)}, dtype);
  with_problem(rows, columns, indptr, indices, [&](auto a) {
    using T = std::decay_t<decltype(*a.rows)>;
    a.row_bias = data_or_null<T>(row_bias), a.column_bias = data_or_null<T>(column_bias);
    a.row_x = data_or_null<T>(row_x), a.column_x = data_or_null<T>(column_x), a.slope = static_cast<T>(slope);
    a.out = data<T>(out), a.out_bias = data<T>(out_bias);
    csr_columns(a, call.stream());
  });
  Call::check();
  return {out, out_bias};
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) {
  m.impl("csr_score_moments", ZX_BOX(&zx::cuda::csr_score_moments));
  m.impl("csr_weighted_columns", ZX_BOX(&zx::cuda::csr_weighted_columns));
}

#endif
