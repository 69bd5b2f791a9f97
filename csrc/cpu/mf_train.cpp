// mf_train on the CPU: many training steps of matrix factorization in one call, from the ids of their samples to
// updated tables.
//
// Exact steps have the semantics of mini-batches, and the same bits for any number of threads. The samples of a batch
// are sorted by user, and their positions by item. A first pass over the users' samples computes scores, loss and the
// users' gradients while the rows are in the cache; a second one over the items' positions sums the gradient of each
// item, and, but for dense Adam, updates its row at once: nobody reads it any more. The users' rows, which the second
// pass needs as they were, are updated last.
//
// Hogwild steps [RRWN11] know no batches: each thread takes samples, sixteen at a time, and writes their rows as soon
// as their loss is known. Threads do not wait for each other; where two write one row at once, an update may be lost.
// That race is meant: rows are read and written as plain floats, whatever value a float has is used. One thread alone
// gives the same bits every time.
//
// [RRWN11] Niu, Recht, Re, Wright, "Hogwild!", NIPS 2011.
#include <array>

#include "cpu/mf_inputs.h"
#include "cpu/sort_rows.h"
#include "cpu/update_rows.h"

namespace zx::cpu {
namespace {

constexpr int64_t kSegmentWords = 8192;  // of gathered rows that are summed at a time: an L1 cache full
constexpr int64_t kTaskScores = 1024;    // scores below which a second thread costs more than it saves
// Scores of a batch below which one thread does it all. Threads meet four times a step; beside other processes each of
// these can take longer than the whole step of one thread.
constexpr int64_t kSerialScores = 32768;
constexpr int64_t kHogwildSamples = 16, kHogwildTask = 2048;

using Inputs = MfInputs<float, float>;
using Buffers = MfBlockBuffers<float, float>;

// A table, the state that its optimizer keeps, and how it is updated.
struct Table {
  float *values = nullptr, *first = nullptr, *second = nullptr;
  int64_t rows = 0, dim = 0;
  bool wanted = false;  // else it is frozen
  double lr = 0, x = 0, y = 0, eps = 0, step = 0;

  UpdateRule rule(Optimizer kind, int64_t steps_before) const {
    return make_rule(kind, lr, x, y, eps, step + static_cast<double>(steps_before));
  }
};

// What is done with a segment's sum of gradients: decay times the row itself is added, a row longer than `longest`
// (if > 0) is scaled down to it, and it is kept in `out` (its place there is the segment's number) or, where `out` is
// null, the table's row is updated.
struct RowEnd {
  const float* table;
  int64_t dim;
  float decay, longest;
  float* out;
  UpdateRule rule;
  float *values, *first, *second;
};

// The sums of the segments over entries [from, from + n) of all, `width` (factor, row) pairs each. `segment` is where
// the last call stopped. sum: scratch of a row, which keeps a segment's beginning between calls.
template <Optimizer kKind>
struct SegmentSums {
  ZX_HD static void run(const RowEnd* row_end, const Segment* segments, int64_t* segment, int64_t from, int64_t n,
                        int64_t width, const float* factor, const float* const* rows, float* sum) {
    const RowEnd& end = *row_end;
    const int64_t dim = end.dim;
    int64_t s = *segment;
    for (int64_t at = from; at < from + n;) {
      const Segment& seg = segments[s];
      const int64_t stop = std::min(seg.end, from + n), skip = (at - from) * width;
      float* to = end.out != nullptr ? end.out + s * dim : sum;
      weighted_sum(to, factor + skip, rows + skip, (stop - at) * width, dim, at > seg.begin);
      if (stop == seg.end) {
        if (end.decay != 0)
          add_scaled(to, end.decay * static_cast<float>(seg.end - seg.begin), end.table + seg.row * dim, dim);
        if (end.longest > 0) clip(to, dim, end.longest);
        if (end.out == nullptr) update(end, to, seg.row * dim);
        ++s;
      }
      at = stop;
    }
    *segment = s;
  }

  ZX_HD static void clip(float* row, int64_t dim, float longest) {
    const float norm = sqrtf(dot<float>(row, row, dim));
    if (norm > longest)
      for (int64_t i = 0; i < dim; ++i) row[i] *= longest / norm;
  }

