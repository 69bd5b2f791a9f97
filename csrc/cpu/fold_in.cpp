// fold_in on the CPU: the rows of users for items that stay as they are (csrc/common/fold_in.h).
//
// A user is the work of one thread, alone: the result does not depend on the number of threads, nor on who else is
// asked for. Scores and their derivatives are computed as mf_loss computes them; rows, gradients and steps are double.
#include <cmath>
#include <limits>
#include <vector>

#include "common/csr.h"
#include "common/fold_in.h"
#include "cpu/mf_inputs.h"

namespace zx::cpu {
namespace {

// Zerosum: of p + n for each of a positive's K negatives.
template <class T>
struct RoundedSums {
  ZX_HD static double run(const T* pos, const T* neg, int64_t n, int64_t k, T w, T kink, T scale, T* d_pos, T* d_neg) {
    double total = 0;
    for (int64_t i = 0; i < n; ++i) {
      T sum = 0, slope = 0;
      for (int64_t j = i * k; j < (i + 1) * k; ++j)
        sum += add_rounded(pos[i], neg[j], T(1), w, kink, scale, &slope, d_neg + j);
      d_pos[i] += slope;
      total += static_cast<double>(sum);
    }
    return total;
  }
};

// Pos2Neg2: of s - t for the two positives, or the two negatives, of a sample.
template <class T>
struct RoundedDifferences {
  ZX_HD static double run(const T* s, int64_t n, T w, T kink, T scale, T* d) {
    double total = 0;
    for (int64_t i = 0; i < n; ++i)
      total += static_cast<double>(add_rounded(s[i], s[n + i], T(-1), w, kink, scale, d + i, d + n + i));
    return total;
  }
};

template <class T>
struct SampleGradient {
  template <int kBytes>
  ZX_HD static void run(T* out, const T* factors, const T* const* rows, int64_t n, int64_t dim) {
    weighted_sum<kBytes>(out, factors, rows, n, dim);
  }
};

template <class T>
struct LongestRow {
  template <int kBytes>
  ZX_HD static T run(const T* const* rows, int64_t n, int64_t dim) {
    T longest = 0;
    for (int64_t i = 0; i < n; ++i) longest = std::max(longest, dot<T, kBytes>(rows[i], rows[i], dim));
    return longest;
  }
};

// Finds rows one after another; what it allocates stays for the next one.
template <class T>
class Solver {
 public:
  Solver(const MfInputs<T, T>& inputs, const FoldIn& settings)
      : in_(inputs),
        settings_(settings),
        shape_(shape_of(settings.kind)),
        loss_(mf_loss_function<T, T, true>(settings.kind)),
        params_{static_cast<T>(settings.a), static_cast<T>(settings.b), static_cast<T>(settings.c)},
        row_(size()),
        sum_(size()),
        p_(size()),
        gradient_(size()),
        moved_(size()),
        new_gradient_(size()),
        step_(size()),
        steps_(kSlots * size()),
        changes_(kSlots * size()) {
    if (settings.kink > 0) params_.b = params_.c = T(0);  // added apart
    in_.user = row_.data();
  }

  // The row [dim] of a user with n > 0 samples; NaN where an item's vector or bias is not finite.
  void solve(const int64_t* positives, const int64_t* negatives, int64_t n, T* out) {
    in_.positives = positives, in_.negatives = negatives;
    samples_ = n;
    if (static_cast<int64_t>(users_.size()) < n) users_.resize(static_cast<size_t>(n));
    in_.users = users_.data();  // (zeros: there is one row)
    buffers_.reserve(n, in_.num_positives, in_.num_negatives);
    std::fill(p_.begin(), p_.end(), 0.0);
    double value = evaluate(p_, &gradient_);
    double length = std::sqrt(product(gradient_, gradient_));
    if (!std::isfinite(value) || !std::isfinite(length)) {
      std::fill_n(out, in_.dim, std::numeric_limits<T>::quiet_NaN());
      return;
    }
    const double limit = settings_.tolerance * length;
    const T longest = simd<LongestRow<T>>(static_cast<const T* const*>(buffers_.rows.data()), n * in_.items(), in_.dim);
    const double first_scale = 1 / (settings_.l2 + static_cast<double>(longest));  // of usual second derivatives
    scale_ = first_scale, known_ = 0;
    for (int64_t t = 0; t < settings_.max_iterations && length > limit && !stopped_; ++t) {
      find_step();
      if (!search(&value)) {
        if (known_ == 0) break;            // at the last bits, or at a kink
        known_ = 0, scale_ = first_scale;  // what is remembered misleads where the loss is not convex
        continue;
      }
      remember();
      std::swap(p_, moved_), std::swap(gradient_, new_gradient_);
      length = std::sqrt(product(gradient_, gradient_));
    }
    for (int64_t i = 0; i < in_.dim; ++i) out[i] = static_cast<T>(p_[i]);
  }

