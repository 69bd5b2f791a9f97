// Every loss of the library: one struct each, with its value and its derivatives.
//
// To add a loss: write its struct here and add its line to a list at the end; docs/adding_a_loss.md has the other
// places. CPU, CUDA, [B, K] negatives, weights and reductions follow by template.
//
// Element losses look at one sample: kScores scores and kAux constants, in the order that each struct names.
//   T eval(const T* s, const T* aux, const Params<T>& w, T* d)
//     returns the value and writes d[i] = d value / d s[i].
//
// Row losses look at a positive p and its K negatives n_j through L = logsumexp_j z_j, or max_j z_j with kHardMax, or
// the mean of the z_j with kMean.
//   Logit<T> logit(T p, T n, T aux_n, const Params<T>& w)
//     z_j and its derivatives.
//   RowValue<T> finish(T p, T aux_p, T L, T log_k, const Params<T>& w)
//     the value, given L and log K, and its derivatives in L and, directly, in p.
#pragma once

#include "common/math.h"

namespace zx {

// Up to three numbers that a loss is parametrised by; their meaning is given at each struct.
template <class T>
struct Params {
  T a, b, c;
};

// ---- element losses of a positive and a negative: scores p, n

// sp(n - p) [BPR09].
struct Bpr {
  static constexpr int kScores = 2, kAux = 0;
  template <class T>
  ZX_HD static T eval(const T* s, const T*, const Params<T>&, T* d) {
    const Dual<T> m = softplus(s[1] - s[0]);
    d[0] = -m.slope;
    d[1] = m.slope;
    return m.value;
  }
};

// a sp(n - p) + b rho(p + n) [RCS22 eq. 7].
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

// Inverse propensity weighting: x_p sp(-p) + x_n sp(n), with the weights of the two items as constants.
struct Ipw {
  static constexpr int kScores = 2, kAux = 2;
  template <class T>
  ZX_HD static T eval(const T* s, const T* x, const Params<T>&, T* d) {
    const Dual<T> p = softplus(-s[0]);
    const Dual<T> n = softplus(s[1]);
    d[0] = -x[0] * p.slope;
    d[1] = x[1] * n.slope;
    return x[0] * p.value + x[1] * n.value;
  }
};

// Popularity deconfounding [Zhang et al. 2021]: sp(f(n) x_n - f(p) x_p), f = ELU + 1, with popularity^gamma of the
// two items as constants.
struct Pd {
  static constexpr int kScores = 2, kAux = 2;
  template <class T>
  ZX_HD static Dual<T> elu_plus_one(T x) {
    const T e = exp_nonpositive(x > T(0) ? T(0) : x);
    return {x > T(0) ? x + T(1) : e, e};
  }
  template <class T>
  ZX_HD static T eval(const T* s, const T* x, const Params<T>&, T* d) {
    const Dual<T> p = elu_plus_one(s[0]);
    const Dual<T> n = elu_plus_one(s[1]);
    const Dual<T> m = softplus(n.value * x[1] - p.value * x[0]);
    d[0] = -m.slope * p.slope * x[0];
    d[1] = m.slope * n.slope * x[1];
    return m.value;
  }
};

// The hinge of a margin: max(0, margin - p + n); a is the margin [Weston et al. 2011].
struct Hinge {
  static constexpr int kScores = 2, kAux = 0;
  template <class T>
  ZX_HD static T eval(const T* s, const T*, const Params<T>& w, T* d) {
    const T m = w.a - s[0] + s[1];
    const T slope = m > T(0) ? T(1) : T(0);
    d[0] = -slope;
    d[1] = slope;
    return m > T(0) ? m : (m == m ? T(0) : m);
  }
};

// ---- element losses of two positives and two negatives of one user: scores p1, p2, n1, n2

// a (sp(n1 - p1) + sp(n2 - p2)) + b rho(p1 - p2) + c rho(n1 - n2). Pos2Neg2 has b = c; its ablations Pos2 and Neg2
// have c = 0 and b = 0 [RCS22 eq. 6].
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

// ---- an element loss with branches of its own: scores p, n, user branch u, item branches i_p, i_n

// MACR [Wei et al. 2021]: cross-entropy of s(y) s(u) s(i) against 1 for the positive and 0 for the negative, plus
// a times that of s(i) and b times that of s(u).
struct Macr {
  static constexpr int kScores = 5, kAux = 0;
  template <class T>
  ZX_HD static T log_add_exp(T x, T y) {
    return (x > y ? x : y) + log1p_unit(exp_nonpositive(-abs_(x - y)));
  }
  template <class T>
  ZX_HD static T eval(const T* s, const T*, const Params<T>& w, T* d) {
    const Logistic<T> yp = logistic(s[0]), yn = logistic(s[1]), u = logistic(s[2]), ip = logistic(s[3]),
                      in = logistic(s[4]);
    // q = s(yn) s(u) s(in). 1 - q = s(-yn) + s(yn) s(-u) + s(yn) s(u) s(-in) has positive terms only: no cancellation.
    const T log_q = -(yn.sp_minus + u.sp_minus + in.sp_minus);
    const T log_1q = log_add_exp(-yn.sp, log_add_exp(-yn.sp_minus - u.sp, -yn.sp_minus - u.sp_minus - in.sp));
    // d(-log(1 - q)) / dx = q s(-x) / (1 - q), at most 1.
    const T ratio = log_q - log_1q;
    const T dy = at_most_one(ratio - yn.sp), du = at_most_one(ratio - u.sp), di = at_most_one(ratio - in.sp);
    d[0] = -yp.s_minus;
    d[1] = dy;
    d[2] = du - u.s_minus + w.b * (u.s - u.s_minus);
    d[3] = -(T(1) + w.a) * ip.s_minus;
    d[4] = di + w.a * in.s;
    return yp.sp_minus + u.sp_minus + ip.sp_minus - log_1q + w.a * (ip.sp_minus + in.sp) + w.b * (u.sp_minus + u.sp);
  }

