// Exact steps of training: the semantics of mini-batches, and the same bits for any number of threads.
//
// The samples of a batch are grouped by user, and their positions by item. A first pass over the users' samples
// computes scores, loss and the users' gradients while the rows are in the cache, and leaves each derivative, with its
// user, where the item's group will look for it; a second one over these sums the gradient of each item, and, but for
// dense Adam, updates its row at once: nobody reads it any more. The users' rows, which the second pass needs as they
// were, are updated last. Dense Adam moves every row in every step; where a batch touches few of them, deferred_adam.h
// has the others wait.
//
// One thread goes from batch to batch. The others draw and group the samples of the next ones, which needs no table,
// and help with the passes where batches are large enough for that.
#pragma once

#include "cpu/cosines.h"
#include "cpu/mf_samples.h"
#include "cpu/mf_table.h"
#include "cpu/pipeline.h"
#include "cpu/sort_rows.h"
#include "cpu/update_rows.h"

namespace zx::cpu {

constexpr int64_t kSegmentWords = 8192;  // of gathered rows that are scored at a time: an L1 cache full
constexpr int64_t kEntryWords = 3072;    // of those that are summed, while as many more are on their way
constexpr int64_t kTaskScores = 1024;    // scores that one thread takes at a time
constexpr int64_t kNormRows = 512;       // rows whose lengths one thread takes at a time
// Numbers in the item rows of a batch up to which a thread trains on it alone: rows come slowly from another core's
// cache.
constexpr int64_t kAloneWords = int64_t{1} << 17;
// Scores of a batch up to which others make the next ones ready meanwhile (of larger ones too many numbers would wait);
// how many samples are made ready together, how many such units may wait (two at least) with how many scores in all,
// and the threads that are enough for that.
constexpr int64_t kAheadScores = int64_t{1} << 19, kWaitingScores = int64_t{1} << 17;
constexpr int64_t kUnit = 1024, kUnitsAhead = 4, kPreparers = 2;
// Dense Adam comes to rows as they are needed where a call has so many steps (in the end all rows are visited) and a
// step touches at most one row in so many; else it sweeps.
constexpr int64_t kDeferredSteps = 4, kDeferredShare = 3;
// Numbers in the item rows of a batch (a few hundredths of a second) from which a signal may end a step until all its
// sums are there: so the items' are kept as well, and not taken up by their rows one by one.
constexpr int64_t kLongWords = int64_t{1} << 27;

// What is done with a segment's sum of gradients: decay times the row itself is added, a row longer than `longest`
// (if > 0) is scaled down to it, and it is kept in `out` (its place there is the segment's number) or, where `out` is
// null, the table's row is updated. Before all that, if there is `scale` (of every row), the sum is of derivatives in
// the row's direction.
struct RowEnd {
  const float* table;
  int64_t dim;
  float decay, longest;
  float* out;
  UpdateRule rule;
  float *values, *first, *second;
  const float* scale;
};

// The sums of the segments over entries [from, from + n) of all, `width` (factor, row) pairs each. `segment` is where
// the last call stopped, of `count` in all. scratch: of a row, which keeps a segment's beginning between calls.
template <Optimizer kKind>
struct SegmentSums {
  template <int kBytes>
  ZX_HD static void run(const RowEnd* row_end, const Segment* segments, int64_t count, int64_t* segment, int64_t from,
                        int64_t n, int64_t width, const float* factor, const float* const* rows, float* scratch) {
    with_width(row_end->dim, [&](auto dim) __attribute__((always_inline)) {
      sum<kBytes>(*row_end, dim, segments, count, segment, from, n, width, factor, rows, scratch);
    });
  }

