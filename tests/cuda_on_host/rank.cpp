// The launcher of csrc/cuda/rank.cuh. Lists of more than `longest` places are selected.
#include "cuda/rank.cuh"

#include "host_call.h"

namespace {

template <class S>
void run(const Tensor& scores, const Tensor& users, const Tensor& offset, const Tensor& indptr, const Tensor& indices,
         const Tensor& excluded_indptr, const Tensor& excluded_indices, const Tensor& positive_scores,
         const Tensor& greater, const Tensor& equal, const Tensor& candidates, const Tensor& top_items,
         const Tensor& failed, int64_t blocks, int64_t longest) {
  zx::RankArgs<S> a{};
  a.scores = scores.ptr<S>(), a.row_stride = scores.stride(0), a.column_stride = scores.stride(1);
  a.rows = users.size(0), a.num_items = scores.size(1), a.k = top_items.size(1);
  a.users = users.ptr<int64_t>(), a.offset = offset.ptr<int64_t>();
  a.positive_indptr = indptr.ptr<int64_t>(), a.positive_indices = indices.data;
  a.excluded_indptr = excluded_indptr.ptr<int64_t>(), a.excluded_indices = excluded_indices.data;
  a.wide = indices.dtype == hostcall::DType::i64;
  a.positive_scores = positive_scores.ptr<zx::arithmetic_t<S>>();
  a.greater = greater.ptr<unsigned long long>(), a.equal = equal.ptr<unsigned long long>();
  a.candidates = candidates.ptr<int64_t>(), a.top_items = top_items.ptr<int64_t>();
  a.failed = failed.ptr<unsigned long long>();
  zx::rank_scores(a, nullptr, blocks, longest);
}

// How a row is read that begins at `address` plus `number` times `stride` scores: shift, first, whole, count, the last
// item of the last pack, and where the row begins. Nothing is read of it.
hostcall::Function packs("rank_packs", [](int64_t address, int64_t stride, int64_t number, int64_t num_items,
                                          Tensor zeros, Tensor out) {
  zx::RankArgs<float> a{};
  a.scores = reinterpret_cast<const float*>(address), a.row_stride = stride, a.column_stride = 1;
  a.num_items = num_items, a.users = a.positive_indptr = zeros.ptr<int64_t>();
  zx::RankUser user{};
  zx::describe_user(a, number, user);
  const zx::RankRow<float> row{a, user};
  int64_t* const p = out.ptr<int64_t>();
  p[0] = user.packs.shift, p[1] = user.packs.first, p[2] = user.packs.whole, p[3] = user.packs.count;
  p[4] = user.packs.item(user.packs.count - 1, zx::kRankPack - 1);
  p[5] = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row.scores()));
});

hostcall::Function rank_scores("rank_scores", [](Tensor scores, Tensor users, Tensor offset, Tensor indptr,
                                                 Tensor indices, Tensor excluded_indptr, Tensor excluded_indices,
                                                 Tensor positive_scores, Tensor greater, Tensor equal,
                                                 Tensor candidates, Tensor top_items, Tensor failed, int64_t blocks,
                                                 int64_t longest) {
  const auto with = [&](auto zero) {
    run<decltype(zero)>(scores, users, offset, indptr, indices, excluded_indptr, excluded_indices, positive_scores,
                        greater, equal, candidates, top_items, failed, blocks, longest);
  };
  switch (scores.dtype) {
    case hostcall::DType::f64:
      return with(double{});
    case hostcall::DType::f16:
      return with(__half{});
    case hostcall::DType::bf16:
      return with(__nv_bfloat16{});
    default:
      return with(float{});
  }
});

}  // namespace
