// The launcher of csrc/cuda/mf_update.cuh.
#include "cuda/mf_update.cuh"

#include "host_call.h"

namespace {

hostcall::Function update("mf_update",
                          [](Tensor table, Tensor first, Tensor second, Tensor rows, Tensor values, Tensor places,
                             int optimizer, double lr, double x, double y, double eps, double step) {
                            zx::UpdateArgs a{};
                            a.rule = zx::make_rule(zx::Optimizer(optimizer), lr, x, y, eps, step);
                            a.rows = rows.ptr<int64_t>(), a.count = rows.size(0), a.values = values.ptr<float>();
                            a.table = table.ptr<float>(), a.m = first.ptr<float>(), a.v = second.ptr<float>();
                            a.size = table.size(0), a.dim = table.sizes.size() == 2 ? table.size(1) : 1;
                            a.places = places.ptr<int>();
                            zx::mf_update(zx::Optimizer(optimizer), a, nullptr);
                          });

}  // namespace
