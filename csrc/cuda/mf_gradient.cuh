// The gradient of a loss of dot products with respect to the rows of the tables, from the derivative in each score, on
// the GPU.
//
// Deterministic: the batch sorted by row (sort_rows.cuh), each row's sum made in one order. A group of threads
// (rows.cuh) makes the sum of one row; rows that very many samples share, as those of popular items, are left to whole
// blocks. By atomics: each sample adds to the rows that it touches, in whatever order; no sort, but other bits each
// time.
#pragma once

#include "cuda/loss_common.cuh"
#include "cuda/rows.cuh"
#include "cuda/sort_rows.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kGradientThreads = 256;
constexpr int64_t kGradientBlocks = 1 << 14;  // at most: more rows are walked in strides
constexpr int64_t kLongRow = 256;             // terms of a sum from which on a block makes it
constexpr unsigned kLongBlocks = 512;         // at most, to make those

// One side's gradient. Row r of the result belongs to row number r of those that occur, or of the table (dense).
template <class S>
struct GradientArgs {
  using C = arithmetic_t<S>;
  const S *own, *other;  // the table that the gradient is of, and the one whose rows it is made of
  int64_t num_own, num_other;
  RowShape shape;
  BatchIds items;        // [samples, J]
  const int64_t* users;  // [samples]
  bool by_user;
  const C* coefficient;  // [samples, J]
  const C* scale;        // [1]
  double l2;
  SortedRows sorted;
  int64_t rows;  // of the result; more than occur are padding, numbered num_own
  bool dense;
  int64_t* names;   // [rows], or null (dense)
  S* values;        // [rows, dim], or null: not wanted
  S* bias;          // [rows], or null
  unsigned* longs;  // [n / kLongRow + 1]: their number, and the places of rows that have more terms than kLongRow

  __device__ __forceinline__ int64_t columns() const { return items.first_columns + items.second_columns; }
  // Terms of a place in the sorted batch: a user's sample has J items, an item's occurrence one user.
  __device__ __forceinline__ int64_t terms_each() const { return by_user ? columns() : 1; }
};

// A term of a sum: a row of the other table and its factor, NaN where the row does not exist.
template <class S>
__device__ __forceinline__ Term<arithmetic_t<S>> term_of(const GradientArgs<S>& a, int64_t number,
                                                         arithmetic_t<S> scale) {
  const unsigned columns = static_cast<unsigned>(a.columns());
  int64_t id, at;
  if (a.by_user) {
    const int64_t place = number / columns, j = number - place * columns, sample = a.sorted.order[0][place];
    id = a.items.at(sample, j), at = sample * columns + j;
  } else {
    at = a.sorted.order[0][number];
    id = a.users[static_cast<unsigned>(at) / columns];
  }
  const bool exists = static_cast<uint64_t>(id) < static_cast<uint64_t>(a.num_other);
  using C = arithmetic_t<S>;
  return {exists ? id : 0, exists ? scale * a.coefficient[at] : static_cast<C>(NAN)};
}

// Finishes a piece of a row's sum and stores it.
template <int N, class S>
__device__ __forceinline__ void store_row(const GradientArgs<S>& a, int lane, int64_t c0, int64_t row, int64_t target,
                                          arithmetic_t<S> decay, Sums<N, arithmetic_t<S>>& sums) {
  if (decay != 0) add_row<N>(a.shape, lane, c0, a.own + row * a.shape.dim, decay, sums);
  store_sums<N>(a.shape, lane, c0, a.values + target * a.shape.dim, sums);
}

