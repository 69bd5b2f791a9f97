// Samples for other kernels of the CPU, as the sampling ops draw them.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <optional>

#include "common/sampler.h"
#include "torch_stable.h"

namespace zx::cpu {

constexpr int64_t kNoneFailed = std::numeric_limits<int64_t>::max();

// Write samples number first .. first + rows: their users [rows] and positives [rows, 1 or 2], and the negatives
// [rows, k] of given users. Positives return false if the matrix or its indices contradict each other: then some rows
// are not written. Negatives return the first row whose user is out of range or lacks them, or kNoneFailed.
// Threads may draw at the same time; the tensors must live as long as the functions.
using DrawPositives = std::function<bool(int64_t first, int64_t rows, int64_t* users, int64_t* items)>;
using DrawNegatives = std::function<int64_t(int64_t first, int64_t rows, const int64_t* users, int64_t* items)>;

// (Arguments: as those of sample_positives and sample_negatives in csrc/library.cpp. With numbers, sample i in a call
// is number numbers[i], for the i from first. complements: of the rows of this matrix that have such sums.)
DrawPositives draw_positives(const Tensor& indptr, const Tensor& indices, const Tensor& hint, int64_t hint_shift,
                             const std::optional<Tensor>& gaps, const std::optional<Tensor>& active, int64_t order,
                             int64_t kept, int64_t total, int64_t positives, int64_t seed, int64_t epoch);
DrawNegatives draw_negatives(const Tensor& indptr, const Tensor& indices, const std::optional<Tensor>& filter,
                             const std::optional<Tensor>& slots, const std::optional<Tensor>& masses, int64_t num_items,
                             int64_t k, int64_t seed, int64_t epoch, bool replacement, const int64_t* numbers = nullptr,
                             const ComplementSums& complements = {});

// Writes whether users[r] of a matrix has items[j] to bit j of held[r, 0 .. k / 64), for k up to kMostHeld items, which
// must be in range. False if a user is out of range, or the matrix unsound.
using FindHeld =
    std::function<bool(int64_t rows, const int64_t* users, const int64_t* items, int64_t k, uint64_t* held)>;
constexpr int64_t kMostHeld = 65535;
FindHeld find_held(const Tensor& indptr, const Tensor& indices, const std::optional<Tensor>& filter, int64_t num_items);

}  // namespace zx::cpu
