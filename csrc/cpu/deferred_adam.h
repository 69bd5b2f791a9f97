// Dense Adam that visits a row when a batch needs it, and not in every step.
//
// A step of torch.optim.Adam moves all rows, since those without a gradient still have momentum. What j such steps do
// to an element is known beforehand: m and v shrink by powers of beta1 and beta2, and p moves by m F(sqrt(v)) with
//
//   F(x) = sum over the missed steps j of w_j / (x d_j + eps),
//   w_j = lr beta1^(j - s) / (1 - beta1^j),  d_j = beta2^((j - s) / 2) / sqrt(1 - beta2^j),
//
// s being the step that the row has seen last. w_j falls fast and d_j changes slowly, so F is a series in the central
// moments of d under w, of which those up to the fourth are taken. Where the fifth says that this would be less exact
// than float32 is (the first few hundred steps with the usual betas), the missed steps are done one by one, in
// registers: the arithmetic of a sweep without its traffic. Either way a row costs what it costs to touch it, so that a
// step costs what SparseAdam's does, and the rows end where the sweeps would have brought them, up to rounding.
#pragma once

#include <cmath>
#include <vector>

#include "common/optimizers.h"
#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/simd.h"

namespace zx::cpu {

// What the steps that a row has missed do to it.
struct MissedSteps {
  float weight, node;           // sum of w_j; mean of d_j
  float second, third, fourth;  // central moments of d_j, in units of its mean
  float eps;
  float keep_first, keep_second;  // powers of beta1 and beta2
};

// All missed steps at once.
struct CatchUpAtOnce {
  ZX_HD static void run(const MissedSteps* missed, float* __restrict__ p, float* __restrict__ m, float* __restrict__ v,
                        int64_t n) {
    const MissedSteps d = *missed;
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) {
      const float x = sqrtf(v[i]) * d.node, inverse = 1.0f / (x + d.eps), u = x * inverse;
      const float series = 1.0f + u * u * (d.second - u * (d.third - u * d.fourth));
      p[i] -= d.weight * m[i] * inverse * series;
      m[i] *= d.keep_first;
      v[i] *= d.keep_second;
    }
  }
};

// One by one: steps rules[0 .. count), after which m and v shrink further.
struct CatchUpStepwise {
  static constexpr int64_t kPiece = 64;  // elements that stay in registers, or nearly

  ZX_HD static void run(const UpdateRule* rules, int64_t count, float keep_first, float keep_second,
                        float* __restrict__ p, float* __restrict__ m, float* __restrict__ v, int64_t n) {
    int64_t at = 0;
    for (; at + kPiece <= n; at += kPiece) steps(rules, count, keep_first, keep_second, p + at, m + at, v + at);
    if (at == n) return;
    float q[3][kPiece] = {};
    float* const from[3] = {p + at, m + at, v + at};
    for (int k = 0; k < 3; ++k)
      for (int64_t i = 0; at + i < n; ++i) q[k][i] = from[k][i];
    steps(rules, count, keep_first, keep_second, q[0], q[1], q[2]);
    for (int k = 0; k < 3; ++k)
      for (int64_t i = 0; at + i < n; ++i) from[k][i] = q[k][i];
  }

  ZX_HD static void steps(const UpdateRule* rules, int64_t count, float keep_first, float keep_second,
                          float* __restrict__ p, float* __restrict__ m, float* __restrict__ v) {
    float a[kPiece], b[kPiece], c[kPiece];
    for (int64_t i = 0; i < kPiece; ++i) a[i] = p[i], b[i] = m[i], c[i] = v[i];
    for (int64_t s = 0; s < count; ++s) {
      const UpdateRule r = rules[s];
#pragma GCC ivdep
      for (int64_t i = 0; i < kPiece; ++i) update_element<Optimizer::kAdam>(r, 0.0f, a[i], b[i], c[i]);
    }
    for (int64_t i = 0; i < kPiece; ++i) p[i] = a[i], m[i] = keep_first * b[i], v[i] = keep_second * c[i];
  }
};

// Whether nothing has ever moved an element of a row.
struct NeverMoved {
  ZX_HD static bool run(const float* m, const float* v, int64_t n) {
    float any = 0;
    for (int64_t i = 0; i < n; ++i) any = m[i] != 0 || v[i] != 0 ? 1.0f : any;
    return any == 0;
  }
};

