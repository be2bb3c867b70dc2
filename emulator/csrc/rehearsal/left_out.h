// A kernel's call in a rehearsal: its outputs are allocated and nothing is computed.
#pragma once

#include "kernels/adopted.h"

namespace fusionkit_emulator::rehearsal {

// Whether nothing is computed: in a rehearsal, of a call with a large tensor or with values that are not known.
bool is_left_out(phi::KernelContext& call);

// For the trace, of a call that does compute. It is too small to ask Python for its line.
void note_small(const kernels::Adopted& adopted, phi::KernelContext& call);

// Allocates the outputs. Throws where an output's shape depends on values.
void leave_out(const kernels::Adopted& adopted, phi::KernelContext& call);

// Of a kernel with one input that has allocated its output: whether nothing is computed. Then it has been accounted
// for.
bool leaves_out(const char* kernel, const phi::DeviceContext& context, const phi::DenseTensor& input,
                const phi::DenseTensor& output);

// Of any other kernel or op: `begin` before, `wrote` for each output when it is allocated.
void begin(const phi::DeviceContext& context, const char* kernel);
void wrote(const phi::DeviceContext& context, const phi::DenseTensor& output, const char* kernel);

// For the trace, of a vendor's op: its results, each of its tensors, then its launch.
void note_result(const phi::DenseTensor& tensor);
void note_tensor(const phi::DenseTensor& tensor);
void note_op(const phi::DeviceContext& context, const char* op);

}  // namespace fusionkit_emulator::rehearsal
