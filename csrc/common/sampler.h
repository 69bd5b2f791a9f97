// What a sample is: every positive and negative as a function of (seed, epoch, sample number). CPU and CUDA kernels
// call these functions, or compute the same integers faster; zerosum_ext/reference/sampling.py says the same in
// PyTorch.
//
// A negative is drawn by rejection, two tries to a Philox block and a bounded number of blocks, and after that exactly
// from the complement of the row. A row that holds more than half of the items goes to the complement at once:
// rejection would be slow there and would magnify the 2^-64 of the multiply-high draw. Nothing loops without a bound,
// and nothing depends on how membership is found out.
#pragma once

#include <cstdint>

#include "alias.h"
#include "csr.h"
#include "permutation.h"
#include "philox.h"

namespace zx {

constexpr uint32_t kRejectionBlocks = 16;

// ---- Distributions over items ---------------------------------------------------------------------------------------
// item(draw)         the item that a 64-bit draw stands for; an item of the catalogue, whatever the tables hold
// mass_below(i)      integer mass of the items below i
// item_at(m)         the item that owns unit m of the mass
// item_between(m, low, high)   the same, where it is known to be in [low, high)
// and, of the items outside a row: complement_mass(row), complement_item(row, m), the owner of unit m.

struct UniformItems {
  static constexpr Stream kStream = Stream::kNegative;
  int64_t num_items;

  ZX_HD int64_t item(uint64_t draw) const {
    return static_cast<int64_t>(mulhi64(draw, static_cast<uint64_t>(num_items)));
  }
  ZX_HD uint64_t mass_below(int64_t i) const { return static_cast<uint64_t>(i); }
  template <class Index>
  ZX_HD uint64_t complement_mass(Row<Index> row) const {
    return static_cast<uint64_t>(num_items - row.count);
  }
  template <class Index>
  ZX_HD int64_t complement_item(Row<Index> row, uint64_t m) const {
    return complement_select(row, static_cast<int64_t>(m));
  }
};

// The complement of a row under a distribution that is not uniform: a walk along the row.
template <class Items, class Index>
ZX_HD uint64_t walk_complement_mass(const Items& items, Row<Index> row) {
  uint64_t mass = items.mass_below(items.num_items);
  for (int64_t j = 0; j < row.count; ++j) {
    const int64_t item = static_cast<int64_t>(row.items[j]);
    if (is_item(item, items.num_items)) mass -= items.mass_below(item + 1) - items.mass_below(item);
  }
  return mass;
}

template <class Items, class Index>
ZX_HD int64_t walk_complement_item(const Items& items, Row<Index> row, uint64_t m) {
  uint64_t skipped = 0;  // mass of the row's items below the answer
  for (int64_t j = 0; j < row.count; ++j) {
    const int64_t item = static_cast<int64_t>(row.items[j]);
    if (!is_item(item, items.num_items)) continue;
    const uint64_t below = items.mass_below(item);
    if (below - skipped > m) break;
    skipped += items.mass_below(item + 1) - below;
  }
  return items.item_at(m + skipped);
}

// Weighted by an alias table; prefix[i] is the mass below item i, prefix[num_items] = 2^(bits + 31).
struct AliasItems {
  static constexpr Stream kStream = Stream::kAlias;
  int64_t num_items;
  const uint64_t* slots;
  int bits;
  const int64_t* prefix;

  ZX_HD int64_t item(uint64_t draw) const {
    const int64_t drawn = alias_item(slots, bits, draw);
    return drawn < num_items ? drawn : num_items - 1;
  }
  ZX_HD uint64_t mass_below(int64_t i) const { return static_cast<uint64_t>(prefix[i]); }
  ZX_HD int64_t item_at(uint64_t m) const { return upper_bound(prefix + 1, num_items - 1, static_cast<int64_t>(m)); }
  ZX_HD int64_t item_between(uint64_t m, int64_t low, int64_t high) const {
    return low + upper_bound(prefix + 1 + low, high - 1 - low, static_cast<int64_t>(m));
  }
  template <class Index>
  ZX_HD uint64_t complement_mass(Row<Index> row) const {
    return walk_complement_mass(*this, row);
  }
  template <class Index>
  ZX_HD int64_t complement_item(Row<Index> row, uint64_t m) const {
    return walk_complement_item(*this, row, m);
  }
};

// Uniform over an ascending list of candidates.
struct CandidateItems {
  static constexpr Stream kStream = Stream::kCandidate;
  int64_t num_items;
  const int64_t* candidates;
  int64_t num_candidates;

