// mf_step, mf_train and mf_train_sampled on the CPU: one or many training steps of matrix factorization in one call,
// from the ids of their samples, or from the matrix that these are drawn from, to updated tables. Exact steps:
// mf_exact.h; Hogwild: mf_hogwild.h.
#include "cpu/mf_exact.h"
#include "cpu/mf_hogwild.h"
#include "cpu/mf_shared.h"
#include "step_checks.h"

namespace zx::cpu {
namespace {

using Inputs = MfInputs<float, float>;
using MaybeTensor = std::optional<Tensor>;

// What both ops have in common: tables, the state of their optimizer, a loss, and perhaps samples that share negatives.
struct Training {
  Tensor user_embedding, item_embedding;
  MaybeTensor item_bias, user_first, user_second, item_first, item_second, bias_first, bias_second, constants;
  Tensor settings;
  int64_t optimizer, loss;
  double a, b, c, l2, longest;
  int64_t reduction, batch_size;
  bool asynchronous, cosines;
  const SharedSamples* shared = nullptr;
  EntryWeights weights = {};
  const float* of_samples = nullptr;  // their weights, in one batch of samples that are given
};

// Trains on samples_of(in), where `in`, which has the tables and perhaps ids, has got the constants as well.
template <class F>
Tensor train(Training t, Inputs in, const F& samples_of) {
  const Optimizer kind = checked_optimizer(t.optimizer);
  const Loss which = checked_loss(t.loss);
  const Reduction reduce = checked_reduction(t.reduction);
  ZX_CHECK(reduce != Reduction::kNone, "training needs a reduction");
  ZX_CHECK(t.batch_size > 0, "batch_size must be positive");
  const MfLossCall call{shape_of(which), mf_loss_function<float, float, true>(which),
                        Params<float>{static_cast<float>(t.a), static_cast<float>(t.b), static_cast<float>(t.c)},
                        t.weights, t.of_samples};
  ZX_CHECK(in.num_positives == (call.planes() ? 2 : 1) && (!call.planes() || in.num_negatives == 2) &&
               (call.shape != Shape::kRow || in.num_negatives > 0),
           "positives or negatives do not have the shape of this loss");
  if (t.constants) {
    ZX_CHECK(t.constants->scalar_type() == ScalarType::Float && t.constants->is_contiguous() &&
                 t.constants->dim() == 1 && t.constants->size(0) == t.item_embedding.size(0),
             "constants must be [I], float32");
    in.constants = data<float>(*t.constants);
  }
  ZX_CHECK(t.constants || !needs_constants(which), "this loss needs constants");
  ZX_CHECK(t.settings.scalar_type() == ScalarType::Double && t.settings.is_contiguous() && t.settings.dim() == 2 &&
               t.settings.size(0) == 3 && t.settings.size(1) == 6,
           "settings must be float64 [3, 6]");
  const auto table = [&](int64_t row, Tensor* values, MaybeTensor& first, MaybeTensor& second) {
    MfTable out;
    if (values == nullptr) return out;
    const double* s = data<double>(t.settings) + 6 * row;
    out.values = data<float>(*values), out.rows = values->size(0), out.dim = values->dim() == 2 ? values->size(1) : 1;
    out.wanted = s[0] != 0, out.lr = s[1], out.x = s[2], out.y = s[3], out.eps = s[4], out.step = s[5];
    if (!out.wanted) return out;
    check_state(kind, *values, first, second);
    out.first = data_or_null<float>(first), out.second = data_or_null<float>(second);
    return out;
  };
  MfTable user = table(0, &t.user_embedding, t.user_first, t.user_second);
  MfTable item = table(1, &t.item_embedding, t.item_first, t.item_second);
  MfTable bias = table(2, t.item_bias ? &*t.item_bias : nullptr, t.bias_first, t.bias_second);
  const MfSamples samples = samples_of(in);
  ZX_CHECK(t.shared == nullptr || (in.num_positives == 1 && in.num_negatives > 0),
           "negatives are shared by samples of one positive, and at least one of them");
  const SharedTables tables_of_blocks{user.values, item.values, bias.values, in.constants, in.dim, t.cosines};
  const bool mean = reduce == Reduction::kMean;
  if (t.asynchronous) {
    ZX_CHECK(kind == Optimizer::kSgd && t.longest <= 0, "asynchronous training is SGD without clipping");
    Tensor losses = new_tensor(t.user_embedding, {1}, ScalarType::Double);
    const float l2 = static_cast<float>(t.l2);
    *data<double>(losses) = t.shared != nullptr
                                ? shared_hogwild(tables_of_blocks, call, mean, l2, *t.shared, user, item, bias)
                                : hogwild(call, mean, t.cosines, l2, samples, user, item, bias);
    return losses;
  }
  const int64_t batch_size = std::min(t.batch_size, std::max<int64_t>(1, samples.count()));
  const int64_t steps = (samples.count() + batch_size - 1) / batch_size;
  Tensor losses = new_tensor(t.user_embedding, {steps}, ScalarType::Double);
  static thread_local ExactWorkspace workspace;
  static thread_local SharedWorkspace of_blocks;
  DeferredAdam deferred[3];
  MfTable* tables[3] = {&user, &item, &bias};
  for (int i = 0; i < 3 && kind == Optimizer::kAdam; ++i) {
    int64_t touched = batch_size * (i == 0 ? 1 : in.items());
    if (i > 0 && t.shared != nullptr) touched = batch_size + (batch_size / t.shared->size() + 2) * in.num_negatives;
    if (defers(*tables[i], touched, steps)) {
      const MfTable& of = *tables[i];
      deferred[i].begin(of.values, of.first, of.second, of.rows, of.dim, of.lr, of.x, of.y, of.eps, of.step, steps);
      tables[i]->deferred = &deferred[i];
    }
  }
  // Whoever goes on with the tables after an error finds all rows at the last step that was done. (A signal is raised
  // once more by what finishes them, and so ends that if it takes long.)
  std::exception_ptr error;
  const auto guarded = [&](const auto& f) {
    try {
      f();
    } catch (...) {
      if (!error) error = std::current_exception();
    }
  };
  guarded([&] {
    if (t.shared != nullptr)
      SharedTrainer(tables_of_blocks, call, kind, mean, t.l2, t.longest, user, item, bias, of_blocks)
          .run(*t.shared, batch_size, data<double>(losses));
    else
      ExactTrainer(in, call, kind, mean, t.cosines, t.l2, t.longest, user, item, bias, workspace)
          .run(samples, batch_size, data<double>(losses));
  });
  for (const MfTable* of : tables)
    if (of->deferred != nullptr) guarded([&] { of->deferred->finish(); });
  if (workspace.bytes() > kKeptBytes) workspace = {};
  if (of_blocks.bytes() > kKeptBytes) of_blocks = {};
  if (error) std::rethrow_exception(error);
  return losses;
}

// Trains on samples whose ids are given.
Tensor train_on(Training t, const Tensor& users, const Tensor& positives, const Tensor& negatives) {
  const Inputs ids =
      mf_inputs<float, float>(t.user_embedding, t.item_embedding, t.item_bias, users, positives, negatives);
  const int64_t samples = users.size(0);
  check_ids_in_range(ids, samples, t.user_embedding.size(0), t.item_embedding.size(0));
  return train(std::move(t), ids, [&](const Inputs& in) { return MfSamples(in, samples); });
}

}  // namespace

Tensor mf_train(Tensor user_embedding, Tensor item_embedding, MaybeTensor item_bias, MaybeTensor user_first,
                MaybeTensor user_second, MaybeTensor item_first, MaybeTensor item_second, MaybeTensor bias_first,
                MaybeTensor bias_second, const Tensor& users, const Tensor& positives, const Tensor& negatives,
                MaybeTensor constants, const Tensor& settings, int64_t optimizer, int64_t loss, double a, double b,
                double c, double l2, double longest, int64_t reduction, int64_t batch_size, bool asynchronous,
                bool normalize) {
  return train_on({user_embedding,
                   item_embedding,
                   item_bias,
                   user_first,
                   user_second,
                   item_first,
                   item_second,
                   bias_first,
                   bias_second,
                   constants,
                   settings,
                   optimizer,
                   loss,
                   a,
                   b,
                   c,
                   l2,
                   longest,
                   reduction,
                   batch_size,
                   asynchronous,
                   normalize},
                  users, positives, negatives);
}

Tensor mf_train_sampled(Tensor user_embedding, Tensor item_embedding, MaybeTensor item_bias, MaybeTensor user_first,
                        MaybeTensor user_second, MaybeTensor item_first, MaybeTensor item_second,
                        MaybeTensor bias_first, MaybeTensor bias_second, const Tensor& indptr, const Tensor& indices,
                        const Tensor& hint, int64_t hint_shift, MaybeTensor gaps, MaybeTensor active, int64_t order,
                        int64_t kept, int64_t total, int64_t begin, int64_t samples, int64_t positives,
                        const Tensor& excluded_indptr, const Tensor& excluded_indices, MaybeTensor filter,
                        MaybeTensor slots, MaybeTensor masses, int64_t num_items, int64_t k, int64_t seed,
                        int64_t epoch, bool replacement, int64_t shared, MaybeTensor constants, const Tensor& settings,
                        int64_t optimizer, int64_t loss, double a, double b, double c, double l2, double longest,
                        int64_t reduction, int64_t batch_size, bool asynchronous, bool normalize, MaybeTensor weights) {
  check_positives(indptr, indices, hint, hint_shift, gaps, active, order, kept, total, positives);
  check_negatives(excluded_indptr, excluded_indices, filter, slots, masses, num_items, k);
  check_samples(begin, samples, total);
  ZX_CHECK(indptr.size(0) == excluded_indptr.size(0), "the matrices must have the same users");
  ZX_CHECK(shared >= 0 && shared <= kMostShared, "shared must be a number of samples up to ", kMostShared, ", but is ",
           shared);
  Inputs tables = mf_table_inputs<float, float>(user_embedding, item_embedding, item_bias);
  tables.num_positives = positives, tables.num_negatives = k;
  const DrawPositives draw_users =
      draw_positives(indptr, indices, hint, hint_shift, gaps, active, order, kept, total, positives, seed, epoch);
  const DrawNegatives draw_items =
      draw_negatives(excluded_indptr, excluded_indices, filter, slots, masses, num_items, k, seed, epoch, replacement);
  EntryWeights of_entries;
  if (weights) {
    ZX_CHECK(weights->scalar_type() == ScalarType::Float && weights->is_contiguous() && weights->dim() == 1 &&
                 weights->size(0) == indices.size(0),
             "weights must be [nnz], float32");
    const bool wide = indices.scalar_type() == ScalarType::Long;
    const void* entries = wide ? static_cast<const void*>(data<int64_t>(indices)) : data<int32_t>(indices);
    of_entries = {data<int64_t>(indptr), entries, wide, indices.size(0), data<float>(*weights)};
  }
  // A matrix of one user without interactions, from which the lists of blocks are drawn.
  Tensor nobody = new_tensor(indptr, {2}, ScalarType::Long),
         nothing = new_tensor(excluded_indices, {0}, excluded_indices.scalar_type());
  std::optional<SharedSamples> of_blocks;
  if (shared > 0) {
    ZX_CHECK(k <= kMostHeld, "samples share at most ", kMostHeld, " negatives, not ", k);
    ZX_CHECK(positives == 1 && replacement,
             "samples that share negatives have one positive, and draw with replacement");
    std::fill_n(data<int64_t>(nobody), 2, int64_t{0});
    of_blocks.emplace(samples, begin, shared, k, user_embedding.size(0), item_embedding.size(0), draw_users,
                      draw_negatives(nobody, nothing, std::nullopt, slots, masses, num_items, k, seed, epoch, true),
                      draw_items, find_held(excluded_indptr, excluded_indices, filter, num_items));
  }
  return train({user_embedding,
                item_embedding,
                item_bias,
                user_first,
                user_second,
                item_first,
                item_second,
                bias_first,
                bias_second,
                constants,
                settings,
                optimizer,
                loss,
                a,
                b,
                c,
                l2,
                longest,
                reduction,
                batch_size,
                asynchronous,
                normalize,
                of_blocks ? &*of_blocks : nullptr,
                of_entries},
               tables, [&](const Inputs& in) {
                 return MfSamples(in, samples, begin, user_embedding.size(0), item_embedding.size(0), draw_users,
                                  draw_items);
               });
}

// The negatives of samples that share lists, one by one.
Tensor expand_shared(const Tensor& lists, const Tensor& start, const Tensor& held, int64_t share, const Tensor& own) {
  const int64_t samples = own.size(0), k = lists.size(1);
  const int64_t *items = data<int64_t>(lists), *others = data<int64_t>(own);
  const bool* taken = data<bool>(held);
  const int64_t given = *data<int64_t>(start), first = given >= 0 && given < share ? given : 0;
  Tensor out = new_tensor(own, {samples, k}, ScalarType::Long);
  int64_t* to = data<int64_t>(out);
  for (int64_t i = 0; i < samples; ++i, taken += k, others += k, to += k) {
    const int64_t* list = items + (first + i) / share * k;
    const bool alone = std::all_of(taken, taken + k, [](bool t) { return t; });
    for (int64_t j = 0; j < k; ++j) to[j] = alone ? others[j] : list[place_of(taken, k, j)];
  }
  return out;
}

// One step, with numbers that may lie in memory.
Tensor mf_step(Tensor user_embedding, Tensor item_embedding, MaybeTensor item_bias, MaybeTensor user_first,
               MaybeTensor user_second, MaybeTensor item_first, MaybeTensor item_second, MaybeTensor bias_first,
               MaybeTensor bias_second, const Tensor& users, const Tensor& positives, const Tensor& negatives,
               MaybeTensor constants, const Tensor& settings, MaybeTensor user_lr, MaybeTensor user_step,
               MaybeTensor item_lr, MaybeTensor item_step, MaybeTensor bias_lr, MaybeTensor bias_step,
               MaybeTensor total, int64_t optimizer, int64_t loss, double a, double b, double c, double l2,
               double longest, int64_t reduction, MaybeTensor weight, bool normalize, MaybeTensor lists,
               MaybeTensor start, MaybeTensor held, MaybeTensor alone, int64_t share) {
  check_step(settings, positives, negatives, constants.has_value(), loss, reduction);
  Tensor now = new_tensor(settings, {3, 6}, ScalarType::Double), value = new_tensor(settings, {}, ScalarType::Double);
  std::copy_n(data<double>(settings), 18, data<double>(now));
  double* sum = data<double>(value);
  *sum = 0;
  const int64_t samples = users.size(0);
  if (weight) check_weight(*weight, samples);
  const bool shared = check_shared(lists, start, held, alone, share, positives, negatives, samples);
  if (samples == 0) return value;
  ZX_CHECK(!shared || (negatives.size(0) == samples && negatives.is_contiguous()), "negatives must be [B, K]");
  const MaybeTensor* rates[3] = {&user_lr, &item_lr, &bias_lr};
  MaybeTensor* steps[3] = {&user_step, &item_step, &bias_step};
  for (int64_t t = 0; t < 3; ++t) {
    double* line = data<double>(now) + 6 * t;
    line[1] = number_of(*rates[t], line[1], "lr").read();
    if (*steps[t]) line[5] = number_of(*steps[t], 0, "step").read() + 1;
  }
  const Tensor own = shared ? expand_shared(*lists, *start, *held, share, negatives) : negatives;
  const Tensor losses = train_on({user_embedding,
                                  item_embedding,
                                  item_bias,
                                  user_first,
                                  user_second,
                                  item_first,
                                  item_second,
                                  bias_first,
                                  bias_second,
                                  constants,
                                  now,
                                  optimizer,
                                  loss,
                                  a,
                                  b,
                                  c,
                                  l2,
                                  longest,
                                  reduction,
                                  samples,
                                  false,
                                  normalize,
                                  nullptr,
                                  {},
                                  data_or_null<float>(weight)},
                                 users, positives, own);
  for (int64_t t = 0; t < 3; ++t) {
    if (!*steps[t]) continue;
    Tensor& step = **steps[t];
    const double number = data<double>(now)[6 * t + 5];
    if (step.scalar_type() == ScalarType::Double)
      *data<double>(step) = number;
    else
      *data<float>(step) = static_cast<float>(number);
  }
  *sum = *data<double>(losses);
  if (total) {
    ZX_CHECK(total->scalar_type() == ScalarType::Double && total->numel() == 1, "total must be one float64 number");
    const bool mean = static_cast<Reduction>(reduction) == Reduction::kMean;
    *data<double>(*total) += *sum * (mean ? static_cast<double>(samples) : 1.0);
  }
  return value;
}

}  // namespace zx::cpu

STABLE_TORCH_LIBRARY_IMPL(zerosum_ext, CPU, m) {
  m.impl("mf_step", ZX_BOX(&zx::cpu::mf_step));
  m.impl("mf_train", ZX_BOX(&zx::cpu::mf_train));
  m.impl("mf_train_sampled", ZX_BOX(&zx::cpu::mf_train_sampled));
}
