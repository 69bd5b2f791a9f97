// Training where negatives are shared by blocks of samples (cpu/shared_samples.h): the work of a block is three
// products of small matrices, of which one has the users of its samples, one the items of its list, and one the
// derivatives.
//
// A block leaves two kinds of rows: the derivatives in each sample's user, and in each item of its list. Exact steps
// sum them row by row, as mf_exact.h does, where an item of a list is one entry instead of one for each sample; Hogwild
// writes them at once. The derivatives are those in a row's direction if scores are cosines.
#pragma once

#include "cpu/mf_exact.h"
#include "cpu/shared_samples.h"
#include "cpu/tiles.h"

namespace zx::cpu {

// Numbers of one block. Rows have a stride of `width`, the padded dim; those of `scores` one of `columns`, the padded
// K.
struct SharedBuffers {
  MfBlockBuffers<float, float> loss;  // scores, loss and derivatives, [n, K]
  std::vector<float> users, items, turned, scores, packed, own_scores;
  std::vector<float> user_scale, positive_scale, item_scale;
  std::vector<const float*> positives;
  int64_t width = 0, columns = 0;
};

struct SharedTables {
  const float *user, *item, *bias, *constants;  // bias and constants: or nullptr
  int64_t dim;
  bool cosines;
};

// What a block consists of.
struct SharedInputs {
  int64_t n, k;
  const int64_t *users, *positives, *items;  // [n], [n], [k]
  const SharedBlock* block;
};

// Gathers a block's rows and computes its scores.
struct SharedScores {
  template <int kBytes>
  ZX_HD static void run(const SharedTables* tables, const SharedInputs* inputs, SharedBuffers* buffers) {
    const SharedTables& t = *tables;
    const SharedInputs& in = *inputs;
    SharedBuffers& out = *buffers;
    const int64_t n = in.n, k = in.k, dim = t.dim;
    const int64_t width = padded(dim, kTileColumns<kBytes>), columns = padded(k, kTileColumns<kBytes>);
    // (Rows a page apart would compete for the same lines of the cache.)
    const int64_t turned_row = columns + kCacheLine / static_cast<int64_t>(sizeof(float));
    out.width = width, out.columns = columns;
    reserve(out, n, k, dim, turned_row);
    with_width(dim, [&](auto known) __attribute__((always_inline)) { gather<kBytes>(t, in, known, out); });
    transpose<kBytes>(out.items.data(), width, k, dim, out.turned.data(), turned_row);
    float* neg = out.loss.neg.data();
    product<kBytes>(out.users.data(), width, 1, out.turned.data(), turned_row, n, columns, dim,
                    columns == k ? neg : out.scores.data(), columns, out.packed.data());
    for (int64_t i = 0; i < n && columns != k; ++i) {
      const float* from = out.scores.data() + i * columns;
      for (int64_t j = 0; j < k; ++j) neg[i * k + j] = from[j];
    }
    add_item_numbers(t, in, out);
    for (const Replaced& r : in.block->replaced) {
      neg[r.slot] = neg[r.by];
      if (t.constants != nullptr) out.loss.aux_neg[r.slot] = out.loss.aux_neg[r.by];
    }
    score_own<kBytes>(t, in, out);
  }

  ZX_HD static void reserve(SharedBuffers& out, int64_t n, int64_t k, int64_t dim, int64_t turned_row) {
    const auto grow = [](auto& v, int64_t size) __attribute__((always_inline)) {
      if (static_cast<int64_t>(v.size()) < size) v.resize(static_cast<size_t>(size));
    };
    out.loss.reserve(n, 1, k);
    grow(out.users, n * out.width), grow(out.items, out.columns * out.width);
    grow(out.turned, dim * turned_row), grow(out.scores, n * out.columns);
    grow(out.packed, kPackedColumn * std::max({n, k, dim}));
    grow(out.user_scale, n), grow(out.positive_scale, n), grow(out.item_scale, k), grow(out.positives, n);
  }

