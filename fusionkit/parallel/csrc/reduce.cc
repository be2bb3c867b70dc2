#include "reduce.h"

#include <algorithm>
#include <complex>
#include <type_traits>

#include "half.h"

namespace fusionkit_parallel {
namespace {

struct Boolean {
  uint8_t value;
};

// What an element is while it is reduced.
template <typename T>
struct Wide {
  using type =
      std::conditional_t<!std::is_integral_v<T>, T, std::conditional_t<std::is_signed_v<T>, int64_t, uint64_t>>;
  static type load(T x) { return x; }
  static T store(type x) { return static_cast<T>(x); }
};
template <>
struct Wide<Float16> {
  using type = float;
  static float load(Float16 x) { return to_float(x); }
  static Float16 store(float x) { return to_float16(x); }
};
template <>
struct Wide<Bfloat16> {
  using type = float;
  static float load(Bfloat16 x) { return to_float(x); }
  static Bfloat16 store(float x) { return to_bfloat16(x); }
};
template <>
struct Wide<Boolean> {
  using type = uint8_t;
  static uint8_t load(Boolean x) { return x.value != 0; }
  static Boolean store(uint8_t x) { return {x}; }
};

struct Sum {
  template <typename W>
  static W apply(W a, W b) {
    if constexpr (std::is_same_v<W, int64_t>)
      return static_cast<W>(static_cast<uint64_t>(a) + static_cast<uint64_t>(b));
    return a + b;
  }
};
struct Product {
  template <typename W>
  static W apply(W a, W b) {
    if constexpr (std::is_same_v<W, int64_t>)
      return static_cast<W>(static_cast<uint64_t>(a) * static_cast<uint64_t>(b));
    return a * b;
  }
};
struct Min {
  template <typename W>
  static W apply(W a, W b) {
    return a < b || a != a ? a : b;
  }
};
struct Max {
  template <typename W>
  static W apply(W a, W b) {
    return a > b || a != a ? a : b;
  }
};

template <typename W>
W divided(W x, int by) {
  if constexpr (std::is_integral_v<W>) return x / static_cast<W>(by);
  if constexpr (std::is_floating_point_v<W>) return x / static_cast<W>(by);
  if constexpr (!std::is_arithmetic_v<W>) return x / static_cast<typename W::value_type>(by);
}

// Out: the type of the result, which has the same wide type.
template <typename T, typename Op, typename Out = T>
void reduce_as(const char* const* sources, int num_sources, size_t count, int divisor, char* out) {
  using W = typename Wide<T>::type;
  constexpr size_t kBlock = 512;  // wide elements that stay in the first-level cache
  W wide[kBlock];
  for (size_t begin = 0; begin < count; begin += kBlock) {
    const size_t n = std::min(kBlock, count - begin);
    const T* first = reinterpret_cast<const T*>(sources[0]) + begin;
    for (size_t i = 0; i < n; ++i) wide[i] = Wide<T>::load(first[i]);
    for (int s = 1; s < num_sources; ++s) {
      const T* source = reinterpret_cast<const T*>(sources[s]) + begin;
      for (size_t i = 0; i < n; ++i) wide[i] = Op::apply(wide[i], Wide<T>::load(source[i]));
    }
    if (divisor != 1)
      for (size_t i = 0; i < n; ++i) wide[i] = divided(wide[i], divisor);
    Out* to = reinterpret_cast<Out*>(out) + begin;
    for (size_t i = 0; i < n; ++i) to[i] = Wide<Out>::store(wide[i]);
  }
}

template <typename T>
void reduce_type(ReduceOp op, const char* const* sources, int num_sources, size_t count, char* out) {
  constexpr bool kOrdered = !std::is_same_v<T, std::complex<float>> && !std::is_same_v<T, std::complex<double>>;
  if constexpr (kOrdered) {
    if (op == ReduceOp::kMin) return reduce_as<T, Min>(sources, num_sources, count, 1, out);
    if (op == ReduceOp::kMax) return reduce_as<T, Max>(sources, num_sources, count, 1, out);
  }
  if (op == ReduceOp::kProduct) return reduce_as<T, Product>(sources, num_sources, count, 1, out);
  return reduce_as<T, Sum>(sources, num_sources, count, op == ReduceOp::kAverage ? num_sources : 1, out);
}

template <typename T>
void sum_to(DType out_dtype, const char* const* sources, int num_sources, size_t count, char* out) {
  if (out_dtype == DType::kFloat32) return reduce_as<T, Sum, float>(sources, num_sources, count, 1, out);
  if (out_dtype == DType::kFloat16) return reduce_as<T, Sum, Float16>(sources, num_sources, count, 1, out);
  return reduce_as<T, Sum, Bfloat16>(sources, num_sources, count, 1, out);
}

}  // namespace

void sum_in_order(DType dtype, const char* const* sources, int num_sources, size_t count, DType out_dtype, char* out) {
  if (dtype == DType::kFloat32) return sum_to<float>(out_dtype, sources, num_sources, count, out);
  if (dtype == DType::kFloat16) return sum_to<Float16>(out_dtype, sources, num_sources, count, out);
  return sum_to<Bfloat16>(out_dtype, sources, num_sources, count, out);
}

const char* name_of(ReduceOp op) {
  constexpr const char* names[kNumReduceOps] = {"sum", "average", "max", "min", "product"};
  return names[static_cast<int>(op)];
}

bool can_reduce(DType dtype, ReduceOp op) {
  if (dtype == DType::kComplex64 || dtype == DType::kComplex128) return op != ReduceOp::kMin && op != ReduceOp::kMax;
  return dtype != DType::kBool || op != ReduceOp::kAverage;
}

void reduce(DType dtype, ReduceOp op, const char* const* sources, int num_sources, size_t count, char* out) {
  switch (dtype) {
    case DType::kBool:
      if (op == ReduceOp::kSum) op = ReduceOp::kMax;  // 1 + 1 must be 1
      return reduce_type<Boolean>(op, sources, num_sources, count, out);
    case DType::kUint8:
      return reduce_type<uint8_t>(op, sources, num_sources, count, out);
    case DType::kUint16:
      return reduce_type<uint16_t>(op, sources, num_sources, count, out);
    case DType::kUint32:
      return reduce_type<uint32_t>(op, sources, num_sources, count, out);
    case DType::kUint64:
      return reduce_type<uint64_t>(op, sources, num_sources, count, out);
    case DType::kInt8:
      return reduce_type<int8_t>(op, sources, num_sources, count, out);
    case DType::kInt16:
      return reduce_type<int16_t>(op, sources, num_sources, count, out);
    case DType::kInt32:
      return reduce_type<int32_t>(op, sources, num_sources, count, out);
    case DType::kInt64:
      return reduce_type<int64_t>(op, sources, num_sources, count, out);
    case DType::kFloat16:
      return reduce_type<Float16>(op, sources, num_sources, count, out);
    case DType::kFloat32:
      return reduce_type<float>(op, sources, num_sources, count, out);
    case DType::kFloat64:
      return reduce_type<double>(op, sources, num_sources, count, out);
    case DType::kBfloat16:
      return reduce_type<Bfloat16>(op, sources, num_sources, count, out);
    case DType::kComplex64:
      return reduce_type<std::complex<float>>(op, sources, num_sources, count, out);
    case DType::kComplex128:
      return reduce_type<std::complex<double>>(op, sources, num_sources, count, out);
  }
}

}  // namespace fusionkit_parallel