// The sums over the steps missed by rows that have seen steps [from, to) last, with one more of them, and what follows.
struct AddMissedStep {
  static constexpr int kSums = 6, kMoves = 5;

  // sums[k][s]: sum of w_j d_j^k over the steps j missed since s. moves[k][s]: weight (0: not exact enough), node,
  // second, third and fourth of MissedSteps.
  ZX_HD static void run(int64_t from, int64_t to, const double* weight_power, const double* root_power, double weight,
                        double root, double exact, double* const* sums, float* const* moves) {
    double *s0 = sums[0], *s1 = sums[1], *s2 = sums[2], *s3 = sums[3], *s4 = sums[4], *s5 = sums[5];
    float *move = moves[0], *node = moves[1], *second = moves[2], *third = moves[3], *fourth = moves[4];
#pragma GCC ivdep
    for (int64_t s = from; s < to; ++s) {
      const double d = root * root_power[to - s];
      double w = weight * weight_power[to - s];
      const double a0 = s0[s] += w;
      const double a1 = s1[s] += (w *= d);
      const double a2 = s2[s] += (w *= d);
      const double a3 = s3[s] += (w *= d);
      const double a4 = s4[s] += (w *= d);
      const double a5 = s5[s] += (w *= d);
      // E[(d / mean)^k], then the moments about the mean.
      const double unit = a0 / a1, unit2 = unit * unit, one = 1 / a0;
      const double e2 = a2 * one * unit2, e3 = a3 * one * unit2 * unit, e4 = a4 * one * unit2 * unit2,
                   e5 = a5 * one * unit2 * unit2 * unit;
      const double fifth = e5 - 5 * e4 + 10 * e3 - 10 * e2 + 4;
      move[s] = static_cast<float>(fabs(fifth) < exact ? a0 : 0.0);
      node[s] = static_cast<float>(a1 * one);
      second[s] = static_cast<float>(e2 - 1);
      third[s] = static_cast<float>(e3 - 3 * e2 + 2);
      fourth[s] = static_cast<float>(e4 - 4 * e3 + 6 * e2 - 3);
    }
  }
};

// The rows of one table and its optimizer's state through a number of steps: rows are brought up to a step before they
// are read, and all of them at the end.
class DeferredAdam {
 public:
  // Whether it takes these hyper-parameters: others are nothing that anybody uses.
  static bool fits(double beta1, double beta2, double eps) {
    return beta1 >= 0 && beta1 < 1 && beta2 > 0 && beta2 < 1 && eps > 1e-30;
  }

  // For `steps` steps of which the first is number `step` (from 1).
  void begin(float* p, float* m, float* v, int64_t rows, int64_t dim, double lr, double beta1, double beta2, double eps,
             double step, int64_t steps) {
    p_ = p, m_ = m, v_ = v, rows_ = rows, dim_ = dim, eps_ = static_cast<float>(eps);
    const size_t size = static_cast<size_t>(steps) + 1;
    seen_.assign(static_cast<size_t>(rows), 0u);
    rules_.resize(size);
    weight_power_.resize(size), root_power_.resize(size);
    for (auto& sum : sums_) sum.assign(size, 0.0);
    for (auto& move : moves_) move.assign(size, 0.0f);
    window_ = 1;
    for (int64_t j = 0; j <= steps; ++j) {
      weight_power_[j] = std::pow(beta1, static_cast<double>(j));
      root_power_[j] = std::pow(beta2, 0.5 * static_cast<double>(j));
      if (weight_power_[j] > kForgotten) window_ = j + 1;
      if (j > 0) rules_[j] = make_rule(Optimizer::kAdam, lr, beta1, beta2, eps, step + static_cast<double>(j - 1));
    }
    done_ = 0;
  }