  // Rows of users and of the list, side by side, and the positives' scores. Dim: see with_width.
  template <int kBytes, class Dim>
  ZX_HD static void gather(const SharedTables& t, const SharedInputs& in, Dim dim, SharedBuffers& out) {
    const int64_t n = in.n, k = in.k, width = out.width;
    for (int64_t i = 0; i < n; ++i) prefetch_row<false>(t.user + in.users[i] * dim, dim);
    for (int64_t j = 0; j < k; ++j) prefetch_row<false>(t.item + in.items[j] * dim, dim);
    for (int64_t i = 0; i < n; ++i) {
      prefetch_row<false>(t.item + in.positives[i] * dim, dim);
      out.user_scale[i] = copy<kBytes>(t.user + in.users[i] * dim, t.cosines, dim, width, out.users.data() + i * width);
    }
    for (int64_t j = 0; j < k; ++j)
      out.item_scale[j] = copy<kBytes>(t.item + in.items[j] * dim, t.cosines, dim, width, out.items.data() + j * width);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t item = in.positives[i];
      const float* row = t.item + item * dim;
      out.positives[i] = row;
      out.positive_scale[i] = t.cosines ? inverse_norm<kBytes>(row, dim) : 1.0f;
      const float product = dot<float, kBytes>(out.users.data() + i * width, row, dim);
      out.loss.pos[i] = product * out.positive_scale[i] + (t.bias != nullptr ? t.bias[item] : 0.0f);
      if (t.constants != nullptr) out.loss.aux_pos[i] = t.constants[item];
    }
  }

  // Copies a row, with zeros up to `width`, scaled to length 1 if scores are cosines; returns the scale.
  template <int kBytes, class Dim>
  ZX_HD static float copy(const float* __restrict__ row, bool cosines, Dim dim, int64_t width,
                          float* __restrict__ out) {
    const float scale = cosines ? inverse_norm<kBytes>(row, dim) : 1.0f;
    if (cosines)
      for (int64_t c = 0; c < dim; ++c) out[c] = scale * row[c];
    else
      copy_row<kBytes>(out, row, dim);
    for (int64_t c = dim; c < width; ++c) out[c] = 0.0f;
    return scale;
  }

  // The bias and the constant of each item of the list.
  ZX_HD static void add_item_numbers(const SharedTables& t, const SharedInputs& in, SharedBuffers& out) {
    const int64_t n = in.n, k = in.k;
    float *neg = out.loss.neg.data(), *aux = out.loss.aux_neg.data();
    if (t.bias != nullptr)
      for (int64_t j = 0; j < k; ++j) {
        const float bias = t.bias[in.items[j]];
        for (int64_t i = 0; i < n; ++i) neg[i * k + j] += bias;
      }
    if (t.constants != nullptr)
      for (int64_t j = 0; j < k; ++j)
        for (int64_t i = 0; i < n; ++i) aux[i * k + j] = t.constants[in.items[j]];
  }

  // Scores of the samples that share nothing.
  template <int kBytes>
  ZX_HD static void score_own(const SharedTables& t, const SharedInputs& in, SharedBuffers& out) {
    const int64_t k = in.k, dim = t.dim;
    for (size_t a = 0; a < in.block->alone.size(); ++a) {
      const int64_t i = in.block->alone[a];
      for (int64_t j = 0; j < k; ++j) {
        const int64_t item = in.block->own[a * k + j];
        const float* row = t.item + item * dim;
        const float product = dot<float, kBytes>(out.users.data() + i * out.width, row, dim);
        out.loss.neg[i * k + j] =
            product * (t.cosines ? inverse_norm<kBytes>(row, dim) : 1.0f) + (t.bias != nullptr ? t.bias[item] : 0.0f);
        if (t.constants != nullptr) out.loss.aux_neg[i * k + j] = t.constants[item];
      }
    }
  }
};

// From a block's derivatives in its scores those in its users [n, width] and in its list's items [k, width], and (if
// asked for) in these items' bias [k]. Leaves nothing in the derivatives of slots that the block's list has no part in;
// own: those of the samples that share nothing, [alone, k].
struct SharedGradients {
  template <int kBytes>
  ZX_HD static void run(const SharedTables* tables, const SharedInputs* inputs, SharedBuffers* buffers, float* users,
                        float* items, float* bias, float* own) {
    const SharedTables& t = *tables;
    const SharedInputs& in = *inputs;
    SharedBuffers& b = *buffers;
    const int64_t n = in.n, k = in.k, dim = t.dim, width = b.width;
    float* d = b.loss.d_neg.data();
    for (const Replaced& r : in.block->replaced) {
      d[r.by] += d[r.slot];
      d[r.slot] = 0;
    }
    for (size_t a = 0; a < in.block->alone.size(); ++a) {
      float* row = d + in.block->alone[a] * k;
      for (int64_t j = 0; j < k; ++j) own[a * k + j] = row[j], row[j] = 0;
    }
    product<kBytes>(d, k, 1, b.items.data(), width, n, width, k, users, width, b.packed.data());
    for (int64_t i = 0; i < n; ++i)
      add_scaled(users + i * width, b.loss.d_pos[i] * b.positive_scale[i], b.positives[i], dim);
    for (size_t a = 0; a < in.block->alone.size(); ++a)
      for (int64_t j = 0; j < k; ++j) {
        const float* row = t.item + in.block->own[a * k + j] * dim;
        const float scale = t.cosines ? inverse_norm<kBytes>(row, dim) : 1.0f;
        add_scaled(users + in.block->alone[a] * width, own[a * k + j] * scale, row, dim);
      }
    if (items != nullptr) product<kBytes>(d, 1, k, b.users.data(), width, k, width, n, items, width, b.packed.data());
    if (bias != nullptr) {
      for (int64_t j = 0; j < k; ++j) bias[j] = 0;
      for (int64_t i = 0; i < n; ++i)
        for (int64_t j = 0; j < k; ++j) bias[j] += d[i * k + j];
    }
  }
};