  ZX_HD int64_t item(uint64_t draw) const {
    const int64_t drawn = candidates[mulhi64(draw, static_cast<uint64_t>(num_candidates))];
    return is_item(drawn, num_items) ? drawn : num_items - 1;
  }
  ZX_HD uint64_t mass_below(int64_t i) const {
    return static_cast<uint64_t>(lower_bound(candidates, num_candidates, i));
  }
  ZX_HD int64_t item_at(uint64_t m) const { return m < static_cast<uint64_t>(num_candidates) ? candidates[m] : -1; }
  ZX_HD int64_t item_between(uint64_t m, int64_t, int64_t) const { return item_at(m); }
  template <class Index>
  ZX_HD uint64_t complement_mass(Row<Index> row) const {
    return walk_complement_mass(*this, row);
  }
  template <class Index>
  ZX_HD int64_t complement_item(Row<Index> row, uint64_t m) const {
    return walk_complement_item(*this, row, m);
  }
};

// ---- Complements that were summed beforehand ------------------------------------------------------------------------

// The walk along a row takes as long as the row is. Of rows that are drawn for by their complements often, prefix sums
// are kept: masses[start + j] is the mass outside the row below its item j, masses[start + count] that of the whole
// complement. A draw is then a search. It finds what the walk finds, and rows without sums are walked along.
struct ComplementSums {
  const int64_t* begins;  // where such rows begin in the matrix, ascending
  const int64_t* starts;  // where their sums do
  int64_t num_rows;
  const int64_t* masses;
  int64_t num_masses;

  // Those of the row that begins there; null where there are none. (A row without items begins where the next does.)
  ZX_HD const int64_t* find(int64_t begin, int64_t count) const {
    const int64_t r = count > 0 ? lower_bound(begins, num_rows, begin) : num_rows;
    if (r >= num_rows || begins[r] != begin) return nullptr;
    const int64_t start = starts[r];
    return start >= 0 && start < num_masses && count < num_masses - start ? masses + start : nullptr;
  }
};

// Items with the sums of the one row that is asked about.
template <class Items>
struct SummedItems : Items {
  const int64_t* sums;

  ZX_HD SummedItems(const Items& items, const int64_t* sums_of_row) : Items(items), sums(sums_of_row) {}