  template <int kBytes, class Dim>
  ZX_HD static void sum(const RowEnd& end, Dim dim, const Segment* segments, int64_t count, int64_t* segment,
                        int64_t from, int64_t n, int64_t width, const float* factor, const float* const* rows,
                        float* scratch) {
    int64_t s = *segment;
    for (int64_t at = from; at < from + n;) {
      const Segment& seg = segments[s];
      const int64_t stop = std::min(seg.end, from + n), skip = (at - from) * width;
      float* to = end.out != nullptr ? end.out + s * dim : scratch;
      weighted_sum<kBytes>(to, factor + skip, rows + skip, (stop - at) * width, dim, at > seg.begin);
      if (stop == seg.end) {
        if (end.out == nullptr && s + kRowsAhead < count) fetch(end, dim, segments[s + kRowsAhead].row * dim);
        if (end.scale != nullptr) through_direction<kBytes>(to, end.table + seg.row * dim, end.scale[seg.row], dim);
        if (end.decay != 0)
          add_scaled(to, end.decay * static_cast<float>(seg.end - seg.begin), end.table + seg.row * dim, dim);
        if (end.longest > 0) clip<kBytes>(to, dim, end.longest);
        if (end.out == nullptr) update(end, dim, to, seg.row * dim);
        ++s;
      }
      at = stop;
    }
    *segment = s;
  }

  // The row that will be updated, and its state.
  template <class Dim>
  ZX_HD static void fetch(const RowEnd& end, Dim dim, int64_t at) {
    prefetch_row<true>(end.values + at, dim);
    if (end.first != nullptr) prefetch_row<true>(end.first + at, dim);
    if (end.second != nullptr) prefetch_row<true>(end.second + at, dim);
  }

  template <int kBytes>
  ZX_HD static void clip(float* row, int64_t dim, float longest) {
    const float norm = sqrtf(dot<float, kBytes>(row, row, dim));
    if (norm > longest)
      for (int64_t i = 0; i < dim; ++i) row[i] *= longest / norm;
  }

  template <class Dim>
  ZX_HD static void update(const RowEnd& end, Dim dim, const float* g, int64_t at) {
    const auto state = [&](float* base) { return base == nullptr ? base : base + at; };
    UpdateRow<kKind>::run(&end.rule, g, end.values + at, state(end.first), state(end.second), dim);
  }
};

// What a position of an item adds to its gradient: a derivative times a user's row.
struct Entry {
  float coefficient;
  uint32_t user;
};

// n entries as (factor, row) pairs, the rows on their way to the cache. scale: of every user, or absent.
struct EntryRows {
  ZX_HD static void run(const float* user, const float* scale, int64_t dim, const Entry* entries, int64_t n,
                        float* factor, const float** rows) {
    with_width(dim, [&](auto width) __attribute__((always_inline)) {
      for (int64_t i = 0; i < n; ++i) {
        factor[i] = entries[i].coefficient;
        rows[i] = user + entries[i].user * width;
        prefetch_row<false>(rows[i], width);
      }
      if (scale != nullptr)
        for (int64_t i = 0; i < n; ++i) factor[i] *= scale[entries[i].user];
    });
  }
};

// scale[row] = inverse_norm of rows segments[from .. to), or of rows [from, to) themselves where there are none.
struct InverseNorms {
  template <int kBytes>
  ZX_HD static void run(const float* table, int64_t dim, const Segment* segments, int64_t from, int64_t to,
                        float* scale) {
    with_width(dim, [&](auto width) __attribute__((always_inline)) {
      for (int64_t s = from; s < to; ++s) {
        if (segments != nullptr && s + kRowsAhead < to)
          prefetch_row<false>(table + segments[s + kRowsAhead].row * width, width);
        const int64_t row = segments != nullptr ? segments[s].row : s;
        scale[row] = inverse_norm<kBytes>(table + row * width, width);
      }
    });
  }
};

// A batch that is ready to be trained on: in the order of its users, and where each position stands in that of its
// items.
struct ExactBatch {
  int64_t samples = 0;
  std::vector<Segment> by_user, by_item;
  std::vector<uint32_t> order, users, positives, negatives;  // grouped by user
  std::vector<uint32_t> place;                               // of each position, among the entries
  std::vector<uint32_t> items;                               // of each position, where a sample has more than two