// What a position adds to its row's gradient: a factor times a row, which is that of a user, or (from num_users on) one
// that a block has left; to the bias; and how many gathered rows it stands for.
struct SharedEntry {
  float factor;
  uint32_t row;
  float bias, count;
};

// Where the rows of entries are.
struct SharedRows {
  const float* user;
  int64_t num_users;
  const float* left;
  int64_t width;  // of the rows in `left`

  ZX_HD const float* row(uint32_t r, int64_t dim) const {
    return r < num_users ? user + r * dim : left + (static_cast<int64_t>(r) - num_users) * width;
  }
};

// The sums of segments [from, to), and what is then done with them (RowEnd; `scale` only says whether scores are
// cosines). scratch: of a row.
template <Optimizer kKind>
struct SharedSums {
  static constexpr int64_t kEntries = 64, kAhead = 16;

  template <int kBytes>
  ZX_HD static void run(const RowEnd* row_end, const SharedRows* all, const SharedEntry* entries,
                        const Segment* segments, int64_t from, int64_t to, float* scratch) {
    with_width(row_end->dim, [&](auto dim) __attribute__((always_inline)) {
      sum<kBytes>(*row_end, *all, dim, entries, segments, from, to, scratch);
    });
  }

  template <int kBytes, class Dim>
  ZX_HD static void sum(const RowEnd& end, const SharedRows& rows, Dim dim, const SharedEntry* entries,
                        const Segment* segments, int64_t from, int64_t to, float* scratch) {
    const int64_t last = segments[to - 1].end;
    float factor[kEntries];
    const float* row[kEntries];
    for (int64_t s = from; s < to; ++s) {
      const Segment& seg = segments[s];
      float* total = end.out != nullptr ? end.out + s * dim : scratch;
      if (end.out == nullptr && s + kRowsAhead < to)
        SegmentSums<kKind>::fetch(end, dim, segments[s + kRowsAhead].row * dim);
      float count = 0;
      for (int64_t at = seg.begin; at < seg.end; at += kEntries) {
        const int64_t n = std::min(kEntries, seg.end - at);
        for (int64_t e = 0; e < n; ++e) {
          if (at + e + kAhead < last) prefetch_row<false>(rows.row(entries[at + e + kAhead].row, dim), dim);
          factor[e] = entries[at + e].factor, row[e] = rows.row(entries[at + e].row, dim);
          count += entries[at + e].count;
        }
        weighted_sum<kBytes>(total, static_cast<const float*>(factor), static_cast<const float* const*>(row), n, dim,
                             at > seg.begin);
      }
      const float* own = end.table + seg.row * dim;
      if (end.scale != nullptr) through_direction<kBytes>(total, own, inverse_norm<kBytes>(own, dim), dim);
      if (end.decay != 0) add_scaled(total, end.decay * count, own, dim);
      if (end.longest > 0) SegmentSums<kKind>::template clip<kBytes>(total, dim, end.longest);
      if (end.out == nullptr) SegmentSums<kKind>::update(end, dim, total, seg.row * dim);
    }
  }
};

// A batch that is ready to be trained on, and where each position stands among those of its row. Positions of items:
// the samples' positives, the items of lists that any sample uses (`used`: their places in ids.items), and the
// negatives of samples that share nothing.
struct SharedBatch {
  int64_t samples = 0, alone = 0;
  SharedIds ids;
  std::vector<Segment> by_user, by_item;
  std::vector<uint32_t> user_place, item_place, items, used;
};