  ZX_HD static void update(const RowEnd& end, const float* g, int64_t at) {
    const auto state = [&](float* base) { return base == nullptr ? base : base + at; };
    UpdateRow<kKind>::run(&end.rule, g, end.values + at, state(end.first), state(end.second), end.dim);
  }
};

// The (factor, user row) pairs of item positions order[from .. from + n), their rows on the way to the cache.
struct ItemEntries {
  ZX_HD static void run(const Inputs* in, const uint32_t* order, int64_t n, const float* coefficient, float* factor,
                        const float** rows) {
    const uint32_t items = static_cast<uint32_t>(in->items());
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t position = order[i];
      const uint32_t sample = items == 2 ? position >> 1 : position / items;
      factor[i] = coefficient[position];
      rows[i] = in->user + in->users[sample] * in->dim;
      prefetch_row<false>(rows[i], in->dim);
    }
  }
};

// The loss of a run, ready to be called.
struct LossCall {
  Shape shape;
  MfLossFunction<float, float> evaluate;
  Params<float> params;

  int64_t values_per_sample(int64_t k) const { return shape == Shape::kPair ? k : 1; }
  bool planes() const { return shape == Shape::kQuad; }
};

class ExactTrainer {
 public:
  ExactTrainer(const LossCall& loss, Optimizer kind, bool mean, double l2, double longest, Table& user, Table& item,
               Table& bias)
      : loss_(loss), kind_(kind), mean_(mean), l2_(l2), longest_(longest), user_(user), item_(item), bias_(bias) {}

  // Trains on one batch; returns its loss (summed, or the mean).
  double step(const Inputs& in, int64_t samples, int64_t steps_before) {
    const int64_t items = in.items();
    coefficient_.resize(static_cast<size_t>(samples * items));
    const auto sort = [&](int64_t side) {
      if (side == 0) by_user_.sort(samples, user_.rows, [&](int64_t b) { return in.users[b]; });
      if (side == 1 && (item_.wanted || bias_.wanted)) {
        if (items == 2)
          by_item_.sort(samples * 2, item_.rows,
                        [&](int64_t at) { return (at & 1) != 0 ? in.negatives[at >> 1] : in.positives[at >> 1]; });
        else
          by_item_.sort(samples * items, item_.rows, [&](int64_t at) { return in.item_at(at / items, at % items); });
      }
    };
    alone_ = samples * items < kSerialScores;
    for_each_block(2, alone_ ? 2 : 1, sort);
    const double values = static_cast<double>(samples * loss_.values_per_sample(in.num_negatives));
    const float decay = static_cast<float>(mean_ ? l2_ / static_cast<double>(samples) : l2_);
    const double total = pass_users(in, static_cast<float>(mean_ && values > 0 ? 1 / values : 1), decay);
    if (item_.wanted || bias_.wanted) pass_items(in, decay, steps_before);
    if (user_.wanted) {
      user_rows_.clear();
      for (const Segment& s : by_user_.segments()) user_rows_.push_back(s.row);
      apply(user_, user_rows_, user_sums_.data(), steps_before);
    }
    return mean_ && values > 0 ? total / values : total;
  }

 private:
  // Calls pass(first segment, last) for runs of segments that hold enough positions each.
  template <class F>
  void for_runs(const RowGroups& groups, int64_t positions, const F& pass) {
    groups.cut(std::max<int64_t>(1, positions), &cuts_);
    const int64_t runs = static_cast<int64_t>(cuts_.size()) - 1;
    sums_.assign(static_cast<size_t>(std::max<int64_t>(0, runs)), 0.0);
    for_each_block(runs, alone_ ? runs : 1, [&](int64_t run) { sums_[run] = pass(cuts_[run], cuts_[run + 1]); });
  }

  double pass_users(const Inputs& in, float scale, float decay) {
    const int64_t items = in.items(), k = in.num_negatives;
    if (user_.wanted) user_sums_.resize(by_user_.segments().size() * static_cast<size_t>(in.dim));
    const RowEnd end{user_.values, in.dim, decay, static_cast<float>(longest_), user_sums_.data(), {}, {}, {}, {}};
    const uint32_t* order = by_user_.order().data();
    const int64_t block =
        std::max<int64_t>(1, std::min(kTaskScores / items, kSegmentWords / std::max<int64_t>(1, in.dim * (items + 1))));
    for_runs(by_user_, kTaskScores / items, [&](int64_t from, int64_t to) {
      const Segment* segments = by_user_.segments().data();
      const int64_t last = segments[to - 1].end;
      Buffers buffers;
      buffers.reserve(block, in.num_positives, k);
      int64_t segment = from;
      double total = 0;
      for (int64_t first = segments[from].begin; first < last; first += block) {
        const int64_t n = std::min(block, last - first);
        simd<MfScores<float, float>>(&in, order + first, int64_t{0}, n, last - first, loss_.planes(), &buffers);
        const float* unweighted = nullptr;
        total += loss_.evaluate(buffers, n, k, in.constants != nullptr, unweighted, scale, loss_.params);
        gather_coefficients(buffers, n, in.num_positives, k, loss_.planes());
        const float* c = buffers.coefficient.data();
        for (int64_t i = 0; i < n; ++i)
          for (int64_t j = 0; j < items; ++j) coefficient_[order[first + i] * items + j] = c[i * items + j];
        if (user_.wanted) {
          float* none = nullptr;
          simd<SegmentSums<Optimizer::kAdam>>(&end, segments, &segment, first, n, items, c,
                                              static_cast<const float* const*>(buffers.rows.data()), none);
        }
      }
      return total;
    });
    double total = 0;
    for (const double sum : sums_) total += sum;
    return total;
  }

