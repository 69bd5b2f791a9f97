// mf_train on the CPU: many training steps of matrix factorization in one call, from the ids of their samples to
// updated tables.
//
// Exact steps have the semantics of mini-batches, and the same bits for any number of threads. The samples of a batch
// are grouped by user, and their positions by item. A first pass over the users' samples computes scores, loss and the
// users' gradients while the rows are in the cache, and leaves each derivative, with its user, where the item's group
// will look for it; a second one over these sums the gradient of each item, and, but for dense Adam, updates its row at
// once: nobody reads it any more. The users' rows, which the second pass needs as they were, are updated last. Dense
// Adam moves every row in every step; where a batch touches few of them, deferred_adam.h has the others wait.
//
// Hogwild steps [RRWN11] know no batches: each thread takes samples, sixteen at a time, and writes their rows as soon
// as their loss is known. Threads do not wait for each other; where two write one row at once, an update may be lost.
// That race is meant: rows are read and written as plain floats, whatever value a float has is used. One thread alone
// gives the same bits every time.
//
// [RRWN11] Niu, Recht, Re, Wright, "Hogwild!", NIPS 2011.
#include <array>

#include "cpu/deferred_adam.h"
#include "cpu/mf_inputs.h"
#include "cpu/sort_rows.h"
#include "cpu/update_rows.h"