struct SharedWorkspace {
  std::vector<SharedBatch> batches;
  std::vector<BatchGroups> groups;
  std::vector<int64_t> cuts, rows;
  std::vector<double> sums;
  std::vector<SharedEntry> user_entries, item_entries;
  std::vector<float> left, list_bias, positive_factor, positive_bias, own;
  std::vector<int64_t> own_begin;  // of each block, among the samples that share nothing
  std::vector<float> user_sums, item_sums, bias_sums;

  size_t bytes() const {
    size_t sum = sizeof(float) * (left.capacity() + user_sums.capacity() + item_sums.capacity()) +
                 sizeof(SharedEntry) * (user_entries.capacity() + item_entries.capacity());
    for (const SharedBatch& batch : batches)
      sum +=
          sizeof(int64_t) * (batch.ids.users.capacity() + batch.ids.positives.capacity() + batch.ids.items.capacity()) +
          sizeof(Segment) * (batch.by_user.capacity() + batch.by_item.capacity());
    return sum;
  }
};

// Exact steps, as ExactTrainer does them.
class SharedTrainer {
 public:
  SharedTrainer(const SharedTables& tables, const MfLossCall& loss, Optimizer kind, bool mean, double l2,
                double longest, MfTable& user, MfTable& item, MfTable& bias, SharedWorkspace& own)
      : tables_(tables),
        loss_(loss),
        kind_(kind),
        mean_(mean),
        l2_(l2),
        longest_(longest),
        user_(user),
        item_(item),
        bias_(bias),
        own_(own) {}

  void run(const SharedSamples& all, int64_t batch_size, double* losses) {
    const int64_t samples = all.count(), steps = (samples + batch_size - 1) / batch_size;
    if (samples == 0) return;
    k_ = all.num_negatives();
    long_ = batch_size * (1 + k_ / all.size()) * tables_.dim >= kLongWords;
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t slots = threads > 1 && batch_size <= kAheadSamples ? std::min<int64_t>(steps, kUnitsAhead) : 1;
    const int64_t workers = std::min(threads, std::max<int64_t>(2, batch_size / all.size() + 1));
    if (static_cast<int64_t>(own_.batches.size()) < slots) own_.batches.resize(static_cast<size_t>(slots));
    if (static_cast<int64_t>(own_.groups.size()) < workers) own_.groups.resize(static_cast<size_t>(workers));
    run_pipeline(
        steps, slots, workers,
        [&](int64_t worker, int64_t step, int64_t slot) {
          prepare(all, step * batch_size, std::min(batch_size, samples - step * batch_size),
                  own_.groups[static_cast<size_t>(worker)], own_.batches[static_cast<size_t>(slot)]);
        },
        [&](int64_t step, int64_t slot) { losses[step] = train(own_.batches[static_cast<size_t>(slot)], step); });
  }

 private:
  static constexpr int64_t kAheadSamples = 16384;  // of a batch up to which others make the next ones ready
  static constexpr int64_t kTaskEntries = 1024;    // that one thread sums at a time

  bool items_wanted() const { return item_.wanted || bias_.wanted; }
  // Whether sums are kept until all of a step's are known: dense Adam visits all rows, and a long step may be stopped.
  bool kept(const MfTable& t) const { return way(t) == Optimizer::kAdam || long_; }
  Optimizer way(const MfTable& t) const { return t.deferred != nullptr ? Optimizer::kLazyAdam : kind_; }