  size_t bytes() const {
    return sizeof(uint32_t) * (order.capacity() + users.capacity() + positives.capacity() + negatives.capacity() +
                               place.capacity() + items.capacity()) +
           sizeof(Segment) * (by_user.capacity() + by_item.capacity());
  }
};

// Consecutive batches that are made ready together.
struct ExactUnit {
  DrawnIds ids;
  std::vector<ExactBatch> batches;
};

// What a thread needs to group batches.
struct BatchGroups {
  RowGroups by_user, by_item;
};

// What exact steps keep their numbers in, from batch to batch and from call to call: memory that is given back to the
// system costs page faults when it is asked for again.
struct ExactWorkspace {
  std::vector<ExactUnit> units;
  std::vector<BatchGroups> groups;  // of each thread
  std::vector<int64_t> cuts, user_rows, item_rows;
  std::vector<double> sums;
  std::vector<Entry> entries;  // grouped by item
  std::vector<float> user_sums, item_sums, bias_sums;
  std::vector<float> user_scale, item_scale;  // of the rows of a batch, where scores are cosines

  // Of the vectors that grow most.
  size_t bytes() const {
    size_t sum =
        sizeof(float) * (user_sums.capacity() + item_sums.capacity() + user_scale.capacity() + item_scale.capacity()) +
        sizeof(Entry) * entries.capacity();
    for (const ExactUnit& unit : units) {
      sum += unit.ids.bytes();
      for (const ExactBatch& batch : unit.batches) sum += batch.bytes();
    }
    return sum;
  }
};
constexpr size_t kKeptBytes = size_t{64} << 20;

// Whether sweeps over a table cost more than coming to the rows that are needed, `touched` of them a step at most.
inline bool defers(const MfTable& t, int64_t touched, int64_t steps) {
  return t.wanted && steps >= kDeferredSteps && kDeferredShare * touched <= t.rows &&
         DeferredAdam::fits(t.x, t.y, t.eps);
}

class ExactTrainer {
  using Inputs = MfInputs<float, float>;
  using Grouped = MfInputs<float, float, uint32_t>;  // a batch in the order of its users
  using Buffers = MfBlockBuffers<float, float>;

 public:
  // tables: what a batch has to be completed by.
  ExactTrainer(const MfInputs<float, float>& tables, const MfLossCall& loss, Optimizer kind, bool mean, bool cosines,
               double l2, double longest, MfTable& user, MfTable& item, MfTable& bias, ExactWorkspace& own)
      : loss_(loss),
        kind_(kind),
        mean_(mean),
        cosines_(cosines),
        l2_(l2),
        longest_(longest),
        user_(user),
        item_(item),
        bias_(bias),
        own_(own) {
    tables_.user = tables.user, tables_.item = tables.item, tables_.bias = tables.bias;
    tables_.constants = tables.constants, tables_.dim = tables.dim;
    if (cosines_) {
      own_.user_scale.resize(static_cast<size_t>(user_.rows)), own_.item_scale.resize(static_cast<size_t>(item_.rows));
      tables_.user_scale = own_.user_scale.data(), tables_.item_scale = own_.item_scale.data();
    }
    tables_.num_positives = tables.num_positives, tables_.num_negatives = tables.num_negatives;
  }