  template <class Index>
  ZX_HD uint64_t complement_mass(Row<Index> row) const {
    return static_cast<uint64_t>(sums[row.count]);
  }
  template <class Index>
  ZX_HD int64_t complement_item(Row<Index> row, uint64_t m) const {
    const int64_t j = upper_bound(sums, row.count, static_cast<int64_t>(m));  // items of the row below the answer
    const int64_t low = j > 0 ? static_cast<int64_t>(row.items[j - 1]) + 1 : 0;
    const int64_t high = j < row.count ? static_cast<int64_t>(row.items[j]) : this->num_items;
    if (low < 0 || low > high || high > this->num_items) return -1;  // a row that is none of this catalogue
    const uint64_t skipped = this->mass_below(high) - static_cast<uint64_t>(sums[j]);
    return this->item_between(m + skipped, low, high);
  }
};

// ---- Negatives ------------------------------------------------------------------------------------------------------

ZX_HD bool is_among(const int64_t* previous, int64_t count, int64_t item) {
  bool found = false;
  for (int64_t i = 0; i < count; ++i) found |= previous[i] == item;
  return found;
}

// Mass of those of previous[0 .. count) that are at most `item` (-1: a draw that found nothing).
template <class Items>
ZX_HD uint64_t mass_among(const Items& items, const int64_t* previous, int64_t count, int64_t item) {
  uint64_t mass = 0;
  for (int64_t i = 0; i < count; ++i)
    if (previous[i] >= 0 && previous[i] <= item)
      mass += items.mass_below(previous[i] + 1) - items.mass_below(previous[i]);
  return mass;
}

ZX_HD bool draws_by_rejection(int64_t row_count, int64_t num_items) { return 2 * row_count <= num_items; }

// The exact draw that ends every negative: from the complement of the row without previous[0 .. num_previous).
// -1 if nothing is left to draw.
template <class Items, class Index>
ZX_HD int64_t draw_from_complement(const Items& items, Row<Index> row, SampleKey key, uint64_t sample, uint32_t j,
                                   const int64_t* previous, int64_t num_previous) {
  const uint64_t taken = mass_among(items, previous, num_previous, items.num_items);
  const uint64_t mass = items.complement_mass(row) - taken;
  if (mass == 0) return -1;
  const uint64_t unit = mulhi64(draws(key, sample, Items::kStream, j, kRejectionBlocks).first, mass);
  // Without previous items this is the answer. With them the wanted item is the least x that leaves more than `unit`
  // units at or below it once the previous ones are taken out; each step raises x towards it, at most num_previous
  // times.
  int64_t item = items.complement_item(row, unit);
  for (int64_t step = 0; step < num_previous; ++step) {
    const int64_t next = items.complement_item(row, unit + mass_among(items, previous, num_previous, item));
    if (next == item) break;
    item = next;
  }
  return item;
}

// The bounded number of tries that begins a draw, unless it goes to the complement at once. False: none was taken.
template <class Items, class Index, class Contains>
ZX_HD bool draw_by_rejection(const Items& items, Row<Index> row, const Contains& contains, SampleKey key,
                             uint64_t sample, uint32_t j, const int64_t* previous, int64_t num_previous,
                             int64_t& item) {
  if (!draws_by_rejection(row.count, items.num_items)) return false;
  for (uint32_t attempt = 0; attempt < kRejectionBlocks; ++attempt) {
    const Draws d = draws(key, sample, Items::kStream, j, attempt);
    item = items.item(d.first);
    if (!contains(item) && !is_among(previous, num_previous, item)) return true;
    item = items.item(d.second);
    if (!contains(item) && !is_among(previous, num_previous, item)) return true;
  }
  return false;
}

// Negative number j of a sample: an item outside the row, and outside previous[0 .. num_previous) (drawing without
// replacement); -1 if there is none. `contains` answers whether the row holds an item.
template <class Items, class Index, class Contains>
ZX_HD int64_t draw_negative(const Items& items, Row<Index> row, const Contains& contains, SampleKey key,
                            uint64_t sample, uint32_t j, const int64_t* previous, int64_t num_previous) {
  int64_t item = -1;
  if (draw_by_rejection(items, row, contains, key, sample, j, previous, num_previous, item)) return item;
  return draw_from_complement(items, row, key, sample, j, previous, num_previous);
}

// ---- Positives ------------------------------------------------------------------------------------------------------
// The interactions of the users who take part ("kept") are numbered in the order of the matrix. Sample s of an epoch
// is, by order:
//   sequential    interaction s % kept
//   shuffled      interaction permute(s) % kept, the permutation being that of all samples of the epoch
//   replacement   interaction mulhi64(first draw of (s, kReplacementPositive, 0, 0), kept)
//   users         user mulhi64(first draw, users), and of that user's row the item mulhi64(second draw, count)

// Where in the row, of which the first positive has `position`, the second one is: uniform over the others, or the same
// where there is no other. The draw is the first of (sample, kSecondPositive, 0, 0).
ZX_HD int64_t second_position(uint64_t draw, int64_t position, int64_t count) {
  if (count < 2) return position;
  const int64_t other = static_cast<int64_t>(mulhi64(draw, static_cast<uint64_t>(count - 1)));
  return other + (other >= position);
}

// Interactions of users who are left out are skipped by a short sorted list: gap_start[g] is the number of kept
// interactions before gap g, gap_total[g] the number of interactions left out up to and including it.
ZX_HD int64_t kept_interaction(const int64_t* gap_start, const int64_t* gap_total, int64_t num_gaps, int64_t kept) {
  if (num_gaps == 0) return kept;
  const int64_t gaps = upper_bound(gap_start, num_gaps, kept);
  return gaps == 0 ? kept : kept + gap_total[gaps - 1];
}

}  // namespace zx
