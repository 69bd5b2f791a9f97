// The sampling ops on CUDA tensors.
#include "cuda/sampling.cuh"

namespace zx {
template void sample_negatives(NegativeArgs<UniformItems, int32_t>, const uint64_t*, int, const int64_t*, int64_t,
                               gpuStream);
template void sample_positives(const PositiveArgs<int32_t>&, gpuStream);
template void row_filter(const int64_t*, int64_t, const int32_t*, int64_t, int64_t, unsigned short*, gpuStream);
template void has_items(const int64_t*, int64_t, const int64_t*, int64_t, int64_t, const int64_t*, int64_t,
                        const int32_t*, int64_t, const uint16_t*, int64_t, bool*, gpuStream);
template void sample_negatives(NegativeArgs<UniformItems, int64_t>, const uint64_t*, int, const int64_t*, int64_t,
                               gpuStream);
template void sample_positives(const PositiveArgs<int64_t>&, gpuStream);
template void row_filter(const int64_t*, int64_t, const int64_t*, int64_t, int64_t, unsigned short*, gpuStream);
template void has_items(const int64_t*, int64_t, const int64_t*, int64_t, int64_t, const int64_t*, int64_t,
                        const int64_t*, int64_t, const uint16_t*, int64_t, bool*, gpuStream);
}  // namespace zx

#ifndef __CUDA_ARCH__  // what follows is compiled once, not for each architecture (cuda/call.h)

#include <algorithm>
#include <tuple>

#include "checks.h"
#include "cuda/call.h"