  // Trains on all samples, batch after batch (of at most as many as there are); losses [steps]: of each batch, summed,
  // or the mean.
  void run(const MfSamples& all, int64_t batch_size, double* losses) {
    const int64_t samples = all.count(), steps = (samples + batch_size - 1) / batch_size;
    if (samples == 0) return;
    if (cosines_ && !items_wanted()) {  // batches are not grouped by items that stay as they are
      const Segment* all_rows = nullptr;
      inverse_norms(item_, all_rows, item_.rows, own_.item_scale);
    }
    const int64_t threads = torch::stable::get_num_threads(), scores = batch_size * all.items();
    alone_ = scores * item_.dim <= kAloneWords;
    long_ = scores * item_.dim >= kLongWords;
    const int64_t unit_steps = std::max<int64_t>(1, std::min(steps, kUnit / batch_size));
    const int64_t units = (steps + unit_steps - 1) / unit_steps;
    const int64_t waiting = std::clamp<int64_t>(kWaitingScores / (unit_steps * scores), 2, kUnitsAhead);
    const int64_t slots = threads > 1 && scores <= kAheadScores ? std::min(units, waiting) : 1;
    const int64_t workers = std::min(threads, 1 + kPreparers + (alone_ ? 0 : scores / kTaskScores));
    if (static_cast<int64_t>(own_.units.size()) < slots) own_.units.resize(static_cast<size_t>(slots));
    if (static_cast<int64_t>(own_.groups.size()) < workers) own_.groups.resize(static_cast<size_t>(workers));
    const auto last_step = [&](int64_t u) { return std::min(steps, (u + 1) * unit_steps); };
    run_pipeline(
        units, slots, workers,
        [&](int64_t worker, int64_t u, int64_t slot) {
          ExactUnit& unit = own_.units[static_cast<size_t>(slot)];
          const int64_t first = u * unit_steps, begin = first * batch_size, count = last_step(u) - first;
          Inputs in = all.read(begin, std::min(samples - begin, count * batch_size), unit.ids, !alone_);
          if (static_cast<int64_t>(unit.batches.size()) < count) unit.batches.resize(static_cast<size_t>(count));
          for (int64_t i = 0; i < count; ++i) {
            prepare(in, std::min(batch_size, samples - (first + i) * batch_size),
                    own_.groups[static_cast<size_t>(worker)], unit.batches[static_cast<size_t>(i)]);
            in.users += batch_size, in.positives += batch_size * in.num_positives;
            in.negatives += batch_size * in.num_negatives;
          }
        },
        [&](int64_t u, int64_t slot) {
          const std::vector<ExactBatch>& batches = own_.units[static_cast<size_t>(slot)].batches;
          const int64_t first = u * unit_steps;
          for (int64_t step = first; step < last_step(u); ++step)
            losses[step] = train(batches[static_cast<size_t>(step - first)], step);
        });
  }

 private:
  void prepare(const Inputs& in, int64_t samples, BatchGroups& groups, ExactBatch& batch) const {
    batch.samples = samples;
    deal_blocks(2, alone_ ? 2 : 1, true, [&](int64_t side) {
      if (side == 0) group_by_user(in, samples, groups.by_user, batch);
      if (side == 1 && items_wanted()) group_by_item(in, samples, groups.by_item, batch);
    });
  }

  // Trains on one batch; returns its loss (summed, or the mean). A signal ends it as long as no table has changed.
  double train(const ExactBatch& batch, int64_t steps_before) {
    catch_up(user_, batch.by_user);
    catch_up(item_, batch.by_item);
    catch_up(bias_, batch.by_item);
    if (cosines_) {
      inverse_norms(user_, batch.by_user.data(), static_cast<int64_t>(batch.by_user.size()), own_.user_scale);
      if (items_wanted())
        inverse_norms(item_, batch.by_item.data(), static_cast<int64_t>(batch.by_item.size()), own_.item_scale);
    }
    const Grouped in = grouped(batch);
    const double values = static_cast<double>(batch.samples * loss_.values_per_sample(in.num_negatives));
    const float decay = static_cast<float>(mean_ ? l2_ / static_cast<double>(batch.samples) : l2_);
    const double total = pass_users(in, batch, static_cast<float>(mean_ && values > 0 ? 1 / values : 1), decay);
    if (items_wanted()) pass_items(batch, decay, steps_before);
    if (user_.wanted) {
      own_.user_rows.clear();
      for (const Segment& s : batch.by_user) own_.user_rows.push_back(s.row);
      apply(user_, own_.user_rows, own_.user_sums.data(), steps_before);
    }
    for (const MfTable* t : {&user_, &item_, &bias_})
      if (t->deferred != nullptr) t->deferred->end_step();
    return mean_ && values > 0 ? total / values : total;
  }