  void prepare(const SharedSamples& all, int64_t begin, int64_t n, BatchGroups& groups, SharedBatch& batch) const {
    batch.samples = n;
    all.read(begin, n, batch.ids);
    const SharedIds& ids = batch.ids;
    batch.used.resize(static_cast<size_t>(ids.num_blocks * k_));
    batch.alone = 0;
    int64_t used = 0;
    for (int64_t b = 0; b < ids.num_blocks; ++b) {
      const SharedBlock& block = ids.blocks[static_cast<size_t>(b)];
      for (int64_t j = 0; j < k_; ++j) {  // (most are used, so that this is no branch to be guessed)
        batch.used[used] = static_cast<uint32_t>(b * k_ + j);
        used += block.uses[j] > 0;
      }
      batch.alone += static_cast<int64_t>(block.alone.size());
    }
    batch.used.resize(static_cast<size_t>(used));
    ZX_CHECK(user_.rows + n + ids.num_blocks * k_ < int64_t{1} << 32,
             "tables and batches must have fewer than 2^32 rows");
    batch.user_place.resize(static_cast<size_t>(n));
    uint32_t* user_place = batch.user_place.data();
    groups.by_user.group(
        n, user_.rows, way(user_) == Optimizer::kAdam, [&](int64_t i) { return ids.users[i]; },
        [&](int64_t i, int64_t to) { user_place[i] = static_cast<uint32_t>(to); });
    groups.by_user.exchange(batch.by_user);
    if (!items_wanted()) return;
    const int64_t positions = n + used + batch.alone * k_;
    batch.items.resize(static_cast<size_t>(positions));
    uint32_t* to = batch.items.data();
    for (int64_t i = 0; i < n; ++i) *to++ = static_cast<uint32_t>(ids.positives[i]);
    for (int64_t e = 0; e < used; ++e) *to++ = static_cast<uint32_t>(ids.items[batch.used[e]]);
    for (int64_t b = 0; b < ids.num_blocks && batch.alone > 0; ++b)
      for (const int64_t item : ids.blocks[static_cast<size_t>(b)].own) *to++ = static_cast<uint32_t>(item);
    batch.item_place.resize(static_cast<size_t>(positions));
    uint32_t* item_place = batch.item_place.data();
    const uint32_t* items = batch.items.data();
    const bool ascending = way(item_) == Optimizer::kAdam || way(bias_) == Optimizer::kAdam;
    groups.by_item.group(
        positions, item_.rows, ascending, [&](int64_t at) { return static_cast<int64_t>(items[at]); },
        [&](int64_t at, int64_t to) { item_place[at] = static_cast<uint32_t>(to); });
    groups.by_item.exchange(batch.by_item);
  }

  void catch_up(const MfTable& t, const std::vector<Segment>& groups) const {
    const Segment* segments = groups.data();
    if (t.deferred != nullptr)
      t.deferred->catch_up(static_cast<int64_t>(groups.size()), false, [&](int64_t i) { return segments[i].row; });
  }

  // Trains on one batch; returns its loss (summed, or the mean). A signal ends it as long as no table has changed.
  double train(const SharedBatch& batch, int64_t steps_before) {
    catch_up(user_, batch.by_user);
    if (items_wanted()) catch_up(item_, batch.by_item), catch_up(bias_, batch.by_item);
    const double values = static_cast<double>(batch.samples * loss_.values_per_sample(k_));
    const double total = pass_blocks(batch, static_cast<float>(mean_ ? 1 / values : 1));
    const float decay = static_cast<float>(mean_ ? l2_ / static_cast<double>(batch.samples) : l2_);
    // Users' rows are updated after those of items, which need them as the step found them, and at once where nothing
    // else asks for their sums.
    if (user_.wanted && kept(user_)) sum_users(batch, decay, steps_before);
    if (items_wanted()) sum_items(batch, decay, steps_before);
    if (user_.wanted && !kept(user_)) sum_users(batch, decay, steps_before);
    if (user_.wanted && kept(user_)) apply(user_, batch.by_user, own_.user_sums.data(), steps_before);
    for (const MfTable* t : {&user_, &item_, &bias_})
      if (t->deferred != nullptr) t->deferred->end_step();
    return mean_ ? total / values : total;
  }

  double pass_blocks(const SharedBatch& batch, float scale) {
    const SharedIds& ids = batch.ids;
    const int64_t n = batch.samples, blocks = ids.num_blocks;
    width_ = padded(tables_.dim, widest_tile());
    own_.left.resize(static_cast<size_t>((n + blocks * k_) * width_));
    own_.list_bias.resize(static_cast<size_t>(bias_.wanted ? blocks * k_ : 0));
    own_.positive_factor.resize(static_cast<size_t>(n)), own_.positive_bias.resize(static_cast<size_t>(n));
    own_.own.resize(static_cast<size_t>(batch.alone * k_));
    own_.own_begin.assign(1, 0);
    for (int64_t b = 0; b < blocks; ++b)
      own_.own_begin.push_back(own_.own_begin.back() +
                               static_cast<int64_t>(ids.blocks[static_cast<size_t>(b)].alone.size()));
    own_.sums.assign(static_cast<size_t>(blocks), 0.0);
    deal_blocks(blocks, 1, true, [&](int64_t b) {
      const SharedBlock& block = ids.blocks[static_cast<size_t>(b)];
      const SharedInputs in{block.count,
                            k_,
                            ids.users.data() + block.first,
                            ids.positives.data() + block.first,
                            ids.items.data() + b * k_,
                            &block};
      static thread_local SharedBuffers buffers;
      own_.sums[b] = shared_scores_and_loss(tables_, loss_, in, scale, buffers);
      float* none = nullptr;
      simd<SharedGradients>(&tables_, &in, &buffers, own_.left.data() + block.first * width_,
                            items_wanted() ? own_.left.data() + (n + b * k_) * width_ : none,
                            bias_.wanted ? own_.list_bias.data() + b * k_ : none,
                            own_.own.data() + own_.own_begin[b] * k_);
      for (int64_t i = 0; i < block.count; ++i) {
        own_.positive_factor[block.first + i] = buffers.loss.d_pos[i] * buffers.user_scale[i];
        own_.positive_bias[block.first + i] = buffers.loss.d_pos[i];
      }
    });
    double total = 0;
    for (const double sum : own_.sums) total += sum;
    return total;
  }