namespace zx::cuda {
namespace {

void require_vector(const Tensor& t, const char* name) {
  ZX_CHECK(t.dim() == 1 && t.scalar_type() == ScalarType::Long && t.is_contiguous(), name,
           " must be a contiguous int64 vector");
}

// The origin of samples: the numbers, or the tensor that holds them.
SampleOrigin origin_of(const Call& call, const std::optional<Tensor>& key, int64_t seed, int64_t epoch,
                       int64_t offset) {
  SampleOrigin origin{static_cast<uint64_t>(seed), epoch, offset, nullptr};
  if (key) {
    call.require_here(*key, "key");
    require_vector(*key, "key");
    ZX_CHECK(key->size(0) == 3, "key must hold seed, epoch and offset");
    origin.device = data<int64_t>(*key);
  }
  return origin;
}

int table_bits(const Tensor& table) {
  int bits = 0;
  while ((int64_t{1} << bits) < table.size(0)) ++bits;
  return bits;
}

void check_matrix(const Call& call, const Tensor& indptr, const Tensor& indices) {
  call.require_here(indptr, "indptr");
  call.require_here(indices, "indices");
  zx::check_matrix(indptr, indices, "the matrix");
}

// Both of the ops that draw negatives; numbers: of the samples, or null.
std::tuple<Tensor, Tensor> draw_negatives(const Tensor& users, const int64_t* numbers, const Tensor& indptr,
                                          const Tensor& indices, const std::optional<Tensor>& filter,
                                          const std::optional<Tensor>& slots, const std::optional<Tensor>& masses,
                                          int64_t num_items, int64_t k, int64_t seed, int64_t epoch, int64_t offset,
                                          bool replacement, const std::optional<Tensor>& key,
                                          const std::optional<Tensor>& complement_rows,
                                          const std::optional<Tensor>& complement_masses, const Call& call) {
  check_matrix(call, indptr, indices);
  call.require_here(filter, "filter");
  call.require_here(slots, "slots");
  call.require_here(masses, "masses");
  call.require_here(complement_rows, "complement_rows");
  call.require_here(complement_masses, "complement_masses");
  require_vector(users, "users");
  check_negatives(indptr, indices, filter, slots, masses, num_items, k);
  const ComplementSums complements = complement_sums(complement_rows, complement_masses, masses);
  const int64_t rows = users.size(0);
  Tensor out = new_tensor(users, {rows, k}, ScalarType::Long);
  Tensor failed = new_tensor(users, {1}, ScalarType::Long);
  // All bits set: -1, and the largest of the unsigned numbers that the least is taken of.
  call.fill(failed.data_ptr(), 0xff, 8);
  dispatch_index(indices.scalar_type(), [&](auto index) {
    using Index = decltype(index);
    zx::sample_negatives<Index>(
        {UniformItems{num_items}, origin_of(call, key, seed, epoch, offset), rows, k, indptr.size(0) - 1,
         indices.size(0), replacement, data<int64_t>(users), numbers, data<int64_t>(indptr), data<Index>(indices),
         filter ? data<uint16_t>(*filter) : nullptr, complements, data<int64_t>(out), data<unsigned long long>(failed)},
        slots ? data<uint64_t>(*slots) : nullptr, slots ? table_bits(*slots) : 0,
        masses ? data<int64_t>(*masses) : nullptr, masses ? masses->size(0) : 0, call.stream());
  });
  Call::check();
  return {out, failed};
}

}  // namespace

std::tuple<Tensor, Tensor> sample_negatives(const Tensor& users, const Tensor& indptr, const Tensor& indices,
                                            std::optional<Tensor> filter, std::optional<Tensor> slots,
                                            std::optional<Tensor> masses, int64_t num_items, int64_t k, int64_t seed,
                                            int64_t epoch, int64_t offset, bool replacement, std::optional<Tensor> key,
                                            std::optional<Tensor> complement_rows,
                                            std::optional<Tensor> complement_masses) {
  return draw_negatives(users, nullptr, indptr, indices, filter, slots, masses, num_items, k, seed, epoch, offset,
                        replacement, key, complement_rows, complement_masses, Call(users));
}

std::tuple<Tensor, Tensor> sample_negatives_at(const Tensor& users, const Tensor& numbers, const Tensor& indptr,
                                               const Tensor& indices, std::optional<Tensor> filter,
                                               std::optional<Tensor> slots, std::optional<Tensor> masses,
                                               int64_t num_items, int64_t k, int64_t seed, int64_t epoch,
                                               bool replacement, std::optional<Tensor> key,
                                               std::optional<Tensor> complement_rows,
                                               std::optional<Tensor> complement_masses) {
  const Call call(users);
  call.require_here(numbers, "numbers");
  require_vector(users, "users");
  require_vector(numbers, "numbers");
  ZX_CHECK(numbers.size(0) == users.size(0), "numbers must be as long as users");
  return draw_negatives(users, data<int64_t>(numbers), indptr, indices, filter, slots, masses, num_items, k, seed,
                        epoch, 0, replacement, key, complement_rows, complement_masses, call);
}

Tensor unshuffle(const Tensor& cells, int64_t total, int64_t seed, int64_t epoch, std::optional<Tensor> key) {
  const Call call(cells);
  require_vector(cells, "cells");
  ZX_CHECK(total >= 0 && total < INT64_C(1) << 62, "total must be from 0 and below 2^62, but is ", total);
  Tensor numbers = new_tensor(cells, {cells.size(0)}, ScalarType::Long);
  zx::unshuffle(origin_of(call, key, seed, epoch, 0), data<int64_t>(cells), cells.size(0), total,
                data<int64_t>(numbers), call.stream());
  Call::check();
  return numbers;
}

std::tuple<Tensor, Tensor> sample_positives(const Tensor& indptr, const Tensor& indices, const Tensor& hint,
                                            int64_t hint_shift, std::optional<Tensor> gaps,
                                            std::optional<Tensor> active, int64_t order, int64_t kept, int64_t total,
                                            int64_t begin, int64_t rows, int64_t positives, int64_t seed, int64_t epoch,
                                            std::optional<Tensor> key) {
  const Call call(indptr);
  check_matrix(call, indptr, indices);
  call.require_here(hint, "hint");
  call.require_here(gaps, "gaps");
  call.require_here(active, "active");
  check_positives(indptr, indices, hint, hint_shift, gaps, active, order, kept, total, positives);
  check_samples(key ? 0 : begin, rows, key ? std::max(rows, total) : total);
  ZX_CHECK(rows == 0 || total > 0, "an epoch without interactions has no samples");
  Tensor users = new_tensor(indptr, {rows}, ScalarType::Long);
  Tensor items =
      positives == 2 ? new_tensor(indptr, {rows, 2}, ScalarType::Long) : new_tensor(indptr, {rows}, ScalarType::Long);
  dispatch_index(indices.scalar_type(), [&](auto index) {
    using Index = decltype(index);
    PositiveArgs<Index> a{};
    a.origin = origin_of(call, key, seed, epoch, begin);
    a.order = static_cast<Order>(order);
    a.rows = rows, a.positives = positives, a.num_users = indptr.size(0) - 1, a.num_entries = indices.size(0),
    a.total = total, a.kept = kept;
    a.indptr = data<int64_t>(indptr), a.indices = data<Index>(indices);
    a.hint = data<int64_t>(hint), a.hint_size = hint.size(0), a.shift = static_cast<int>(hint_shift);
    if (gaps) a.gaps = data<int64_t>(*gaps), a.num_gaps = gaps->size(1);
    if (active) a.active = data<int64_t>(*active), a.num_active = active->size(0);
    a.out_users = data<int64_t>(users), a.out_positives = data<int64_t>(items);
    zx::sample_positives(a, call.stream());
  });
  Call::check();
  return {users, items};
}

Tensor row_filter(const Tensor& indptr, const Tensor& indices, int64_t num_items) {
  const Call call(indptr);
  check_matrix(call, indptr, indices);
  ZX_CHECK(num_items >= 0, "num_items must not be negative, but is ", num_items);
  const int64_t nnz = indices.size(0);
  Tensor filter = new_tensor(indptr, {nnz + 1}, ScalarType::Short);
  call.fill(filter.data_ptr(), 0, 2 * (nnz + 1));
  dispatch_index(indices.scalar_type(), [&](auto index) {
    using Index = decltype(index);
    zx::row_filter(data<int64_t>(indptr), indptr.size(0) - 1, data<Index>(indices), nnz, num_items,
                   data<unsigned short>(filter), call.stream());
  });
  Call::check();
  return filter;
}

Tensor has_items(const Tensor& users, const Tensor& items, const Tensor& indptr, const Tensor& indices,
                 std::optional<Tensor> filter, int64_t num_items) {
  const Call call(users);
  check_matrix(call, indptr, indices);
  call.require_here(items, "items");
  call.require_here(filter, "filter");
  require_vector(users, "users");
  check_negatives(indptr, indices, filter, std::nullopt, std::nullopt, num_items, 0);
  ZX_CHECK((items.dim() == 1 || items.dim() == 2) && items.scalar_type() == ScalarType::Long && items.is_contiguous(),
           "items must be a contiguous int64 vector or matrix");
  const int64_t rows = users.size(0), columns = items.dim() == 2 ? items.size(1) : items.size(0);
  ZX_CHECK(items.dim() == 1 || items.size(0) == rows, "items must have one row a user");
  Tensor result = new_tensor(users, {rows, columns}, ScalarType::Bool);
  dispatch_index(indices.scalar_type(), [&](auto index) {
    using Index = decltype(index);
    zx::has_items(data<int64_t>(users), rows, data<int64_t>(items), columns, items.dim() == 2 ? columns : 0,
                  data<int64_t>(indptr), indptr.size(0) - 1, data<Index>(indices), indices.size(0),
                  filter ? data<uint16_t>(*filter) : nullptr, num_items, data<bool>(result), call.stream());
  });
  Call::check();
  return result;
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) {
  m.impl("sample_negatives", ZX_BOX(&zx::cuda::sample_negatives));
  m.impl("sample_negatives_at", ZX_BOX(&zx::cuda::sample_negatives_at));
  m.impl("unshuffle", ZX_BOX(&zx::cuda::unshuffle));
  m.impl("sample_positives", ZX_BOX(&zx::cuda::sample_positives));
  m.impl("row_filter", ZX_BOX(&zx::cuda::row_filter));
  m.impl("has_items", ZX_BOX(&zx::cuda::has_items));
}

#endif
