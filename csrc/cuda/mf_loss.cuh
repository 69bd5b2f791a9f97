// A loss of dot products of embedding rows on the GPU: gather, products, loss and derivatives in one kernel, after
// which only the derivative with respect to each score is left in memory, [B, J] (positives first).
//
// A group of threads (rows.cuh) multiplies the rows of one sample after the other; all its lanes then know each score.
// A loss costs more instructions than a product of short rows, so that it is not evaluated by all lanes at once for the
// same sample: each lane keeps the scores of a sample of its own (or, where a sample has K negatives, of a negative of
// its own) until every lane has some, and then all evaluate together.
//
// Which loss it is, kernels find out when they run: that is one jump for the scores of a warp, beside the products of
// rows. A kernel for each loss took four times as long to compile, and as much room.
#pragma once

#include "cuda/loss_common.cuh"
#include "cuda/rows.cuh"

#include "common/csr.h"

namespace zx {
inline namespace GPU_NS {

constexpr int kMfThreads = 256;
constexpr int64_t kMfEnough = 1 << 16;  // threads that keep a GPU busy; beyond them a group takes several samples
constexpr int kMfColumns = 4;           // negatives whose rows are on their way together

template <class S>
struct MfArgs {
  using C = arithmetic_t<S>;
  Loss loss;
  const S *user, *item;  // [num_users, dim], [num_items, dim]
  const S* bias;         // [num_items] or null
  const C* constants;    // [num_items] or null: what a loss takes beside each item
  int64_t num_users, num_items;
  RowShape shape;
  const int64_t *users, *positives, *negatives;  // [rows], [rows] or [rows, 2], [rows, k]
  int64_t rows, k;
  const C* weight;  // [rows] or [rows, k], or null
  bool weight_per_pair;
  C* coefficient;  // [rows, J]; row losses keep their scores here; else null where no derivatives are wanted
  bool grad;
  void* values;  // one for each sample where nothing is summed, else null
  int64_t tile;  // samples
  TileSum sum;   // of value and decay, both scaled
  int each;      // samples that a group takes at a time, where it has one negative for each
  Params<double> params;
  double scale;     // of value and derivatives: 1, or 1 / samples for the mean
  double decay;     // of the rows' squared norms in the value
  double log_cols;  // log k
  unsigned long long* failed;
};

// An id, or -1 where it names no row; its place among all ids is then reported. What is computed with it is NaN.
__device__ __forceinline__ int64_t checked_id(int64_t id, int64_t size, int64_t place, unsigned long long* failed) {
  if (static_cast<uint64_t>(id) < static_cast<uint64_t>(size)) return id;
  atomicMin(failed, static_cast<unsigned long long>(place));
  return -1;
}

template <class S>
__device__ __forceinline__ arithmetic_t<S> score_of(const MfArgs<S>& a, arithmetic_t<S> product, int64_t user,
                                                    int64_t item) {
  if (user < 0 || item < 0) return static_cast<arithmetic_t<S>>(NAN);
  return a.bias != nullptr ? product + widen(a.bias[item]) : product;
}

template <class S>
__device__ __forceinline__ arithmetic_t<S> constant_of(const MfArgs<S>& a, int64_t item) {
  return a.constants != nullptr && item >= 0 ? a.constants[item] : arithmetic_t<S>(0);
}

// The value of the element loss of so many scores, and its derivatives; x: the items' constants.
template <int kScores, class C>
__device__ __forceinline__ C element_loss(Loss loss, const C (&s)[kScores], const C (&x)[kScores],
                                          const Params<C>& params, C (&d)[kScores]) {
  switch (loss) {
#define ZX_CASE(kind, name, type)                                               \
  case Loss::kind:                                                              \
    if constexpr (type::kScores == kScores) return type::eval(s, x, params, d); \
    break;
    ZX_PAIR_LOSSES(ZX_CASE)
    ZX_QUAD_LOSSES(ZX_CASE)
#undef ZX_CASE
    default:
      break;
  }
  __builtin_unreachable();
}

// Element losses with one negative for each positive: kItems scores a sample.
template <int kItems, class S>
__global__ void __launch_bounds__(kMfThreads, 3) mf_samples_kernel(const MfArgs<S> a) {
  using C = arithmetic_t<S>;
  constexpr int kHalf = kItems / 2;  // positives, and negatives
  const int width = a.shape.width, lane = threadIdx.x % width;
  const int64_t dim = a.shape.dim, per_block = kMfThreads / width * a.each;
  const Params<C> params{static_cast<C>(a.params.a), static_cast<C>(a.params.b), static_cast<C>(a.params.c)};
  for_each_tile<C>(a.sum, [&](int64_t tile) {
    const int64_t end = (tile + 1) * a.tile < a.rows ? (tile + 1) * a.tile : a.rows;
    double total = 0;
    // All threads take every turn, with or without a sample: the shuffles need them.
    for (int64_t first = tile * a.tile; first < end; first += per_block) {
      const int64_t group = first + threadIdx.x / width * a.each, mine = group + lane;
      const bool live = lane < a.each && mine < end;
      int64_t user = 0, items[kItems] = {};
      if (live) {
        user = checked_id(a.users[mine], a.num_users, mine, a.failed);
#pragma unroll
        for (int j = 0; j < kItems; ++j) {
          const int64_t at = mine * kHalf + j % kHalf;
          const int64_t id = j < kHalf ? a.positives[at] : a.negatives[at];
          items[j] = checked_id(id, a.num_items, a.rows * (j < kHalf ? 1 : 1 + kHalf) + at, a.failed);
        }
      }
      C s[kItems] = {}, squares = 0;
      for (int i = 0; i < a.each; ++i) {
        const S* row = row_at(a.user, __shfl_sync(kFullWarp, user, i, width), dim);
        const S* others[kItems];
#pragma unroll
        for (int j = 0; j < kItems; ++j) others[j] = row_at(a.item, __shfl_sync(kFullWarp, items[j], i, width), dim);
        C products[kItems];
        dots<kItems>(a.shape, lane, row, others, products);
#pragma unroll
        for (int j = 0; j < kItems; ++j)
          if (lane == i) s[j] = products[j];
        if (a.decay != 0 && group + i < end) {
          squares += squared_part(a.shape, lane, row);
#pragma unroll
          for (int j = 0; j < kItems; ++j) squares += squared_part(a.shape, lane, others[j]);
        }
      }
      total += a.decay * static_cast<double>(squares);
      if (!live) continue;

      C x[kItems], d[kItems];
#pragma unroll
      for (int j = 0; j < kItems; ++j) s[j] = score_of(a, s[j], user, items[j]), x[j] = constant_of(a, items[j]);
      const C w = a.weight != nullptr ? a.weight[mine] : C(1);
      const C value = w * element_loss(a.loss, s, x, params, d);
      if (a.values != nullptr) static_cast<S*>(a.values)[mine] = narrow<S>(value);
      total += a.scale * static_cast<double>(value);
      if (a.grad) {
        Pack<C, kItems> out;
#pragma unroll
        for (int j = 0; j < kItems; ++j) out.v[j] = static_cast<C>(a.scale) * w * d[j];
        store_pack(a.coefficient + mine * kItems, out);
      }
    }
    return total;
  });
}

// Losses of pairs, or of rows (kRow), with k negatives for a positive, a group to a sample. A lane owns the negatives
// number lane, lane + width, ...; what is stored for them, it alone reads again.
template <bool kRow, class S>
__global__ void __launch_bounds__(kMfThreads, 3) mf_negatives_kernel(const MfArgs<S> a) {
  using C = arithmetic_t<S>;
  const int width = a.shape.width, lane = threadIdx.x % width;
  if (width > kWarp) __builtin_unreachable();  // code for groups of several warps is left out
  const int64_t dim = a.shape.dim, per_block = kMfThreads / width;
  const Params<C> params{static_cast<C>(a.params.a), static_cast<C>(a.params.b), static_cast<C>(a.params.c)};
  const C scale = static_cast<C>(a.scale);
  for_each_tile<C>(a.sum, [&](int64_t tile) {
    const int64_t end = (tile + 1) * a.tile < a.rows ? (tile + 1) * a.tile : a.rows;
    double total = 0;
    for (int64_t first = tile * a.tile; first < end; first += per_block) {
      const int64_t sample = first + threadIdx.x / width;
      const bool live = sample < end;
      int64_t user = 0, positive = 0;
      if (live) {
        user = checked_id(a.users[sample], a.num_users, sample, a.failed);
        positive = checked_id(a.positives[sample], a.num_items, a.rows + sample, a.failed);
      }
      const S* row = row_at(a.user, user, dim);
      C squares = 0, p;
      {
        const S* const one[1] = {row_at(a.item, positive, dim)};
        C product[1];
        dots<1>(a.shape, lane, row, one, product);
        p = score_of(a, product[0], user, positive);
        if (a.decay != 0 && live) squares = squared_part(a.shape, lane, row) + squared_part(a.shape, lane, one[0]);
      }
      const C x_p = constant_of(a, positive);
      const C w_row = live && a.weight != nullptr && !a.weight_per_pair ? a.weight[sample] : C(1);
      C* scores = a.coefficient + (live ? sample : 0) * (a.k + 1) + 1;
      C d_pos = 0;

      for (int64_t j0 = 0; j0 < a.k; j0 += width) {
        const int64_t j = j0 + lane, at = sample * a.k + j;
        const bool mine = live && j < a.k;
        const int64_t item = mine ? checked_id(a.negatives[at], a.num_items, 2 * a.rows + at, a.failed) : int64_t(0);
        C score = 0;
        const int turns = a.k - j0 < width ? int(a.k - j0) : width;
        for (int i = 0; i < turns; i += kMfColumns) {
          const S* others[kMfColumns];
          C products[kMfColumns];
#pragma unroll
          for (int m = 0; m < kMfColumns; ++m)
            others[m] = row_at(a.item, __shfl_sync(kFullWarp, item, i + m, width), dim);
          dots<kMfColumns>(a.shape, lane, row, others, products);
#pragma unroll
          for (int m = 0; m < kMfColumns; ++m) {
            if (lane == i + m) score = products[m];
            if (a.decay != 0 && live && i + m < turns) squares += squared_part(a.shape, lane, others[m]);
          }
        }
        score = score_of(a, score, user, item);
        if constexpr (kRow) {
          if (mine) scores[j] = score;
        } else if (mine) {
          const C s[2] = {p, score}, x[2] = {x_p, constant_of(a, item)};
          const C w = a.weight != nullptr && a.weight_per_pair ? a.weight[at] : w_row;
          C d[2];
          const C value = w * element_loss(a.loss, s, x, params, d);
          if (a.values != nullptr) static_cast<S*>(a.values)[at] = narrow<S>(value);
          total += a.scale * static_cast<double>(value);
          d_pos += scale * w * d[0];
          if (a.grad) scores[j] = scale * w * d[1];
        }
      }
      total += a.decay * static_cast<double>(squares);

      if constexpr (kRow) {
        const auto evaluate = [&](auto loss) {
          using Type = decltype(loss);
          const auto logit = [&](int64_t col) {
            C x = 0;
            if (a.constants != nullptr) {
              const int64_t item = a.negatives[sample * a.k + col];
              x = constant_of(a, is_item(item, a.num_items) ? item : int64_t(-1));
            }
            return Type::logit(p, scores[col], x, params);
          };
          const auto store = [&](int64_t col, C g) { scores[col] = g; };
          return evaluate_row<Type>(live ? a.k : int64_t(0), lane, width, logit, p, x_p, scale * w_row,
                                    static_cast<C>(a.log_cols), params, a.grad, store);
        };
        const RowResult<C> f = with_row_loss<C>(a.loss, evaluate);
        d_pos = f.grad_pos;
        if (live && lane == 0) {
          if (a.values != nullptr) static_cast<S*>(a.values)[sample] = narrow<S>(w_row * f.value);
          total += a.scale * static_cast<double>(w_row * f.value);
        }
      } else {
        d_pos = warp_combine(d_pos, width, Add{});
      }
      if (a.grad && live && lane == 0) scores[-1] = d_pos;
    }
    return total;
  });
}

// ---- launching ------------------------------------------------------------------------------------------------------

// What a call works on, of any element type; pointers as in MfArgs.
struct MfProblem {
  const void *user = nullptr, *item = nullptr, *bias = nullptr, *constants = nullptr, *weight = nullptr;
  int64_t num_users = 0, num_items = 0, dim = 0;
  const int64_t *users = nullptr, *positives = nullptr, *negatives = nullptr;
  int64_t rows = 0, k = 1;
  bool weight_per_pair = false;
  void* value = nullptr;
  void* coefficient = nullptr;  // row losses need it without grad too
  bool grad = false;
  double* workspace = nullptr;    // kSumWorkspace numbers, for sums
  unsigned long long ticket = 0;  // of this launch: loss_common.cuh
  Reduction reduction = Reduction::kMean;
  double a = 1, b = 1, c = 1, l2 = 0;
  unsigned long long* failed = nullptr;  // -1 beforehand
  int each = 0;                          // 0: by the number of samples
};

inline bool needs_scores(Loss loss, bool grad) { return grad || shape_of(loss) == Shape::kRow; }

template <class S>
void run_mf_loss(Loss loss, const MfProblem& p, gpuStream stream) {
  using C = arithmetic_t<S>;
  const Shape kind = shape_of(loss);
  const bool single = kind == Shape::kQuad || (kind == Shape::kPair && p.k == 1);
  MfArgs<S> a{};
  a.loss = loss;
  a.user = static_cast<const S*>(p.user), a.item = static_cast<const S*>(p.item);
  a.bias = static_cast<const S*>(p.bias), a.constants = static_cast<const C*>(p.constants);
  a.num_users = p.num_users, a.num_items = p.num_items;
  a.shape = row_shape<S>(p.num_users > 0 && p.num_items > 0 ? p.dim : 0, {p.user, p.item}, single ? 1 : kMfColumns);
  a.users = p.users, a.positives = p.positives, a.negatives = p.negatives;
  a.rows = p.rows, a.k = p.k;
  a.weight = static_cast<const C*>(p.weight), a.weight_per_pair = p.weight_per_pair;
  a.coefficient = static_cast<C*>(p.coefficient), a.grad = p.grad;
  const bool keep = p.reduction == Reduction::kNone;
  a.values = keep ? p.value : nullptr;
  a.params = {p.a, p.b, p.c};
  const double rows = static_cast<double>(p.rows), k = static_cast<double>(p.k);
  a.scale = loss_scale(p.reduction, kind == Shape::kPair ? rows * k : rows);
  a.decay = 0.5 * p.l2 * loss_scale(p.reduction, rows);
  a.log_cols = p.k > 0 ? std::log(k) : 0;
  a.failed = p.failed;
  a.each = p.each > 0 ? p.each : 1;
  while (single && p.each == 0 && a.each < a.shape.width && a.rows * a.shape.width / (2 * a.each) >= kMfEnough)
    a.each *= 2;
  const int64_t per_block = kMfThreads / a.shape.width * (single ? a.each : 1);
  a.tile = tile_size(a.rows, per_block, 1);
  a.sum = tile_sum(a.rows, a.tile, keep ? nullptr : p.workspace, p.ticket, p.value, 1.0);
  if (kind == Shape::kQuad)
    ZX_LAUNCH_TILES((mf_samples_kernel<4, S>), a, stream);
  else if (single)
    ZX_LAUNCH_TILES((mf_samples_kernel<2, S>), a, stream);
  else if (kind == Shape::kPair)
    ZX_LAUNCH_TILES((mf_negatives_kernel<false, S>), a, stream);
  else
    ZX_LAUNCH_TILES((mf_negatives_kernel<true, S>), a, stream);
}

inline void mf_loss(Element element, Loss loss, const MfProblem& p, gpuStream stream) {
  with_element(element, [&](auto zero) { run_mf_loss<decltype(zero)>(loss, p, stream); });
}

}  // namespace GPU_NS
}  // namespace zx
