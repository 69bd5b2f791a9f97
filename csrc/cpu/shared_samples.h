// Samples whose negatives are shared: sample number s of an epoch belongs to block s / size, and each block draws one
// list of K items from all items, as sample number 2^62 + block of a user without interactions would draw its
// negatives. Slot j of a sample has the first item of the list, from place j on and around its end, that the user does
// not have: the first of a row of independent draws that is a negative, so that each slot is distributed as any
// negative is. Where the user has all of them, the sample has the negatives that it would have without sharing.
// zerosum_ext/data/sampling.py says the same in PyTorch.
#pragma once

#include <vector>

#include "common/shared_negatives.h"
#include "cpu/mf_inputs.h"
#include "cpu/parallel.h"
#include "cpu/sampling.h"

namespace zx::cpu {

constexpr int64_t kSharedNumbers = int64_t{1} << 62;  // of samples: those of an epoch are less

// A slot of a sample that has the item in another place of the block's list: both as numbers in [samples, K].
struct Replaced {
  uint32_t slot, by;
};

// A block's samples [first, first + count) of those that were read.
struct SharedBlock {
  int64_t first = 0, count = 0;
  std::vector<Replaced> replaced;
  std::vector<uint32_t> alone;  // samples that share nothing
  std::vector<int64_t> own;     // [alone, K], the negatives of these
  std::vector<uint32_t> uses;   // [K], how many slots have each item of the list
};

struct SharedIds {
  std::vector<int64_t> users, positives, items;  // items: [blocks, K]
  std::vector<SharedBlock> blocks;
  int64_t num_blocks = 0;
};

class SharedSamples {
 public:
  // Samples first .. first + count of an epoch, with k negatives.
  SharedSamples(int64_t count, int64_t first, int64_t size, int64_t k, int64_t num_users, int64_t num_items,
                DrawPositives positives, DrawNegatives lists, DrawNegatives negatives, FindHeld held)
      : count_(count),
        first_(first),
        size_(size),
        k_(k),
        num_users_(num_users),
        num_items_(num_items),
        positives_(std::move(positives)),
        lists_(std::move(lists)),
        negatives_(std::move(negatives)),
        held_(std::move(held)) {}

  int64_t count() const { return count_; }
  int64_t size() const { return size_; }
  int64_t num_negatives() const { return k_; }

  // Samples [begin, begin + n) of all.
  void read(int64_t begin, int64_t n, SharedIds& out) const {
    out.users.resize(static_cast<size_t>(n)), out.positives.resize(static_cast<size_t>(n));
    const int64_t number = first_ + begin, first_block = number / size_,
                  blocks = (number + n - 1) / size_ - first_block + 1;
    out.num_blocks = blocks;
    out.items.resize(static_cast<size_t>(blocks * k_));
    if (static_cast<int64_t>(out.blocks.size()) < blocks) out.blocks.resize(static_cast<size_t>(blocks));
    const std::vector<int64_t> nobody(static_cast<size_t>(blocks));
    std::atomic<bool> valid{
        positives_(number, n, out.users.data(), out.positives.data()) &&
        lists_(kSharedNumbers + first_block, blocks, nobody.data(), out.items.data()) == kNoneFailed &&
        first_outside(out.users.data(), n, num_users_) < 0 && first_outside(out.positives.data(), n, num_items_) < 0 &&
        first_outside(out.items.data(), blocks * k_, num_items_) < 0};
    deal_blocks(valid ? blocks : 0, 1, true, [&](int64_t b) {
      SharedBlock& block = out.blocks[static_cast<size_t>(b)];
      block.first = std::max<int64_t>(0, (first_block + b) * size_ - number);
      block.count = std::min(n, (first_block + b + 1) * size_ - number) - block.first;
      if (!share(number, out.users.data() + block.first, out.items.data() + b * k_, block)) valid = false;
    });
    ZX_CHECK(valid, "the samples name rows that the tables do not have, or users without negatives");
  }

 private:
  // Finds out which slots of a block's samples cannot have their own place's item. False if something is unsound.
  bool share(int64_t number, const int64_t* users, const int64_t* items, SharedBlock& block) const {
    block.alone.clear(), block.own.clear();
    block.uses.assign(static_cast<size_t>(k_), static_cast<uint32_t>(block.count));
    const int64_t words = (k_ + 63) / 64;
    static thread_local std::vector<uint64_t> held;
    held.resize(static_cast<size_t>(block.count * words));
    if (!held_(block.count, users, items, k_, held.data())) return false;
    // (Room for all: an entry costs less than to ask whether there is room for it.)
    int64_t taken = 0;
    for (const uint64_t word : held) taken += __builtin_popcountll(word);
    block.replaced.resize(static_cast<size_t>(taken));
    Replaced* replaced = block.replaced.data();
    for (int64_t i = 0; i < block.count; ++i) {
      const int64_t free = first_free(held.data() + i * words, words);
      if (free < 0) {
        if (!draw_own(number + block.first + i, users + i, static_cast<uint32_t>(i), block)) return false;
      } else {
        replaced = replace(held.data() + i * words, words, free, static_cast<uint32_t>(i), block.uses.data(), replaced);
      }
    }
    block.replaced.resize(static_cast<size_t>(replaced - block.replaced.data()));
    return true;
  }

  // The first place whose item the user does not have, where a search around the list's end stops; -1 if there is none.
  int64_t first_free(const uint64_t* taken, int64_t words) const {
    for (int64_t w = 0; w < words; ++w)
      if (taken[w] != ~uint64_t{0}) {
        const int64_t place = 64 * w + __builtin_ctzll(~taken[w]);
        return place < k_ ? place : -1;
      }
    return -1;
  }

  // Negatives of a sample that shares nothing.
  bool draw_own(int64_t number, const int64_t* user, uint32_t sample, SharedBlock& block) const {
    for (uint32_t& uses : block.uses) --uses;
    const size_t at = block.own.size();
    block.alone.push_back(sample);
    block.own.resize(at + static_cast<size_t>(k_));
    return negatives_(number, 1, user, block.own.data() + at) == kNoneFailed &&
           first_outside(block.own.data() + at, k_, num_items_) < 0;
  }

  // Writes the slots of a sample whose own places are taken, the last one first, to `out`; returns where they end.
  Replaced* replace(const uint64_t* taken, int64_t words, int64_t free, uint32_t sample, uint32_t* uses,
                    Replaced* out) const {
    const uint32_t first = sample * static_cast<uint32_t>(k_);
    for (int64_t w = words - 1; w >= 0; --w) {
      if (taken[w] == 0) {
        free = 64 * w;
        continue;
      }
      const uint64_t places = w == words - 1 && k_ % 64 != 0 ? (uint64_t{1} << k_ % 64) - 1 : ~uint64_t{0};
      const uint64_t others = ~taken[w] & places;
      for (uint64_t left = taken[w]; left != 0;) {
        const int bit = 63 - __builtin_clzll(left);
        left ^= uint64_t{1} << bit;
        const uint64_t above = others >> bit;  // (its lowest bit is not set)
        const int64_t slot = 64 * w + bit, column = above != 0 ? slot + __builtin_ctzll(above) : free;
        *out++ = {first + static_cast<uint32_t>(slot), first + static_cast<uint32_t>(column)};
        --uses[slot], ++uses[column];
      }
      if (others != 0) free = 64 * w + __builtin_ctzll(others);
    }
    return out;
  }

  int64_t count_, first_, size_, k_, num_users_, num_items_;
  DrawPositives positives_;
  DrawNegatives lists_, negatives_;
  FindHeld held_;
};

}  // namespace zx::cpu