 public:
  // The tile's columns of the instruction set in use.
  static int64_t widest_tile() {
    return isa() == Isa::kAvx512 ? kTileColumns<64> : isa() == Isa::kAvx2 ? kTileColumns<32> : kTileColumns<16>;
  }

  // Scores of a block, and its loss and derivatives; returns the summed loss.
  static double shared_scores_and_loss(const SharedTables& tables, const MfLossCall& loss, const SharedInputs& in,
                                       float scale, SharedBuffers& buffers) {
    simd<SharedScores>(&tables, &in, &buffers);
    const float* weight = loss.weights_of(in.users, in.positives, int64_t{1}, in.n, in.k, buffers.loss.weight);
    return loss.evaluate(buffers.loss, in.n, in.k, tables.constants != nullptr, weight, scale, loss.params);
  }

 private:
  SharedRows rows_left() const { return {user_.values, user_.rows, own_.left.data(), width_}; }

  // Calls sums(first segment, last) for runs of segments that hold enough positions each.
  template <class F>
  void for_runs(const std::vector<Segment>& groups, bool stoppable, const F& sums) {
    cut_segments(groups, kTaskEntries, &own_.cuts);
    const int64_t runs = static_cast<int64_t>(own_.cuts.size()) - 1;
    deal_blocks(runs, 1, stoppable, [&](int64_t run) { sums(own_.cuts[run], own_.cuts[run + 1]); });
  }

  void sum_users(const SharedBatch& batch, float decay, int64_t steps_before) {
    own_.user_entries.resize(static_cast<size_t>(batch.samples));
    for (int64_t i = 0; i < batch.samples; ++i)
      own_.user_entries[batch.user_place[i]] = {1.0f, static_cast<uint32_t>(user_.rows + i), 0.0f, 1.0f};
    sum_rows(user_, batch.by_user, own_.user_entries.data(), own_.user_sums, decay, steps_before);
  }

  void sum_items(const SharedBatch& batch, float decay, int64_t steps_before) {
    const SharedIds& ids = batch.ids;
    const int64_t n = batch.samples, used = static_cast<int64_t>(batch.used.size());
    own_.item_entries.resize(batch.items.size());
    const uint32_t* place = batch.item_place.data();
    SharedEntry* entries = own_.item_entries.data();
    for (int64_t i = 0; i < n; ++i)
      entries[place[i]] = {own_.positive_factor[i], static_cast<uint32_t>(ids.users[i]), own_.positive_bias[i], 1.0f};
    for (int64_t e = 0; e < used; ++e) {
      const int64_t at = batch.used[e];
      const uint32_t uses = ids.blocks[static_cast<size_t>(at / k_)].uses[at % k_];
      entries[place[n + e]] = {1.0f, static_cast<uint32_t>(user_.rows + n + at),
                               bias_.wanted ? own_.list_bias[at] : 0.0f, static_cast<float>(uses)};
    }
    int64_t at = n + used;
    for (int64_t b = 0; b < ids.num_blocks && batch.alone > 0; ++b) {
      const SharedBlock& block = ids.blocks[static_cast<size_t>(b)];
      const float* own = own_.own.data() + own_.own_begin[b] * k_;
      for (size_t a = 0; a < block.alone.size(); ++a) {
        const int64_t user = ids.users[block.first + block.alone[a]];
        const float* row = user_.values + user * tables_.dim;
        const float scale = tables_.cosines ? simd<InverseNorm>(row, tables_.dim) : 1.0f;
        for (int64_t j = 0; j < k_; ++j, ++at) {
          const float c = own[static_cast<int64_t>(a) * k_ + j];
          entries[place[at]] = {c * scale, static_cast<uint32_t>(user), c, 1.0f};
        }
      }
    }
    if (item_.wanted) sum_rows(item_, batch.by_item, entries, own_.item_sums, decay, steps_before);
    if (item_.wanted && kept(item_)) apply(item_, batch.by_item, own_.item_sums.data(), steps_before);
    if (bias_.wanted) {
      own_.bias_sums.resize(batch.by_item.size());
      for_runs(batch.by_item, false, [&](int64_t from, int64_t to) {
        for (int64_t s = from; s < to; ++s) own_.bias_sums[s] = bias_sum(batch.by_item[s], entries);
      });
      apply(bias_, batch.by_item, own_.bias_sums.data(), steps_before);
    }
  }