  // Brings rows up to the steps done, as they are about to take the next one. row(i), i in [0, count): distinct rows.
  // A signal may end it in its midst: no row has taken the next step then.
  template <class F>
  void catch_up(int64_t count, bool alone, const F& row) {
    const int64_t piece = std::max<int64_t>(1, kPieceWords / std::max<int64_t>(1, dim_));
    const int64_t pieces = (count + piece - 1) / piece;
    deal_blocks(pieces, alone ? pieces : 1, true, [&](int64_t block) {
      const int64_t end = std::min(count, (block + 1) * piece);
      for (int64_t i = block * piece; i < end; ++i) {
        if (i + 2 * kAhead < end) __builtin_prefetch(&seen_[row(i + 2 * kAhead)], 1);
        if (i + kAhead < end) {
          const int64_t at = row(i + kAhead) * dim_;
          prefetch_row<true>(p_ + at, dim_), prefetch_row<true>(m_ + at, dim_), prefetch_row<true>(v_ + at, dim_);
        }
        const int64_t r = row(i);
        settle(r, seen_[r]);
        seen_[r] = static_cast<uint32_t>(done_ + 1);
      }
    });
  }

  // Counts one more step, which the rows of the last catch_up have taken.
  void end_step() {
    ++done_;
    double* sums[AddMissedStep::kSums];
    float* moves[AddMissedStep::kMoves];
    for (int k = 0; k < AddMissedStep::kSums; ++k) sums[k] = sums_[k].data();
    for (int k = 0; k < AddMissedStep::kMoves; ++k) moves[k] = moves_[k].data();
    simd<AddMissedStep>(std::max<int64_t>(0, done_ - window_), done_, static_cast<const double*>(weight_power_.data()),
                        static_cast<const double*>(root_power_.data()), static_cast<double>(rules_[done_].rate),
                        static_cast<double>(rules_[done_].root_scale), kExact, static_cast<double* const*>(sums),
                        static_cast<float* const*>(moves));
  }

  // Brings all rows up to the steps done. A signal may end it in its midst: other rows then are as the last batch that
  // needed them left them, which is where lazy Adam leaves all.
  void finish() {
    const int64_t piece = std::max<int64_t>(1, kPieceWords / std::max<int64_t>(1, dim_));
    for_each_block((rows_ + piece - 1) / piece, 1, [&](int64_t block) {
      for (int64_t r = block * piece; r < std::min(rows_, (block + 1) * piece); ++r) settle(r, seen_[r]);
    });
  }

 private:
  static constexpr int64_t kPieceWords = 16384;  // of a table that one thread takes at a time
  static constexpr int64_t kAhead = 4;           // rows that are on their way to the cache
  static constexpr double kForgotten = 1e-12;    // share of momentum that is as good as none
  static constexpr double kExact = 1e-6;         // relative error of a move that float32 would hardly show

  void settle(int64_t row, int64_t seen) {
    const int64_t missed = done_ - seen;
    if (missed <= 0) return;
    float *p = p_ + row * dim_, *m = m_ + row * dim_, *v = v_ + row * dim_;
    if (moves_[0][seen] > 0) {
      const double root = root_power_[missed];
      const MissedSteps d{moves_[0][seen],
                          moves_[1][seen],
                          moves_[2][seen],
                          moves_[3][seen],
                          moves_[4][seen],
                          eps_,
                          static_cast<float>(weight_power_[missed]),
                          static_cast<float>(root * root)};
      simd<CatchUpAtOnce>(&d, p, m, v, dim_);
    } else if (!simd<NeverMoved>(static_cast<const float*>(m), static_cast<const float*>(v), dim_)) {
      // Once the momentum is gone, only m and v go on shrinking.
      const int64_t moving = std::min(missed, window_), rest = missed - moving;
      const float keep_first = static_cast<float>(weight_power_[rest]);
      const float keep_second = static_cast<float>(root_power_[rest] * root_power_[rest]);
      simd<CatchUpStepwise>(static_cast<const UpdateRule*>(rules_.data()) + seen + 1, moving, keep_first, keep_second,
                            p, m, v, dim_);
    }
  }

  float *p_ = nullptr, *m_ = nullptr, *v_ = nullptr, eps_ = 0;
  int64_t rows_ = 0, dim_ = 0, done_ = 0, window_ = 1;
  std::vector<uint32_t> seen_;  // of each row: the last step that it has taken
  std::vector<UpdateRule> rules_;
  std::vector<double> weight_power_, root_power_;  // of beta1, and of sqrt(beta2)
  std::vector<double> sums_[AddMissedStep::kSums];
  std::vector<float> moves_[AddMissedStep::kMoves];
};

}  // namespace zx::cpu
