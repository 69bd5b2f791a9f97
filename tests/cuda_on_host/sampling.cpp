// The launchers of csrc/cuda/sampling.cuh.
#include "cuda/sampling.cuh"

#include "host_call.h"

namespace {

// Calls f with the element type of an index tensor.
template <class F>
void with_index(const Tensor& t, F f) {
  if (t.dtype == hostcall::DType::i32)
    f(int32_t{});
  else
    f(int64_t{});
}

zx::SampleOrigin origin_of(const Tensor& key, int64_t seed, int64_t epoch, int64_t offset) {
  return {uint64_t(seed), epoch, offset, key.ptr<const int64_t>()};
}

zx::ComplementSums sums_of(const Tensor& rows, const Tensor& masses) {
  if (!rows) return {};
  const int64_t* begins = rows.ptr<int64_t>();
  return {begins, begins + rows.size(1), rows.size(1), masses.ptr<int64_t>(), masses.size(0)};
}

// numbers: of the samples, for sample_negatives_at. rows, sums: complements that were summed.
hostcall::Function negatives("sample_negatives", [](Tensor users, Tensor numbers, Tensor indptr, Tensor indices,
                                                    Tensor filter, Tensor slots, Tensor masses, Tensor rows,
                                                    Tensor sums, Tensor key, Tensor out, Tensor failed,
                                                    int64_t num_items, int64_t seed, int64_t epoch, int64_t offset,
                                                    bool replacement) {
  with_index(indices, [&](auto index) {
    using Index = decltype(index);
    int bits = 0;
    while (slots && (int64_t{1} << bits) < slots.size(0)) ++bits;
    zx::sample_negatives<Index>(
        {zx::UniformItems{num_items}, origin_of(key, seed, epoch, offset), users.size(0), out.size(1),
         indptr.size(0) - 1, indices.size(0), replacement, users.ptr<int64_t>(), numbers.ptr<int64_t>(),
         indptr.ptr<int64_t>(), indices.ptr<Index>(), filter.ptr<uint16_t>(), sums_of(rows, sums), out.ptr<int64_t>(),
         failed.ptr<unsigned long long>()},
        slots.ptr<uint64_t>(), bits, masses.ptr<int64_t>(), masses ? masses.size(0) : 0, nullptr);
  });
});

hostcall::Function positives("sample_positives",
                             [](Tensor indptr, Tensor indices, Tensor hint, Tensor gaps, Tensor active, Tensor key,
                                Tensor users, Tensor items, int shift, int64_t order, int64_t kept, int64_t total,
                                int64_t begin, int64_t seed, int64_t epoch) {
                               with_index(indices, [&](auto index) {
                                 using Index = decltype(index);
                                 zx::PositiveArgs<Index> a{};
                                 a.origin = origin_of(key, seed, epoch, begin);
                                 a.order = zx::Order(order);
                                 a.rows = users.size(0), a.positives = items.sizes.size() == 2 ? items.size(1) : 1;
                                 a.num_users = indptr.size(0) - 1, a.num_entries = indices.size(0);
                                 a.total = total, a.kept = kept;
                                 a.indptr = indptr.ptr<int64_t>(), a.indices = indices.ptr<Index>();
                                 a.hint = hint.ptr<int64_t>(), a.hint_size = hint.size(0), a.shift = shift;
                                 if (gaps) a.gaps = gaps.ptr<int64_t>(), a.num_gaps = gaps.size(1);
                                 if (active) a.active = active.ptr<int64_t>(), a.num_active = active.size(0);
                                 a.out_users = users.ptr<int64_t>(), a.out_positives = items.ptr<int64_t>();
                                 zx::sample_positives(a, nullptr);
                               });
                             });

hostcall::Function unshuffle("unshuffle",
                             [](Tensor cells, Tensor key, Tensor numbers, int64_t total, int64_t seed, int64_t epoch) {
                               zx::unshuffle(origin_of(key, seed, epoch, 0), cells.ptr<int64_t>(), cells.size(0), total,
                                             numbers.ptr<int64_t>(), nullptr);
                             });

hostcall::Function filter("row_filter", [](Tensor indptr, Tensor indices, Tensor filter, int64_t num_items) {
  with_index(indices, [&](auto index) {
    using Index = decltype(index);
    zx::row_filter(indptr.ptr<int64_t>(), indptr.size(0) - 1, indices.ptr<Index>(), indices.size(0), num_items,
                   filter.ptr<unsigned short>(), nullptr);
  });
});

hostcall::Function has_items("has_items", [](Tensor users, Tensor items, Tensor indptr, Tensor indices, Tensor filter,
                                             Tensor out, int64_t num_items) {
  with_index(indices, [&](auto index) {
    using Index = decltype(index);
    const int64_t columns = out.size(1);
    zx::has_items(users.ptr<int64_t>(), users.size(0), items.ptr<int64_t>(), columns,
                  items.sizes.size() == 2 ? columns : 0, indptr.ptr<int64_t>(), indptr.size(0) - 1,
                  indices.ptr<Index>(), indices.size(0), filter.ptr<uint16_t>(), num_items, out.ptr<bool>(), nullptr);
  });
});

}  // namespace
