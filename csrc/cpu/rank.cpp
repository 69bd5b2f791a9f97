// The ranking pass on the CPU: where held-out positives stand among all candidates, and each user's top k.
//
// Blocks of users go over tiles of items. The scores of a tile come from the factors (rank_scores.h) or from a matrix
// and stay in the cache; what is no candidate becomes NaN there, which is above, below and level with nothing. Then,
// row by row, candidates are counted against the user's levels, the distinct scores of his positives, and those above
// the k-th best so far are collected (rank_user.h). Users are independent of each other, so that nothing depends on
// blocks or threads.
//
// Where the processor can, factors of float32 first give coarse scores (rank_coarse.h), which settle nearly all of this
// for half the work; blocks of users whom they tell too little, as where most scores are equal, go the way above.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <tuple>
#include <vector>

#include "checks.h"
#include "common/ranking.h"
#include "cpu/parallel.h"
#include "cpu/rank_coarse.h"
#include "cpu/rank_scores.h"
#include "cpu/rank_user.h"
#include "cpu/simd.h"
#include "torch_stable.h"

namespace zx::cpu {
namespace {

constexpr int64_t kBlockUsers = 36;       // a multiple of both kernels' users
constexpr int64_t kSlabBytes = 64 << 20;  // of packed items; larger tables go slab by slab
constexpr int64_t kNoFailure = std::numeric_limits<int64_t>::max();

// ---- Where scores come from -----------------------------------------------------------------------------------------

// Dot products of factors, item by item slab of packed panels.
template <class T>
struct FactorScores {
  const T *user_factors, *item_factors, *bias;  // bias may be nullptr
  int64_t num_items, dim;
  ScorePanels panels = score_panels<T>();
  int64_t slab_begin = 0, slab_end = 0;
  AlignedArray<T> packed, packed_bias;

  int64_t slab_items() const {
    const int64_t tiles = kSlabBytes / std::max<int64_t>(1, dim * static_cast<int64_t>(sizeof(T))) / kTile<T>;
    return std::max<int64_t>(1, tiles) * kTile<T>;
  }

  void pack(int64_t begin, int64_t end) {
    slab_begin = begin, slab_end = end;
    const int64_t width = panels.items, count = (end - begin + width - 1) / width;
    if (!packed) {
      const int64_t most = std::min(slab_items(), num_items) / width + 1;
      packed = aligned_array<T>(most * width * dim);
      packed_bias = aligned_array<T>(most * width);
    }
    for_each_block(count, 64, [&](int64_t p) {
      const int64_t first = begin + p * width, rows = std::min(width, end - first);
      const T* row[64];
      for (int64_t r = 0; r < rows; ++r) row[r] = item_factors + (first + r) * dim;
      pack_panel<T>(row, rows, width, dim, packed.get() + p * width * dim);
      for (int64_t r = 0; r < width; ++r)
        packed_bias[static_cast<size_t>(p * width + r)] = bias != nullptr && r < rows ? bias[first + r] : T(0);
    });
  }

  struct Block {
    AlignedArray<T> users;
    int64_t user_panels;
  };
  Block block() const { return {aligned_array<T>(kBlockUsers * dim), 0}; }

  void load(Block& block, const int64_t* users, int64_t /*first_row*/, int64_t n) const {
    block.user_panels = (n + panels.users - 1) / panels.users;
    for (int64_t q = 0; q < block.user_panels; ++q) {
      const int64_t rows = std::min<int64_t>(panels.users, n - q * panels.users);
      const T* row[kBlockUsers];
      for (int64_t r = 0; r < rows; ++r) row[r] = user_factors + users[q * panels.users + r] * dim;
      pack_panel<T>(row, rows, panels.users, dim, block.users.get() + q * panels.users * dim);
    }
  }

  template <class Index>
  void pairs(int64_t user, int64_t /*row*/, Row<Index> items, T* out) const {
    score_pairs<T, Index>(user_factors + user * dim, item_factors, bias, items.items, items.count, dim, out);
  }

  void tile(const Block& block, int64_t begin, int64_t width, int64_t /*n*/, T* out) const {
    const int64_t p = (begin - slab_begin) / panels.items;
    score_tile<T>(block.users.get(), block.user_panels, packed.get() + p * panels.items * dim,
                  packed_bias.get() + p * panels.items, (width + panels.items - 1) / panels.items, dim, out, kTile<T>);
  }
};

// The items of a slab, rounded and packed for coarse scores.
struct CoarseItems {
  int64_t dim, pairs, slab_begin = 0;
  AlignedArray<int32_t> packed;  // two 16-bit integers each
  AlignedArray<float> scale, norm, bias;
  RoundedTable table;

