// mf_loss and mf_gradient on the CPU: a loss of dot products of embedding rows, and its gradient with respect to the
// rows, without the gathered blocks [B, d].
//
// Forward: blocks of samples in the order given, each gathered, multiplied and evaluated while it is in the cache; what
// is kept is the derivative with respect to each score, [B, J]. Backward: the samples grouped by row (a stable sort),
// each row's sum made by one thread in the order of the samples. Values and gradients are the same bits for any number
// of threads.
#include <tuple>

#include "cpu/mf_inputs.h"
#include "cpu/sort_rows.h"

namespace zx::cpu {
namespace {

constexpr int64_t kBlockScores = 512;    // scores of a block; its rows fill half an L1 cache at d = 64
constexpr int64_t kSerialWords = 65536;  // gathered words below which a second thread costs more than it saves

// Sum over samples [first, first + n) of the squared norms of their rows.
template <class S, class C>
struct SquaredNorms {
  template <int kBytes>
  ZX_HD static double run(const MfInputs<S, C>* in, int64_t first, int64_t n, const S* const* rows) {
    double total = 0;
    const int64_t items = in->items();
    for (int64_t i = 0; i < n; ++i) {
      const S* user = in->user + in->users[first + i] * in->dim;
      total += static_cast<double>(dot<C, kBytes>(user, user, in->dim));
      for (int64_t j = 0; j < items; ++j) {
        const S* row = rows[i * items + j];
        total += static_cast<double>(dot<C, kBytes>(row, row, in->dim));
      }
    }
    return total;
  }
};

}  // namespace

std::tuple<Tensor, Tensor, Tensor> mf_loss(const Tensor& user_embedding, const Tensor& item_embedding,
                                           std::optional<Tensor> item_bias, const Tensor& users,
                                           const Tensor& positives, const Tensor& negatives,
                                           std::optional<Tensor> constants, std::optional<Tensor> weight, int64_t loss,
                                           double a, double b, double c, double l2, int64_t reduction, bool grad) {
  const Loss kind = checked_loss(loss);
  const Shape shape = shape_of(kind);
  const Reduction reduce = checked_reduction(reduction);
  const bool keep = reduce == Reduction::kNone, planes = shape == Shape::kQuad;
  ZX_CHECK(!keep || l2 == 0, "l2 needs a reduction");
  const ScalarType dtype = user_embedding.scalar_type(), compute = arithmetic_type(dtype);
  const int64_t rows = users.size(0);
  Tensor failed = new_tensor(users, {1}, ScalarType::Long);
  Tensor value, coefficient;
  dispatch_floating(dtype, [&](auto zero) {
    using S = decltype(zero);
    using C = compute_t<S>;
    MfInputs<S, C> in = mf_inputs<S, C>(user_embedding, item_embedding, item_bias, users, positives, negatives);
    const int64_t k = in.num_negatives, items = in.items();
    ZX_CHECK(in.num_positives == (planes ? 2 : 1) && (!planes || k == 2) && (shape != Shape::kRow || k > 0),
             "positives or negatives do not have the shape of this loss");
    if (constants) {
      ZX_CHECK(constants->scalar_type() == compute && constants->is_contiguous() && constants->dim() == 1 &&
                   constants->size(0) == item_embedding.size(0),
               "constants must be [I], in the arithmetic's dtype");
      in.constants = data<C>(*constants);
    }
    ZX_CHECK(constants || !needs_constants(kind), "this loss needs constants");
    const bool weight_per_pair = weight && weight->dim() == 2;
    if (weight)
      ZX_CHECK(weight->scalar_type() == compute && weight->is_contiguous() &&
                   (weight->dim() == 1 || weight->dim() == 2) && weight->size(0) == rows &&
                   (!weight_per_pair || (shape == Shape::kPair && weight->size(1) == k)),
               "weight must be [B], or [B, K] for a loss of pairs");
    const int64_t values_per_row = shape == Shape::kPair ? k : 1;
    const bool matrix = shape == Shape::kPair && negatives.dim() == 2;
    value = !keep ? new_tensor(users, {}, compute)
                  : (matrix ? new_tensor(users, {rows, k}, dtype) : new_tensor(users, {rows}, dtype));
    coefficient = grad ? new_tensor(users, {rows, items}, compute) : new_tensor(users, {0}, compute);

    const int64_t counts[3] = {rows, rows * in.num_positives, rows * k};
    const int64_t* ids[3] = {in.users, in.positives, in.negatives};
    int64_t before = 0;
    *data<int64_t>(failed) = -1;
    for (int t = 0; t < 3; ++t) {
      const int64_t at = first_outside(ids[t], counts[t], t == 0 ? user_embedding.size(0) : item_embedding.size(0));
      if (at >= 0) {
        *data<int64_t>(failed) = before + at;
        return;
      }
      before += counts[t];
    }

    const double samples = static_cast<double>(rows) * static_cast<double>(values_per_row);
    const bool mean = reduce == Reduction::kMean;
    const C scale = static_cast<C>(mean && samples > 0 ? 1.0 / samples : 1.0);
    const Params<C> params{static_cast<C>(a), static_cast<C>(b), static_cast<C>(c)};
    const auto evaluate = grad ? mf_loss_function<S, C, true>(kind) : mf_loss_function<S, C, false>(kind);
    const int64_t block_rows = std::max<int64_t>(1, kBlockScores / std::max<int64_t>(1, items));
    const int64_t blocks = (rows + block_rows - 1) / block_rows;
    const C* weights = weight ? data<C>(*weight) : nullptr;
    std::vector<double> sums(static_cast<size_t>(blocks)), norms(static_cast<size_t>(blocks));
    const int64_t words = block_rows * (items + 1) * std::max<int64_t>(1, in.dim);
    const int64_t grain = std::max<int64_t>(1, kSerialWords / words);
    const int64_t tasks = (blocks + grain - 1) / grain;
    for_each_block(tasks, 1, [&](int64_t task) {
      MfBlockBuffers<S, C> buffers;
      buffers.reserve(block_rows, in.num_positives, k);
      for (int64_t block = task * grain; block < std::min(blocks, (task + 1) * grain); ++block) {
        const int64_t first = block * block_rows, n = std::min(block_rows, rows - first);
        const uint32_t* unordered = nullptr;
        simd<MfScores<S, C>>(static_cast<const MfInputs<S, C>*>(&in), unordered, first, n, rows - first, planes,
                             &buffers);
        const C* w = weights;
        if (w != nullptr) {
          w += first * (weight_per_pair ? k : 1);
          if (shape == Shape::kPair && !weight_per_pair && k != 1) {
            for (int64_t i = 0; i < n; ++i) std::fill_n(buffers.weight.data() + i * k, k, w[i]);
            w = buffers.weight.data();
          }
        }
        sums[block] = evaluate(buffers, n, k, in.constants != nullptr, w, scale, params);
        if (l2 != 0)
          norms[block] = simd<SquaredNorms<S, C>>(static_cast<const MfInputs<S, C>*>(&in), first, n,
                                                  static_cast<const S* const*>(buffers.rows.data()));
        if (keep) {
          S* out = data<S>(value) + first * values_per_row;
          for (int64_t i = 0; i < n * values_per_row; ++i) out[i] = static_cast<S>(buffers.value[i]);
        }
        if (grad) {
          gather_coefficients(buffers, n, in.num_positives, k, planes);
          std::copy_n(buffers.coefficient.data(), n * items, data<C>(coefficient) + first * items);
        }
      }
    });
    if (!keep) {
      double total = 0, squares = 0;
      for (int64_t block = 0; block < blocks; ++block) total += sums[block], squares += norms[block];
      if (mean && samples > 0) total /= samples;
      if (mean && rows > 0) squares /= static_cast<double>(rows);
      *data<C>(value) = static_cast<C>(total + 0.5 * l2 * squares);
    }
  });
  return {value, coefficient, failed};
}

namespace {

// One segment's row of the gradient: the weighted sum of the rows on the other side, and decay times the row itself.
template <class S, class C>
struct GradientRows {
  template <int kBytes>
  ZX_HD static void run(const MfInputs<S, C>* inputs, const RowGroups* groups, int64_t begin, int64_t end,
                        const C* coefficient, C scale, C decay, bool by_user, bool dense, S* values, S* bias, C* sum,
                        const S** rows, C* factor) {
    const MfInputs<S, C>& in = *inputs;
    const int64_t dim = in.dim, items = in.items();
    const uint32_t* order = groups->order().data();
    for (int64_t s = begin; s < end; ++s) {
      const Segment segment = groups->segments()[s];
      const int64_t count = segment.end - segment.begin;
      C total = 0;
      int64_t n = 0;
      for (int64_t at = segment.begin; at < segment.end; ++at) {
        const int64_t position = order[at];
        if (by_user) {
          for (int64_t j = 0; j < items; ++j) {
            factor[n] = scale * coefficient[position * items + j];
            rows[n++] = in.item + in.item_at(position, j) * dim;
          }
        } else {
          factor[n] = scale * coefficient[position];
          total += factor[n];
          rows[n++] = in.user + in.users[position / items] * dim;
        }
      }
      const int64_t target = dense ? segment.row : s;
      if (bias != nullptr) bias[target] = static_cast<S>(total);
      if (values == nullptr) continue;
      weighted_sum<kBytes>(sum, factor, rows, n, dim);
      if (decay != C(0))
        add_scaled(sum, decay * static_cast<C>(count), (by_user ? in.user : in.item) + segment.row * dim, dim);
      S* out = values + target * dim;
      for (int64_t i = 0; i < dim; ++i) out[i] = static_cast<S>(sum[i]);
    }
  }
};

}  // namespace

// The gradient of scale * (loss + l2 / 2 * squared norms of the gathered rows): of each side the rows int64 [n]
// (empty where dense) and the values [n or table, d], and the bias's values [n or table].
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> mf_gradient(const Tensor& user_embedding,
                                                               const Tensor& item_embedding, const Tensor& users,
                                                               const Tensor& positives, const Tensor& negatives,
                                                               const Tensor& coefficient, const Tensor& scale,
                                                               double l2, bool user, bool item, bool bias, bool sparse,
                                                               bool /*padded*/, bool /*atomics*/) {
  const ScalarType dtype = user_embedding.scalar_type();
  // Each output is a tensor of its own: a schema without aliases promises that.
  Tensor user_rows = new_tensor(users, {0}, ScalarType::Long), item_rows = new_tensor(users, {0}, ScalarType::Long);
  Tensor user_values = new_tensor(users, {0}, dtype), item_values = new_tensor(users, {0}, dtype),
         bias_values = new_tensor(users, {0}, dtype);
  dispatch_floating(dtype, [&](auto zero) {
    using S = decltype(zero);
    using C = compute_t<S>;
    const MfInputs<S, C> in =
        mf_inputs<S, C>(user_embedding, item_embedding, std::nullopt, users, positives, negatives);
    const int64_t samples = users.size(0), items = in.items(), dim = in.dim;
    ZX_CHECK(coefficient.is_contiguous() && coefficient.scalar_type() == arithmetic_type(dtype) &&
                 coefficient.dim() == 2 && coefficient.size(0) == samples && coefficient.size(1) == items,
             "coefficient must be [B, J], in the arithmetic's dtype");
    ZX_CHECK(scale.scalar_type() == arithmetic_type(dtype) && scale.numel() == 1,
             "scale must be one number of the arithmetic's dtype");
    check_ids_in_range(in, samples, user_embedding.size(0), item_embedding.size(0));
    const C factor = *data<C>(scale);
    for (int side = 0; side < 2; ++side) {
      const bool by_user = side == 0;
      if (by_user ? !user : !(item || bias)) continue;
      const int64_t table = (by_user ? user_embedding : item_embedding).size(0);
      RowGroups groups;
      if (by_user)
        groups.sort(samples, table, [&](int64_t b) { return in.users[b]; });
      else
        groups.sort(samples * items, table, [&](int64_t at) { return in.item_at(at / items, at % items); });
      const int64_t count = static_cast<int64_t>(groups.segments().size());
      const int64_t size = sparse ? count : table;
      Tensor& values = by_user ? user_values : item_values;
      if (by_user || item) values = new_tensor(users, {size, dim}, dtype);
      if (!by_user && bias) bias_values = new_tensor(users, {size}, dtype);
      S* out = by_user || item ? data<S>(values) : nullptr;
      S* bias_out = !by_user && bias ? data<S>(bias_values) : nullptr;
      if (!sparse) {
        constexpr int64_t kRows = 4096;
        for_each_block((table + kRows - 1) / kRows, 1, [&](int64_t block) {
          const int64_t first = block * kRows, n = std::min(kRows, table - first);
          if (out != nullptr) std::fill_n(out + first * dim, n * dim, static_cast<S>(C(0)));
          if (bias_out != nullptr) std::fill_n(bias_out + first, n, static_cast<S>(C(0)));
        });
      }
      std::vector<int64_t> cuts;
      const int64_t width = by_user ? items : 1;
      cut_segments(groups.segments(), std::max<int64_t>(1, kSerialWords / std::max<int64_t>(1, dim * width)), &cuts);
      for_each_block(static_cast<int64_t>(cuts.size()) - 1, 1, [&](int64_t run) {
        int64_t longest = 0;
        for (int64_t s = cuts[run]; s < cuts[run + 1]; ++s)
          longest = std::max(longest, groups.segments()[s].end - groups.segments()[s].begin);
        std::vector<C> sum(static_cast<size_t>(dim)), factors(static_cast<size_t>(longest * width));
        std::vector<const S*> rows(static_cast<size_t>(longest * width));
        simd<GradientRows<S, C>>(&in, static_cast<const RowGroups*>(&groups), cuts[run], cuts[run + 1],
                                 static_cast<const C*>(data<C>(coefficient)), factor, static_cast<C>(l2) * factor,
                                 by_user, !sparse, out, bias_out, sum.data(), rows.data(), factors.data());
      });
      if (sparse) {
        Tensor& names = by_user ? user_rows : item_rows;
        names = new_tensor(users, {count}, ScalarType::Long);
        for (int64_t s = 0; s < count; ++s) data<int64_t>(names)[s] = groups.segments()[s].row;
      }
    }
  });
  return {user_rows, user_values, item_rows, item_values, bias_values};
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) {
  m.impl("mf_loss", ZX_BOX(&zx::cpu::mf_loss));
  m.impl("mf_gradient", ZX_BOX(&zx::cpu::mf_gradient));
}