  void pass_items(const Inputs& in, float decay, int64_t steps_before) {
    switch (kind_) {
      case Optimizer::kSgd:
        return pass_items<Optimizer::kSgd>(in, decay, steps_before);
      case Optimizer::kAdagrad:
        return pass_items<Optimizer::kAdagrad>(in, decay, steps_before);
      case Optimizer::kAdam:
        return pass_items<Optimizer::kAdam>(in, decay, steps_before);
      case Optimizer::kLazyAdam:
        return pass_items<Optimizer::kLazyAdam>(in, decay, steps_before);
    }
  }

  template <Optimizer kKind>
  void pass_items(const Inputs& in, float decay, int64_t steps_before) {
    const std::vector<Segment>& segments = by_item_.segments();
    const int64_t count = static_cast<int64_t>(segments.size());
    const bool sweep = kKind == Optimizer::kAdam;
    if (sweep && item_.wanted) item_sums_.resize(static_cast<size_t>(count * in.dim));
    if (bias_.wanted) bias_sums_.resize(static_cast<size_t>(count));
    const float longest = static_cast<float>(longest_);
    const RowEnd end{item_.values,
                     in.dim,
                     decay,
                     longest,
                     sweep ? item_sums_.data() : nullptr,
                     item_.wanted ? item_.rule(kKind, steps_before) : UpdateRule{},
                     item_.values,
                     item_.first,
                     item_.second};
    const uint32_t* order = by_item_.order().data();
    const int64_t block = std::max<int64_t>(1, kSegmentWords / std::max<int64_t>(1, in.dim));
    for_runs(by_item_, kTaskScores, [&](int64_t from, int64_t to) {
      const int64_t last = segments[to - 1].end;
      std::vector<float> factor(static_cast<size_t>(block)), sum(static_cast<size_t>(in.dim));
      std::vector<const float*> rows(static_cast<size_t>(block));
      int64_t segment = from;
      for (int64_t first = segments[from].begin; first < last && item_.wanted; first += block) {
        const int64_t n = std::min(block, last - first);
        simd<ItemEntries>(&in, order + first, n, static_cast<const float*>(coefficient_.data()), factor.data(),
                          rows.data());
        simd<SegmentSums<kKind>>(&end, segments.data(), &segment, first, n, int64_t{1},
                                 static_cast<const float*>(factor.data()),
                                 static_cast<const float* const*>(rows.data()), sum.data());
      }
      for (int64_t s = from; s < to && bias_.wanted; ++s) {
        float total = 0;
        for (int64_t at = segments[s].begin; at < segments[s].end; ++at) total += coefficient_[order[at]];
        if (longest > 0) total = std::max(-longest, std::min(longest, total));
        bias_sums_[s] = total;
      }
      return 0.0;
    });
    item_rows_.clear();
    if (sweep || bias_.wanted)
      for (const Segment& s : segments) item_rows_.push_back(s.row);
    if (sweep && item_.wanted) apply(item_, item_rows_, item_sums_.data(), steps_before);
    if (bias_.wanted) apply(bias_, item_rows_, bias_sums_.data(), steps_before);
  }

  void apply(const Table& t, const std::vector<int64_t>& rows, const float* sums, int64_t steps_before) {
    update_rows(kind_, t.rule(kind_, steps_before), rows.data(), static_cast<int64_t>(rows.size()), sums, t.values,
                t.first, t.second, t.rows, t.dim, alone_);
  }