 private:
  using Vector = std::vector<double>;
  static constexpr int kSlots = kFoldMemory + 1;  // (a step that is not kept has not overwritten one that is)

  size_t size() const { return static_cast<size_t>(in_.dim); }
  double product(const Vector& x, const Vector& y) const { return product(x.data(), y.data()); }
  double product(const double* x, const double* y) const { return dot<double, 16>(x, y, in_.dim); }

  // The objective at p, and its gradient.
  double evaluate(const Vector& p, Vector* gradient) {
    const int64_t n = samples_, k = in_.num_negatives, dim = in_.dim;
    for (int64_t i = 0; i < dim; ++i) row_[i] = static_cast<T>(p[i]);
    const bool planes = shape_ == Shape::kQuad;
    const uint32_t* unordered = nullptr;
    simd<MfScores<T, T>>(static_cast<const MfInputs<T, T>*>(&in_), unordered, int64_t{0}, n, n, planes, &buffers_);
    const double mean = 1.0 / (static_cast<double>(n) * static_cast<double>(shape_ == Shape::kPair ? k : 1));
    const T scale = static_cast<T>(mean), *no_weight = nullptr;
    double total = loss_(buffers_, n, k, in_.constants != nullptr, no_weight, scale, params_);
    if (settings_.kink > 0) total += rounded_kinks(scale);
    gather_coefficients(buffers_, n, in_.num_positives, k, planes);
    simd<SampleGradient<T>>(sum_.data(), static_cast<const T*>(buffers_.coefficient.data()),
                            static_cast<const T* const*>(buffers_.rows.data()), n * in_.items(), dim);
    for (int64_t i = 0; i < dim; ++i) (*gradient)[i] = static_cast<double>(sum_[i]) + settings_.l2 * p[i];
    return mean * total + 0.5 * settings_.l2 * product(p, p);
  }

  double rounded_kinks(T scale) {
    const int64_t n = samples_;
    const T *pos = buffers_.pos.data(), *neg = buffers_.neg.data(), kink = static_cast<T>(settings_.kink);
    T *d_pos = buffers_.d_pos.data(), *d_neg = buffers_.d_neg.data();
    const T b = static_cast<T>(settings_.b), c = static_cast<T>(settings_.c);
    if (shape_ == Shape::kPair)
      return simd<RoundedSums<T>>(pos, neg, n, in_.num_negatives, b, kink, scale, d_pos, d_neg);
    return simd<RoundedDifferences<T>>(pos, n, b, kink, scale, d_pos) +
           simd<RoundedDifferences<T>>(neg, n, c, kink, scale, d_neg);
  }

  // step = -H gradient, H the inverse of the Hessian that the steps before stand for.
  void find_step() {
    const int64_t dim = in_.dim;
    const int kept = static_cast<int>(std::min<int64_t>(known_, kFoldMemory));
    double shares[kFoldMemory];
    for (int64_t i = 0; i < dim; ++i) step_[i] = -gradient_[i];
    for (int age = 0; age < kept; ++age) {
      const size_t at = slot(age);
      shares[age] = inverse_[at] * product(steps_.data() + at * size(), step_.data());
      add_scaled(step_.data(), -shares[age], changes_.data() + at * size(), dim);
    }
    for (int64_t i = 0; i < dim; ++i) step_[i] *= scale_;
    for (int age = kept - 1; age >= 0; --age) {
      const size_t at = slot(age);
      const double share = shares[age] - inverse_[at] * product(changes_.data() + at * size(), step_.data());
      add_scaled(step_.data(), share, steps_.data() + at * size(), dim);
    }
  }
  size_t slot(int age) const { return static_cast<size_t>((known_ - 1 - age) % kSlots); }

  // Halves the step until the value falls enough; false if it never does, or nothing moves.
  bool search(double* value) {
    const double slope = product(step_, gradient_), squares = product(gradient_, gradient_);
    const double rounding = 4 * static_cast<double>(std::numeric_limits<T>::epsilon()) * std::fabs(*value);
    double share = 1;
    for (int t = 0; t < kFoldHalvings && !stopped(); ++t, share /= 2) {
      for (int64_t i = 0; i < in_.dim; ++i) moved_[i] = p_[i] + share * step_[i];
      const double found = evaluate(moved_, &new_gradient_);
      if (takes_step(*value, found, rounding, share * slope, squares, product(new_gradient_, new_gradient_))) {
        *value = found;
        return moved_ != p_;
      }
    }
    return false;
  }

