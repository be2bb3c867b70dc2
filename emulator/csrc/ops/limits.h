// The vendors' limits: a call outside of them is refused with the limit named, before anything runs.
#pragma once

#include <initializer_list>
#include <string>

#include "ops/operand.h"

namespace fusionkit_emulator::ops {

class Limits {
 public:
  explicit Limits(const char* op) : op_(op) {}

  // Every input must be there, on an emulated device, and contiguous: the vendors' ops know no strides.
  void tensor(const char* argument, const Tensor& tensor) const;
  void dtype(const char* argument, const Tensor& tensor, std::initializer_list<DataType> allowed) const;
  void same_dtype(const char* argument, const Tensor& tensor, const char* other, const Tensor& as) const;
  // `rule` shows the axes: "[batch_size, q_len, num_heads, head_dim]".
  void num_dims(const char* argument, const Tensor& tensor, int wanted, const char* rule) const;
  void shape(const char* argument, const Tensor& tensor, const Shape& wanted, const char* rule) const;
  void require(bool holds, const char* argument, const std::string& rule, const std::string& got) const;

 private:
  [[noreturn]] void refuse(const char* argument, const std::string& rule, const std::string& got) const;

  const char* op_;
};

std::string shown(const Shape& shape);

}  // namespace fusionkit_emulator::ops
