#pragma once

#include "kernels/table.h"

FUSIONKIT_FOR_EACH_ISA(
    // Checked arguments, as in fusionkit_cpu.h.
    void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y);
    void swiglu_grad(const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate, const Tensor& dup);)
