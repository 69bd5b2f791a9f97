// What the kernels of pair_loss and of mf_loss share: sums in two steps, the passes over a row's negatives, and the
// choice of a loss and an element type.
#pragma once

#include "common/losses.h"
#include "cuda/reduce.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kLossThreads = 256;
constexpr int kLossBlocks = 2048;  // at most: more work is walked in strides

// ---- sums -----------------------------------------------------------------------------------------------------------

// A block's sum, to its place among the partial sums; the only block writes the result.
template <class S>
__device__ __forceinline__ void finish_block(double total, double* partials, void* value, double scale) {
  total = block_combine<kLossThreads>(total, Add{});
  if (threadIdx.x != 0) return;
  if (gridDim.x == 1)
    *static_cast<arithmetic_t<S>*>(value) = static_cast<arithmetic_t<S>>(total * scale);
  else
    partials[blockIdx.x] = total;
}

// The second step of a sum: one block adds the partial sums of all others. C is the type of the result.
template <class C>
__global__ void __launch_bounds__(kLossThreads, 2)
    add_partials_kernel(const double* partials, int blocks, double scale, C* value) {
  double total = 0;
  for (int i = threadIdx.x; i < blocks; i += kLossThreads) total += partials[i];
  total = block_combine<kLossThreads>(total, Add{});
  if (threadIdx.x == 0) *value = static_cast<C>(total * scale);
}

template <class S>
void finish_sum(unsigned blocks, bool keep_values, const double* partials, double scale, void* value,
                gpuStream stream) {
  using C = arithmetic_t<S>;
  if (keep_values || blocks == 1) return;
  GPU_LAUNCH((add_partials_kernel<C>), 1, kLossThreads, 0, stream)
  (partials, static_cast<int>(blocks), scale, static_cast<C*>(value));
}

// ---- a row loss ---------------------------------------------------------------------------------------------------

template <class C>
struct RowResult {
  C value;     // of the loss, without weight or scale
  C grad_pos;  // scale times the derivative in the positive's score
};

// The same for losses of the mean of the logits: a pass for the mean, and one for the gradients.
template <class Loss, class C, class LogitOf, class Store>
__device__ __forceinline__ RowResult<C> evaluate_mean_row(int64_t cols, int lane, int width, const LogitOf& logit, C p,
                                                          C x_p, C scale, C log_cols, const Params<C>& params,
                                                          bool grad, const Store& store) {
  C total = 0;
  for (int64_t col = lane; col < cols; col += width) total += logit(col).z;
  total = group_combine<kLossThreads>(total, width, Add{});
  const C share = C(1) / static_cast<C>(cols > 0 ? cols : 1);
  const RowValue<C> f = Loss::finish(p, x_p, total * share, log_cols, params);
  if (!grad) return {f.value, C(0)};
  const C factor = scale * f.dl * share;
  C through_logits = 0;
  for (int64_t col = lane; col < cols; col += width) {
    const C g = factor * logit(col).dn;
    store(col, g);
    through_logits += g;
  }
  if constexpr (Loss::kPositiveInLogit)
    through_logits = group_combine<kLossThreads>(through_logits, width, Add{});
  else
    through_logits = 0;
  return {f.value, scale * f.dp - through_logits};
}

// A row loss by a group of `width` threads, all of which get the result: passes over the row's columns for the maximum
// of the logits, the sum of their exponentials, and the gradients. logit(col) and store(col, gradient) are called for
// the columns lane, lane + width, ... alone, so that a thread may keep what belongs to its columns anywhere. Groups
// without a row are here too, with cols = 0.
template <class Loss, class C, class LogitOf, class Store>
__device__ __forceinline__ RowResult<C> evaluate_row(int64_t cols, int lane, int width, const LogitOf& logit, C p,
                                                     C x_p, C scale, C log_cols, const Params<C>& params, bool grad,
                                                     const Store& store) {
  if constexpr (Loss::kMean)
    return evaluate_mean_row<Loss>(cols, lane, width, logit, p, x_p, scale, log_cols, params, grad, store);
  C top = -static_cast<C>(INFINITY);
  for (int64_t col = lane; col < cols; col += width) {
    const C z = logit(col).z;
    top = z > top ? z : top;
  }
  top = group_combine<kLossThreads>(top, width, Larger{});
  // A logit of minus infinity masks its item: a row may have nothing else.
  const bool empty = top == -static_cast<C>(INFINITY);
  const C shift = empty ? C(0) : top;

  C sum = 0;  // of exponentials; for the maximum: 0, or NaN where a logit is
  int64_t hardest = cols - 1;
  for (int64_t col = lane; col < cols; col += width) {
    const C z = logit(col).z;
    if constexpr (Loss::kHardMax) {
      sum += z == z ? C(0) : z;
      if (z == top && col < hardest) hardest = col;
    } else {
      sum += exp_nonpositive(z - shift);
    }
  }
  sum = group_combine<kLossThreads>(sum, width, Add{});
  if constexpr (Loss::kHardMax) hardest = group_combine<kLossThreads>(hardest, width, Smaller{});
  const C above = Loss::kHardMax ? sum : (empty ? sum - sum : log_(sum));
  const RowValue<C> f = Loss::finish(p, x_p, top + above, log_cols, params);
  if (!grad) return {f.value, C(0)};

  C through_logits = 0;
  const C factor = Loss::kHardMax ? scale * f.dl : (empty ? C(0) : scale * f.dl / sum);
  for (int64_t col = lane; col < cols; col += width) {
    const Logit<C> l = logit(col);
    C g;
    if constexpr (Loss::kHardMax)
      g = col == hardest ? factor : C(0);
    else
      g = factor * exp_nonpositive(l.z - shift) * l.dn;
    store(col, g);
    through_logits += g;
  }
  // The derivative in p of each logit is minus that in n, where p takes part in it.
  if constexpr (Loss::kPositiveInLogit)
    through_logits = group_combine<kLossThreads>(through_logits, width, Add{});
  else
    through_logits = 0;
  return {f.value, scale * f.dp - through_logits};
}

// ---- launching ------------------------------------------------------------------------------------------------------

enum class Element { kFloat, kDouble, kHalf, kBFloat16 };

// Calls f(T{}) with the element type.
template <class F>
void with_element(Element element, F&& f) {
  switch (element) {
    case Element::kFloat:
      return f(float{});
    case Element::kDouble:
      return f(double{});
    case Element::kHalf:
      return f(__half{});
    case Element::kBFloat16:
      return f(__nv_bfloat16{});
  }
}

// Blocks for some units of work: few units are left to one block, which then needs no second step.
inline unsigned loss_blocks(int64_t work, int64_t per_block) {
  if (work <= 4 * per_block) return 1;
  const int64_t blocks = (work + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks > kLossBlocks ? kLossBlocks : blocks);
}

inline double loss_scale(Reduction reduction, double samples) {
  return reduction == Reduction::kMean && samples > 0 ? 1 / samples : 1;
}

}  // namespace GPU_NS
}  // namespace zx