  // Panels of `width` rows, from integers of one row after the other.
  static void pack_row(const int16_t* integers, int64_t pairs, int64_t width, int64_t r, int32_t* panel) {
    for (int64_t d = 0; d < pairs; ++d) std::memcpy(panel + d * width + r, integers + 2 * d, sizeof(int32_t));
  }

  void pack(const float* items, const float* item_bias, int64_t begin, int64_t end, int64_t most) {
    slab_begin = begin;
    const int64_t count = (end - begin + kCoarseItems - 1) / kCoarseItems;
    if (!packed) {
      const int64_t room = (most / kCoarseItems + 2) * kCoarseItems;  // rows are read in groups of 64
      packed = aligned_array<int32_t>(room * pairs);
      scale = aligned_array<float>(room), norm = aligned_array<float>(room), bias = aligned_array<float>(room);
    }
    std::vector<RoundedTable> parts(static_cast<size_t>(count));
    for_each_block(count, 16, [&](int64_t p) {
      std::vector<int16_t> integers(static_cast<size_t>(2 * pairs));
      RoundedTable& part = parts[static_cast<size_t>(p)];
      for (int64_t r = 0; r < kCoarseItems; ++r) {
        const int64_t at = p * kCoarseItems + r, item = begin + at;
        RoundedRow row{0, 0, 0, true};
        if (item < end)
          row = simd<RoundRow>(items + item * dim, dim, integers.data());
        else
          std::fill(integers.begin(), integers.end(), int16_t{0});
        part.add(row);
        scale[at] = row.scale;
        norm[at] = static_cast<float>(row.norm);
        bias[at] = item < end && item_bias != nullptr ? item_bias[item] : 0.0f;
        part.add_bias(bias[at]);
        pack_row(integers.data(), pairs, kCoarseItems, r, packed.get() + p * pairs * kCoarseItems);
      }
    });
    table = {};
    for (const RoundedTable& part : parts) table.add(part);
  }
};

// Rows of a given matrix [B, I] of In, copied because what is no candidate is overwritten.
template <class T, class In>
struct GivenScores {
  const In* scores;
  int64_t row_stride, column_stride, num_items;

  int64_t slab_items() const { return std::max<int64_t>(num_items, 1); }
  void pack(int64_t, int64_t) {}

  struct Block {
    int64_t first_row;
  };
  Block block() const { return {0}; }
  void load(Block& block, const int64_t* /*users*/, int64_t first_row, int64_t /*n*/) const {
    block.first_row = first_row;
  }

  template <class Index>
  void pairs(int64_t /*user*/, int64_t row, Row<Index> items, T* out) const {
    for (int64_t i = 0; i < items.count; ++i)
      out[i] = static_cast<T>(scores[row * row_stride + static_cast<int64_t>(items.items[i]) * column_stride]);
  }