 private:
  template <class T>
  ZX_HD static T at_most_one(T x) {
    return exp_nonpositive(x > T(0) ? T(0) : x);
  }
};

// ---- row losses

template <class T>
struct Logit {
  T z, dn, dp;
};
template <class T>
struct RowValue {
  T value, dl, dp;
};

// Softmax over the positive and its negatives, with logQ correction [Bengio and Senecal 2008]:
// -log(e^z0 / (e^z0 + sum_j e^zj)) = sp(L - z0), z = a score - log q; a is 1 / temperature.
struct SampledSoftmax {
  static constexpr bool kHardMax = false, kMean = false, kPositiveInLogit = false;
  template <class T>
  ZX_HD static Logit<T> logit(T, T n, T x, const Params<T>& w) {
    return {w.a * n - x, w.a, T(0)};
  }
  template <class T>
  ZX_HD static RowValue<T> finish(T p, T x, T l, T, const Params<T>& w) {
    const Dual<T> m = softplus(l - (w.a * p - x));
    return {m.value, m.slope, -w.a * m.slope};
  }
};

// Sampled softmax with the refined logQ correction [Khrylchenko et al. 2025]: sp(L - log K + log(1 - q_p) - a p),
// z_j = a n_j - log q_j. The positive is not a sampled term, so that it is not corrected, and negatives are drawn among
// the other items: q_j / (1 - q_p). The constants are log q; a is 1 / temperature.
struct RefinedSoftmax {
  static constexpr bool kHardMax = false, kMean = false, kPositiveInLogit = false;
  template <class T>
  ZX_HD static Logit<T> logit(T, T n, T x, const Params<T>& w) {
    return {w.a * n - x, w.a, T(0)};
  }
  template <class T>
  ZX_HD static RowValue<T> finish(T p, T x, T l, T log_k, const Params<T>& w) {
    const T others = T(1) - exp_nonpositive(x > T(0) ? T(0) : x);
    const Dual<T> m = softplus(l - log_k + log_(others) - w.a * p);
    return {m.value, m.slope, -w.a * m.slope};
  }
};

// Bilateral softmax loss [Wu et al. 2024]: -p / t1 + (t2 / t1) (logsumexp_j(n_j / t2) - log K); a = 1 / t1,
// b = 1 / t2, c = t2 / t1.
struct Bsl {
  static constexpr bool kHardMax = false, kMean = false, kPositiveInLogit = false;
  template <class T>
  ZX_HD static Logit<T> logit(T, T n, T, const Params<T>& w) {
    return {w.b * n, w.b, T(0)};
  }
  template <class T>
  ZX_HD static RowValue<T> finish(T p, T, T l, T log_k, const Params<T>& w) {
    return {w.c * (l - log_k) - w.a * p, w.c, -w.a};
  }
};

// Pairwise softmax loss [Yang et al. 2024]: logsumexp_j(a log(1 + tanh(n_j - p))); a is 1 / temperature.
// log(1 + tanh x) = log 2 - sp(-2x).
struct PslTanh {
  static constexpr bool kHardMax = false, kMean = false, kPositiveInLogit = true;
  template <class T>
  ZX_HD static Logit<T> logit(T p, T n, T, const Params<T>& w) {
    const Dual<T> m = softplus(T(-2) * (n - p));
    const T slope = T(2) * w.a * m.slope;
    return {w.a * (T(0.69314718055994530942) - m.value), slope, -slope};
  }
  template <class T>
  ZX_HD static RowValue<T> finish(T, T, T l, T, const Params<T>&) {
    return {l, T(1), T(0)};
  }
};

// The same with the activation relu: logsumexp_j(a log(1 + max(n_j - p, 0))).
struct PslRelu {
  static constexpr bool kHardMax = false, kMean = false, kPositiveInLogit = true;
  template <class T>
  ZX_HD static Logit<T> logit(T p, T n, T, const Params<T>& w) {
    const T x = n - p;
    const T y = T(1) + (x > T(0) ? x : (x == x ? T(0) : x));
    const T slope = x > T(0) ? w.a / y : T(0);
    return {w.a * log_(y), slope, -slope};
  }
  template <class T>
  ZX_HD static RowValue<T> finish(T, T, T l, T, const Params<T>&) {
    return {l, T(1), T(0)};
  }
};

// Dynamic negative sampling [Zhang et al. 2013]: BPR against the negative that scores highest, the first of equals.
struct Hardest {
  static constexpr bool kHardMax = true, kMean = false, kPositiveInLogit = false;
  template <class T>
  ZX_HD static Logit<T> logit(T, T n, T, const Params<T>&) {
    return {n, T(1), T(0)};
  }
  template <class T>
  ZX_HD static RowValue<T> finish(T p, T, T l, T, const Params<T>&) {
    const Dual<T> m = softplus(l - p);
    return {m.value, m.slope, -m.slope};
  }
};

// Cosine contrastive loss [Mao et al. 2021]: 1 - p + b mean_j max(0, n_j - a); a is the margin, b the weight.
struct Ccl {
  static constexpr bool kHardMax = false, kMean = true, kPositiveInLogit = false;
  template <class T>
  ZX_HD static Logit<T> logit(T, T n, T, const Params<T>& w) {
    const T x = n - w.a;
    return {x > T(0) ? x : (x == x ? T(0) : x), x > T(0) ? T(1) : T(0), T(0)};
  }
  template <class T>
  ZX_HD static RowValue<T> finish(T p, T, T l, T, const Params<T>& w) {
    return {T(1) - p + w.b * l, w.b, T(-1)};
  }
};

}  // namespace zx