  LossCall loss_;
  Optimizer kind_;
  bool mean_, alone_ = false;
  double l2_, longest_;
  Table &user_, &item_, &bias_;
  RowGroups by_user_, by_item_;
  std::vector<int64_t> cuts_, user_rows_, item_rows_;
  std::vector<double> sums_;
  std::vector<float> coefficient_, user_sums_, item_sums_, bias_sums_;
};

// ---- Hogwild --------------------------------------------------------------------------------------------------------

// A step of SGD on the rows of n samples whose derivatives are known: coefficient and rows [n, J]. sum: scratch of a
// row.
struct HogwildRows {
  ZX_HD static void run(const Inputs* in, int64_t first, int64_t n, const float* coefficient, const float* const* rows,
                        float user_rate, float item_rate, float l2, float* sum) {
    const int64_t items = in->items(), dim = in->dim;
    for (int64_t i = 0; i < n; ++i) {
      float* user = const_cast<float*>(in->user) + in->users[first + i] * dim;
      const float* c = coefficient + i * items;
      const float* const* q = rows + i * items;
      if (items == 2)
        two(user, const_cast<float*>(q[0]), const_cast<float*>(q[1]), c[0], c[1], dim, user_rate, item_rate, l2);
      else
        many(user, q, c, items, dim, user_rate, item_rate, l2, sum);
    }
  }

  // One positive and one negative, never the same row.
  ZX_HD static void two(float* __restrict__ p, float* __restrict__ x, float* __restrict__ y, float c, float d,
                        int64_t dim, float user_rate, float item_rate, float l2) {
    const float keep_p = 1 - user_rate * l2, keep_q = 1 - item_rate * l2;
    const float cu = user_rate * c, du = user_rate * d, ci = item_rate * c, di = item_rate * d;
    for (int64_t i = 0; i < dim; ++i) {
      const float user = p[i], a = x[i], b = y[i];
      p[i] = keep_p * user - (cu * a + du * b);
      x[i] = keep_q * a - ci * user;
      y[i] = keep_q * b - di * user;
    }
  }

  // Items one after another (an item may occur twice), the user last.
  ZX_HD static void many(float* __restrict__ p, const float* const* rows, const float* c, int64_t items, int64_t dim,
                         float user_rate, float item_rate, float l2, float* __restrict__ sum) {
    for (int64_t i = 0; i < dim; ++i) sum[i] = l2 * p[i];
    for (int64_t j = 0; j < items; ++j) {
      float* __restrict__ q = const_cast<float*>(rows[j]);
      const float f = c[j], ci = item_rate * f, keep = 1 - item_rate * l2;
      for (int64_t i = 0; i < dim; ++i) {
        const float old = q[i];
        sum[i] += f * old;
        q[i] = keep * old - ci * p[i];
      }
    }
    for (int64_t i = 0; i < dim; ++i) p[i] -= user_rate * sum[i];
  }
};

// Trains on all samples; returns their summed loss.
double hogwild(const LossCall& loss, bool mean, float l2, const Inputs& in, int64_t samples, const Table& user,
               const Table& item, const Table& bias) {
  const int64_t k = in.num_negatives, items = in.items();
  const int64_t tasks = (samples + kHogwildTask - 1) / kHogwildTask;
  const float scale = mean ? 1.0f / static_cast<float>(std::max<int64_t>(1, loss.values_per_sample(k))) : 1.0f;
  const float user_rate = user.wanted ? static_cast<float>(user.lr) : 0.0f;
  const float item_rate = item.wanted ? static_cast<float>(item.lr) : 0.0f;
  std::vector<double> sums(static_cast<size_t>(tasks));
  share_blocks(tasks, [&](const auto& next) {
    Buffers buffers;
    buffers.reserve(kHogwildSamples, in.num_positives, k);
    std::vector<float> sum(static_cast<size_t>(in.dim));
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t last = std::min(samples, (task + 1) * kHogwildTask);
      for (int64_t first = task * kHogwildTask; first < last; first += kHogwildSamples) {
        const int64_t n = std::min(kHogwildSamples, last - first);
        const uint32_t* unordered = nullptr;
        simd<MfScores<float, float, true>>(&in, unordered, first, n, samples - first, loss.planes(), &buffers);
        const float* unweighted = nullptr;
        sums[task] += loss.evaluate(buffers, n, k, in.constants != nullptr, unweighted, scale, loss.params);
        gather_coefficients(buffers, n, in.num_positives, k, loss.planes());
        const float* c = buffers.coefficient.data();
        simd<HogwildRows>(&in, first, n, c, static_cast<const float* const*>(buffers.rows.data()), user_rate, item_rate,
                          l2, sum.data());
        if (bias.wanted)
          for (int64_t i = 0; i < n * items; ++i)
            bias.values[in.item_at(first + i / items, i % items)] -= static_cast<float>(bias.lr) * c[i];
      }
    }
  });
  double total = 0;
  for (const double sum : sums) total += sum;
  return mean ? total / static_cast<double>(std::max<int64_t>(1, loss.values_per_sample(k))) : total;
}

}  // namespace

