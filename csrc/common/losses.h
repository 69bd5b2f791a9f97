// Every loss of the library: one struct each, with its value and its derivatives for one sample.
//
// To add a loss: write its struct here, add its line to the list at the end, and its definition to
// zerosum_ext/reference.py. CPU, CUDA, [B, K] negatives, weights and reductions follow by template.
//
// Two shapes of loss exist.
//   Element losses look at one sample: kScores scores (their order is given at each struct), kAux constants,
//   and
//     static T eval(const T* s, const T* aux, const Params<T>& w, T* d)
//   returns the value and writes d[i] = d value / d s[i].
//   Row losses look at a positive and its K negatives through L = logsumexp_j z_j (or max_j z_j where
//   kHardMax):
//     static Logit<T> logit(T p, T n, T aux_n, const Params<T>& w)       z_j and its derivatives
//     static RowValue<T> finish(T p, T aux_p, T L, T K, const Params<T>& w)   the value, and its derivatives
//     in p and L
#pragma once

#include "common/math.h"

namespace zx {

// Up to three numbers that a loss is parametrised by; their meaning is given at each struct.
template <class T>
struct Params {
  T a, b, c;
};

// ------------------------------------------------------------------------------------------------ element
// losses

// sp(n - p); scores p, n [BPR09].
struct Bpr {
  static constexpr int kScores = 2, kAux = 0;
  template <class T>
  ZX_HD static T eval(const T* s, const T*, const Params<T>& w, T* d) {
    const Dual<T> m = softplus(s[1] - s[0]);
    d[0] = -w.a * m.slope;
    d[1] = w.a * m.slope;
    return w.a * m.value;
  }
};

// a sp(n - p) + b rho(p + n); scores p, n [RCS22 eq. 7].
struct Zerosum {
  static constexpr int kScores = 2, kAux = 0;
  template <class T>
  ZX_HD static T eval(const T* s, const T*, const Params<T>& w, T* d) {
    const Dual<T> m = softplus(s[1] - s[0]);
    const Dual<T> r = rho(s[0] + s[1]);
    d[0] = w.b * r.slope - w.a * m.slope;
    d[1] = w.b * r.slope + w.a * m.slope;
    return w.a * m.value + w.b * r.value;
  }
};

// a (sp(n1 - p1) + sp(n2 - p2)) + b rho(p1 - p2) + c rho(n1 - n2); scores p1, p2, n1, n2 of one user.
// Pos2Neg2 has b = c; its ablations Pos2 and Neg2 have c = 0 and b = 0 [RCS22 eq. 6].
struct Pos2Neg2 {
  static constexpr int kScores = 4, kAux = 0;
  template <class T>
  ZX_HD static T eval(const T* s, const T*, const Params<T>& w, T* d) {
    const Dual<T> m1 = softplus(s[2] - s[0]);
    const Dual<T> m2 = softplus(s[3] - s[1]);
    const Dual<T> rp = rho(s[0] - s[1]);
    const Dual<T> rn = rho(s[2] - s[3]);
    d[0] = w.b * rp.slope - w.a * m1.slope;
    d[1] = -w.b * rp.slope - w.a * m2.slope;
    d[2] = w.c * rn.slope + w.a * m1.slope;
    d[3] = w.a * m2.slope - w.c * rn.slope;
    return w.a * (m1.value + m2.value) + w.b * rp.value + w.c * rn.value;
  }
};

}  // namespace zx

// The registry: X(enumerator, name, struct). The order numbers the losses; Python reads the names from the op
// loss_names(), so a line here is all that numbering takes.
#define ZX_PAIR_LOSSES(X) \
  X(kBpr, "bpr", Bpr)     \
  X(kZerosum, "zerosum", Zerosum)
#define ZX_QUAD_LOSSES(X) X(kPos2Neg2, "pos2neg2", Pos2Neg2)
#define ZX_ALL_LOSSES(X) ZX_PAIR_LOSSES(X) ZX_QUAD_LOSSES(X)

namespace zx {
#define ZX_ENUMERATOR(kind, name, type) kind,
enum class Loss : int64_t { ZX_ALL_LOSSES(ZX_ENUMERATOR) kCount };
#undef ZX_ENUMERATOR
enum class Reduction : int64_t { kNone, kSum, kMean };
}  // namespace zx
