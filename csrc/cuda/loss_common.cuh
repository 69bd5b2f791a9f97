// What the kernels of pair_loss and of mf_loss share: sums over tiles, the passes over a row's negatives, and the
// choice of a loss and an element type.
#pragma once

#include "cuda/gpu.h"  // before the losses, which take the device's approximate functions from it

#include <type_traits>

#include "common/losses.h"
#include "cuda/reduce.cuh"

namespace zx {
inline namespace GPU_NS {

constexpr int kLossThreads = 256;
// Of a multiprocessor: enough loads are on their way then to keep the memory busy, and 64 registers are left to a
// thread.
constexpr int kLossResident = 4;

// ---- sums -----------------------------------------------------------------------------------------------------------

// The work is cut into tiles by its size alone. Each tile has a partial sum of its own, and these are added in the
// order of the tiles: the same input gives the same bits, whatever grid a GPU gets and whichever block takes a tile.
// All this is one launch. Up to kClusterTiles blocks are a cluster (sm_90 and later), and the first of them reads the
// others' sums from their shared memory. Else each block raises a flag when its tiles are done, and the last block
// waits for all flags.
//
// Waiting ends: a block that others wait for waits for none itself, and blocks start in the order of their numbers, so
// that all others run or are done when the last one starts.
//
// A flag is up when it holds the launch's ticket, a 64-bit number that no launch had before. So nothing has to be
// cleared beforehand, which would be a launch of its own; and the last block takes the flags down again, for a CUDA
// graph repeats the same ticket.
constexpr int64_t kMostTiles = 2048;
constexpr int64_t kClusterTiles = 8;
constexpr int64_t kSumWorkspace = 2 * kMostTiles;  // doubles: a partial sum for each tile, a flag for each block

struct TileSum {
  int64_t tiles;
  double* partials;  // null: there is nothing to sum
  unsigned long long* flags;
  unsigned long long ticket;
  void* value;  // of arithmetic_t
  double scale;
  bool cluster;
};

// Leaves the sum of a tile, of which each thread has a part, with the first thread.
__device__ __forceinline__ double tile_total(double part) { return block_sum_first<kLossThreads>(part); }

// After the last tile of a block. C is the type of the result; own is what tile_total returned last.
template <class C>
__device__ __forceinline__ void finish_tiles(const TileSum& sum, double own) {
  C* value = static_cast<C*>(sum.value);
  if (sum.tiles == 1) {
    if (threadIdx.x == 0) *value = static_cast<C>(own * sum.scale);
    return;
  }
  if (sum.cluster) {  // a block a tile
    GPU_SHARED(double, mine, 1);
    if (threadIdx.x == 0) mine[0] = own;
    gpu_cluster_sync();
    if (blockIdx.x == 0 && threadIdx.x < kWarp) {
      double v = threadIdx.x < sum.tiles ? *gpu_cluster_peer(mine, threadIdx.x) : 0;
      v = warp_combine(v, kClusterTiles, Add{});
      if (threadIdx.x == 0) *value = static_cast<C>(v * sum.scale);
    }
    gpu_cluster_sync();  // until then the shared memory of all blocks must be there
    return;
  }
  const unsigned last = gridDim.x - 1;
  if (blockIdx.x != last) {
    if (threadIdx.x == 0) gpu_store_release(sum.flags + blockIdx.x, sum.ticket);
    return;
  }
  for (unsigned block = threadIdx.x; block < last; block += kLossThreads) {
    while (gpu_load_acquire(sum.flags + block) != sum.ticket) {
    }
    sum.flags[block] = 0;
  }
  __syncthreads();  // orders what one thread has seen before what the others read
  double part = 0;
  for (int64_t tile = threadIdx.x; tile < sum.tiles; tile += kLossThreads) part += sum.partials[tile];
  const double total = tile_total(part);
  if (threadIdx.x == 0) *value = static_cast<C>(total * sum.scale);
}

// Calls work(tile), which returns a thread's part of the tile's sum, for each tile of this block. All threads are here.
template <class C, class Work>
__device__ __forceinline__ void for_each_tile(const TileSum& sum, const Work& work) {
  double total = 0;
  for (int64_t tile = blockIdx.x; tile < sum.tiles; tile += gridDim.x) {
    const double part = work(tile);
    if (sum.partials == nullptr) continue;
    total = tile_total(part);
    if (threadIdx.x == 0 && !sum.cluster) sum.partials[tile] = total;
  }
  if (sum.partials != nullptr) finish_tiles<C>(sum, total);
}

// Units of work (samples, or rows) of a tile, of which a block takes `turn` at a time. A single block does up to a
// turn. Below kClusterTiles turns there is a tile for each block of a cluster, and each has a part of a turn: `grain`
// units are the least that is worth a thread's while.
inline int64_t tile_size(int64_t units, int64_t turn, int64_t grain) {
  if (units <= turn) return turn;
  if (units <= kClusterTiles * turn) {
    const int64_t step = kClusterTiles * grain, share = (units + kClusterTiles - 1) / kClusterTiles;
    return (share + step - 1) / step * step;
  }
  int64_t size = turn;
  while ((units + size - 1) / size > kMostTiles) size *= 2;
  return size;
}

// The rest of a launch whose tiles are known: partials is the workspace, or null where nothing is summed.
inline TileSum tile_sum(int64_t units, int64_t size, double* workspace, unsigned long long ticket, void* value,
                        double scale) {
  const int64_t tiles = units > size ? (units + size - 1) / size : 1;
  // Of a single tile nothing is written there, but it says that there is a sum.
  return {tiles,
          workspace,
          workspace != nullptr ? reinterpret_cast<unsigned long long*>(workspace + kMostTiles) : nullptr,
          ticket,
          value,
          scale,
          workspace != nullptr && tiles > 1 && tiles <= kClusterTiles};
}

inline unsigned tile_blocks(int64_t tiles) {
  const int64_t most = static_cast<int64_t>(gpu_multiprocessors()) * kLossResident;
  return static_cast<unsigned>(tiles < most ? tiles : most);
}

// Scores that an element loss takes; 0 for a loss of a whole row.
template <class Loss, class = void>
struct ElementScores : std::integral_constant<int, 0> {};
template <class Loss>
struct ElementScores<Loss, std::void_t<decltype(Loss::kScores)>> : std::integral_constant<int, Loss::kScores> {};

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

// f(type{}) of a loss of rows that is known when the kernel runs.
template <class C, class F>
__device__ __forceinline__ RowResult<C> with_row_loss(Loss loss, const F& f) {
  switch (loss) {
#define ZX_CASE(kind, name, type) \
  case Loss::kind:                \
    return f(type{});
    ZX_ROW_LOSSES(ZX_CASE)
#undef ZX_CASE
    default:
      return {};
  }
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

// Launches a kernel that takes a.sum among its arguments, in as many blocks as the GPU holds or as there are tiles.
#define ZX_LAUNCH_TILES(K, a, stream)                                                                             \
  do {                                                                                                            \
    if ((a).sum.cluster && !GPU_HAS_CLUSTERS(K, kLossThreads, kClusterTiles)) (a).sum.cluster = false;            \
    const unsigned blocks_ = (a).sum.cluster ? static_cast<unsigned>((a).sum.tiles) : tile_blocks((a).sum.tiles); \
    if ((a).sum.cluster)                                                                                          \
      GPU_LAUNCH_CLUSTER(K, blocks_, kLossThreads, blocks_, 0, stream)(a);                                        \
    else                                                                                                          \
      GPU_LAUNCH(K, blocks_, kLossThreads, 0, stream)(a);                                                         \
  } while (false)

inline double loss_scale(Reduction reduction, double samples) {
  return reduction == Reduction::kMean && samples > 0 ? 1 / samples : 1;
}

}  // namespace GPU_NS
}  // namespace zx
