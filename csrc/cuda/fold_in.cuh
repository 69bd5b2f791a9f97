// fold_in on the GPU: rows of users for frozen items (csrc/common/fold_in.h), a block a user.
//
// A user's samples are gone through by the whole block: products of items' rows with the user's row, the loss and its
// derivatives at these scores, and the sum of rows times derivatives. Between two such evaluations one warp makes the
// next step from the last ones. All of a user's decisions are taken by all threads from the same numbers, so that the
// block stays together, and each user ends by itself: the row does not depend on who else is asked for, nor on the
// grid.
//
// Rows, gradients and steps are double, scores and derivatives of the tables' type, as on the CPU. Vectors lie in
// shared memory, or where they are too long in global memory, which the multiprocessor's cache then holds.
#pragma once

#include "cuda/loss_common.cuh"
#include "cuda/rows.cuh"

#include "common/csr.h"
#include "common/fold_in.h"

namespace zx {
inline namespace GPU_NS {

constexpr int kFoldThreads = 128;
constexpr int kFoldColumns = 4;  // items whose rows are on their way together
// Blocks of a multiprocessor: 128 registers are left to a thread, or 168 with numbers of float64, which take two each.
template <class T>
constexpr int kFoldResident = sizeof(T) == 8 ? 3 : 4;
constexpr int kFoldVectors = 5 + 2 * kFoldMemory;
constexpr int64_t kFoldShared = 40 << 10;  // bytes of a block's vectors that shared memory is asked for

template <class T>
struct FoldInArgs {
  const T *item, *bias, *constants;  // [num_items, dim]; [num_items] or null
  int64_t num_items;
  RowShape shape;
  int64_t row_dim;  // of the result; the shape's is 0 where there are no items
  const int64_t* indptr;
  int64_t users, samples;
  const int64_t *positives, *negatives;  // [samples, num_positives], [samples, k]
  int64_t num_positives, k;
  int width;  // threads that share a sample's negatives
  FoldIn settings;
  double log_k;
  T *pos, *neg;              // scores, then derivatives: as positives and negatives
  double* vectors;           // of each block, or null where they lie in shared memory
  int64_t vector_bytes;      // of a block
  unsigned long long* next;  // 0 beforehand: the number of users that blocks have taken
  T* rows;                   // [users, row_dim]
};

// What a user's samples are.
struct FoldSamples {
  const int64_t *positives, *negatives;
  int64_t n, num_pos, num_neg;  // samples, and scores of both kinds
};

template <class T>
struct FoldKinks {
  T width, b, c;
};

// The loss and its derivatives at the scores of pos and neg, which the derivatives take the place of. Returns this
// thread's part of the sum of the loss. All threads must be here.
template <class Loss, class T>
__device__ __forceinline__ double fold_loss(const FoldInArgs<T>& a, const FoldSamples& s, T* pos, T* neg, T scale,
                                            const Params<T>& params, const FoldKinks<T>& kinks) {
  const auto constant = [&](const int64_t* ids, int64_t at) {
    if (a.constants == nullptr) return T(0);
    const int64_t item = ids[at];
    return is_item(item, a.num_items) ? a.constants[item] : T(0);
  };
  double total = 0;
  if constexpr (std::is_same_v<Loss, Pos2Neg2>) {
    for (int64_t i = threadIdx.x; i < s.n; i += kFoldThreads) {
      const T score[4] = {pos[2 * i], pos[2 * i + 1], neg[2 * i], neg[2 * i + 1]};
      T d[4];
      T value = Loss::eval(score, static_cast<const T*>(nullptr), params, d);
#pragma unroll
      for (int j = 0; j < 4; ++j) d[j] *= scale;
      if (kinks.width > 0) {
        value += add_rounded(score[0], score[1], T(-1), kinks.b, kinks.width, scale, d, d + 1);
        value += add_rounded(score[2], score[3], T(-1), kinks.c, kinks.width, scale, d + 2, d + 3);
      }
      total += static_cast<double>(value);
      pos[2 * i] = d[0], pos[2 * i + 1] = d[1], neg[2 * i] = d[2], neg[2 * i + 1] = d[3];
    }
  } else {
    const int width = a.width, lane = static_cast<int>(threadIdx.x) % width;
    if (width > kWarp) __builtin_unreachable();  // code for groups of several warps is left out
    const int64_t together = kFoldThreads / width;
    for (int64_t first = 0; first < s.n; first += together) {
      const int64_t i = first + threadIdx.x / width;
      const bool live = i < s.n;
      const T p = live ? pos[i] : T(0);
      const T x_p = live ? constant(s.positives, i) : T(0);
      T* const scores = neg + (live ? i : 0) * a.k;
      const int64_t at = (live ? i : 0) * a.k, cols = live ? a.k : 0;
      T d_pos = 0;
      if constexpr (ElementScores<Loss>::value == 0) {
        const auto logit = [&](int64_t j) { return Loss::logit(p, scores[j], constant(s.negatives, at + j), params); };
        const auto store = [&](int64_t j, T g) { scores[j] = g; };
        const RowResult<T> f =
            evaluate_row<Loss>(cols, lane, width, logit, p, x_p, scale, static_cast<T>(a.log_k), params, true, store);
        d_pos = f.grad_pos;
        if (live && lane == 0) total += static_cast<double>(f.value);
      } else {
        for (int64_t j = lane; j < cols; j += width) {
          const T score[2] = {p, scores[j]}, x[2] = {x_p, constant(s.negatives, at + j)};
          T d[2];
          T value = Loss::eval(score, x, params, d);
          d[0] *= scale, d[1] *= scale;
          if (kinks.width > 0) value += add_rounded(score[0], score[1], T(1), kinks.b, kinks.width, scale, d, d + 1);
          total += static_cast<double>(value);
          d_pos += d[0];
          scores[j] = d[1];
        }
        d_pos = warp_combine(d_pos, width, Add{});
      }
      __syncwarp();  // others have read the score that the derivative takes the place of
      if (live && lane == 0) pos[i] = d_pos;
    }
  }
  return total;
}

// Finds a user's row; all threads of a block are one.
template <class T>
struct FoldSolver {
  const FoldInArgs<T>& a;
  FoldSamples s;
  T *pos, *neg, *row;
  double *p, *gradient, *moved, *new_gradient, *step, *steps, *changes;
  double* inverse;  // [kFoldMemory], in shared memory, as are the next two
  double* shares;   // [kFoldMemory]
  double* scale;    // of the inverse of the Hessian
  int64_t known;    // steps that were remembered

  __device__ __forceinline__ int64_t dim() const { return a.shape.dim; }
  __device__ __forceinline__ int lane() const { return static_cast<int>(threadIdx.x) % kWarp; }

  // Calls f for the places of a vector that are this thread's, of the block's or of a warp's. (Not unrolled: there are
  // many such loops, and vectors are short.)
  template <class F>
  __device__ __forceinline__ void each(const F& f) const {
#pragma unroll 1
    for (int64_t i = threadIdx.x; i < dim(); i += kFoldThreads) f(i);
  }
  template <class F>
  __device__ __forceinline__ void each_of_warp(const F& f) const {
#pragma unroll 1
    for (int64_t i = lane(); i < dim(); i += kWarp) f(i);
  }

  // Of the block, for all its threads.
  __device__ __forceinline__ double product(const double* x, const double* y) const {
    double sum = 0;
    each([&](int64_t i) { sum += x[i] * y[i]; });
    return block_combine<kFoldThreads>(sum, Add{});
  }
  // Of one warp, for all its lanes.
  __device__ __forceinline__ double warp_product(const double* x, const double* y) const {
    double sum = 0;
    each_of_warp([&](int64_t i) { sum += x[i] * y[i]; });
    return warp_combine(sum, kWarp, Add{});
  }

  __device__ __forceinline__ const T* row_of(int64_t id) const {
    return row_at(a.item, is_item(id, a.num_items) ? id : int64_t(-1), dim());
  }

  // Items are numbered: those of positives, then those of negatives. Their scores, and later derivatives, likewise.
  __device__ __forceinline__ int64_t items() const { return s.num_pos + s.num_neg; }
  __device__ __forceinline__ int64_t id_of(int64_t e) const {
    return e < s.num_pos ? s.positives[e] : s.negatives[e - s.num_pos];
  }
  __device__ __forceinline__ T& score_of_item(int64_t e) const { return e < s.num_pos ? pos[e] : neg[e - s.num_pos]; }

  // The scores of all items with the row; NaN where there is no such item.
  __device__ __forceinline__ void score() const {
    const int width = a.shape.width, in_group = static_cast<int>(threadIdx.x) % width;
    const int64_t count = items(), together = int64_t(kFoldThreads / width) * kFoldColumns;
#pragma unroll 1
    for (int64_t first = 0; first < count; first += together) {
      const int64_t e0 = first + int64_t(threadIdx.x / width) * kFoldColumns;
      RowShape mine = a.shape;
      if (e0 >= count) mine.dim = 0;  // nothing is read for a group that has no item left
      const T* others[kFoldColumns];
      int64_t id[kFoldColumns];
      T products[kFoldColumns];
#pragma unroll
      for (int m = 0; m < kFoldColumns; ++m) {
        id[m] = e0 < count ? id_of(e0 + m < count ? e0 + m : count - 1) : int64_t(-1);
        others[m] = row_of(id[m]);
      }
      dots<kFoldColumns>(mine, in_group, row, others, products);
#pragma unroll
      for (int m = 0; m < kFoldColumns; ++m) {
        if (in_group != m || e0 + m >= count) continue;
        const bool there = is_item(id[m], a.num_items);
        const T bias = there && a.bias != nullptr ? a.bias[id[m]] : T(0);
        score_of_item(e0 + m) = there ? products[m] + bias : static_cast<T>(NAN);
      }
    }
  }

  __device__ __forceinline__ double loss(T* scores_pos, T* scores_neg, T scale_of) const {
    const FoldIn& w = a.settings;
    const bool rounded = w.kink > 0;  // then what has kinks is added apart
    const Params<T> params{static_cast<T>(w.a), static_cast<T>(rounded ? 0 : w.b), static_cast<T>(rounded ? 0 : w.c)};
    const FoldKinks<T> kinks{static_cast<T>(w.kink), static_cast<T>(w.b), static_cast<T>(w.c)};
    switch (w.kind) {
#define ZX_CASE(kind, name, type) \
  case Loss::kind:                \
    return fold_loss<type>(a, s, scores_pos, scores_neg, scale_of, params, kinks);
      ZX_ALL_LOSSES(ZX_CASE)
#undef ZX_CASE
      default:
        return 0;
    }
  }

  // out = sum of the items' rows times the derivatives, plus l2 times at.
  __device__ __forceinline__ void sum_rows(const double* at, double* out) const {
    const int width = a.shape.width, in_group = static_cast<int>(threadIdx.x) % width;
    with_pack<T>(a.shape, [&](auto size) {
      constexpr int N = decltype(size)::value;
      for (int64_t c0 = 0; c0 < dim(); c0 += 2 * width * N) {
        Sums<N, T> sums{};
        T unused = 0;
        const auto term = [&](int64_t e) {
          const int64_t id = id_of(e);
          return Term<T>{is_item(id, a.num_items) ? id : 0, score_of_item(e)};
        };
        add_terms<N>(a.shape, in_group, c0, a.item, items(), items(), static_cast<int>(threadIdx.x) / width,
                     kFoldThreads / width, term, sums, unused);
        combine_groups<kFoldThreads, kRowPack<T>>(a.shape, sums);
        if (threadIdx.x < unsigned(width)) {
#pragma unroll
          for (int q = 0; q < 2; ++q) {
            const int64_t c = piece_column<N>(a.shape, in_group, c0, q);
            if (c >= dim()) continue;
#pragma unroll
            for (int n = 0; n < N; ++n) out[c + n] = static_cast<double>(sums.v[q][n]) + a.settings.l2 * at[c + n];
          }
        }
      }
    });
  }

  // The objective, and its gradient.
  __device__ __forceinline__ double evaluate(const double* at, double* out) const {
    double squares = 0;
    each([&](int64_t i) {
      row[i] = static_cast<T>(at[i]);
      squares += at[i] * at[i];
    });
    __syncthreads();
    score();
    __syncthreads();
    const double values = static_cast<double>(shape_of(a.settings.kind) == Shape::kPair ? s.num_neg : s.n);
    const double mean = 1 / values;
    const double part = mean * loss(pos, neg, static_cast<T>(mean)) + 0.5 * a.settings.l2 * squares;
    const double value = block_combine<kFoldThreads>(part, Add{});  // (derivatives are there for all then)
    sum_rows(at, out);
    __syncthreads();
    return value;
  }

  // The largest squared norm among the items' rows.
  __device__ __forceinline__ double longest() const {
    const int width = a.shape.width, in_group = static_cast<int>(threadIdx.x) % width;
    const int64_t count = items(), together = kFoldThreads / width;
    T most = 0;
    for (int64_t first = 0; first < count; first += together) {
      const int64_t e = first + threadIdx.x / width;
      const int64_t id = e < count ? id_of(e) : int64_t(-1);
      const T part = is_item(id, a.num_items) ? squared_part(a.shape, in_group, row_of(id)) : T(0);
      const T norm = warp_combine(part, width, Add{});
      most = norm > most ? norm : most;
    }
    return static_cast<double>(block_combine<kFoldThreads>(most, Larger{}));
  }

  static __device__ __forceinline__ int slot(int64_t last, int age) {
    return static_cast<int>((last - 1 - age) % kFoldMemory);
  }

  // step = -H gradient, H the inverse of the Hessian that the steps before stand for. By the first warp alone.
  __device__ __forceinline__ void find_step() const {
    const int kept = known < kFoldMemory ? static_cast<int>(known) : kFoldMemory;
    each_of_warp([&](int64_t i) { step[i] = -gradient[i]; });
#pragma unroll 1
    for (int age = 0; age < kept; ++age) {
      const int at = slot(known, age);
      const double share = inverse[at] * warp_product(steps + at * dim(), step);
      if (lane() == 0) shares[age] = share;
      each_of_warp([&](int64_t i) { step[i] -= share * changes[at * dim() + i]; });
    }
    const double scaled = *scale;
    each_of_warp([&](int64_t i) { step[i] *= scaled; });
    __syncwarp();
#pragma unroll 1
    for (int age = kept - 1; age >= 0; --age) {
      const int at = slot(known, age);
      const double share = shares[age] - inverse[at] * warp_product(changes + at * dim(), step);
      each_of_warp([&](int64_t i) { step[i] += share * steps[at * dim() + i]; });
    }
  }

  // Keeps the step from p to moved where the curvature along it is positive.
  __device__ __forceinline__ void remember() {
    double both = 0, squares = 0;
    each([&](int64_t i) {
      const double dg = new_gradient[i] - gradient[i];
      both += (moved[i] - p[i]) * dg, squares += dg * dg;
    });
    both = block_combine<kFoldThreads>(both, Add{});
    squares = block_combine<kFoldThreads>(squares, Add{});
    if (!is_curved(both, squares, epsilon())) return;
    const int at = static_cast<int>(known % kFoldMemory);
    each([&](int64_t i) {
      steps[at * dim() + i] = moved[i] - p[i], changes[at * dim() + i] = new_gradient[i] - gradient[i];
    });
    if (threadIdx.x == 0) *scale = both / squares, inverse[at] = 1 / both;
    ++known;
  }

  // moved = p + share times step; whether all of it is p still.
  __device__ __forceinline__ bool move(double share) const {
    bool same = true;
    each([&](int64_t i) {
      moved[i] = p[i] + share * step[i];
      same &= moved[i] == p[i];
    });
    return same;
  }

  // What was moved to becomes the row.
  __device__ __forceinline__ void take() {
    double* const before = p;
    p = moved, moved = before;
    double* const old = gradient;
    gradient = new_gradient, new_gradient = old;
  }

  static __device__ __forceinline__ double epsilon() {
    return sizeof(T) == 8 ? 2.220446049250313e-16 : 1.1920928955078125e-07;
  }
  static __device__ __forceinline__ bool is_finite(double x) { return fabs(x) <= 1.7976931348623157e308; }

  // Leaves the row in p; false where it is none, for something is not finite. The objective is evaluated at one place,
  // or the loss would be compiled twice: first at zero, then at the end of each step and of its halves.
  __device__ __forceinline__ bool solve() {
    each([&](int64_t i) { moved[i] = 0; });
    double value = 0, squares = 0, limit = 0, first_scale = 1, share = 1, slope = 0;
    int halvings = -1;  // none yet was evaluated
    bool same = false;
    for (int64_t t = 0;;) {
      const double found = evaluate(moved, new_gradient), found_squares = product(new_gradient, new_gradient);
      bool ends = false;  // the step is given up
      if (halvings < 0) {
        if (!is_finite(found) || !is_finite(found_squares)) return false;
        limit = a.settings.tolerance * sqrt(found_squares);
        first_scale = 1 / (a.settings.l2 + longest());  // of usual second derivatives
        if (threadIdx.x == 0) *scale = first_scale;
        value = found, squares = found_squares;
        take();
      } else {
        const double rounding = 4 * epsilon() * fabs(value);
        if (takes_step(value, found, rounding, share * slope, squares, found_squares)) {
          value = found;
          ends = __syncthreads_and(same) != 0;
          if (!ends) {
            squares = found_squares;
            remember();
            take();
          }
        } else if (++halvings < kFoldHalvings) {
          share /= 2;
          same = move(share);
          continue;
        } else {
          ends = true;
        }
      }
      if (ends) {
        if (known == 0) return true;  // at the last bits, or at a kink
        known = 0;                    // what is remembered misleads where the loss is not convex
        if (threadIdx.x == 0) *scale = first_scale;
      }
      if (t++ >= a.settings.max_iterations || !(sqrt(squares) > limit)) return true;
      __syncthreads();
      if (threadIdx.x < kWarp) find_step();
      __syncthreads();
      slope = product(step, gradient);
      share = 1, halvings = 0;
      same = move(share);
    }
  }
};

template <class T>
__global__ void __launch_bounds__(kFoldThreads, kFoldResident<T>) fold_in_kernel(const FoldInArgs<T> a) {
  GPU_SHARED_DYN(double, shared);
  GPU_SHARED(double, numbers, 2 * kFoldMemory + 1);
  GPU_SHARED(int64_t, taken, 1);
  const int64_t dim = a.shape.dim;
  double* const v = a.vectors != nullptr ? a.vectors + blockIdx.x * (a.vector_bytes / 8) : shared;
  // The row comes first: it is read 16 bytes at a time.
  double* const w = v + (dim * sizeof(T) + 15) / 16 * 2;
  for (;;) {
    __syncthreads();  // what the user before has left is read no more
    if (threadIdx.x == 0) taken[0] = static_cast<int64_t>(atomicAdd(a.next, 1ull));
    __syncthreads();
    const int64_t user = taken[0];
    if (user >= a.users) return;
    const int64_t begin = a.indptr[user], end = a.indptr[user + 1];
    T* const out = a.rows + user * a.row_dim;
    const bool sound = is_row(begin, end, a.samples), empty = begin == end;
    if (!sound || empty) {
      for (int64_t i = threadIdx.x; i < a.row_dim; i += kFoldThreads) out[i] = sound ? T(0) : static_cast<T>(NAN);
      continue;
    }
    const FoldSamples s{a.positives + begin * a.num_positives, a.negatives + begin * a.k, end - begin,
                        (end - begin) * a.num_positives, (end - begin) * a.k};
    FoldSolver<T> solver{a,
                         s,
                         a.pos + begin * a.num_positives,
                         a.neg + begin * a.k,
                         reinterpret_cast<T*>(v),
                         w,
                         w + dim,
                         w + 2 * dim,
                         w + 3 * dim,
                         w + 4 * dim,
                         w + 5 * dim,
                         w + (5 + kFoldMemory) * dim,
                         numbers,
                         numbers + kFoldMemory,
                         numbers + 2 * kFoldMemory,
                         0};
    const bool found = solver.solve();
    // (Of a table without items nothing was computed.)
    for (int64_t i = threadIdx.x; i < a.row_dim; i += kFoldThreads)
      out[i] = found && i < dim ? static_cast<T>(solver.p[i]) : static_cast<T>(NAN);
  }
}

// ---- launching ------------------------------------------------------------------------------------------------------

template <class T>
int64_t fold_in_vector_bytes(int64_t dim) {
  return (dim * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16 + 8 * kFoldVectors * dim;
}

struct FoldInGrid {
  int64_t blocks, shared, workspace;  // bytes: of shared memory, and of the vectors of all blocks in global memory
};

template <class T>
FoldInGrid fold_in_grid(int64_t users, int64_t dim) {
  const int64_t most = static_cast<int64_t>(gpu_multiprocessors()) * kFoldResident<T>;
  const int64_t blocks = users < most ? users : most, bytes = fold_in_vector_bytes<T>(dim);
  return bytes <= kFoldShared ? FoldInGrid{blocks, bytes, 0} : FoldInGrid{blocks, 0, blocks * bytes};
}

// a: all but shape, width, log_k, vectors and vector_bytes; a.row_dim numbers a row. workspace: as fold_in_grid says.
template <class T>
void fold_in(FoldInArgs<T> a, void* workspace, gpuStream stream) {
  if (a.users == 0) return;
  const FoldInGrid grid = fold_in_grid<T>(a.users, a.row_dim);
  a.shape = row_shape<T>(a.num_items > 0 ? a.row_dim : 0, {a.item, workspace}, kFoldColumns);
  a.width = 1;
  while (a.width < kWarp && a.width < a.k) a.width *= 2;
  a.log_k = std::log(static_cast<double>(a.k));
  a.vectors = grid.workspace > 0 ? static_cast<double*>(workspace) : nullptr;
  a.vector_bytes = fold_in_vector_bytes<T>(a.row_dim);
  GPU_FILL(a.next, 0, sizeof(unsigned long long), stream);
  GPU_LAUNCH((fold_in_kernel<T>), static_cast<unsigned>(grid.blocks), kFoldThreads, static_cast<unsigned>(grid.shared),
             stream)
  (a);
}

}  // namespace GPU_NS
}  // namespace zx