  // Whether a signal ends the op: a user may have very many samples.
  bool stopped() {
    constexpr int64_t kWork = 1 << 18;
    work_ += samples_ * in_.items() * in_.dim;
    if (work_ < kWork) return false;
    work_ = 0;
    return stopped_ = Watch::current() != nullptr && Watch::current()->stop();
  }

  // Keeps the step from p to moved where the curvature along it is positive.
  void remember() {
    const size_t at = static_cast<size_t>(known_ % kSlots);
    double *step = steps_.data() + at * size(), *change = changes_.data() + at * size();
    for (int64_t i = 0; i < in_.dim; ++i) step[i] = moved_[i] - p_[i], change[i] = new_gradient_[i] - gradient_[i];
    const double both = product(step, change), squares = product(change, change);
    if (!is_curved(both, squares, static_cast<double>(std::numeric_limits<T>::epsilon()))) return;
    scale_ = both / squares;
    inverse_[at] = 1 / both;
    ++known_;
  }

  MfInputs<T, T> in_;
  const FoldIn settings_;
  const Shape shape_;
  const MfLossFunction<T, T> loss_;
  Params<T> params_;
  MfBlockBuffers<T, T> buffers_;
  std::vector<int64_t> users_;
  std::vector<T> row_, sum_;
  Vector p_, gradient_, moved_, new_gradient_, step_, steps_, changes_;
  double inverse_[kSlots] = {};
  double scale_ = 1;
  int64_t samples_ = 0, known_ = 0, work_ = 0;
  bool stopped_ = false;
};

template <class T>
void fold_in_typed(const MfInputs<T, T>& in, const FoldIn& settings, const int64_t* indptr, int64_t users, T* rows) {
  share_blocks(users, [&](const auto& next) {
    Solver<T> solver(in, settings);
    for (int64_t u = next(); u >= 0; u = next()) {
      T* const out = rows + u * in.dim;
      const int64_t first = indptr[u], n = indptr[u + 1] - first;
      if (n > 0)
        solver.solve(in.positives + first * in.num_positives, in.negatives + first * in.num_negatives, n, out);
      else
        std::fill_n(out, in.dim, T(0));
    }
  });
}

// Throws unless every user's samples are there, and their items.
template <class T>
void check_numbers(const MfInputs<T, T>& in, const Tensor& indptr, int64_t samples, int64_t num_items) {
  const int64_t* ends = data<int64_t>(indptr);
  bool sound = true;
  for (int64_t u = 0; u + 1 < indptr.size(0); ++u) sound &= is_row(ends[u], ends[u + 1], samples);
  ZX_CHECK(sound, "indptr does not ascend from 0 to at most the number of samples");
  ZX_CHECK(all_below(in.positives, samples * in.num_positives, num_items) &&
               all_below(in.negatives, samples * in.num_negatives, num_items),
           "positives and negatives must be in range");
}

}  // namespace

Tensor fold_in(const Tensor& item_embedding, std::optional<Tensor> item_bias, const Tensor& indptr,
               const Tensor& positives, const Tensor& negatives, std::optional<Tensor> constants, int64_t loss,
               double a, double b, double c, double kink, double l2, double tolerance, int64_t max_iterations) {
  const FoldIn settings = checked_fold_in(loss, a, b, c, kink, l2, tolerance, max_iterations);
  check_fold_in_samples(settings.kind, item_embedding, indptr, positives, negatives, item_bias, constants);
  const int64_t samples = positives.size(0), users = indptr.size(0) - 1;
  const ScalarType dtype = item_embedding.scalar_type();
  Tensor rows = new_tensor(item_embedding, {users, item_embedding.size(1)}, dtype);
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    MfInputs<T, T> in = mf_table_inputs<T, T>(item_embedding, item_embedding, item_bias);
    in.constants = data_or_null<T>(constants);
    in.positives = data<int64_t>(positives), in.negatives = data<int64_t>(negatives);
    in.num_positives = columns_of(positives), in.num_negatives = columns_of(negatives);
    check_numbers(in, indptr, samples, item_embedding.size(0));
    fold_in_typed(in, settings, data<int64_t>(indptr), users, data<T>(rows));
  };
  if (dtype == ScalarType::Double)
    call(double{});
  else
    call(float{});
  return rows;
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) { m.impl("fold_in", ZX_BOX(&zx::cpu::fold_in)); }
