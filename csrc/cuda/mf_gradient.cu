// mf_gradient on CUDA tensors.
#include "cuda/mf_gradient.cuh"

namespace zx {
template void gradient_rows(GradientArgs<float>, int64_t, gpuStream);
template void gradient_rows(GradientArgs<double>, int64_t, gpuStream);
template void gradient_rows(GradientArgs<__half>, int64_t, gpuStream);
template void gradient_rows(GradientArgs<__nv_bfloat16>, int64_t, gpuStream);
template void gradient_atomics(AtomicArgs<float>, gpuStream);
template void gradient_atomics(AtomicArgs<double>, gpuStream);
}  // namespace zx

#ifndef __CUDA_ARCH__  // what follows is compiled once, not for each architecture (cuda/call.h)

#include <tuple>

#include "cuda/tensors.h"

namespace zx::cuda {
namespace {

// One side's samples sorted by row, and the memory that holds them.
struct Side {
  Tensor memory;
  SortedRows sorted{};
  unsigned* longs = nullptr;
  int64_t positions = 0;
};

Side sort_side(const Call& call, const Tensor& like, const BatchIds& ids, int64_t samples, int64_t rows, int64_t each) {
  Side side;
  const int64_t n = side.positions = samples * (ids.first_columns + ids.second_columns);
  ZX_CHECK(n <= kSortMost && rows <= kSortMost, "tables and batches must have fewer than 2^32 - 1 rows");
  const int64_t tiles = sort_tile_counts(n), starts = sort_slots(n, rows) + 1, longs = long_rows(n, each);
  side.memory = new_tensor(like, {4 * n + tiles + starts + longs + 1}, ScalarType::Int);
  unsigned* at = static_cast<unsigned*>(side.memory.data_ptr());
  const auto take = [&](int64_t size) {
    unsigned* const taken = at;
    at += size;
    return taken;
  };
  SortedRows& s = side.sorted;
  s.keys[0] = take(n), s.keys[1] = take(n), s.order[0] = take(n), s.order[1] = take(n);
  s.tiles = take(tiles), s.starts = take(starts), side.longs = take(longs), s.count = take(1);
  call.fill(side.longs, 0, sizeof(unsigned));
  s = sort_rows(ids, n, rows, s, call.stream());
  return side;
}

Tensor zeros(const Call& call, const Tensor& like, std::initializer_list<int64_t> shape, ScalarType dtype) {
  Tensor t = new_tensor(like, shape, dtype);
  const int64_t size = dtype == ScalarType::Double ? 8 : dtype == ScalarType::Float ? 4 : 2;
  call.fill(t.data_ptr(), 0, t.numel() * size);
  return t;
}

}  // namespace

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mf_gradient(const Tensor& user_embedding,
                                                               const Tensor& item_embedding, const Tensor& users,
                                                               const Tensor& positives, const Tensor& negatives,
                                                               const Tensor& coefficient, const Tensor& scale,
                                                               double l2, bool user, bool item, bool bias, bool sparse,
                                                               bool padded, bool atomics) {
  const Call call(user_embedding);
  check_mf_tensors(call, user_embedding, item_embedding, users, positives, negatives);
  call.require_here(coefficient, "coefficient");
  call.require_here(scale, "scale");
  const ScalarType dtype = user_embedding.scalar_type(), compute = compute_type(dtype);
  const int64_t samples = users.size(0), num_users = user_embedding.size(0), num_items = item_embedding.size(0),
                dim = user_embedding.size(1);
  const BatchIds items{data<int64_t>(positives), data<int64_t>(negatives), columns_of(positives),
                       columns_of(negatives)};
  const int64_t columns = items.first_columns + items.second_columns;
  ZX_CHECK(coefficient.is_contiguous() && coefficient.scalar_type() == compute && coefficient.dim() == 2 &&
               coefficient.size(0) == samples && coefficient.size(1) == columns,
           "coefficient must be [B, J], in the arithmetic's dtype");
  ZX_CHECK(scale.scalar_type() == compute && scale.numel() == 1, "scale must be one number of the arithmetic's dtype");
  const gpuStream stream = call.stream();

  // Each output is a tensor of its own: a schema without aliases promises that.
  Tensor user_rows = new_tensor(users, {0}, ScalarType::Long), item_rows = new_tensor(users, {0}, ScalarType::Long);
  Tensor user_values = new_tensor(users, {0}, dtype), item_values = new_tensor(users, {0}, dtype),
         bias_values = new_tensor(users, {0}, dtype);
  if (!sparse) {
    if (user) user_values = zeros(call, users, {num_users, dim}, dtype);
    if (item) item_values = zeros(call, users, {num_items, dim}, dtype);
    if (bias) bias_values = zeros(call, users, {num_items}, dtype);
    if (atomics && dtype == compute) {
      const auto run = [&](auto zero) {
        using S = decltype(zero);
        AtomicArgs<S> a{};
        a.user = data<S>(user_embedding), a.item = data<S>(item_embedding);
        a.num_users = num_users, a.num_items = num_items, a.dim = dim;
        a.items = items, a.users = data<int64_t>(users), a.samples = samples;
        a.coefficient = data<S>(coefficient), a.scale = data<S>(scale), a.l2 = l2;
        a.user_values = user ? data<S>(user_values) : nullptr;
        a.item_values = item ? data<S>(item_values) : nullptr;
        a.bias_values = bias ? data<S>(bias_values) : nullptr;
        gradient_atomics(a, stream);
      };
      if (dtype == ScalarType::Double)
        run(double{});
      else
        run(float{});
      Call::check();
      return {user_rows, user_values, item_rows, item_values, bias_values};
    }
  }

  Side sides[2];  // users, items
  if (user) sides[0] = sort_side(call, users, {data<int64_t>(users), nullptr, 1, 0}, samples, num_users, columns);
  if (item || bias) sides[1] = sort_side(call, users, items, samples, num_items, 1);
  int64_t rows[2] = {user ? sort_slots(sides[0].positions, num_users) : 0,
                     item || bias ? sort_slots(sides[1].positions, num_items) : 0};
  if (sparse && !padded) {
    // The size of the result lies in memory: here the op waits for the GPU.
    unsigned counts[2] = {};
    for (int side = 0; side < 2; ++side)
      if (sides[side].sorted.count != nullptr)
        call.check(
            cudaMemcpyAsync(counts + side, sides[side].sorted.count, sizeof(unsigned), cudaMemcpyDeviceToHost, stream),
            "the number of rows could not be read");
    call.check(cudaStreamSynchronize(stream), "the number of rows could not be read");
    rows[0] = counts[0], rows[1] = counts[1];
  }
  if (sparse) {
    user_rows = new_tensor(users, {rows[0]}, ScalarType::Long);
    item_rows = new_tensor(users, {rows[1]}, ScalarType::Long);
    if (user) user_values = new_tensor(users, {rows[0], dim}, dtype);
    if (item) item_values = new_tensor(users, {rows[1], dim}, dtype);
    if (bias) bias_values = new_tensor(users, {rows[1]}, dtype);
  }
  with_element(element_of(dtype), [&](auto zero) {
    using S = decltype(zero);
    using C = arithmetic_t<S>;
    for (int side = 0; side < 2; ++side) {
      const bool by_user = side == 0;
      if (sides[side].sorted.count == nullptr) continue;
      GradientArgs<S> a{};
      a.own = data<S>(by_user ? user_embedding : item_embedding);
      a.other = data<S>(by_user ? item_embedding : user_embedding);
      a.num_own = by_user ? num_users : num_items, a.num_other = by_user ? num_items : num_users;
      a.shape.dim = dim;
      a.items = items, a.users = data<int64_t>(users), a.by_user = by_user;
      a.coefficient = data<C>(coefficient), a.scale = data<C>(scale), a.l2 = l2;
      a.sorted = sides[side].sorted;
      a.rows = rows[side], a.dense = !sparse;
      a.names = sparse ? data<int64_t>(by_user ? user_rows : item_rows) : nullptr;
      if (by_user)
        a.values = data<S>(user_values);
      else
        a.values = item ? data<S>(item_values) : nullptr;
      a.bias = !by_user && bias ? data<S>(bias_values) : nullptr;
      a.longs = sides[side].longs;
      gradient_rows(a, sides[side].positions, stream);
    }
  });
  Call::check();
  return {user_rows, user_values, item_rows, item_values, bias_values};
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) { m.impl("mf_gradient", ZX_BOX(&zx::cuda::mf_gradient)); }

#endif
