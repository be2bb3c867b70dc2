// Argument checks of the public functions. Each throws std::invalid_argument that reads
// "<op>: <argument> must be <rule>, got <value>".
#pragma once

#include <initializer_list>
#include <string>

#include "fusionkit_cpu.h"

namespace fusionkit_cpu {

bool is_floating(DType dtype);
int64_t num_elements(const Tensor& tensor);
bool is_contiguous(const Tensor& tensor);    // strides of axes of length 1 are ignored
std::string describe(const Tensor& tensor);  // "bfloat16 [2, 128]", "absent"
std::string shape_text(const int64_t* shape, int num_dims);

[[noreturn]] void fail(const char* op, const char* argument, const std::string& rule, const std::string& got);

// `rule` is what must hold, `got` the value that did not.
inline void require(bool holds, const char* op, const char* argument, const char* rule, const Tensor& got) {
  if (!holds) fail(op, argument, rule, describe(got));
}

void require_present(const char* op, const char* argument, const Tensor& tensor);  // and its shape and data are sane
void require_num_dims(const char* op, const char* argument, const Tensor& tensor, int num_dims);
void require_floating(const char* op, const char* argument, const Tensor& tensor);
void require_dtype(const char* op, const char* argument, const Tensor& tensor, std::initializer_list<DType> allowed);
void require_shape(const char* op, const char* argument, const Tensor& tensor, std::initializer_list<int64_t> shape);
void require_same_shape(const char* op, const char* argument, const Tensor& tensor, const char* other_name,
                        const Tensor& other);
void require_like(const char* op, const char* argument, const Tensor& tensor, const char* other_name,
                  const Tensor& other);  // its dtype and shape

// An input: present, with one of the dtypes and the shape. An output: contiguous too.
void require_input(const char* op, const char* argument, const Tensor& tensor, std::initializer_list<DType> allowed,
                   std::initializer_list<int64_t> shape);
void require_output(const char* op, const char* argument, const Tensor& tensor, DType dtype,
                    std::initializer_list<int64_t> shape);
void require_output_like(const char* op, const char* argument, const Tensor& tensor, const char* other_name,
                         const Tensor& other);

}  // namespace fusionkit_cpu
