#include <pybind11/stl.h>

#include "bind.h"
#include "fusionkit_cpu.h"

namespace py = pybind11;

namespace fusionkit_cpu {

void bind_machine(py::module_& module) {
  module.def("isa", &isa, "Instruction set in use: avx512, avx2 or portable.");
  module.def("available_isas", &available_isas, "What this processor has, the best first.");
  module.def("set_isa", &set_isa, py::arg("name"), "For tests; not while kernels run.");
  module.def("num_threads", &num_threads, "Threads of each kernel.");
  module.def("set_num_threads", &set_num_threads, py::arg("n"));
  module.def("load_onednn", &load_onednn, py::arg("path"), "True if products now run on this libdnnl.");
  module.def("matmul_library", &matmul_library, "onednn or blocked.");
}

}  // namespace fusionkit_cpu