  void tile(const Block& block, int64_t begin, int64_t width, int64_t n, T* out) const {
    for (int64_t r = 0; r < n; ++r) {
      const In* row = scores + (block.first_row + r) * row_stride + begin * column_stride;
      for (int64_t i = 0; i < width; ++i) out[r * kTile<T> + i] = static_cast<T>(row[i * column_stride]);
    }
  }
};

// ---- The pass -------------------------------------------------------------------------------------------------------

template <class T, class Index>
struct RankProblem {
  int64_t rows, num_items, k;
  bool top_only = false;  // levels that are certainly not among the k best need no counts
  const int64_t* users;   // [rows]
  Csr<Index> positives, excluded;
  const int64_t* offset;  // [rows + 1], of each user's positives in the next three
  T* scores;
  int64_t *greater, *equal;
  int64_t* candidates;  // [rows]
  int64_t* top_items;   // [rows, k]
  T* top_scores;        // [rows, k]
};

template <class T, class Index>
int64_t blocks_of(const RankProblem<T, Index>& p) {
  return (p.rows + kBlockUsers - 1) / kBlockUsers;
}

// What a user's counts start from.
template <class T, class Index>
void begin_counts(const RankProblem<T, Index>& p, int64_t row, int64_t positives) {
  std::fill_n(p.greater + p.offset[row], positives, int64_t{0});
  std::fill_n(p.equal + p.offset[row], positives, int64_t{-1});  // a positive is level with itself
  p.candidates[row] = p.num_items;
}

// Users [begin, begin + n) and the items of the slab. Returns the first row with a NaN score.
template <class T, class Index, class Source>
int64_t rank_block(const RankProblem<T, Index>& p, const Source& source, typename Source::Block& block, T* tile,
                   typename CountMany<T>::Scratch* scratch, std::vector<UserRanking<T, Index>>& rankings, int64_t begin,
                   int64_t n, int64_t first_item, int64_t last_item) {
  const bool resumed = first_item > 0;
  // Where one tile is everything the positives' scores are read off it.
  const bool whole = p.num_items <= kTile<T>;
  int64_t failed = kNoFailure;
  bool alive[kBlockUsers];
  source.load(block, p.users + begin, begin, n);
  if (whole) source.tile(block, 0, p.num_items, n, tile);
  for (int64_t u = 0; u < n; ++u) {
    const int64_t row = begin + u, user = p.users[row];
    UserRanking<T, Index>& ranking = rankings[static_cast<size_t>(u)];
    const Row<Index> positives = p.positives.row(user);
    T* scores = p.scores + p.offset[row];
    if (!resumed) {
      if (whole)
        for (int64_t i = 0; i < positives.count; ++i)
          scores[i] = tile[u * kTile<T> + static_cast<int64_t>(positives.items[i])];
      else
        source.pairs(user, row, positives, scores);
      begin_counts(p, row, positives.count);
    }
    alive[u] = ranking.start(positives, p.excluded.row(user), scores, first_item, p.k, false);
    if (!alive[u]) failed = std::min(failed, row);
    if (alive[u] && resumed && p.k > 0) ranking.top.resume(p.top_scores + row * p.k, p.top_items + row * p.k);
  }
  for (int64_t first = first_item; first < last_item; first += kTile<T>) {
    const int64_t width = std::min(kTile<T>, last_item - first);
    if (!whole) source.tile(block, first, width, n, tile);
    for (int64_t u = 0; u < n; ++u)
      if (alive[u] && !rankings[static_cast<size_t>(u)].add(tile + u * kTile<T>, width, first, p.k, scratch))
        failed = std::min(failed, begin + u);
  }
  for (int64_t u = 0; u < n; ++u) {
    const int64_t row = begin + u;
    if (!alive[u]) {
      std::fill_n(p.top_items + row * p.k, p.k, int64_t{-1});
      std::fill_n(p.top_scores + row * p.k, p.k, -kInfinity<T>);
      continue;
    }
    UserRanking<T, Index>& ranking = rankings[static_cast<size_t>(u)];
    ranking.finish(p.greater + p.offset[row], p.equal + p.offset[row]);
    p.candidates[row] -= ranking.removed;
    if (p.k > 0) ranking.top.finish(p.top_scores + row * p.k, p.top_items + row * p.k);
  }
  return failed;
}

#if ZX_X86
// Blocks of users by coarse scores; one in each thread.
template <class Index>
class CoarseBlock {
 public:
  CoarseBlock(const RankProblem<float, Index>& problem, const FactorScores<float>& source, const CoarseItems& items)
      : p_(problem),
        source_(source),
        items_(items),
        users_(aligned_array<int32_t>(kBlockUsers * items.pairs)),
        tile_(aligned_array<int32_t>(kBlockUsers * kTile<float>)),
        integers_(static_cast<size_t>(2 * items.pairs)),
        lists_(aligned_array<int32_t>(kRoom * kDepth)),
        doubtful_(aligned_array<int32_t>(kRoom)),
        doubted_(aligned_array<int32_t>(kRoom)),
        users_of_block_(static_cast<size_t>(kBlockUsers)) {}

  // Users [begin, begin + n) and the items of the slab. False, and nothing written but the positives' scores, if coarse
  // scores do not tell enough: then the block is for exact ones.
  bool rank(int64_t begin, int64_t n, int64_t first_item, int64_t last_item) {
    if (!start(begin, n, first_item, last_item)) return false;
    const int64_t panels = (n + kCoarseUsers - 1) / kCoarseUsers;
    // More exact scores than this would take longer than the coarse ones saved.
    int64_t budget = n * (last_item - first_item) / 16 + 64 * n;
    for (int64_t first = first_item; first < last_item; first += kTile<float>) {
      const int64_t width = std::min(kTile<float>, last_item - first), at = first - items_.slab_begin;
      coarse_tile(users_.get(), scale_, panels, items_.packed.get() + at * items_.pairs, items_.scale.get() + at,
                  items_.bias.get() + at, (width + kCoarseItems - 1) / kCoarseItems, items_.pairs, tile_.get(),
                  kTile<float>);
      for (int64_t u = 0; u < n; ++u) {
        budget -= add(users_of_block_[static_cast<size_t>(u)], tile_.get() + u * kTile<float>, width, first);
        if (budget < 0) return false;
      }
    }
    for (int64_t u = 0; u < n; ++u) finish(users_of_block_[static_cast<size_t>(u)], begin + u, first_item > 0);
    return true;
  }

