// mf_step on CUDA tensors.
#include "cuda/mf_step.cuh"

#ifndef __CUDA_ARCH__  // what follows is compiled once, not for each architecture (cuda/call.h)

#include "cuda/tensors.h"
#include "step_checks.h"

namespace zx::cuda {
namespace {

using MaybeTensor = std::optional<Tensor>;

// A table and its optimizer's state; `settings` is its line of them.
StepTable table_of(const Call& call, Optimizer kind, const Tensor* values, const MaybeTensor& first,
                   const MaybeTensor& second, const double* settings) {
  if (values == nullptr) return {};
  StepTable out{data<float>(*values), nullptr, nullptr, 0, settings[0] != 0};
  if (!out.wanted) return out;
  call.require_here(first, "first");
  call.require_here(second, "second");
  check_state(kind, *values, first, second);
  out.m = first ? data<float>(*first) : nullptr, out.v = second ? data<float>(*second) : nullptr;
  return out;
}

double* one_double(const Call& call, const MaybeTensor& t, const char* name) {
  if (!t) return nullptr;
  call.require_here(t, name);
  ZX_CHECK(t->scalar_type() == ScalarType::Double && t->numel() == 1, name, " must be one float64 number");
  return data<double>(*t);
}

}  // namespace

Tensor mf_step(Tensor user_embedding, Tensor item_embedding, MaybeTensor item_bias, MaybeTensor user_first,
               MaybeTensor user_second, MaybeTensor item_first, MaybeTensor item_second, MaybeTensor bias_first,
               MaybeTensor bias_second, const Tensor& users, const Tensor& positives, const Tensor& negatives,
               MaybeTensor constants, const Tensor& settings, MaybeTensor user_lr, MaybeTensor user_step,
               MaybeTensor item_lr, MaybeTensor item_step, MaybeTensor bias_lr, MaybeTensor bias_step,
               MaybeTensor total, int64_t optimizer, int64_t loss, double a, double b, double c, double l2,
               double longest, int64_t reduction, MaybeTensor weight, bool normalize, MaybeTensor lists,
               MaybeTensor start, MaybeTensor held, MaybeTensor alone, int64_t share) {
  const Call call(user_embedding);
  check_mf_tensors(call, user_embedding, item_embedding, users, positives, negatives);
  call.require_here(item_bias, "item_bias");
  call.require_here(constants, "constants");
  ZX_CHECK(user_embedding.scalar_type() == ScalarType::Float, "the tables must be float32");
  const int64_t samples = users.size(0), num_items = item_embedding.size(0);
  if (item_bias)
    ZX_CHECK(item_bias->dim() == 1 && item_bias->size(0) == num_items && item_bias->is_contiguous() &&
                 item_bias->scalar_type() == ScalarType::Float,
             "item_bias must be [I], float32");
  if (constants)
    ZX_CHECK(constants->scalar_type() == ScalarType::Float && constants->is_contiguous() && constants->dim() == 1 &&
                 constants->size(0) == num_items,
             "constants must be [I], float32");
  call.require_here(weight, "weight");
  if (weight) check_weight(*weight, samples);
  check_step(settings, positives, negatives, constants.has_value(), loss, reduction);
  const std::pair<const MaybeTensor*, const char*> parts[] = {
      {&lists, "lists"}, {&start, "start"}, {&held, "held"}, {&alone, "alone"}};
  for (const auto& [part, name] : parts) call.require_here(*part, name);
  const bool shared = check_shared(lists, start, held, alone, share, positives, negatives, samples);
  const Optimizer kind = checked_optimizer(optimizer);
  const double* s = data<double>(settings);

  StepProblem p;
  p.loss = static_cast<Loss>(loss), p.params = {a, b, c}, p.reduction = static_cast<Reduction>(reduction);
  p.l2 = l2, p.longest = longest, p.cosines = normalize;
  p.user = table_of(call, kind, &user_embedding, user_first, user_second, s);
  p.item = table_of(call, kind, &item_embedding, item_first, item_second, s + 6);
  p.bias = table_of(call, kind, item_bias ? &*item_bias : nullptr, bias_first, bias_second, s + 12);
  p.num_users = user_embedding.size(0), p.num_items = num_items, p.dim = user_embedding.size(1);
  p.constants = constants ? data<float>(*constants) : nullptr;
  p.weight = weight ? data<float>(*weight) : nullptr;
  p.users = data<int64_t>(users), p.positives = data<int64_t>(positives), p.negatives = data<int64_t>(negatives);
  p.samples = samples, p.num_positives = columns_of(positives), p.num_negatives = columns_of(negatives);
  if (shared) {
    p.lists = data<int64_t>(*lists), p.start = data<int64_t>(*start), p.alone = data<int64_t>(*alone);
    p.held = static_cast<const uint8_t*>(held->data_ptr()), p.num_lists = lists->size(0), p.share = share;
  }
  ZX_CHECK(p.positions() <= kMostPositions, "a batch must have fewer than 2^30 users and items, got ", p.positions());
  ZX_CHECK(p.num_users + p.num_items < (int64_t{1} << 32) - 2, "the tables must have fewer than 2^32 - 2 rows");
  ZX_CHECK(!shared || p.num_users + p.positions() < (int64_t{1} << 32) - 2, "tables and batch are too large together");
  ZX_CHECK(p.dim < (int64_t{1} << 30), "rows must have fewer than 2^30 elements");
  const MaybeTensor* rates[3] = {&user_lr, &item_lr, &bias_lr};
  const MaybeTensor* steps[3] = {&user_step, &item_step, &bias_step};
  StepNumbers& n = p.numbers;
  n.kind = kind;
  for (int t = 0; t < 3; ++t) {
    call.require_here(*rates[t], "lr");
    call.require_here(*steps[t], "step");
    n.lr[t] = number_of(*rates[t], s[6 * t + 1], "lr"), n.step[t] = number_of(*steps[t], s[6 * t + 5], "step");
    n.x[t] = s[6 * t + 2], n.y[t] = s[6 * t + 3], n.eps[t] = s[6 * t + 4];
  }
  Tensor value = new_tensor(users, {}, ScalarType::Double);
  p.value = data<double>(value), p.total = one_double(call, total, "total");
  if (samples == 0) {
    call.fill(p.value, 0, sizeof(double));
    return value;
  }
  ZX_CHECK(!p.cosines || !step_plan(p).wide,
           "cosines are of rows of at most 256 numbers that begin at multiples of 16 bytes, or of 64, got ", p.dim);
  const Tensor memory = new_tensor(users, {step_words(p)}, ScalarType::Int);
  zx::mf_step(p, static_cast<unsigned*>(memory.data_ptr()), call.stream());
  Call::check();
  return value;
}

}  // namespace zx::cuda

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CUDA, m) { m.impl("mf_step", ZX_BOX(&zx::cuda::mf_step)); }

#endif