  struct InverseNorm {
    template <int kBytes>
    ZX_HD static float run(const float* row, int64_t dim) {
      return inverse_norm<kBytes>(row, dim);
    }
  };

  float bias_sum(const Segment& segment, const SharedEntry* entries) const {
    float total = 0;
    for (int64_t e = segment.begin; e < segment.end; ++e) total += entries[e].bias;
    const float longest = static_cast<float>(longest_);
    return longest > 0 ? std::max(-longest, std::min(longest, total)) : total;
  }

  // Sums the entries of a table's rows and updates these, unless sums are kept.
  void sum_rows(const MfTable& t, const std::vector<Segment>& segments, const SharedEntry* entries,
                std::vector<float>& sums, float decay, int64_t steps_before) {
    switch (way(t)) {
      case Optimizer::kSgd:
        return sum_rows<Optimizer::kSgd>(t, segments, entries, sums, decay, steps_before);
      case Optimizer::kAdagrad:
        return sum_rows<Optimizer::kAdagrad>(t, segments, entries, sums, decay, steps_before);
      case Optimizer::kAdam:
        return sum_rows<Optimizer::kAdam>(t, segments, entries, sums, decay, steps_before);
      case Optimizer::kLazyAdam:
        return sum_rows<Optimizer::kLazyAdam>(t, segments, entries, sums, decay, steps_before);
    }
  }

  template <Optimizer kKind>
  void sum_rows(const MfTable& t, const std::vector<Segment>& segments, const SharedEntry* entries,
                std::vector<float>& sums, float decay, int64_t steps_before) {
    if (kept(t)) sums.resize(segments.size() * static_cast<size_t>(tables_.dim));
    const RowEnd end{t.values,
                     tables_.dim,
                     decay,
                     static_cast<float>(longest_),
                     kept(t) ? sums.data() : nullptr,
                     t.rule(kind_, steps_before),
                     t.values,
                     t.first,
                     t.second,
                     tables_.cosines ? t.values : nullptr};
    const SharedRows rows = rows_left();
    for_runs(segments, kept(t), [&](int64_t from, int64_t to) {
      static thread_local std::vector<float> scratch;
      scratch.resize(static_cast<size_t>(tables_.dim));
      simd<SharedSums<kKind>>(&end, &rows, entries, segments.data(), from, to, scratch.data());
    });
  }

  void apply(const MfTable& t, const std::vector<Segment>& segments, const float* sums, int64_t steps_before) {
    own_.rows.clear();
    for (const Segment& s : segments) own_.rows.push_back(s.row);
    update_rows(way(t), t.rule(kind_, steps_before), own_.rows.data(), static_cast<int64_t>(own_.rows.size()), sums,
                t.values, t.first, t.second, t.rows, t.dim);
  }

  SharedTables tables_;
  MfLossCall loss_;
  Optimizer kind_;
  bool mean_, long_ = false;
  double l2_, longest_;
  MfTable &user_, &item_, &bias_;
  SharedWorkspace& own_;
  int64_t k_ = 0, width_ = 0;
};

// ---- Hogwild: a block is a step for the items of its list, which are written once

struct SharedHogwildRows {
  // A step of SGD on the row `own` with the derivatives `sum`, which are in its direction if scores are cosines; the
  // gathered rows that it stands for count `count` times in the L2 term.
  template <int kBytes>
  ZX_HD static void step(float* __restrict__ own, float* __restrict__ sum, int64_t dim, bool cosines, float rate,
                         float decay) {
    if (cosines) through_direction<kBytes>(sum, own, inverse_norm<kBytes>(own, dim), dim);
    for (int64_t c = 0; c < dim; ++c) own[c] -= rate * (sum[c] + decay * own[c]);
  }

