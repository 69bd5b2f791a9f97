// Where training has its samples from: tensors of ids, or a sampler that draws them when they are needed.
#pragma once

#include <vector>

#include "cpu/mf_inputs.h"
#include "cpu/parallel.h"
#include "cpu/sampling.h"

namespace zx::cpu {

// Ids of samples that were drawn.
struct DrawnIds {
  std::vector<int64_t> users, positives, negatives;

  size_t bytes() const { return sizeof(int64_t) * (users.capacity() + positives.capacity() + negatives.capacity()); }
};

class MfSamples {
 public:
  using Inputs = MfInputs<float, float>;

  // All samples of `in`, whose ids must be in range.
  MfSamples(const Inputs& in, int64_t count) : in_(in), count_(count) {}

  // Samples first .. first + count of an epoch. `in` has no ids, but how many positives and negatives a sample has;
  // tables of num_users and num_items rows.
  MfSamples(const Inputs& in, int64_t count, int64_t first, int64_t num_users, int64_t num_items,
            DrawPositives positives, DrawNegatives negatives)
      : in_(in),
        count_(count),
        first_(first),
        num_users_(num_users),
        num_items_(num_items),
        positives_(std::move(positives)),
        negatives_(std::move(negatives)) {}

  int64_t count() const { return count_; }
  int64_t items() const { return in_.items(); }
  int64_t num_negatives() const { return in_.num_negatives; }

  // Samples [begin, begin + n) of all; `own` keeps the ids of drawn ones. together: by all threads.
  Inputs read(int64_t begin, int64_t n, DrawnIds& own, bool together) const {
    Inputs in = in_;
    if (positives_ == nullptr) {
      in.users += begin, in.positives += begin * in.num_positives, in.negatives += begin * in.num_negatives;
      return in;
    }
    own.users.resize(static_cast<size_t>(n));
    own.positives.resize(static_cast<size_t>(n * in.num_positives));
    own.negatives.resize(static_cast<size_t>(n * in.num_negatives));
    const int64_t each = std::max(kLeastRows, kDrawnTask / std::max<int64_t>(1, in.num_negatives));
    const int64_t tasks = (n + each - 1) / each;
    std::atomic<bool> valid{true};
    deal_blocks(tasks, together ? 1 : tasks, true, [&](int64_t task) {
      const int64_t from = task * each, rows = std::min(n - from, each);
      if (!draw(begin + from, rows, own.users.data() + from, own.positives.data() + from * in.num_positives,
                own.negatives.data() + from * in.num_negatives))
        valid = false;
    });
    ZX_CHECK(valid, "the samples name rows that the tables do not have, or users without negatives");
    in.users = own.users.data(), in.positives = own.positives.data(), in.negatives = own.negatives.data();
    return in;
  }

 private:
  static constexpr int64_t kDrawnTask = 4096, kLeastRows = 256;  // negatives that one thread draws at a time

  bool draw(int64_t begin, int64_t rows, int64_t* users, int64_t* positives, int64_t* negatives) const {
    return positives_(first_ + begin, rows, users, positives) &&
           negatives_(first_ + begin, rows, users, negatives) == kNoneFailed &&
           first_outside(users, rows, num_users_) < 0 &&
           first_outside(positives, rows * in_.num_positives, num_items_) < 0 &&
           first_outside(negatives, rows * in_.num_negatives, num_items_) < 0;
  }

  Inputs in_;
  int64_t count_, first_ = 0, num_users_ = 0, num_items_ = 0;
  DrawPositives positives_;
  DrawNegatives negatives_;
};

}  // namespace zx::cpu