  bool items_wanted() const { return item_.wanted || bias_.wanted; }

  // Deferred Adam updates what a batch touches, as lazy Adam does, with the rule of Adam.
  Optimizer way(const MfTable& t) const { return t.deferred != nullptr ? Optimizer::kLazyAdam : kind_; }

  void catch_up(const MfTable& t, const std::vector<Segment>& groups) const {
    const Segment* segments = groups.data();
    if (t.deferred != nullptr)
      t.deferred->catch_up(static_cast<int64_t>(groups.size()), alone_, [&](int64_t i) { return segments[i].row; });
  }

  void inverse_norms(const MfTable& t, const Segment* segments, int64_t count, std::vector<float>& scale) const {
    const int64_t blocks = (count + kNormRows - 1) / kNormRows;
    deal_blocks(blocks, alone_ ? blocks : 1, true, [&](int64_t block) {
      simd<InverseNorms>(static_cast<const float*>(t.values), t.dim, segments, block * kNormRows,
                         std::min(count, (block + 1) * kNormRows), scale.data());
    });
  }

  void group_by_user(const Inputs& in, int64_t samples, RowGroups& groups, ExactBatch& batch) const {
    const int64_t positives = in.num_positives, k = in.num_negatives;
    batch.order.resize(static_cast<size_t>(samples)), batch.users.resize(static_cast<size_t>(samples));
    batch.positives.resize(static_cast<size_t>(samples * positives));
    batch.negatives.resize(static_cast<size_t>(samples * k));
    const bool ascending = way(user_) == Optimizer::kAdam;
    const auto row = [&](int64_t b) { return in.users[b]; };
    uint32_t *order = batch.order.data(), *users = batch.users.data();
    uint32_t *to_positives = batch.positives.data(), *to_negatives = batch.negatives.data();
    const auto sample = [&](int64_t b, int64_t to) {
      order[to] = static_cast<uint32_t>(b);
      users[to] = static_cast<uint32_t>(in.users[b]);
    };
    if (positives == 1 && k == 1)
      groups.group(samples, user_.rows, ascending, row, [&](int64_t b, int64_t to) {
        sample(b, to);
        to_positives[to] = static_cast<uint32_t>(in.positives[b]);
        to_negatives[to] = static_cast<uint32_t>(in.negatives[b]);
      });
    else
      groups.group(samples, user_.rows, ascending, row, [&](int64_t b, int64_t to) {
        sample(b, to);
        for (int64_t j = 0; j < positives; ++j)
          to_positives[to * positives + j] = static_cast<uint32_t>(in.positives[b * positives + j]);
        for (int64_t j = 0; j < k; ++j) to_negatives[to * k + j] = static_cast<uint32_t>(in.negatives[b * k + j]);
      });
    groups.exchange(batch.by_user);
  }

  void group_by_item(const Inputs& in, int64_t samples, RowGroups& groups, ExactBatch& batch) const {
    const int64_t items = in.items(), n = samples * items;
    const bool ascending = way(item_) == Optimizer::kAdam || way(bias_) == Optimizer::kAdam;
    batch.place.resize(static_cast<size_t>(n));
    uint32_t* places = batch.place.data();
    const auto place = [&](int64_t at, int64_t to) { places[at] = static_cast<uint32_t>(to); };
    if (items == 2)
      groups.group(
          n, item_.rows, ascending,
          [&](int64_t at) { return (at & 1) != 0 ? in.negatives[at >> 1] : in.positives[at >> 1]; }, place);
    else {
      // Written down first: finding a position's sample would take two divisions, each time.
      batch.items.resize(static_cast<size_t>(n));
      uint32_t* to = batch.items.data();
      for (int64_t b = 0; b < samples; ++b)
        for (int64_t j = 0; j < items; ++j) *to++ = static_cast<uint32_t>(in.item_at(b, j));
      const uint32_t* rows = batch.items.data();
      groups.group(n, item_.rows, ascending, [&](int64_t at) { return static_cast<int64_t>(rows[at]); }, place);
    }
    groups.exchange(batch.by_item);
  }