 private:
  static constexpr int64_t kRoom = kTile<float> + 32;
  static_assert(kTile<float> == kPlaces);
  // Of nested lists: each has half the levels of the one before.
  static constexpr int64_t kDepth = 24;
  static constexpr int64_t kFew = 3;  // levels that are taken one after the other

  struct User {
    UserRanking<float, Index> ranking;
    const float* row;  // of the table
    ScoreBound bound;
    int32_t floor;                               // keys below are certainly not among the k best
    std::vector<int32_t> top_scores, top_items;  // of what may be
    int64_t top_size;
    int64_t first_level;  // that has to be counted

    void reserve(int64_t more) {
      const size_t room = static_cast<size_t>(top_size + more + 16);
      if (top_scores.size() < room) top_scores.resize(2 * room), top_items.resize(2 * room);
    }
    void offer(float score, int64_t item) {
      top_scores[static_cast<size_t>(top_size)] = key_of(std::nearbyint(static_cast<double>(score) / bound.unit));
      top_items[static_cast<size_t>(top_size++)] = static_cast<int32_t>(item);
    }
    // Of keys that k items reach: what is more than twice the bound below cannot be among the k best.
    void raise_floor(int32_t reached) {
      if (reached != kNoKey)
        floor = std::max(
            floor, key_of(std::floor(static_cast<double>(reached >> kPlaceBits) - 2 * static_cast<double>(bound.all))));
    }
  };

  bool start(int64_t begin, int64_t n, int64_t first_item, int64_t last_item) {
    std::memset(users_.get(), 0, sizeof(int32_t) * static_cast<size_t>(kBlockUsers * items_.pairs));
    std::fill_n(scale_, kBlockUsers, CoarseScale{0, 0});
    for (int64_t u = 0; u < n; ++u) {
      const int64_t row = begin + u, user = p_.users[row];
      User& of = users_of_block_[static_cast<size_t>(u)];
      of.row = source_.user_factors + user * items_.dim;
      const RoundedRow rounded = simd<RoundRow>(of.row, items_.dim, integers_.data());
      if (!rounded.usable) return false;
      const int64_t panel = u / kCoarseUsers;
      CoarseItems::pack_row(integers_.data(), items_.pairs, kCoarseUsers, u % kCoarseUsers,
                            users_.get() + panel * items_.pairs * kCoarseUsers);
      of.bound = score_bound(rounded, items_.table, items_.dim);
      scale_[u] = {static_cast<float>(rounded.scale / of.bound.unit), static_cast<float>(1 / of.bound.unit)};
      const Row<Index> positives = p_.positives.row(user);
      float* scores = p_.scores + p_.offset[row];
      if (first_item == 0) source_.pairs(user, row, positives, scores);
      UserRanking<float, Index>& ranking = of.ranking;
      if (!ranking.start(positives, p_.excluded.row(user), scores, first_item, p_.k, true)) return false;
      of.floor = kNoKey + 1;
      of.top_size = 0, of.first_level = 0;
      of.reserve(std::min(p_.k, first_item) + positives.count);
      // Earlier slabs left the best of theirs; positives are counted in their own.
      for (int64_t j = 0; first_item > 0 && j < p_.k && p_.top_items[row * p_.k + j] >= 0; ++j)
        of.offer(p_.top_scores[row * p_.k + j], p_.top_items[row * p_.k + j]);
      for (int64_t i = ranking.next_positive; i < positives.count && positives.items[i] < last_item; ++i) {
        ++ranking.bins[static_cast<size_t>(2 * ranking.level_of[static_cast<size_t>(i)] + 1)];
        of.offer(scores[i], static_cast<int64_t>(positives.items[i]));
      }
      if (first_item > 0 && p_.k > 0) shrink(of);
    }
    return true;
  }

  // Leaves of what may be among the k best only what is not certainly worse than k others.
  void shrink(User& of) const {
    if (of.top_size < p_.k) return;
    of.raise_floor(reached_of({of.top_scores.data(), of.top_size}, p_.k));
    of.top_size = keep_from(of.top_scores.data(), of.top_items.data(), of.top_size, of.floor);
  }

