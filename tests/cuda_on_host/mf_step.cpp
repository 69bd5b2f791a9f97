// The launchers of csrc/cuda/batch_sort.cuh and mf_step.cuh.
#include "cuda/mf_step.cuh"

#include "element.h"

namespace {

int64_t columns_of(const Tensor& t) { return t.sizes.size() == 2 ? t.size(1) : 1; }

zx::BatchKeys keys_of(const Tensor& users, const Tensor& positives, const Tensor& negatives, int64_t num_users,
                      int64_t num_items) {
  zx::BatchKeys ids{};
  ids.users = users.ptr<int64_t>(), ids.positives = positives.ptr<int64_t>(), ids.negatives = negatives.ptr<int64_t>();
  ids.samples = unsigned(users.size(0));
  ids.num_positives = unsigned(columns_of(positives)), ids.num_negatives = unsigned(columns_of(negatives));
  ids.num_users = unsigned(num_users), ids.num_items = unsigned(num_items);
  ids.items = zx::divider_of(ids.num_positives + ids.num_negatives);
  return ids;
}

// out: words that the sort of n positions wants as zeros, its passes, and the largest n that one block sorts.
hostcall::Function sizes("sort_sizes", [](int64_t n, int64_t num_users, int64_t num_items, Tensor out) {
  const zx::SortPlan plan = zx::sort_plan(num_users, num_items);
  int64_t* p = out.ptr<int64_t>();
  p[0] = zx::sort_zeros(n, plan), p[1] = plan.passes, p[2] = zx::kSmallSort, p[3] = zx::kPassTile;
});

// keys, order: [2, n]; the second rows are the result. rules: of 3 tables, as 8 words each.
hostcall::Function sort("sort_batch", [](Tensor users, Tensor positives, Tensor negatives, int64_t num_users,
                                         int64_t num_items, Tensor keys, Tensor order, Tensor zeros, Tensor rules) {
  const zx::BatchKeys ids = keys_of(users, positives, negatives, num_users, num_items);
  const int64_t n = keys.size(1);
  unsigned *k = keys.ptr<unsigned>(), *o = order.ptr<unsigned>();
  zx::StepNumbers numbers{};
  numbers.rules = reinterpret_cast<zx::UpdateRule*>(rules.ptr<float>());
  zx::sort_batch(ids, n, zx::sort_plan(num_users, num_items), {k, k + n}, {o, o + n}, zeros.ptr<unsigned>(), numbers,
                 nullptr);
});

zx::Number number(const Tensor& t, double value) {
  return zx::number_at(t.data, t.dtype == hostcall::DType::f64, value);
}

zx::StepTable table_of(const Tensor& values, const Tensor& m, const Tensor& v, bool wanted) {
  return {values.ptr<float>(), m.ptr<float>(), v.ptr<float>(), 0, wanted};
}

struct Problem {
  Tensor user, user_m, user_v, item, item_m, item_v, bias, bias_m, bias_v, users, positives, negatives, constants;
  Tensor numbers;                              // f64 [3, 6]: wanted, lr, x, y, eps, step
  Tensor lr, user_step, item_step, bias_step;  // or None
  // f64 [12]: optimizer, loss, a, b, c, reduction, l2, longest, chunks of users, of items (or 0), cosines, samples that
  // share a list
  Tensor options;
  Tensor value, total, weight, lists, start, held, alone;

  zx::StepProblem problem() const {
    const double *n = numbers.ptr<double>(), *o = options.ptr<double>();
    zx::StepProblem p{};
    p.numbers.kind = zx::Optimizer(int(o[0])), p.loss = zx::Loss(int(o[1]));
    p.params = {o[2], o[3], o[4]}, p.reduction = zx::Reduction(int(o[5])), p.l2 = o[6], p.longest = o[7];
    p.user = table_of(user, user_m, user_v, n[0] != 0), p.item = table_of(item, item_m, item_v, n[6] != 0);
    p.bias = table_of(bias, bias_m, bias_v, bias && n[12] != 0);
    p.num_users = user.size(0), p.num_items = item.size(0), p.dim = user.size(1);
    p.constants = constants.ptr<float>(), p.weight = weight.ptr<float>();
    p.users = users.ptr<int64_t>(), p.positives = positives.ptr<int64_t>(), p.negatives = negatives.ptr<int64_t>();
    p.samples = users.size(0), p.num_positives = columns_of(positives), p.num_negatives = columns_of(negatives);
    const Tensor* steps[3] = {&user_step, &item_step, &bias_step};
    for (int t = 0; t < 3; ++t) {
      p.numbers.lr[t] = number(lr, n[6 * t + 1]), p.numbers.step[t] = number(*steps[t], n[6 * t + 5]);
      p.numbers.x[t] = n[6 * t + 2], p.numbers.y[t] = n[6 * t + 3], p.numbers.eps[t] = n[6 * t + 4];
    }
    p.user_chunk = unsigned(o[8]), p.item_chunk = unsigned(o[9]);
    p.cosines = o[10] != 0;
    p.lists = lists.ptr<int64_t>(), p.start = start.ptr<int64_t>(), p.alone = alone.ptr<int64_t>();
    p.held = held.ptr<uint8_t>(), p.num_lists = lists ? lists.size(0) : 0, p.share = int64_t(o[11]);
    p.value = value.ptr<double>(), p.total = total.ptr<double>();
    return p;
  }
};

hostcall::Function step("mf_step", [](Tensor user, Tensor user_m, Tensor user_v, Tensor item, Tensor item_m,
                                      Tensor item_v, Tensor bias, Tensor bias_m, Tensor bias_v, Tensor users,
                                      Tensor positives, Tensor negatives, Tensor constants, Tensor numbers, Tensor lr,
                                      Tensor user_step, Tensor item_step, Tensor bias_step, Tensor options,
                                      Tensor value, Tensor total, Tensor weight, Tensor lists, Tensor start,
                                      Tensor held, Tensor alone, Tensor memory, Tensor words) {
  const zx::StepProblem p =
      Problem{user,    user_m,    user_v,    item,      item_m,  item_v, bias,      bias_m,    bias_v,
              users,   positives, negatives, constants, numbers, lr,     user_step, item_step, bias_step,
              options, value,     total,     weight,    lists,   start,  held,      alone}
          .problem();
  if (words) {  // what memory it wants, and how it is dealt out
    const zx::StepPlan plan = zx::step_plan(p);
    int64_t* out = words.ptr<int64_t>();
    out[0] = zx::step_words(p), out[1] = plan.user_chunk, out[2] = plan.item_chunk, out[3] = plan.width;
    out[4] = plan.wide, out[5] = plan.stored, out[6] = plan.pack, out[7] = plan.sort.passes;
  }
  if (memory) zx::mf_step(p, memory.ptr<unsigned>(), nullptr);
});

}  // namespace
