// Every loss of csrc/common/losses.h on the GPU: values, derivatives and reductions.
//
// A loss is one launch: values, their sum and the derivatives. Every input is read once, every output written once, 16
// bytes to a thread wherever alignment allows it. How sums are made, see loss_common.cuh: without atomics, in an order
// that depends on the size alone. The backward pass scales the derivatives where they lie, or does nothing where the
// factor is 1 (scale_kernel).
#pragma once

#include "cuda/loss_common.cuh"

namespace zx {
inline namespace GPU_NS {

// A tensor read by row and column; a stride of 0 repeats. `part` is the distance between the two scores of a user in
// losses that take [B, 2].
struct LossInput {
  const void* data;
  int64_t row, col, part;
};

// C is the type of the arithmetic.
template <class C, int kTensors, int kAux>
struct ElementArgs {
  int64_t rows, cols;
  LossInput scores[kTensors];
  LossInput aux[kAux + 1];
  LossInput weight;        // data is null where there is none
  void* grads[kTensors];   // contiguous; null (all of them): no derivatives
  bool per_row[kTensors];  // the gradient is [rows]: summed over the columns
  void* values;            // [rows, cols] where nothing is summed, else null
  bool packed;             // 16-byte accesses are allowed
  int width;               // threads that share a row (rows kernel): 1 .. 32, or the block
  int64_t tile;            // samples of a tile, or rows
  TileSum sum;
  Params<C> params;
  C scale;  // of the derivatives: 1, or 1 / samples for the mean
};

// Blocks of a multiprocessor that the registers must allow. Packs of 8 half floats with constants or with sums of rows,
// and five scores, take more than 80 registers; other packs of 8, and sums of rows, more than 64. Of doubles no speed
// is promised.
template <class Loss, class S, bool kRows>
constexpr int kResident = sizeof(S) == 8 || Loss::kScores > 4 || (sizeof(S) == 2 && (kRows || Loss::kAux > 0)) ? 2
                          : kRows || sizeof(S) == 2 ? 3
                                                    : kLossResident;

// How a loss's scores are laid out in its tensors.
template <class Loss>
struct Layout {
  static constexpr int kParts = Loss::kScores == 4 ? 2 : 1;
  static constexpr int kTensors = Loss::kScores / kParts;
  template <class S>
  using Args = ElementArgs<arithmetic_t<S>, kTensors, Loss::kAux>;
  // Samples that a thread takes at once: as many as have their scores in 16 bytes of each tensor, or in 8 where there
  // are so many tensors that a thread would run out of registers.
  template <class S>
  static constexpr int kPack = (kTensors > 2 ? 8 : 16) / int(sizeof(S)) / kParts;
};

// N values along the columns, contiguous and aligned (or one value, repeated).
template <class T, int N>
__device__ __forceinline__ Pack<T, N> load_columns(const LossInput& in, int64_t row, int64_t col) {
  // A pack's columns are neighbours, or one: no multiplication is needed to find them.
  const T* p = static_cast<const T*>(in.data) + row * in.row + (N > 1 ? (in.col != 0 ? col : 0) : col * in.col);
  if (N > 1 && in.col != 0) return load_pack<T, N>(p);
  Pack<T, N> pack;
  const T one = *p;
  for (int i = 0; i < N; ++i) pack.v[i] = one;
  return pack;
}

// Evaluates N samples at (row, col ...), stores their gradients and values, adds the gradients of tensors with one
// score a row to row_sums, and returns the sum of the (weighted, unscaled) values.
template <class Loss, class S, int N>
__device__ __forceinline__ arithmetic_t<S> evaluate(const typename Layout<Loss>::template Args<S>& a, int64_t row,
                                                    int64_t col, arithmetic_t<S>* row_sums) {
  using C = arithmetic_t<S>;
  constexpr int kTensors = Layout<Loss>::kTensors, kParts = Layout<Loss>::kParts;
  Pack<S, N * kParts> scores[kTensors], grads[kTensors];
  Pack<C, N> aux[Loss::kAux + 1], weight;
  Pack<S, N> values;
#pragma unroll
  for (int t = 0; t < kTensors; ++t) {
    const LossInput& in = a.scores[t];
    if constexpr (N == 1) {
      const S* p = static_cast<const S*>(in.data) + row * in.row + col * in.col;
      for (int part = 0; part < kParts; ++part) scores[t].v[part] = p[part * in.part];
    } else if constexpr (kParts == 1) {
      scores[t] = load_columns<S, N>(in, row, col);
    } else {
      scores[t] = load_pack<S, N * kParts>(static_cast<const S*>(in.data) + row * in.row + col * kParts);
    }
  }
#pragma unroll
  for (int x = 0; x < Loss::kAux; ++x) aux[x] = load_columns<C, N>(a.aux[x], row, col);
  const bool weighted = a.weight.data != nullptr;
  if (weighted) weight = load_columns<C, N>(a.weight, row, col);

  C total = 0;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    C s[Loss::kScores], x[Loss::kAux + 1], d[Loss::kScores];
#pragma unroll
    for (int k = 0; k < Loss::kScores; ++k) s[k] = widen(scores[k / kParts].v[i * kParts + k % kParts]);
#pragma unroll
    for (int k = 0; k < Loss::kAux; ++k) x[k] = aux[k].v[i];
    const C w = weighted ? weight.v[i] : C(1);
    const C value = w * Loss::eval(s, x, a.params, d);
    total += value;
    values.v[i] = narrow<S>(value);
#pragma unroll
    for (int k = 0; k < Loss::kScores; ++k) {
      const C g = a.scale * w * d[k];
      grads[k / kParts].v[i * kParts + k % kParts] = narrow<S>(g);
      if constexpr (kParts == 1) row_sums[k] += g;
    }
  }

  const int64_t at = row * a.cols + col;
  if (a.values != nullptr) store_pack(static_cast<S*>(a.values) + at, values);
  if (a.grads[0] != nullptr) {
#pragma unroll
    for (int t = 0; t < kTensors; ++t)
      if (!a.per_row[t]) store_pack(static_cast<S*>(a.grads[t]) + at * kParts, grads[t]);
  }
  return total;
}

// A thread adds up so many turns in the arithmetic's own precision, and those sums in double: on most GPUs an addition
// in double costs as much as 32 others, or 64.
constexpr int kTurnsInC = 8;

// Losses without a score that columns share: one long row, cols samples.
template <class Loss, class S>
__global__ void __launch_bounds__(kLossThreads, (kResident<Loss, S, false>))
    flat_loss_kernel(const typename Layout<Loss>::template Args<S> a) {
  using C = arithmetic_t<S>;
  constexpr int kPack = Layout<Loss>::template kPack<S>;
  for_each_tile<C>(a.sum, [&](int64_t tile) {
    const int64_t begin = tile * a.tile, end = begin + a.tile < a.cols ? begin + a.tile : a.cols;
    C unused[Loss::kScores] = {};
    double total = 0;
    int64_t rest = begin;
    if (a.packed) {  // tiles begin at multiples of a pack
      constexpr int64_t kTurn = kLossThreads * kPack;
      rest = end - end % kPack;
      for (int64_t first = begin; first < rest; first += kTurnsInC * kTurn) {
        const int64_t stop = first + kTurnsInC * kTurn < rest ? first + kTurnsInC * kTurn : rest;
        C some = 0;
        for (int64_t at = first + threadIdx.x * kPack; at < stop; at += kTurn)
          some += evaluate<Loss, S, kPack>(a, 0, at, unused);
        total += static_cast<double>(some);
      }
    }
    for (int64_t i = rest + threadIdx.x; i < end; i += kLossThreads)
      total += static_cast<double>(evaluate<Loss, S, 1>(a, 0, i, unused));
    return total;
  });
}

// [rows, cols] with scores that all columns of a row share: a.width threads to a row.
template <class Loss, class S>
__global__ void __launch_bounds__(kLossThreads, (kResident<Loss, S, true>))
    rows_loss_kernel(const typename Layout<Loss>::template Args<S> a) {
  using C = arithmetic_t<S>;
  constexpr int kPack = Layout<Loss>::template kPack<S>;
  const int lane = threadIdx.x % a.width;
  const int64_t rows_per_turn = kLossThreads / a.width;
  for_each_tile<C>(a.sum, [&](int64_t tile) {
    const int64_t end = (tile + 1) * a.tile < a.rows ? (tile + 1) * a.tile : a.rows;
    double total = 0;
    // All threads take every turn, with or without a row: the combinations below need them.
    for (int64_t first = tile * a.tile; first < end; first += rows_per_turn) {
      const int64_t row = first + threadIdx.x / a.width;
      C sums[Loss::kScores] = {};
      if (row < end) {
        C some = 0;
        int turns = 0;
        const auto add = [&](C value) {
          some += value;
          if (++turns % kTurnsInC != 0) return;
          total += static_cast<double>(some);
          some = 0;
        };
        if (a.packed) {
          for (int64_t col = lane * kPack; col < a.cols; col += a.width * kPack)
            add(evaluate<Loss, S, kPack>(a, row, col, sums));
        } else {
          for (int64_t col = lane; col < a.cols; col += a.width) add(evaluate<Loss, S, 1>(a, row, col, sums));
        }
        total += static_cast<double>(some);
      }
      if (a.grads[0] != nullptr) {
#pragma unroll
        for (int t = 0; t < Loss::kScores; ++t) {
          if (!a.per_row[t]) continue;
          const C sum = group_combine<kLossThreads>(sums[t], a.width, Add{});
          if (lane == 0 && row < end) static_cast<S*>(a.grads[t])[row] = narrow<S>(sum);
        }
      }
    }
    return total;
  });
}

// ---- losses of a row ------------------------------------------------------------------------------------------------

struct RowArgs {
  Loss loss;
  int64_t rows, cols;
  LossInput pos, neg, aux_pos, aux_neg, weight;  // of aux and weight, data may be null
  void* grad_pos;                                // [rows], with grad_neg [rows, cols]; null: no derivatives
  void* grad_neg;
  void* values;  // [rows] where nothing is summed, else null
  int width;
  int64_t tile;  // rows
  TileSum sum;
  double a, b, c;
  double scale, log_cols;
};

// Logits are recomputed in each pass, from scores that the first pass left in the L1 cache. Which loss it is, is looked
// up once a row: the grid has no more blocks than the registers of one kernel for all of them allow.
template <class S>
__global__ void __launch_bounds__(kLossThreads, kLossResident) softmax_loss_kernel(const RowArgs a) {
  using C = arithmetic_t<S>;
  const Params<C> params{static_cast<C>(a.a), static_cast<C>(a.b), static_cast<C>(a.c)};
  const int lane = threadIdx.x % a.width;
  const int64_t rows_per_turn = kLossThreads / a.width;
  for_each_tile<C>(a.sum, [&](int64_t tile) {
    const int64_t end = (tile + 1) * a.tile < a.rows ? (tile + 1) * a.tile : a.rows;
    double total = 0;
    for (int64_t first = tile * a.tile; first < end; first += rows_per_turn) {
      const int64_t row = first + threadIdx.x / a.width;
      const bool mine = row < end;
      const int64_t at = mine ? row : 0;  // threads beyond the last row have no columns, and store nothing
      const S* n = static_cast<const S*>(a.neg.data) + at * a.neg.row;
      const C* x = a.aux_neg.data != nullptr ? static_cast<const C*>(a.aux_neg.data) + at * a.aux_neg.row : nullptr;
      const C p = widen(static_cast<const S*>(a.pos.data)[at * a.pos.row]);
      const C x_p = a.aux_pos.data != nullptr ? static_cast<const C*>(a.aux_pos.data)[at * a.aux_pos.row] : C(0);
      const C w = a.weight.data != nullptr ? static_cast<const C*>(a.weight.data)[at * a.weight.row] : C(1);
      S* out = static_cast<S*>(a.grad_neg) + at * a.cols;
      const auto store = [&](int64_t col, C g) { out[col] = narrow<S>(g); };
      const auto evaluate = [&](auto loss) {
        using Type = decltype(loss);
        const auto logit = [&](int64_t col) {
          return Type::logit(p, widen(n[col * a.neg.col]), x != nullptr ? x[col * a.aux_neg.col] : C(0), params);
        };
        return evaluate_row<Type>(mine ? a.cols : 0, lane, a.width, logit, p, x_p, static_cast<C>(a.scale) * w,
                                  static_cast<C>(a.log_cols), params, a.grad_pos != nullptr, store);
      };
      const RowResult<C> f = with_row_loss<C>(a.loss, evaluate);
      if (mine && lane == 0) {
        total += static_cast<double>(w * f.value);
        if (a.values != nullptr) static_cast<S*>(a.values)[row] = narrow<S>(w * f.value);
        if (a.grad_pos != nullptr) static_cast<S*>(a.grad_pos)[row] = narrow<S>(f.grad_pos);
      }
    }
    return total;
  });
}

// ---- the backward pass ----------------------------------------------------------------------------------------------

constexpr int kMostScaled = 5;  // tensors

struct ScaleArgs {
  const void* factor;  // one number of arithmetic_t
  const void* from[kMostScaled];
  void* to[kMostScaled];  // from itself, or other memory
  int64_t size[kMostScaled];
  bool packed[kMostScaled];
  int tensors;
  bool in_place;
};

// Derivatives times the gradient of the loss. In place there is nothing to do where that is exactly 1, as it is in
// loss.backward(): the kernel is launched all the same, as the number lies on the device, and returns.
template <class S>
__global__ void __launch_bounds__(kLossThreads, kLossResident) scale_kernel(const ScaleArgs a) {
  using C = arithmetic_t<S>;
  constexpr int kPack = 16 / int(sizeof(S));
  const C factor = *static_cast<const C*>(a.factor);
  if (a.in_place && factor == C(1)) return;
  const int64_t thread = blockIdx.x * int64_t(kLossThreads) + threadIdx.x;
  const int64_t threads = gridDim.x * int64_t(kLossThreads);
  for (int t = 0; t < a.tensors; ++t) {
    const S* from = static_cast<const S*>(a.from[t]);
    S* to = static_cast<S*>(a.to[t]);
    int64_t done = 0;
    if (a.packed[t]) {
      const int64_t packs = a.size[t] / kPack;
      for (int64_t i = thread; i < packs; i += threads) {
        Pack<S, kPack> v = load_pack<S, kPack>(from + i * kPack);
#pragma unroll
        for (int k = 0; k < kPack; ++k) v.v[k] = narrow<S>(widen(v.v[k]) * factor);
        store_pack(to + i * kPack, v);
      }
      done = packs * kPack;
    }
    for (int64_t i = done + thread; i < a.size[t]; i += threads) to[i] = narrow<S>(widen(from[i]) * factor);
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

// A tensor of one or two dimensions, or none (data is null).
struct TensorRef {
  void* data = nullptr;
  int dim = 0;
  int64_t stride[2] = {};
};

// What a call works on. pos [rows], neg [rows] or [rows, cols] (then cols is 1 for the former); for losses of two
// positives and two negatives both are [rows, 2], and cols is 1. Constants and the weight are [rows] or [rows, cols].
// Outputs are contiguous and start at a multiple of 16 bytes.
struct PairProblem {
  int64_t rows = 0, cols = 1;
  TensorRef pos, neg, aux_pos, aux_neg, weight;
  void* value = nullptr;                          // one number, or a number for each sample
  void *grad_pos = nullptr, *grad_neg = nullptr;  // null: no derivatives
  double* workspace = nullptr;                    // kSumWorkspace numbers, for sums
  unsigned long long ticket = 0;                  // of this launch: loss_common.cuh
  Reduction reduction = Reduction::kMean;
  double a = 1, b = 1, c = 1;
};

// The same for macr_loss, of positive, negative, user branch and the two item branches.
struct MacrProblem {
  int64_t rows = 0, cols = 1;
  TensorRef scores[5], weight;
  void* value = nullptr;
  void* grads[5] = {};
  double* workspace = nullptr;
  unsigned long long ticket = 0;
  Reduction reduction = Reduction::kMean;
  double a = 0, b = 0;
};

// Threads for a row of `items`: as many as have work, up to a warp, or the block where a warp would be at it for long.
inline int row_width(int64_t items) {
  if (items > 16 * kWarp) return kLossThreads;
  int width = 1;
  while (width < items && width < kWarp) width *= 2;
  return width;
}

inline LossInput loss_input(const TensorRef& t, bool parts = false) {
  if (parts) return {t.data, t.stride[0], 0, t.stride[1]};
  return {t.data, t.stride[0], t.dim == 2 ? t.stride[1] : 0, 1};
}

// Whether columns can be read in 16-byte accesses; `step` is the distance of neighbouring columns if they can.
inline bool packable(const LossInput& in, int64_t rows, int64_t step, int64_t size) {
  if (in.data == nullptr || (in.col == 0 && step == 1)) return true;
  return in.col == step && in.part == 1 && aligned16(in.data) && (rows == 1 || in.row * size % 16 == 0);
}

// Where a launch's values go: into a sum, or one by one.
template <class Args, class Problem>
void set_sum(Args& a, int64_t units, const Problem& p, double scale) {
  const bool keep = p.reduction == Reduction::kNone;
  a.sum = tile_sum(units, a.tile, keep ? nullptr : p.workspace, p.ticket, p.value, scale);
}

// An element loss of rows x cols samples.
template <class Loss, class S, class Problem>
void run_element_loss(typename Layout<Loss>::template Args<S> a, const Problem& p, gpuStream stream) {
  using C = arithmetic_t<S>;
  constexpr int kParts = Layout<Loss>::kParts, kPack = Layout<Loss>::template kPack<S>;
  const double scale = loss_scale(p.reduction, static_cast<double>(p.rows) * static_cast<double>(p.cols));
  a.scale = static_cast<C>(scale);
  const bool flat = a.cols == 1;
  if (flat) {  // one long row
    const auto turn = [](LossInput& in) {
      in.col = in.row;
      in.row = 0;
    };
    for (LossInput& in : a.scores) turn(in);
    for (LossInput& in : a.aux) turn(in);
    turn(a.weight);
    for (bool& per_row : a.per_row) per_row = false;
    a.cols = a.rows;
    a.rows = 1;
  }
  constexpr int64_t kSize = sizeof(S), kConstantSize = sizeof(arithmetic_t<S>);
  a.packed = (flat || a.cols % kPack == 0) && packable(a.weight, a.rows, 1, kConstantSize) && aligned16(a.values);
  for (const LossInput& in : a.scores) a.packed &= packable(in, a.rows, kParts, kSize);
  for (const LossInput& in : a.aux) a.packed &= packable(in, a.rows, 1, kConstantSize);
  for (const void* grad : a.grads) a.packed &= aligned16(grad);

  if (flat) {
    a.tile = tile_size(a.cols, kLossThreads * kPack, kPack);
    set_sum(a, a.cols, p, scale);
    ZX_LAUNCH_TILES((flat_loss_kernel<Loss, S>), a, stream);
  } else if constexpr (kParts == 1) {  // losses of [B, 2] have one column
    a.width = row_width(a.cols / (a.packed ? kPack : 1));
    a.tile = tile_size(a.rows, kLossThreads / a.width, 1);
    set_sum(a, a.rows, p, scale);
    ZX_LAUNCH_TILES((rows_loss_kernel<Loss, S>), a, stream);
  }
}

template <class Loss, class S>
void run_pair_loss(const PairProblem& p, gpuStream stream) {
  constexpr bool kParts = Layout<Loss>::kParts == 2;
  typename Layout<Loss>::template Args<S> a{};
  a.rows = p.rows, a.cols = p.cols;
  a.scores[0] = loss_input(p.pos, kParts), a.scores[1] = loss_input(p.neg, kParts);
  if constexpr (Loss::kAux == 2) a.aux[0] = loss_input(p.aux_pos), a.aux[1] = loss_input(p.aux_neg);
  a.weight = loss_input(p.weight);
  a.grads[0] = p.grad_pos, a.grads[1] = p.grad_neg;
  a.per_row[0] = true;
  a.values = p.reduction == Reduction::kNone ? p.value : nullptr;
  using C = arithmetic_t<S>;
  a.params = {static_cast<C>(p.a), static_cast<C>(p.b), static_cast<C>(p.c)};
  run_element_loss<Loss, S>(a, p, stream);
}

template <class S>
void run_row_loss(Loss loss, const PairProblem& p, gpuStream stream) {
  RowArgs a{};
  a.loss = loss;
  a.rows = p.rows, a.cols = p.cols;
  a.pos = loss_input(p.pos), a.neg = loss_input(p.neg), a.weight = loss_input(p.weight);
  a.aux_pos = loss_input(p.aux_pos), a.aux_neg = loss_input(p.aux_neg);
  a.grad_pos = p.grad_pos, a.grad_neg = p.grad_neg;
  a.values = p.reduction == Reduction::kNone ? p.value : nullptr;
  a.a = p.a, a.b = p.b, a.c = p.c;
  a.scale = loss_scale(p.reduction, static_cast<double>(p.rows));
  a.log_cols = std::log(static_cast<double>(p.cols));
  a.width = row_width((a.cols + 3) / 4);
  a.tile = tile_size(a.rows, kLossThreads / a.width, 1);
  set_sum(a, a.rows, p, a.scale);
  ZX_LAUNCH_TILES((softmax_loss_kernel<S>), a, stream);
}

template <class S>
void run_macr_loss(const MacrProblem& p, gpuStream stream) {
  Layout<Macr>::template Args<S> a{};
  a.rows = p.rows, a.cols = p.cols;
  for (int t = 0; t < 5; ++t) {
    a.scores[t] = loss_input(p.scores[t]);
    a.grads[t] = p.grads[t];
    a.per_row[t] = p.scores[t].dim == 1;
  }
  a.weight = loss_input(p.weight);
  a.values = p.reduction == Reduction::kNone ? p.value : nullptr;
  using C = arithmetic_t<S>;
  a.params = {static_cast<C>(p.a), static_cast<C>(p.b), C(0)};
  run_element_loss<Macr, S>(a, p, stream);
}

template <class S>
void run_loss(Loss loss, const PairProblem& p, gpuStream stream) {
  if (shape_of(loss) == Shape::kRow) return run_row_loss<S>(loss, p, stream);
  switch (loss) {
#define ZX_CASE(kind, name, type) \
  case Loss::kind:                \
    return run_pair_loss<type, S>(p, stream);
    ZX_PAIR_LOSSES(ZX_CASE)
    ZX_QUAD_LOSSES(ZX_CASE)
#undef ZX_CASE
    default:
      return;
  }
}

inline void pair_loss(Element element, Loss loss, const PairProblem& p, gpuStream stream) {
  with_element(element, [&](auto zero) { run_loss<decltype(zero)>(loss, p, stream); });
}
inline void macr_loss(Element element, const MacrProblem& p, gpuStream stream) {
  with_element(element, [&](auto zero) { run_macr_loss<decltype(zero)>(p, stream); });
}

// Multiplies `tensors` contiguous tensors by a number on the device, in place or from `from` to `to`.
struct ScaleProblem {
  const void* factor = nullptr;
  const void* from[kMostScaled] = {};
  void* to[kMostScaled] = {};
  int64_t size[kMostScaled] = {};
  int tensors = 0;
};

inline void scale_gradients(Element element, const ScaleProblem& p, gpuStream stream) {
  with_element(element, [&](auto zero) {
    using S = decltype(zero);
    ScaleArgs a{};
    a.factor = p.factor, a.tensors = p.tensors, a.in_place = true;
    int64_t largest = 1;
    for (int t = 0; t < p.tensors; ++t) {
      a.from[t] = p.from[t], a.to[t] = p.to[t], a.size[t] = p.size[t];
      a.packed[t] = aligned16(p.from[t]) && aligned16(p.to[t]);
      a.in_place &= p.from[t] == p.to[t];
      largest = p.size[t] > largest ? p.size[t] : largest;
    }
    constexpr int64_t kTurn = kLossThreads * (16 / int64_t(sizeof(S)));
    GPU_LAUNCH((scale_kernel<S>), tile_blocks((largest + kTurn - 1) / kTurn), kLossThreads, 0, stream)(a);
  });
}

}  // namespace GPU_NS
}  // namespace zx