// The registry: X(enumerator, name, struct). The order numbers the losses; Python reads the names from the op
// loss_names(), so a line here is all that numbering takes.
#define ZX_PAIR_LOSSES(X)         \
  X(kBpr, "bpr", Bpr)             \
  X(kZerosum, "zerosum", Zerosum) \
  X(kIpw, "ipw", Ipw)             \
  X(kPd, "pd", Pd)                \
  X(kHinge, "hinge", Hinge)
#define ZX_QUAD_LOSSES(X) X(kPos2Neg2, "pos2neg2", Pos2Neg2)
#define ZX_ROW_LOSSES(X)                                \
  X(kSampledSoftmax, "sampled_softmax", SampledSoftmax) \
  X(kBsl, "bsl", Bsl)                                   \
  X(kPslTanh, "psl_tanh", PslTanh)                      \
  X(kPslRelu, "psl_relu", PslRelu)                      \
  X(kHardest, "hardest", Hardest)                       \
  X(kCcl, "ccl", Ccl)                                   \
  X(kRefinedSoftmax, "refined_softmax", RefinedSoftmax)
#define ZX_ALL_LOSSES(X) ZX_PAIR_LOSSES(X) ZX_QUAD_LOSSES(X) ZX_ROW_LOSSES(X)

namespace zx {
#define ZX_ENUMERATOR(kind, name, type) kind,
enum class Loss : int64_t { ZX_ALL_LOSSES(ZX_ENUMERATOR) kCount };
#undef ZX_ENUMERATOR

// What a loss takes: pos [B] with neg [B] or [B, K] (kPair), pos and neg [B, 2] (kQuad), pos [B] with neg [B, K] and
// one value a row (kRow).
enum class Shape { kPair, kQuad, kRow };
#define ZX_SHAPE(kind, name, type) case Loss::kind:
constexpr Shape shape_of(Loss loss) {
  switch (loss) {
    ZX_QUAD_LOSSES(ZX_SHAPE) return Shape::kQuad;
    ZX_ROW_LOSSES(ZX_SHAPE) return Shape::kRow;
    default:
      return Shape::kPair;
  }
}
#undef ZX_SHAPE

// Whether a loss takes a constant of each item, and cannot do without.
constexpr bool needs_constants(Loss loss) {
  switch (loss) {
#define ZX_CASE(kind, name, type) \
  case Loss::kind:                \
    return type::kAux > 0;
    ZX_PAIR_LOSSES(ZX_CASE)
    ZX_QUAD_LOSSES(ZX_CASE)
#undef ZX_CASE
    default:
      return false;
  }
}

enum class Reduction : int64_t { kNone, kSum, kMean };
}  // namespace zx