  // Takes a tile's row of keys; returns how many exact scores it took.
  int64_t add(User& of, int32_t* row, int64_t width, int64_t first_item) {
    UserRanking<float, Index>& ranking = of.ranking;
    const int64_t padded = (width + kGroup - 1) / kGroup * kGroup;
    ranking.mask(row, first_item, first_item + width, kNoKey, [](int64_t) { return kNoKey; });
    std::fill(row + width, row + padded, kNoKey);
    if (p_.k > 0 && of.floor == kNoKey + 1) of.raise_floor(reached_by(row, padded, p_.k));
    norms_ = items_.norm.get() + (first_item - items_.slab_begin);
    Doubts doubts{doubtful_.get(), doubted_.get(), 0};
    KeyList list = list_at(0);
    skip_levels(of);
    const int64_t begin = of.first_level;
    const bool counting = begin < ranking.num_levels;
    const CoarseLevel lowest = counting ? level(of, begin) : CoarseLevel{};
    if (counting && (p_.k == 0 || of.floor >= lowest.above())) {
      keep_above({row, padded}, lowest, &list, &doubts);
      if (p_.k > 0) collect(of, list, first_item);
      count(of, list, begin + 1, ranking.num_levels, 1, &doubts);
    } else {
      list_from(row, padded, counting ? std::min(of.floor, lowest.reach()) : of.floor, &list);
      if (p_.k > 0) collect(of, list, first_item);
      if (counting) count(of, list, begin, ranking.num_levels, 1, &doubts);
    }
    settle(of, first_item, doubts);
    return doubts.size;
  }

  // With top_only: k candidates are certainly above the levels that are skipped.
  void skip_levels(User& of) const {
    if (!p_.top_only || p_.k == 0) return;
    const double bar = static_cast<double>(of.floor >> kPlaceBits) + static_cast<double>(of.bound.all);
    while (of.first_level < of.ranking.num_levels && level(of, of.first_level).units < bar) ++of.first_level;
  }

  void collect(User& of, const KeyList& list, int64_t first_item) const {
    of.reserve(list.size);
    of.top_size = append_from(list, of.floor, first_item, of.top_scores.data(), of.top_items.data(), of.top_size);
    if (of.top_size >= 2 * p_.k + 64) shrink(of);
  }

  KeyList list_at(int64_t depth) { return {lists_.get() + depth * kRoom, 0}; }

  CoarseLevel level(const User& of, int64_t j) const {
    return {j, static_cast<double>(of.ranking.levels[static_cast<size_t>(j)]) / of.bound.unit, &of.bound, norms_};
  }

  // Counts a list into the bins of levels [first, last), between the levels that it is known to lie between.
  void count(User& of, KeyList list, int64_t first, int64_t last, int64_t depth, Doubts* doubts) {
    int64_t* bins = of.ranking.bins.data();
    while (last - first > kFew && list.size > 32 && depth < kDepth) {
      const int64_t middle = first + (last - first) / 2;
      KeyList upper = list_at(depth);
      split(&list, level(of, middle), &upper, doubts);
      count(of, upper, middle + 1, last, depth + 1, doubts);
      last = middle;
    }
    for (int64_t j = first; j < last && list.size > 0; ++j) {
      const CoarseLevel here = level(of, j);
      bins[2 * j] += j + 1 < last ? keep_above(list, here, &list, doubts) : count_above(&list, here, doubts);
    }
    bins[2 * last] += list.size;
  }

  // Counts those of which only the exact score tells.
  void settle(User& of, int64_t first_item, const Doubts& doubts) {
    if (doubts.size == 0) return;
    exact_.resize(static_cast<size_t>(doubts.size));
    score_pairs(of.row, source_.item_factors + first_item * items_.dim,
                source_.bias != nullptr ? source_.bias + first_item : nullptr,
                static_cast<const int32_t*>(doubts.place), doubts.size, items_.dim, exact_.data());
    const float* levels = of.ranking.levels.data();
    for (int64_t i = 0; i < doubts.size; ++i) {
      const float score = exact_[static_cast<size_t>(i)];
      // Seldom more than a step away. (Past the last level is NaN.)
      int64_t j = doubts.level[i];
      while (j > 0 && score <= levels[j - 1]) --j;
      while (score > levels[j]) ++j;
      ++of.ranking.bins[static_cast<size_t>(2 * j + (score == levels[j]))];
    }
  }