  template <int kBytes>
  ZX_HD static void run(const SharedTables* tables, const SharedInputs* inputs, SharedBuffers* buffers, float* users,
                        float* items, const float* own, float user_rate, float item_rate, float l2, float* scratch) {
    const SharedTables& t = *tables;
    const SharedInputs& in = *inputs;
    SharedBuffers& b = *buffers;
    const int64_t dim = t.dim, width = b.width;
    // Items first: they take the users' rows as the block found them, of which it has copies.
    for (int64_t i = 0; i < in.n; ++i) {
      for (int64_t c = 0; c < dim; ++c) scratch[c] = b.loss.d_pos[i] * b.users[i * width + c];
      step<kBytes>(const_cast<float*>(b.positives[i]), scratch, dim, t.cosines, item_rate, l2);
    }
    for (int64_t j = 0; j < in.k; ++j)
      step<kBytes>(const_cast<float*>(t.item) + in.items[j] * dim, items + j * width, dim, t.cosines, item_rate,
                   l2 * static_cast<float>(in.block->uses[j]));
    for (size_t a = 0; a < in.block->alone.size(); ++a)
      for (int64_t j = 0; j < in.k; ++j) {
        const int64_t at = static_cast<int64_t>(a) * in.k + j;
        for (int64_t c = 0; c < dim; ++c) scratch[c] = own[at] * b.users[in.block->alone[a] * width + c];
        step<kBytes>(const_cast<float*>(t.item) + in.block->own[at] * dim, scratch, dim, t.cosines, item_rate, l2);
      }
    for (int64_t i = 0; i < in.n; ++i)
      step<kBytes>(const_cast<float*>(t.user) + in.users[i] * dim, users + i * width, dim, t.cosines, user_rate, l2);
  }
};

// Trains on all samples, each with a step of its own weight; returns their summed loss.
inline double shared_hogwild(const SharedTables& tables, const MfLossCall& loss, bool mean, float l2,
                             const SharedSamples& all, const MfTable& user, const MfTable& item, const MfTable& bias) {
  const int64_t k = all.num_negatives(), samples = all.count(), each = all.size();
  const int64_t blocks = (samples + each - 1) / each;
  const float scale = mean ? 1.0f / static_cast<float>(std::max<int64_t>(1, loss.values_per_sample(k))) : 1.0f;
  const float user_rate = user.wanted ? static_cast<float>(user.lr) : 0.0f;
  const float item_rate = item.wanted ? static_cast<float>(item.lr) : 0.0f;
  std::vector<double> sums(static_cast<size_t>(blocks));
  Failure failure;
  share_blocks(blocks, [&](const auto& next) {
    SharedIds ids;
    SharedBuffers buffers;
    const int64_t width = padded(tables.dim, SharedTrainer::widest_tile());
    std::vector<float> users(static_cast<size_t>(each * width)), items(static_cast<size_t>(k * width));
    std::vector<float> list_bias(static_cast<size_t>(k)), own(static_cast<size_t>(each * k));
    std::vector<float> scratch(static_cast<size_t>(tables.dim));
    for (int64_t task = next(); task >= 0; task = next()) {
      const int64_t begin = task * each;
      if (!failure.guard([&] { all.read(begin, std::min(each, samples - begin), ids); })) return;
      for (int64_t b = 0; b < ids.num_blocks; ++b) {  // (two, where a call does not begin with a block)
        const SharedBlock& block = ids.blocks[static_cast<size_t>(b)];
        const SharedInputs in{block.count,
                              k,
                              ids.users.data() + block.first,
                              ids.positives.data() + block.first,
                              ids.items.data() + b * k,
                              &block};
        sums[task] += SharedTrainer::shared_scores_and_loss(tables, loss, in, scale, buffers);
        simd<SharedGradients>(&tables, &in, &buffers, users.data(), items.data(), list_bias.data(), own.data());
        simd<SharedHogwildRows>(&tables, &in, &buffers, users.data(), items.data(),
                                static_cast<const float*>(own.data()), user_rate, item_rate, l2, scratch.data());
        if (!bias.wanted) continue;
        const float rate = static_cast<float>(bias.lr);
        for (int64_t i = 0; i < in.n; ++i) bias.values[in.positives[i]] -= rate * buffers.loss.d_pos[i];
        for (int64_t j = 0; j < k; ++j) bias.values[in.items[j]] -= rate * list_bias[j];
        for (size_t e = 0; e < block.own.size(); ++e) bias.values[block.own[e]] -= rate * own[e];
      }
    }
  });
  failure.rethrow();
  double total = 0;
  for (const double sum : sums) total += sum;
  return mean ? total / static_cast<double>(std::max<int64_t>(1, loss.values_per_sample(k))) : total;
}

}  // namespace zx::cpu
