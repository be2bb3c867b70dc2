#include <pybind11/stl.h>

#include "bind.h"
#include "freed_blocks.h"
#include "isa.h"
#include "result_arena.h"

namespace py = pybind11;
using namespace py::literals;

namespace fusionkit_cpu {
namespace {

void bind_result_arena(py::module_& module) {
  py::class_<ResultArena>(module, "ResultArena",
                          "For benchmarks: `with arena:` puts this thread's results into memory made before, each time "
                          "from its beginning. An array is valid until the arena is entered again.")
      .def(py::init<size_t>(), "num_bytes"_a, "Each result takes its size, rounded up to 64 bytes.")
      .def("__enter__",
           [](const py::object& self) {
             self.cast<ResultArena&>().enter();
             return self;
           })
      .def("__exit__", [](ResultArena& self, const py::args&) { self.leave(); });
}

py::dict bytes_of_blocks() {
  const BlockBytes bytes = block_bytes();
  return py::dict("in_use"_a = bytes.in_use, "freed"_a = bytes.freed, "peak"_a = bytes.peak);
}

}  // namespace

FUSIONKIT_BIND(machine) {
  module.def("isa", &isa, "The target in use, by its name in targets.py.");
  module.def("available_isas", &available_isas, "What this processor has, the best first.");
  module.def("tested_isas", &tested_isas, "available_isas, then the models that set_isa takes too.");
  module.def("refused_isas", &refused_isas, "Why a target that the processor has is not available, or nothing.");
  module.def("set_isa", &set_isa, py::arg("name"), "For tests; not while kernels run.");
  module.def("num_threads", &num_threads, "Threads of each kernel.");
  module.def("set_num_threads", &set_num_threads, py::arg("n"));
  module.def("load_onednn", &load_onednn, py::arg("path"), "Whether the libdnnl is loaded.");
  module.def("has_onednn", &has_onednn, "Whether a libdnnl is loaded.");
  module.def("matmul_library", &matmul_library, "onednn or blocked.");
  module.def("set_reuse_freed_blocks", &set_reuse_freed_blocks, py::arg("on"), "Of large results; on at first.");
  module.def("block_bytes", &bytes_of_blocks, "Of large results: in use, freed and kept, and the most used at once.");
  bind_result_arena(module);
}

}  // namespace fusionkit_cpu