  void finish(User& of, int64_t row, bool resumed) {
    UserRanking<float, Index>& ranking = of.ranking;
    const int64_t at = p_.offset[row];
    if (!resumed) begin_counts(p_, row, ranking.positives.count);
    ranking.finish(p_.greater + at, p_.equal + at);
    p_.candidates[row] -= ranking.removed;
    if (p_.k == 0) return;
    shrink(of);
    skip_levels(of);
    for (int64_t i = 0; of.first_level > 0 && i < ranking.positives.count; ++i)
      if (ranking.level_of[static_cast<size_t>(i)] < of.first_level)
        p_.greater[at + i] = std::max(p_.greater[at + i], p_.k), p_.equal[at + i] = 0;
    exact_.resize(static_cast<size_t>(of.top_size));
    score_pairs(of.row, source_.item_factors, source_.bias, static_cast<const int32_t*>(of.top_items.data()),
                of.top_size, items_.dim, exact_.data());
    for (size_t i = 0; i < exact_.size(); ++i) ranking.top.offer(exact_[i], of.top_items[i]);
    ranking.top.finish(p_.top_scores + row * p_.k, p_.top_items + row * p_.k);
  }

  const RankProblem<float, Index>& p_;
  const FactorScores<float>& source_;
  const CoarseItems& items_;
  AlignedArray<int32_t> users_;
  CoarseScale scale_[kBlockUsers];
  AlignedArray<int32_t> tile_;
  std::vector<int16_t> integers_;
  AlignedArray<int32_t> lists_, doubtful_, doubted_;
  std::vector<User> users_of_block_;
  const float* norms_ = nullptr;  // of the tile's items
  std::vector<float> exact_;
};
#endif

// Which blocks coarse scores have ranked: none, where there are no coarse scores.
template <class T, class Index, class Source>
std::vector<uint8_t> coarse_pass(const RankProblem<T, Index>& p, const Source&, int64_t, int64_t) {
  return std::vector<uint8_t>(static_cast<size_t>(blocks_of(p)), 0);
}

#if ZX_X86
template <class Index>
std::vector<uint8_t> coarse_pass(const RankProblem<float, Index>& p, const FactorScores<float>& source,
                                 int64_t first_item, int64_t last_item) {
  std::vector<uint8_t> done(static_cast<size_t>(blocks_of(p)), 0);
  // (Long lists need so many exact scores that they had better all be; few users are not worth rounding the table.)
  if (!has_vnni() || source.dim < kLeastCoarseDim || source.dim > kMostCoarseDim || first_item == last_item ||
      p.num_items > std::numeric_limits<int32_t>::max() || p.k > p.num_items / 16 || p.rows < kBlockUsers)
    return done;
  CoarseItems items{source.dim, (source.dim + 1) / 2};
  items.pack(source.item_factors, source.bias, first_item, last_item, std::min(source.slab_items(), p.num_items));
  if (!items.table.usable) return done;
  std::atomic<int64_t> tried{0}, failed{0};
  share_blocks(blocks_of(p), [&](auto&& next_block) {
    CoarseBlock<Index> block(p, source, items);
    for (int64_t b = next_block(); b >= 0; b = next_block()) {
      // Where it fails again and again, as with a model whose scores are all alike, it is not tried much longer.
      if (2 * failed.load() > tried.load() + 4) continue;
      const int64_t begin = b * kBlockUsers;
      const bool ok = block.rank(begin, std::min(kBlockUsers, p.rows - begin), first_item, last_item);
      ++tried;
      failed += !ok;
      done[static_cast<size_t>(b)] = ok;
    }
  });
  return done;
}
#endif

// Returns the first row with a NaN score, or -1.
template <class T, class Index, class Source>
int64_t rank_all(const RankProblem<T, Index>& p, Source& source) {
  std::atomic<int64_t> failed{kNoFailure};
  const int64_t slab = source.slab_items();
  // An empty catalogue is one empty slab.
  for (int64_t first_item = 0; first_item == 0 || first_item < p.num_items; first_item += slab) {
    const int64_t last_item = std::min(p.num_items, first_item + slab);
    const std::vector<uint8_t> done = coarse_pass(p, source, first_item, last_item);
    std::vector<int64_t> left;
    for (int64_t b = 0; b < blocks_of(p); ++b)
      if (!done[static_cast<size_t>(b)]) left.push_back(b);
    if (left.empty()) continue;
    source.pack(first_item, last_item);
    share_blocks(static_cast<int64_t>(left.size()), [&](auto&& next_block) {
      auto block = source.block();
      AlignedArray<T> tile = aligned_array<T>(kBlockUsers * kTile<T>);
      const auto scratch = std::make_unique<typename CountMany<T>::Scratch>();
      std::vector<UserRanking<T, Index>> rankings(kBlockUsers);
      for (int64_t b = next_block(); b >= 0; b = next_block()) {
        const int64_t begin = left[static_cast<size_t>(b)] * kBlockUsers, n = std::min(kBlockUsers, p.rows - begin);
        const int64_t row =
            rank_block(p, source, block, tile.get(), scratch.get(), rankings, begin, n, first_item, last_item);
        int64_t seen = failed.load();
        while (row < seen && !failed.compare_exchange_weak(seen, row)) {
        }
      }
    });
  }
  return failed.load() == kNoFailure ? -1 : failed.load();
}

// Whether a user's row is one of the matrix: within its entries, and of ascending items.
template <class Index>
bool is_sound(const Csr<Index>& matrix, int64_t user, int64_t users, int64_t entries, int64_t num_items) {
  if (matrix.indptr == nullptr) return true;
  if (!is_item(user, users) || !is_row(matrix.indptr[user], matrix.indptr[user + 1], entries)) return false;
  const Row<Index> row = matrix.row(user);
  if (row.count == 0) return true;
  bool ascending = true;
  for (int64_t i = 1; i < row.count; ++i) ascending &= row.items[i - 1] < row.items[i];
  return ascending && row.items[0] >= 0 && static_cast<int64_t>(row.items[row.count - 1]) < num_items;
}

// Reads the rows of all users once, and throws if a ranking could not rely on them. (They are a small part of what it
// reads: a user's row beside the whole catalogue's scores.)
template <class T, class Index>
void check_rows(const RankProblem<T, Index>& p, int64_t users, const Tensor& indptr, const Tensor& indices,
                const std::optional<Tensor>& excluded_indptr, const std::optional<Tensor>& excluded_indices) {
  const int64_t rows = indptr.size(0) - 1, entries = indices.size(0);
  const int64_t excluded_rows = excluded_indptr ? excluded_indptr->size(0) - 1 : 0;
  const int64_t excluded_entries = excluded_indices ? excluded_indices->size(0) : 0;
  std::atomic<int64_t> wrong{kNoFailure};
  constexpr int64_t kRows = 256;
  for_each_block((p.rows + kRows - 1) / kRows, 1, [&](int64_t block) {
    for (int64_t r = block * kRows; r < std::min(p.rows, (block + 1) * kRows); ++r) {
      const int64_t user = p.users[r];
      if (is_item(user, users) && is_sound(p.positives, user, rows, entries, p.num_items) &&
          is_sound(p.excluded, user, excluded_rows, excluded_entries, p.num_items) &&
          p.positives.row(user).count == p.offset[r + 1] - p.offset[r])
        continue;
      wrong = r;
      return;
    }
  });
  const int64_t row = wrong.load();
  ZX_CHECK(
      row == kNoFailure, "row ", row, " of users is ", p.users[row],
      ": out of range, or its positives or excluded items are out of range or out of order, or do not go with offset");
}

using RankResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

// Allocates the results, fills in the problem and calls run(problem), which returns the failed row.
template <class T, class Run>
RankResult with_problem(const Tensor& users, const Tensor& offset, const Tensor& indptr, const Tensor& indices,
                        const std::optional<Tensor>& excluded_indptr, const std::optional<Tensor>& excluded_indices,
                        int64_t num_users, int64_t num_items, int64_t k, Run&& run) {
  ZX_CHECK(users.dim() == 1 && users.scalar_type() == ScalarType::Long && users.is_contiguous(),
           "users must be a contiguous int64 vector");
  const int64_t rows = users.size(0);
  ZX_CHECK(offset.dim() == 1 && offset.size(0) == rows + 1 && offset.scalar_type() == ScalarType::Long &&
               offset.is_contiguous(),
           "offset must be int64 [users + 1]");
  ZX_CHECK(k >= 0 && num_items >= 0, "k and num_items must not be negative");
  check_matrix(indptr, indices, "positives");
  ZX_CHECK(excluded_indptr.has_value() == excluded_indices.has_value(),
           "excluded needs both of indptr and indices, or neither");
  if (excluded_indptr) {
    check_matrix(*excluded_indptr, *excluded_indices, "excluded");
    ZX_CHECK(excluded_indices->scalar_type() == indices.scalar_type(),
             "positives and excluded must have indices of one dtype");
  }
  const int64_t count = check_offsets(data<int64_t>(offset), rows);
  Tensor scores = new_tensor(users, {count}, scalar_type_of<T>);
  Tensor greater = new_tensor(users, {count}, ScalarType::Long), equal = new_tensor(users, {count}, ScalarType::Long);
  Tensor candidates = new_tensor(users, {rows}, ScalarType::Long);
  Tensor top_items = new_tensor(users, {rows, k}, ScalarType::Long);
  Tensor top_scores = new_tensor(users, {rows, k}, scalar_type_of<T>);
  Tensor failed = new_tensor(users, {1}, ScalarType::Long);
  *data<int64_t>(failed) = dispatch_index(indices.scalar_type(), [&](auto index) {
    using Index = decltype(index);
    RankProblem<T, Index> p;
    p.rows = rows, p.num_items = num_items, p.k = k;
    p.users = data<int64_t>(users), p.offset = data<int64_t>(offset);
    p.positives = {data<int64_t>(indptr), data<Index>(indices)};
    if (excluded_indptr) p.excluded = {data<int64_t>(*excluded_indptr), data<Index>(*excluded_indices)};
    p.scores = data<T>(scores), p.greater = data<int64_t>(greater), p.equal = data<int64_t>(equal);
    p.candidates = data<int64_t>(candidates);
    p.top_items = data<int64_t>(top_items), p.top_scores = data<T>(top_scores);
    check_rows(p, num_users, indptr, indices, excluded_indptr, excluded_indices);
    return run(p);
  });
  return {scores, greater, equal, candidates, top_items, failed, top_scores};
}

}  // namespace

RankResult rank_factors(const Tensor& user_factors, const Tensor& item_factors, std::optional<Tensor> item_bias,
                        const Tensor& users, const Tensor& offset, const Tensor& indptr, const Tensor& indices,
                        std::optional<Tensor> excluded_indptr, std::optional<Tensor> excluded_indices, int64_t k,
                        bool top_only) {
  ZX_CHECK(user_factors.dim() == 2 && item_factors.dim() == 2 && user_factors.size(1) == item_factors.size(1) &&
               user_factors.is_contiguous() && item_factors.is_contiguous(),
           "factors must be contiguous [U, d] and [I, d]");
  ZX_CHECK(user_factors.scalar_type() == item_factors.scalar_type(), "factors must have one dtype");
  const int64_t num_items = item_factors.size(0);
  if (item_bias)
    ZX_CHECK(item_bias->dim() == 1 && item_bias->size(0) == num_items && item_bias->is_contiguous() &&
                 item_bias->scalar_type() == item_factors.scalar_type(),
             "item_bias must be [I], of the factors' dtype");
  const auto run = [&](auto type) {
    using T = decltype(type);
    return with_problem<T>(users, offset, indptr, indices, excluded_indptr, excluded_indices, user_factors.size(0),
                           num_items, k, [&](auto& p) {
                             p.top_only = top_only;
                             FactorScores<T> source{data<T>(user_factors), data<T>(item_factors),
                                                    item_bias ? data<T>(*item_bias) : nullptr, num_items,
                                                    item_factors.size(1)};
                             return rank_all(p, source);
                           });
  };
  switch (user_factors.scalar_type()) {
    case ScalarType::Float:
      return run(float{});
    case ScalarType::Double:
      return run(double{});
    default:
      ZX_CHECK(false, "factors must be float32 or float64");
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> rank_scores(
    const Tensor& scores, const Tensor& users, const Tensor& offset, const Tensor& indptr, const Tensor& indices,
    std::optional<Tensor> excluded_indptr, std::optional<Tensor> excluded_indices, int64_t k) {
  ZX_CHECK(scores.dim() == 2 && users.dim() == 1 && indptr.dim() == 1 && scores.size(0) == users.size(0),
           "scores must have one row a user");
  auto [target, greater, equal, candidates, top_items, failed, _] =
      dispatch_floating(scores.scalar_type(), [&](auto type) {
        using In = decltype(type);
        using T = compute_t<In>;
        return with_problem<T>(users, offset, indptr, indices, excluded_indptr, excluded_indices, indptr.size(0) - 1,
                               scores.size(1), k, [&](const auto& p) {
                                 GivenScores<T, In> source{data<In>(scores), scores.stride(0), scores.stride(1),
                                                           scores.size(1)};
                                 return rank_all(p, source);
                               });
      });
  return {target, greater, equal, candidates, top_items, failed};
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) {
  m.impl("rank_factors", ZX_BOX(&zx::cpu::rank_factors));
  m.impl("rank_scores", ZX_BOX(&zx::cpu::rank_scores));
}
