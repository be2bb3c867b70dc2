#include <pybind11/stl.h>

#include <stdexcept>

#include "arrays.h"
#include "bind.h"
#include "fused_linear_cross_entropy.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

auto linear_cross_entropy_arrays(const Array& x, const Array& weight, const Array& labels, int64_t ignore_index,
                                 bool want_grads) {
  const char* op = "fused_linear_cross_entropy";
  const Array loss_sum = empty({1}, py::dtype::of<float>()), num_tokens = empty({1}, py::dtype::of<int64_t>());
  const OptionalArray dx = want_grads ? OptionalArray(empty_like(x)) : std::nullopt;
  const OptionalArray dweight = want_grads ? OptionalArray(empty_like(weight)) : std::nullopt;
  Call{linear_cross_entropy,       view(op, "x", x), view(op, "weight", weight),
       view(op, "labels", labels), ignore_index,     result(loss_sum),
       result(num_tokens),         result(dx),       result(dweight)};
  return py::make_tuple(loss_sum, num_tokens, dx, dweight);
}

// Calls `exchange`, [tokens, 3] float64 of this rank -> [ranks, tokens, 3] of all, with the interpreter's lock.
std::vector<RowStatistics> exchanged(const py::function& exchange, const std::vector<RowStatistics>& own) {
  using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;
  const py::gil_scoped_acquire lock;
  const std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(own.size()), 3};
  const Doubles all = exchange(py::array_t<double>(shape, &own.data()->largest));
  if (all.size() == 0 || all.size() % (3 * shape[0]) != 0) throw std::invalid_argument("exchange: [ranks, tokens, 3]");
  const auto* first = reinterpret_cast<const RowStatistics*>(all.data());
  return {first, first + all.size() / 3};
}

auto linear_cross_entropy_of_shards_arrays(const Array& x, const Array& weight, const Array& labels,
                                           int64_t ignore_index, int64_t start, int64_t vocab_size, int64_t widest,
                                           const py::function& exchange, const OptionalArray& dx,
                                           const OptionalArray& dweight) {
  const char* op = "fused_linear_cross_entropy";
  const Array loss_sum = empty({1}, py::dtype::of<float>()), num_tokens = empty({1}, py::dtype::of<int64_t>());
  const VocabularyShards shards{start, vocab_size, widest, [&](const auto& own) { return exchanged(exchange, own); }};
  Call{linear_cross_entropy_of_shards,
       view(op, "x", x),
       view(op, "weight", weight),
       view(op, "labels", labels),
       ignore_index,
       shards,
       result(loss_sum),
       result(num_tokens),
       dx ? writable_view(op, "dx", *dx) : Tensor(),
       dweight ? writable_view(op, "dweight", *dweight) : Tensor()};
  return py::make_tuple(loss_sum, num_tokens);
}

}  // namespace

static_assert(sizeof(RowStatistics) == 3 * sizeof(double));

FUSIONKIT_BIND(fused_linear_cross_entropy) {
  module.def("linear_cross_entropy", &linear_cross_entropy_arrays, "x"_a, "weight"_a, "labels"_a, "ignore_index"_a,
             "want_grads"_a = false,
             "-> (loss_sum [1], num_tokens [1], dx, dweight), the gradients of loss_sum or None");
  module.def("linear_cross_entropy_of_shards", &linear_cross_entropy_of_shards_arrays, "x"_a, "weight"_a, "labels"_a,
             "ignore_index"_a, "start"_a, "vocab_size"_a, "widest"_a, "exchange"_a, "dx"_a.none(), "dweight"_a.none(),
             "-> (loss_sum [1], num_tokens [1]) of all ranks; dx and dweight are filled where they are not None");
}

}  // namespace fusionkit_cpu