namespace zx::cpu {
namespace {

constexpr int64_t kSegmentWords = 8192;  // of gathered rows that are scored at a time: an L1 cache full
constexpr int64_t kEntryWords = 3072;    // of those that are summed, while as many more are on their way
constexpr int64_t kTaskScores = 1024;    // scores below which a second thread costs more than it saves
// Scores of a batch below which one thread does it all: threads meet four times a step.
constexpr int64_t kSerialScores = 4096;
// Dense Adam comes to rows as they are needed where a call has so many steps (in the end all rows are visited) and a
// step touches at most one row in so many; else it sweeps.
constexpr int64_t kDeferredSteps = 4, kDeferredShare = 3;
constexpr int64_t kHogwildSamples = 16, kHogwildTask = 2048;

using Inputs = MfInputs<float, float>;
using Buffers = MfBlockBuffers<float, float>;

// A table, the state that its optimizer keeps, and how it is updated.
struct Table {
  float *values = nullptr, *first = nullptr, *second = nullptr;
  int64_t rows = 0, dim = 0;
  bool wanted = false;  // else it is frozen
  double lr = 0, x = 0, y = 0, eps = 0, step = 0;
  DeferredAdam* deferred = nullptr;  // where dense Adam comes to a row when it is needed

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
// the last call stopped, of `count` in all. sum: scratch of a row, which keeps a segment's beginning between calls.
template <Optimizer kKind>
struct SegmentSums {
  ZX_HD static void run(const RowEnd* row_end, const Segment* segments, int64_t count, int64_t* segment, int64_t from,
                        int64_t n, int64_t width, const float* factor, const float* const* rows, float* sum) {
    const RowEnd& end = *row_end;
    const int64_t dim = end.dim;
    int64_t s = *segment;
    for (int64_t at = from; at < from + n;) {
      const Segment& seg = segments[s];
      const int64_t stop = std::min(seg.end, from + n), skip = (at - from) * width;
      float* to = end.out != nullptr ? end.out + s * dim : sum;
      weighted_sum(to, factor + skip, rows + skip, (stop - at) * width, dim, at > seg.begin);
      if (stop == seg.end) {
        if (end.out == nullptr && s + kRowsAhead < count) fetch(end, segments[s + kRowsAhead].row * dim);
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

  // The row that will be updated, and its state.
  ZX_HD static void fetch(const RowEnd& end, int64_t at) {
    prefetch_row<true>(end.values + at, end.dim);
    if (end.first != nullptr) prefetch_row<true>(end.first + at, end.dim);
    if (end.second != nullptr) prefetch_row<true>(end.second + at, end.dim);
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

// What a position of an item adds to its gradient: a derivative times a user's row.
struct Entry {
  float coefficient;
  uint32_t user;
};

// n entries as (factor, row) pairs, the rows on their way to the cache.
struct EntryRows {
  ZX_HD static void run(const float* user, int64_t dim, const Entry* entries, int64_t n, float* factor,
                        const float** rows) {
    for (int64_t i = 0; i < n; ++i) {
      factor[i] = entries[i].coefficient;
      rows[i] = user + entries[i].user * dim;
      prefetch_row<false>(rows[i], dim);
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

// What exact steps keep their numbers in, from batch to batch and from call to call: memory that is given back to the
// system costs page faults when it is asked for again.
struct Workspace {
  RowGroups by_user, by_item;
  std::vector<int64_t> cuts, user_rows, item_rows;
  std::vector<double> sums;
  std::vector<uint32_t> order, users, positives, negatives;  // of the batch, grouped by user
  std::vector<uint32_t> place;                               // of each position, among the entries
  std::vector<Entry> entries;                                // grouped by item
  std::vector<float> user_sums, item_sums, bias_sums;

  // Of the vectors that grow most.
  size_t bytes() const {
    return sizeof(float) * (user_sums.capacity() + item_sums.capacity() + negatives.capacity() + place.capacity()) +
           sizeof(Entry) * entries.capacity();
  }
};
constexpr size_t kKeptBytes = size_t{64} << 20;

// Whether sweeps over a table cost more than coming to the rows that are needed, `touched` of them a step at most.
bool defers(const Table& t, int64_t touched, int64_t steps) {
  return t.wanted && steps >= kDeferredSteps && kDeferredShare * touched <= t.rows &&
         DeferredAdam::fits(t.x, t.y, t.eps);
}

class ExactTrainer {
 public:
  ExactTrainer(const LossCall& loss, Optimizer kind, bool mean, double l2, double longest, Table& user, Table& item,
               Table& bias, Workspace& own)
      : loss_(loss),
        kind_(kind),
        mean_(mean),
        l2_(l2),
        longest_(longest),
        user_(user),
        item_(item),
        bias_(bias),
        own_(own) {}

  // Trains on one batch; returns its loss (summed, or the mean).
  double step(const Inputs& in, int64_t samples, int64_t steps_before) {
    const int64_t items = in.items();
    alone_ = samples * items < kSerialScores;
    for_each_block(2, alone_ ? 2 : 1, [&](int64_t side) {
      if (side == 0) group_by_user(in, samples);
      if (side == 1 && (item_.wanted || bias_.wanted)) group_by_item(in, samples);
    });
    catch_up(user_, own_.by_user);
    catch_up(item_, own_.by_item);
    catch_up(bias_, own_.by_item);
    const double values = static_cast<double>(samples * loss_.values_per_sample(in.num_negatives));
    const float decay = static_cast<float>(mean_ ? l2_ / static_cast<double>(samples) : l2_);
    const double total = pass_users(grouped(in), static_cast<float>(mean_ && values > 0 ? 1 / values : 1), decay);
    if (item_.wanted || bias_.wanted) pass_items(decay, steps_before);
    if (user_.wanted) {
      own_.user_rows.clear();
      for (const Segment& s : own_.by_user.segments()) own_.user_rows.push_back(s.row);
      apply(user_, own_.user_rows, own_.user_sums.data(), steps_before);
    }
    for (const Table* t : {&user_, &item_, &bias_})
      if (t->deferred != nullptr) t->deferred->end_step();
    return mean_ && values > 0 ? total / values : total;
  }

 private:
  // Deferred Adam updates what a batch touches, as lazy Adam does, with the rule of Adam.
  Optimizer way(const Table& t) const { return t.deferred != nullptr ? Optimizer::kLazyAdam : kind_; }

  void catch_up(const Table& t, const RowGroups& groups) const {
    const Segment* segments = groups.segments().data();
    if (t.deferred != nullptr)
      t.deferred->catch_up(static_cast<int64_t>(groups.segments().size()), alone_,
                           [&](int64_t i) { return segments[i].row; });
  }

  // The batch in the order of its users.
  using Grouped = MfInputs<float, float, uint32_t>;

  void group_by_user(const Inputs& in, int64_t samples) {
    const int64_t positives = in.num_positives, k = in.num_negatives;
    own_.order.resize(static_cast<size_t>(samples)), own_.users.resize(static_cast<size_t>(samples));
    own_.positives.resize(static_cast<size_t>(samples * positives)),
        own_.negatives.resize(static_cast<size_t>(samples * k));
    const bool ascending = way(user_) == Optimizer::kAdam;
    const auto row = [&](int64_t b) { return in.users[b]; };
    uint32_t *order = own_.order.data(), *users = own_.users.data();
    uint32_t *to_positives = own_.positives.data(), *to_negatives = own_.negatives.data();
    const auto sample = [&](int64_t b, int64_t to) {
      order[to] = static_cast<uint32_t>(b);
      users[to] = static_cast<uint32_t>(in.users[b]);
    };
    if (positives == 1 && k == 1)
      own_.by_user.group(samples, user_.rows, ascending, row, [&](int64_t b, int64_t to) {
        sample(b, to);
        to_positives[to] = static_cast<uint32_t>(in.positives[b]);
        to_negatives[to] = static_cast<uint32_t>(in.negatives[b]);
      });
    else
      own_.by_user.group(samples, user_.rows, ascending, row, [&](int64_t b, int64_t to) {
        sample(b, to);
        for (int64_t j = 0; j < positives; ++j)
          to_positives[to * positives + j] = static_cast<uint32_t>(in.positives[b * positives + j]);
        for (int64_t j = 0; j < k; ++j) to_negatives[to * k + j] = static_cast<uint32_t>(in.negatives[b * k + j]);
      });
  }

  void group_by_item(const Inputs& in, int64_t samples) {
    const int64_t items = in.items(), n = samples * items;
    const bool ascending = way(item_) == Optimizer::kAdam || way(bias_) == Optimizer::kAdam;
    own_.place.resize(static_cast<size_t>(n)), own_.entries.resize(static_cast<size_t>(n));
    uint32_t* places = own_.place.data();
    const auto place = [&](int64_t at, int64_t to) { places[at] = static_cast<uint32_t>(to); };
    if (items == 2)
      own_.by_item.group(
          n, item_.rows, ascending,
          [&](int64_t at) { return (at & 1) != 0 ? in.negatives[at >> 1] : in.positives[at >> 1]; }, place);
    else
      own_.by_item.group(
          n, item_.rows, ascending, [&](int64_t at) { return in.item_at(at / items, at % items); }, place);
  }

  Grouped grouped(const Inputs& in) const {
    Grouped out;
    out.user = in.user, out.item = in.item, out.bias = in.bias, out.constants = in.constants, out.dim = in.dim;
    out.users = own_.users.data(), out.positives = own_.positives.data(), out.negatives = own_.negatives.data();
    out.num_positives = in.num_positives, out.num_negatives = in.num_negatives;
    return out;
  }

  // Calls pass(first segment, last) for runs of segments that hold enough positions each.
  template <class F>
  void for_runs(const RowGroups& groups, int64_t positions, const F& pass) {
    groups.cut(std::max<int64_t>(1, positions), &own_.cuts);
    const int64_t runs = static_cast<int64_t>(own_.cuts.size()) - 1;
    own_.sums.assign(static_cast<size_t>(std::max<int64_t>(0, runs)), 0.0);
    for_each_block(runs, alone_ ? runs : 1,
                   [&](int64_t run) { own_.sums[run] = pass(own_.cuts[run], own_.cuts[run + 1]); });
  }

  double pass_users(const Grouped& in, float scale, float decay) {
    const int64_t items = in.items(), k = in.num_negatives;
    if (user_.wanted) own_.user_sums.resize(own_.by_user.segments().size() * static_cast<size_t>(in.dim));
    const RowEnd end{user_.values, in.dim, decay, static_cast<float>(longest_), own_.user_sums.data(), {}, {}, {}, {}};
    const bool left = item_.wanted || bias_.wanted;  // anything to do for the items
    const int64_t block =
        std::max<int64_t>(1, std::min(kTaskScores / items, kSegmentWords / std::max<int64_t>(1, in.dim * (items + 1))));
    for_runs(own_.by_user, kTaskScores / items, [&](int64_t from, int64_t to) {
      const Segment* segments = own_.by_user.segments().data();
      const int64_t last = segments[to - 1].end;
      Buffers buffers;
      buffers.reserve(block, in.num_positives, k);
      int64_t segment = from;
      double total = 0;
      for (int64_t first = segments[from].begin; first < last; first += block) {
        const int64_t n = std::min(block, last - first);
        const uint32_t* unordered = nullptr;
        simd<MfScores<float, float, false, uint32_t>>(&in, unordered, first, n, last - first, loss_.planes(), &buffers);
        const float* unweighted = nullptr;
        total += loss_.evaluate(buffers, n, k, in.constants != nullptr, unweighted, scale, loss_.params);
        gather_coefficients(buffers, n, in.num_positives, k, loss_.planes());
        const float* c = buffers.coefficient.data();
        if (left) leave(first, n, items, c);
        if (user_.wanted) {
          float* none = nullptr;
          simd<SegmentSums<Optimizer::kAdam>>(&end, segments, to, &segment, first, n, items, c,
                                              static_cast<const float* const*>(buffers.rows.data()), none);
        }
      }
      return total;
    });
    double total = 0;
    for (const double sum : own_.sums) total += sum;
    return total;
  }

  // Puts the derivatives c [n, items] of samples [first, first + n) where their items' groups are.
  void leave(int64_t first, int64_t n, int64_t items, const float* c) {
    const uint32_t *order = own_.order.data() + first, *users = own_.users.data() + first;
    const uint32_t* place = own_.place.data();
    Entry* entries = own_.entries.data();
    if (items == 2) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = 2 * static_cast<int64_t>(order[i]);
        entries[place[at]] = {c[2 * i], users[i]};
        entries[place[at + 1]] = {c[2 * i + 1], users[i]};
      }
    } else {
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < items; ++j) entries[place[order[i] * items + j]] = {c[i * items + j], users[i]};
    }
  }

  void pass_items(float decay, int64_t steps_before) {
    switch (way(item_)) {
      case Optimizer::kSgd:
        return pass_items<Optimizer::kSgd>(decay, steps_before);
      case Optimizer::kAdagrad:
        return pass_items<Optimizer::kAdagrad>(decay, steps_before);
      case Optimizer::kAdam:
        return pass_items<Optimizer::kAdam>(decay, steps_before);
      case Optimizer::kLazyAdam:
        return pass_items<Optimizer::kLazyAdam>(decay, steps_before);
    }
  }

  template <Optimizer kKind>
  void pass_items(float decay, int64_t steps_before) {
    const std::vector<Segment>& segments = own_.by_item.segments();
    const int64_t count = static_cast<int64_t>(segments.size());
    const bool sweep = kKind == Optimizer::kAdam;
    const int64_t dim = user_.dim;
    if (sweep && item_.wanted) own_.item_sums.resize(static_cast<size_t>(count * dim));
    if (bias_.wanted) own_.bias_sums.resize(static_cast<size_t>(count));
    const float longest = static_cast<float>(longest_);
    const RowEnd end{item_.values,
                     dim,
                     decay,
                     longest,
                     sweep ? own_.item_sums.data() : nullptr,
                     item_.wanted ? item_.rule(kind_, steps_before) : UpdateRule{},
                     item_.values,
                     item_.first,
                     item_.second};
    const int64_t block = std::max<int64_t>(1, kEntryWords / std::max<int64_t>(1, dim));
    for_runs(own_.by_item, kTaskScores, [&](int64_t from, int64_t to) {
      const int64_t begin = segments[from].begin, last = segments[to - 1].end;
      std::vector<float> factor(static_cast<size_t>(2 * block)), sum(static_cast<size_t>(dim));
      std::vector<const float*> rows(static_cast<size_t>(2 * block));
      // Two halves take turns: the rows of one are on their way while those of the other are summed.
      const auto fetch = [&](int64_t first, int64_t half) {
        simd<EntryRows>(static_cast<const float*>(user_.values), dim,
                        static_cast<const Entry*>(own_.entries.data()) + first, std::min(block, last - first),
                        factor.data() + half, rows.data() + half);
      };
      int64_t segment = from;
      if (item_.wanted) fetch(begin, 0);
      for (int64_t first = begin, half = 0; first < last && item_.wanted; first += block, half = block - half) {
        if (first + block < last) fetch(first + block, block - half);
        simd<SegmentSums<kKind>>(&end, segments.data(), count, &segment, first, std::min(block, last - first),
                                 int64_t{1}, static_cast<const float*>(factor.data()) + half,
                                 static_cast<const float* const*>(rows.data()) + half, sum.data());
      }
      for (int64_t s = from; s < to && bias_.wanted; ++s) {
        float total = 0;
        for (int64_t at = segments[s].begin; at < segments[s].end; ++at) total += own_.entries[at].coefficient;
        if (longest > 0) total = std::max(-longest, std::min(longest, total));
        own_.bias_sums[s] = total;
      }
      return 0.0;
    });
    own_.item_rows.clear();
    if (sweep || bias_.wanted)
      for (const Segment& s : segments) own_.item_rows.push_back(s.row);
    if (sweep && item_.wanted) apply(item_, own_.item_rows, own_.item_sums.data(), steps_before);
    if (bias_.wanted) apply(bias_, own_.item_rows, own_.bias_sums.data(), steps_before);
  }

  void apply(const Table& t, const std::vector<int64_t>& rows, const float* sums, int64_t steps_before) {
    update_rows(way(t), t.rule(kind_, steps_before), rows.data(), static_cast<int64_t>(rows.size()), sums, t.values,
                t.first, t.second, t.rows, t.dim, alone_);
  }

  LossCall loss_;
  Optimizer kind_;
  bool mean_, alone_ = false;
  double l2_, longest_;
  Table &user_, &item_, &bias_;
  Workspace& own_;
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
  static thread_local Workspace workspace;
  DeferredAdam deferred[3];
  Table* tables[3] = {&user, &item, &bias};
  for (int t = 0; t < 3 && kind == Optimizer::kAdam; ++t) {
    const int64_t touched = batch_size * (t == 0 ? 1 : in.items());
    if (defers(*tables[t], touched, steps)) {
      const Table& of = *tables[t];
      deferred[t].begin(of.values, of.first, of.second, of.rows, of.dim, of.lr, of.x, of.y, of.eps, of.step, steps);
      tables[t]->deferred = &deferred[t];
    }
  }
  ExactTrainer trainer(call, kind, mean, l2, longest, user, item, bias, workspace);
  for (int64_t step = 0; step < steps; ++step) {
    Inputs batch = in;
    const int64_t first = step * batch_size;
    batch.users += first, batch.positives += first * in.num_positives, batch.negatives += first * k;
    data<double>(losses)[step] = trainer.step(batch, std::min(batch_size, samples - first), step);
  }
  for (const Table* t : tables)
    if (t->deferred != nullptr) t->deferred->finish();
  if (workspace.bytes() > kKeptBytes) workspace = {};
  return losses;
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) { m.impl("mf_train", TORCH_BOX(&zx::cpu::mf_train)); }