  Grouped grouped(const ExactBatch& batch) const {
    Grouped out = tables_;
    out.users = batch.users.data(), out.positives = batch.positives.data(), out.negatives = batch.negatives.data();
    return out;
  }

  // Calls pass(first segment, last) for runs of segments that hold enough positions each.
  template <class F>
  void for_runs(const std::vector<Segment>& groups, int64_t positions, bool stoppable, const F& pass) {
    cut_segments(groups, std::max<int64_t>(1, positions), &own_.cuts);
    const int64_t runs = static_cast<int64_t>(own_.cuts.size()) - 1;
    own_.sums.assign(static_cast<size_t>(std::max<int64_t>(0, runs)), 0.0);
    deal_blocks(runs, alone_ ? runs : 1, stoppable,
                [&](int64_t run) { own_.sums[run] = pass(own_.cuts[run], own_.cuts[run + 1]); });
  }

  double pass_users(const Grouped& in, const ExactBatch& batch, float scale, float decay) {
    const int64_t items = in.items(), k = in.num_negatives;
    if (user_.wanted) own_.user_sums.resize(batch.by_user.size() * static_cast<size_t>(in.dim));
    const RowEnd end{
        user_.values,      in.dim, decay, static_cast<float>(longest_), own_.user_sums.data(), {}, {}, {}, {},
        tables_.user_scale};
    const bool left = items_wanted();
    if (left) own_.entries.resize(batch.place.size());
    const int64_t block =
        std::max<int64_t>(1, std::min(kTaskScores / items, kSegmentWords / std::max<int64_t>(1, in.dim * (items + 1))));
    for_runs(batch.by_user, kTaskScores / items, true, [&](int64_t from, int64_t to) {
      const Segment* segments = batch.by_user.data();
      const int64_t last = segments[to - 1].end;
      static thread_local Buffers buffers;  // (allocations would be a few hundredths of a small batch's time)
      buffers.reserve(block, in.num_positives, k);
      int64_t segment = from;
      double total = 0;
      for (int64_t first = segments[from].begin; first < last; first += block) {
        const int64_t n = std::min(block, last - first);
        const uint32_t* unordered = nullptr;
        // (It fetches the next run's first rows as well: often this thread goes on with them.)
        simd<MfScores<float, float, false, uint32_t>>(&in, unordered, first, n, batch.samples - first, loss_.planes(),
                                                      &buffers);
        const float* weight = loss_.weights_of(in.users + first, in.positives + first * in.num_positives,
                                               in.num_positives, n, k, buffers.weight, batch.order.data() + first);
        total += loss_.evaluate(buffers, n, k, in.constants != nullptr, weight, scale, loss_.params);
        gather_coefficients(buffers, n, in.num_positives, k, loss_.planes());
        const float* c = buffers.coefficient.data();
        if (left) leave(batch, first, n, items, c);
        if (user_.wanted) {
          float* none = nullptr;
          if (cosines_) {
            static thread_local std::vector<float> scaled;
            scaled.resize(static_cast<size_t>(n * items));
            for (int64_t i = 0; i < n; ++i)
              for (int64_t j = 0; j < items; ++j)
                scaled[i * items + j] = c[i * items + j] * own_.item_scale[in.item_at(first + i, j)];
            c = scaled.data();
          }
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
  void leave(const ExactBatch& batch, int64_t first, int64_t n, int64_t items, const float* c) {
    const uint32_t *order = batch.order.data() + first, *users = batch.users.data() + first;
    const uint32_t* place = batch.place.data();
    Entry* entries = own_.entries.data();
    if (items == 2) {
      for (int64_t i = 0; i < n; ++i) {
        const int64_t at = 2 * static_cast<int64_t>(order[i]);
        entries[place[at]] = {c[2 * i], users[i]};
        entries[place[at + 1]] = {c[2 * i + 1], users[i]};
      }
    } else {
      for (int64_t i = 0; i < n; ++i) {
        const uint32_t *to = place + static_cast<int64_t>(order[i]) * items, user = users[i];
        const float* from = c + i * items;
        if (i + 1 < n) {  // a line each: they are all over the batch's entries
          const uint32_t* next = place + static_cast<int64_t>(order[i + 1]) * items;
          for (int64_t j = 0; j < items; ++j) __builtin_prefetch(entries + next[j], 1);
        }
        for (int64_t j = 0; j < items; ++j) entries[to[j]] = {from[j], user};
      }
    }
  }

  void pass_items(const ExactBatch& batch, float decay, int64_t steps_before) {
    switch (way(item_)) {
      case Optimizer::kSgd:
        return pass_items<Optimizer::kSgd>(batch, decay, steps_before);
      case Optimizer::kAdagrad:
        return pass_items<Optimizer::kAdagrad>(batch, decay, steps_before);
      case Optimizer::kAdam:
        return pass_items<Optimizer::kAdam>(batch, decay, steps_before);
      case Optimizer::kLazyAdam:
        return pass_items<Optimizer::kLazyAdam>(batch, decay, steps_before);
    }
  }

  template <Optimizer kKind>
  void pass_items(const ExactBatch& batch, float decay, int64_t steps_before) {
    const std::vector<Segment>& segments = batch.by_item;
    const int64_t count = static_cast<int64_t>(segments.size());
    const bool kept = kKind == Optimizer::kAdam || long_;
    const int64_t dim = user_.dim;
    if (kept && item_.wanted) own_.item_sums.resize(static_cast<size_t>(count * dim));
    if (bias_.wanted) own_.bias_sums.resize(static_cast<size_t>(count));
    const float longest = static_cast<float>(longest_);
    const RowEnd end{item_.values,
                     dim,
                     decay,
                     longest,
                     kept ? own_.item_sums.data() : nullptr,
                     item_.wanted ? item_.rule(kind_, steps_before) : UpdateRule{},
                     item_.values,
                     item_.first,
                     item_.second,
                     tables_.item_scale};
    const int64_t block = std::max<int64_t>(1, kEntryWords / std::max<int64_t>(1, dim));
    for_runs(batch.by_item, kTaskScores, kept, [&](int64_t from, int64_t to) {
      const int64_t begin = segments[from].begin, last = segments[to - 1].end;
      static thread_local std::vector<float> factor, sum;
      static thread_local std::vector<const float*> rows;
      factor.resize(static_cast<size_t>(2 * block)), sum.resize(static_cast<size_t>(dim));
      rows.resize(static_cast<size_t>(2 * block));
      // Two halves take turns: the rows of one are on their way while those of the other are summed.
      const auto fetch = [&](int64_t first, int64_t half) {
        simd<EntryRows>(static_cast<const float*>(user_.values), tables_.user_scale, dim,
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
    if (kept || bias_.wanted)
      for (const Segment& s : segments) own_.item_rows.push_back(s.row);
    if (kept && item_.wanted) apply(item_, own_.item_rows, own_.item_sums.data(), steps_before);
    if (bias_.wanted) apply(bias_, own_.item_rows, own_.bias_sums.data(), steps_before);
  }

  void apply(const MfTable& t, const std::vector<int64_t>& rows, const float* sums, int64_t steps_before) {
    update_rows(way(t), t.rule(kind_, steps_before), rows.data(), static_cast<int64_t>(rows.size()), sums, t.values,
                t.first, t.second, t.rows, t.dim, alone_);
  }

  Grouped tables_;
  MfLossCall loss_;
  Optimizer kind_;
  bool mean_, cosines_, alone_ = false, long_ = false;
  double l2_, longest_;
  MfTable &user_, &item_, &bias_;
  ExactWorkspace& own_;
};

}  // namespace zx::cpu
