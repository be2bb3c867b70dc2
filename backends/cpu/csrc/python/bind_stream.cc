#include "arrays.h"
#include "bind.h"
#include "stream.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

void stream_arrays(const Array& source, const Array& target, bool non_temporal) {
  Call{stream, view("stream", "source", source), writable_view("stream", "target", target), non_temporal};
}

}  // namespace

FUSIONKIT_BIND(stream) {
  module.def("stream", &stream_arrays, "source"_a, "target"_a, "non_temporal"_a,
             "For benchmarks: reads source while it sets the bytes of target to 1. The ceiling is the faster way.");
  module.def("flush_caches", &flush_caches, "For benchmarks: no cache holds what was used before.");
}

}  // namespace fusionkit_cpu