template <class S>
__global__ void __launch_bounds__(kGradientThreads, 3) gradient_rows_kernel(const GradientArgs<S> a) {
  using C = arithmetic_t<S>;
  const int width = a.shape.width, lane = threadIdx.x % width;
  const int64_t per_block = kGradientThreads / width, count = *a.sorted.count, each = a.terms_each();
  const int64_t slots = a.dense ? count : a.rows;
  const C scale = *a.scale;
  for (int64_t first = blockIdx.x * per_block; first < slots; first += gridDim.x * per_block) {
    const int64_t slot = first + threadIdx.x / width;
    const bool live = slot < count;
    const int64_t begin = live ? a.sorted.starts[slot] : 0, end = live ? a.sorted.starts[slot + 1] : 0;
    const int64_t row = live ? a.sorted.keys[0][begin] : a.num_own, target = a.dense ? row : slot;
    if (a.names != nullptr && lane == 0 && slot < slots) a.names[slot] = row;
    int64_t terms = (end - begin) * each;
    const bool mine = live && terms <= kLongRow;
    if (live && !mine) {
      terms = 0;
      if (lane == 0) a.longs[1 + atomicAdd(a.longs, 1u)] = static_cast<unsigned>(slot);
    }
    const int64_t most = warp_combine(terms, kWarp, Larger{});
    const auto term = [&](int64_t t) { return term_of(a, begin * each + t, scale); };
    const C decay = static_cast<C>(a.l2) * scale * static_cast<C>(end - begin);
    C total = 0;
    with_pack<S>(a.shape, [&](auto size) {
      constexpr int N = decltype(size)::value;
      int64_t c0 = 0;
      do {  // once at least: the bias needs the factors, whatever the width
        Sums<N, C> sums = {};
        C factors = 0;
        add_terms<N>(a.shape, lane, c0, a.other, terms, most, 0, 1, term, sums, factors);
        if (c0 == 0) total = factors;
        if (mine && a.values != nullptr) store_row<N>(a, lane, c0, row, target, decay, sums);
        c0 += 2 * width * N;
      } while (a.values != nullptr && c0 < a.shape.dim);
    });
    if (a.bias != nullptr) {
      total = warp_combine(total, width, Add{});
      if (mine && lane == 0) a.bias[target] = narrow<S>(total);
    }
  }
}

// The rows that the kernel before has put on its list.
template <class S>
__global__ void __launch_bounds__(kGradientThreads, 2) gradient_long_rows_kernel(const GradientArgs<S> a) {
  using C = arithmetic_t<S>;
  const int width = a.shape.width, lane = threadIdx.x % width;
  const int group = threadIdx.x / width, groups = kGradientThreads / width;
  const int64_t each = a.terms_each();
  const unsigned count = a.longs[0];
  const C scale = *a.scale;
  for (unsigned i = blockIdx.x; i < count; i += gridDim.x) {
    const int64_t slot = a.longs[1 + i], begin = a.sorted.starts[slot], end = a.sorted.starts[slot + 1];
    const int64_t row = a.sorted.keys[0][begin], target = a.dense ? row : slot, terms = (end - begin) * each;
    const auto term = [&](int64_t t) { return term_of(a, begin * each + t, scale); };
    const C decay = static_cast<C>(a.l2) * scale * static_cast<C>(end - begin);
    C total = 0;
    with_pack<S>(a.shape, [&](auto size) {
      constexpr int N = decltype(size)::value;
      int64_t c0 = 0;
      do {
        Sums<N, C> sums = {};
        C factors = 0;
        add_terms<N>(a.shape, lane, c0, a.other, terms, terms, group, groups, term, sums, factors);
        if (c0 == 0) total = factors;
        combine_groups<kGradientThreads, kRowPack<S>>(a.shape, sums);
        if (group == 0 && a.values != nullptr) store_row<N>(a, lane, c0, row, target, decay, sums);
        c0 += 2 * width * N;
      } while (a.values != nullptr && c0 < a.shape.dim);
    });
    if (a.bias != nullptr) {
      total = block_combine<kGradientThreads>(total, Add{});
      if (threadIdx.x == 0) a.bias[target] = narrow<S>(total);
    }
  }
}

// ---- by atomics -----------------------------------------------------------------------------------------------------

// Dense gradients of both sides, 0 beforehand; any of them may be null. A group of `width` threads to a sample.
template <class S>
struct AtomicArgs {
  const S *user, *item;
  int64_t num_users, num_items, dim;
  int width;
  BatchIds items;
  const int64_t* users;
  int64_t samples;
  const S* coefficient;
  const S* scale;
  double l2;
  S *user_values, *item_values, *bias_values;
};

