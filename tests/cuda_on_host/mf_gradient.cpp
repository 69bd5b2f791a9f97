// The launchers of csrc/cuda/sort_rows.cuh and mf_gradient.cuh.
#include "cuda/mf_gradient.cuh"

#include "element.h"

namespace {

zx::BatchIds ids_of(const Tensor& first, const Tensor& second) {
  const auto columns = [](const Tensor& t) { return !t ? 0 : t.sizes.size() == 2 ? t.size(1) : int64_t{1}; };
  return {first.ptr<int64_t>(), second.ptr<int64_t>(), columns(first), columns(second)};
}

zx::SortedRows sorted_of(const Tensor& keys, const Tensor& order, const Tensor& more_keys, const Tensor& more_order,
                         const Tensor& tiles, const Tensor& starts, const Tensor& count) {
  return {{keys.ptr<unsigned>(), more_keys.ptr<unsigned>()},
          {order.ptr<unsigned>(), more_order.ptr<unsigned>()},
          tiles.ptr<unsigned>(),
          starts.ptr<unsigned>(),
          count.ptr<unsigned>()};
}

hostcall::Function sizes("sizes", [](int64_t n, int64_t rows, int64_t each, Tensor out) {
  int64_t* p = out.ptr<int64_t>();
  p[0] = zx::sort_tile_counts(n), p[1] = zx::sort_slots(n, rows) + 1, p[2] = zx::long_rows(n, each);
});

// which [1]: whether keys and order (0) or the others (1) hold the result.
hostcall::Function sort("sort_rows", [](Tensor first, Tensor second, int64_t rows, Tensor keys, Tensor order,
                                        Tensor more_keys, Tensor more_order, Tensor tiles, Tensor starts, Tensor count,
                                        Tensor which) {
  const zx::SortedRows s = zx::sort_rows(ids_of(first, second), keys.numel(), rows,
                                         sorted_of(keys, order, more_keys, more_order, tiles, starts, count), nullptr);
  *which.ptr<int64_t>() = s.keys[0] != keys.ptr<unsigned>();
});

template <class S>
void run(const Tensor& own, const Tensor& other, const Tensor& users, const Tensor& positives, const Tensor& negatives,
         const Tensor& coefficient, const Tensor& scale, const Tensor& keys, const Tensor& order, const Tensor& starts,
         const Tensor& count, const Tensor& names, const Tensor& values, const Tensor& bias, const Tensor& longs,
         double l2, bool by_user, bool dense, int64_t rows) {
  using C = zx::arithmetic_t<S>;
  zx::GradientArgs<S> a{};
  a.own = own.ptr<S>(), a.other = other.ptr<S>(), a.num_own = own.size(0), a.num_other = other.size(0);
  a.shape.dim = own.size(1);
  a.items = ids_of(positives, negatives), a.users = users.ptr<int64_t>(), a.by_user = by_user;
  a.coefficient = coefficient.ptr<C>(), a.scale = scale.ptr<C>(), a.l2 = l2;
  a.sorted.keys[0] = keys.ptr<unsigned>(), a.sorted.order[0] = order.ptr<unsigned>();
  a.sorted.starts = starts.ptr<unsigned>(), a.sorted.count = count.ptr<unsigned>();
  a.rows = rows, a.dense = dense, a.names = names.ptr<int64_t>();
  a.values = values.ptr<S>(), a.bias = bias.ptr<S>(), a.longs = longs.ptr<unsigned>();
  zx::gradient_rows(a, keys.numel(), nullptr);
}

hostcall::Function gradient("gradient_rows", [](Tensor own, Tensor other, Tensor users, Tensor positives,
                                                Tensor negatives, Tensor coefficient, Tensor scale, Tensor keys,
                                                Tensor order, Tensor starts, Tensor count, Tensor names, Tensor values,
                                                Tensor bias, Tensor longs, double l2, bool by_user, bool dense,
                                                int64_t rows) {
  zx::with_element(element_of(own), [&](auto zero) {
    run<decltype(zero)>(own, other, users, positives, negatives, coefficient, scale, keys, order, starts, count, names,
                        values, bias, longs, l2, by_user, dense, rows);
  });
});

template <class S>
void run_atomics(const Tensor& user, const Tensor& item, const Tensor& users, const Tensor& positives,
                 const Tensor& negatives, const Tensor& coefficient, const Tensor& scale, const Tensor& user_values,
                 const Tensor& item_values, const Tensor& bias_values, double l2) {
  zx::AtomicArgs<S> a{};
  a.user = user.ptr<S>(), a.item = item.ptr<S>(), a.num_users = user.size(0), a.num_items = item.size(0);
  a.dim = user.size(1), a.items = ids_of(positives, negatives), a.users = users.ptr<int64_t>();
  a.samples = users.size(0), a.coefficient = coefficient.ptr<S>(), a.scale = scale.ptr<S>(), a.l2 = l2;
  a.user_values = user_values.ptr<S>(), a.item_values = item_values.ptr<S>(), a.bias_values = bias_values.ptr<S>();
  zx::gradient_atomics(a, nullptr);
}

hostcall::Function atomics("gradient_atomics", [](Tensor user, Tensor item, Tensor users, Tensor positives,
                                                  Tensor negatives, Tensor coefficient, Tensor scale,
                                                  Tensor user_values, Tensor item_values, Tensor bias_values,
                                                  double l2) {
  auto* const f = user.dtype == hostcall::DType::f64 ? run_atomics<double> : run_atomics<float>;
  f(user, item, users, positives, negatives, coefficient, scale, user_values, item_values, bias_values, l2);
});

}  // namespace
