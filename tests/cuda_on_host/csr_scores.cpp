// The launchers of csrc/cuda/csr_scores.cuh.
#include "cuda/csr_scores.cuh"

#include "host_call.h"

namespace {

// Calls f with the problem, typed; constants and results are left to it.
template <class F>
void with_problem(const Tensor& rows, const Tensor& columns, const Tensor& row_bias, const Tensor& column_bias,
                  const Tensor& indptr, const Tensor& indices, const Tensor& row_x, const Tensor& column_x, F f) {
  const auto call = [&](auto element, auto index) {
    using T = decltype(element);
    using Index = decltype(index);
    zx::CsrArgs<T, Index> a{};
    a.rows = rows.ptr<T>(), a.columns = columns.ptr<T>();
    a.row_bias = row_bias.ptr<T>(), a.column_bias = column_bias.ptr<T>();
    a.indptr = indptr.ptr<int64_t>(), a.indices = indices.ptr<Index>();
    a.row_x = row_x.ptr<T>(), a.column_x = column_x.ptr<T>();
    a.num_rows = rows.size(0), a.num_columns = columns.size(0), a.num_entries = indices.size(0);
    a.shape.dim = rows.size(1);
    f(a);
  };
  const bool wide = indices.dtype == hostcall::DType::i64;
  if (rows.dtype == hostcall::DType::f64)
    wide ? call(double{}, int64_t{}) : call(double{}, int32_t{});
  else
    wide ? call(float{}, int64_t{}) : call(float{}, int32_t{});
}

hostcall::Function blocks("csr_blocks",
                          [](int64_t num_rows, Tensor out) { *out.ptr<int64_t>() = zx::csr_blocks(num_rows); });

hostcall::Function moments("csr_moments", [](Tensor rows, Tensor columns, Tensor column_bias, Tensor indptr,
                                             Tensor indices, Tensor column_x, Tensor partials, Tensor out) {
  with_problem(rows, columns, {}, column_bias, indptr, indices, {}, column_x, [&](auto a) {
    a.partials = partials.ptr<double>(), a.moments = out.ptr<double>();
    zx::csr_moments(a, nullptr);
  });
});

hostcall::Function columns("csr_columns", [](Tensor rows, Tensor columns, Tensor row_bias, Tensor column_bias,
                                             Tensor indptr, Tensor indices, Tensor row_x, Tensor column_x, double slope,
                                             Tensor out, Tensor out_bias) {
  with_problem(rows, columns, row_bias, column_bias, indptr, indices, row_x, column_x, [&](auto a) {
    using T = std::decay_t<decltype(*a.rows)>;
    a.slope = T(slope), a.out = out.ptr<T>(), a.out_bias = out_bias.ptr<T>();
    zx::csr_columns(a, nullptr);
  });
});

}  // namespace