Tensor mf_train(Tensor user_embedding, Tensor item_embedding, std::optional<Tensor> item_bias,
                std::optional<Tensor> user_first, std::optional<Tensor> user_second, std::optional<Tensor> item_first,
                std::optional<Tensor> item_second, std::optional<Tensor> bias_first, std::optional<Tensor> bias_second,
                const Tensor& users, const Tensor& positives, const Tensor& negatives, std::optional<Tensor> constants,
                const Tensor& settings, int64_t optimizer, int64_t loss, double a, double b, double c, double l2,
                double longest, int64_t reduction, int64_t batch_size, bool asynchronous) {
  const Optimizer kind = checked_optimizer(optimizer);
  const Loss which = static_cast<Loss>(loss);
  const Reduction reduce = static_cast<Reduction>(reduction);
  ZX_CHECK(reduce != Reduction::kNone, "training needs a reduction");
  ZX_CHECK(user_embedding.scalar_type() == ScalarType::Float, "the tables must be float32");
  ZX_CHECK(batch_size > 0, "batch_size must be positive");
  Inputs in = mf_inputs<float, float>(user_embedding, item_embedding, item_bias, users, positives, negatives);
  const LossCall call{shape_of(which), mf_loss_function<float, float, true>(which),
                      Params<float>{static_cast<float>(a), static_cast<float>(b), static_cast<float>(c)}};
  const int64_t k = in.num_negatives, samples = users.size(0);
  ZX_CHECK(
      in.num_positives == (call.planes() ? 2 : 1) && (!call.planes() || k == 2) && (call.shape != Shape::kRow || k > 0),
      "positives or negatives do not have the shape of this loss");
  if (constants) {
    ZX_CHECK(constants->scalar_type() == ScalarType::Float && constants->is_contiguous() && constants->dim() == 1 &&
                 constants->size(0) == item_embedding.size(0),
             "constants must be [I], float32");
    in.constants = data<float>(*constants);
  }
  ZX_CHECK(constants || !needs_constants(which), "this loss needs constants");
  ZX_CHECK(settings.scalar_type() == ScalarType::Double && settings.is_contiguous() && settings.dim() == 2 &&
               settings.size(0) == 3 && settings.size(1) == 6,
           "settings must be float64 [3, 6]");
  const auto table = [&](int64_t row, Tensor* values, std::optional<Tensor>& first, std::optional<Tensor>& second) {
    Table t;
    if (values == nullptr) return t;
    const double* s = data<double>(settings) + 6 * row;
    t.values = data<float>(*values), t.rows = values->size(0), t.dim = values->dim() == 2 ? values->size(1) : 1;
    t.wanted = s[0] != 0, t.lr = s[1], t.x = s[2], t.y = s[3], t.eps = s[4], t.step = s[5];
    if (!t.wanted) return t;
    check_state(kind, *values, first, second);
    if (first) t.first = data<float>(*first);
    if (second) t.second = data<float>(*second);
    return t;
  };
  Table user = table(0, &user_embedding, user_first, user_second);
  Table item = table(1, &item_embedding, item_first, item_second);
  Table bias = table(2, item_bias ? &*item_bias : nullptr, bias_first, bias_second);
  ZX_CHECK(first_outside(in.users, samples, user.rows) < 0 &&
               first_outside(in.positives, samples * in.num_positives, item.rows) < 0 &&
               first_outside(in.negatives, samples * k, item.rows) < 0,
           "users, positives and negatives must be in range");
  const bool mean = reduce == Reduction::kMean;
  if (asynchronous) {
    ZX_CHECK(kind == Optimizer::kSgd && longest <= 0, "asynchronous training is SGD without clipping");
    Tensor losses = new_tensor(users, {1}, ScalarType::Double);
    *data<double>(losses) = hogwild(call, mean, static_cast<float>(l2), in, samples, user, item, bias);
    return losses;
  }
  const int64_t steps = (samples + batch_size - 1) / batch_size;
  Tensor losses = new_tensor(users, {steps}, ScalarType::Double);
  ExactTrainer trainer(call, kind, mean, l2, longest, user, item, bias);
  for (int64_t step = 0; step < steps; ++step) {
    Inputs batch = in;
    const int64_t first = step * batch_size;
    batch.users += first, batch.positives += first * in.num_positives, batch.negatives += first * k;
    data<double>(losses)[step] = trainer.step(batch, std::min(batch_size, samples - first), step);
  }
  return losses;
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) { m.impl("mf_train", TORCH_BOX(&zx::cpu::mf_train)); }