template <class S>
__global__ void __launch_bounds__(kGradientThreads) gradient_atomics_kernel(const AtomicArgs<S> a) {
  const int lane = threadIdx.x % a.width;
  const int64_t per_block = kGradientThreads / a.width, columns = a.items.first_columns + a.items.second_columns;
  const S scale = *a.scale, decay = static_cast<S>(a.l2) * scale;
  const auto outside = [](int64_t id, int64_t size) {
    return static_cast<uint64_t>(id) >= static_cast<uint64_t>(size);
  };
  for (int64_t sample = blockIdx.x * per_block + threadIdx.x / a.width; sample < a.samples;
       sample += gridDim.x * per_block) {
    const int64_t user = a.users[sample];
    const bool no_user = outside(user, a.num_users);
    const S* x = a.user + (no_user ? 0 : user) * a.dim;
    const S* factors = a.coefficient + sample * columns;
    if (a.bias_values != nullptr)
      for (int64_t j = lane; j < columns; j += a.width) {
        const int64_t item = a.items.at(sample, j);
        if (!outside(item, a.num_items)) atomicAdd(a.bias_values + item, no_user ? S(NAN) : scale * factors[j]);
      }
    for (int64_t c = lane; c < a.dim; c += a.width) {
      const S own = a.num_users > 0 ? x[c] : S(0);
      S sum = decay * own;
      for (int64_t j = 0; j < columns; ++j) {
        const int64_t item = a.items.at(sample, j);
        if (outside(item, a.num_items)) {
          sum = S(NAN);
          continue;
        }
        const S f = no_user ? S(NAN) : scale * factors[j], y = a.item[item * a.dim + c];
        sum += f * y;
        if (a.item_values != nullptr) atomicAdd(a.item_values + item * a.dim + c, f * own + decay * y);
      }
      if (a.user_values != nullptr && !no_user) atomicAdd(a.user_values + user * a.dim + c, sum);
    }
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

// Numbers that GradientArgs::longs must hold, for n sorted positions of `each` terms.
inline int64_t long_rows(int64_t n, int64_t each) { return n * each / kLongRow + 1; }

// Sums of rows after sort_rows; longs[0] is 0 and, for a dense result, values and bias are 0 beforehand.
template <class S>
void gradient_rows(GradientArgs<S> a, int64_t n, gpuStream stream) {
  // Of an empty table nothing is read.
  a.shape = row_shape<S>(a.num_own > 0 && a.num_other > 0 ? a.shape.dim : 0, {a.own, a.other, a.values});
  const int64_t slots = a.dense ? sort_slots(n, a.num_own) : a.rows;
  if (slots == 0) return;
  const int64_t per_block = kGradientThreads / a.shape.width, wanted = (slots + per_block - 1) / per_block;
  GPU_LAUNCH((gradient_rows_kernel<S>), static_cast<unsigned>(wanted < kGradientBlocks ? wanted : kGradientBlocks),
             kGradientThreads, 0, stream)
  (a);
  const int64_t most = long_rows(n, a.by_user ? a.items.first_columns + a.items.second_columns : 1) - 1;
  if (most == 0) return;
  GPU_LAUNCH((gradient_long_rows_kernel<S>), most < kLongBlocks ? static_cast<unsigned>(most) : kLongBlocks,
             kGradientThreads, 0, stream)
  (a);
}

template <class S>
void gradient_atomics(AtomicArgs<S> a, gpuStream stream) {
  if (a.samples == 0) return;
  a.width = 1;
  while (a.width < kWarp && a.width < a.dim) a.width *= 2;
  const int64_t per_block = kGradientThreads / a.width, wanted = (a.samples + per_block - 1) / per_block;
  GPU_LAUNCH((gradient_atomics_kernel<S>), static_cast<unsigned>(wanted < kGradientBlocks ? wanted : kGradientBlocks),
             kGradientThreads, 0, stream)
  (a);
}

}  // namespace GPU_NS
}  // namespace zx
