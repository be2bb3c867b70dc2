#include "swiglu.h"

#include <type_traits>

#include "kernels/row_access.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kElementsPerShare = 8192;

// e^-|g|. In 16 bits only the output's rounding is to be seen, 2^-9 or 2^-12, so that a polynomial of degree 4 serves,
// wrong by 2^-18.5 (the general exp takes twice the instructions, and took longer than the memory did).
inline Vec exp_of_minus_abs(Vec g, const float*) { return exp(-abs(g)); }

template <class Storage>
inline Vec exp_of_minus_abs(Vec g, const Storage*) {
  const Vec t = max(broadcast(-127.0f), abs(g) * -1.44269504f);  // NaN stays
  const Vec magic = broadcast(12582912.0f);                      // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = t + magic, f = t - (shifted - magic);
  Vec p = fma(f, broadcast(9.5701013e-3f), broadcast(5.5917859e-2f));
  p = fma(p, f, broadcast(0.24024744f));
  p = fma(p, f, broadcast(0.69312179f));
  p = fma(p, f, broadcast(0.99999928f));
  return p * (Vec)(((IntVec)shifted - (IntVec)magic + 127) << 23);  // 2^-127 becomes 0
}

// Both sides of zero from e^-|g|, which cannot overflow: s = sigmoid(g) and 1 - s, each to a few ULP of the storage.
struct Sigmoid {
  Vec value, complement;

  template <class Storage>
  Sigmoid(Vec g, const Storage* storage) {
    const Vec e = exp_of_minus_abs(g, storage), one = broadcast(1.0f), inverse = one / (one + e), other = e * inverse;
    const IntVec sign = (IntVec)g;  // which alone steers a blend, without a comparison
    value = sign < 0 ? other : inverse;
    complement = sign < 0 ? inverse : other;
  }
};

// The same with double's range, which holds any product of three float32 and this.
struct WideSigmoid {
  DoubleVec value, complement;

  explicit WideSigmoid(Vec g) {
    const ExpParts parts = exp_parts(max(broadcast(-700.0f), -abs(g)));
    const LongVec exponent = __builtin_convertvector(exponent_of(parts), LongVec);
    const DoubleVec e = __builtin_convertvector(parts.mantissa, DoubleVec) * (DoubleVec)((exponent + 1023) << 52);
    const DoubleVec inverse = 1.0 / (1.0 + e), other = e * inverse;
    const LongVec sign = __builtin_convertvector((IntVec)g, LongVec);
    value = sign < 0 ? other : inverse;
    complement = sign < 0 ? inverse : other;
  }
};

// All of this is inlined: no call passes such a vector.
#pragma GCC diagnostic ignored "-Wpsabi"
inline DoubleVec wide(Vec a) { return __builtin_convertvector(a, DoubleVec); }
inline Vec narrow(const DoubleVec& a) { return __builtin_convertvector(a, Vec); }

// Below this g sigmoid(g) has left float32, or most of its bits have, though times a large factor it is a result.
constexpr float kSmallestSilu = 0x1p-100f;
// Where it is not below: silu(-72) is 2^-97.7, and silu of a small g is g / 2.
constexpr float kLowestGate = -72.0f, kSmallestGate = 0x1p-99f;

// What a row's elements were, in three instructions and no branch each: whether some of them must be taken again in
// double. Zeros do not count, nor does NaN. float16 holds no factor that is large enough.
template <class Storage>
struct Extremes {
  Vec lowest_gate{}, largest_product{};
  UintVec smallest_gate = (UintVec)broadcast(1.0f);  // of the absolute values' bits, less 1: a zero becomes the largest

  [[gnu::always_inline]] void add_gate(Vec g) {
    const UintVec bits = (UintVec)abs(g) - 1;
    lowest_gate = min(g, lowest_gate);
    smallest_gate = bits < smallest_gate ? bits : smallest_gate;
  }
  [[gnu::always_inline]] void add_product(Vec product) { largest_product = max(abs(product), largest_product); }
  bool leave_float32() const {
    return any_less(lowest_gate, broadcast(kLowestGate)) ||
           any_less((Vec)(smallest_gate + 1), broadcast(kSmallestGate)) ||
           any_less(broadcast(__FLT_MAX__), largest_product);
  }
};

template <>
struct Extremes<Float16> {
  void add_gate(Vec) {}
  void add_product(Vec) {}
  bool leave_float32() const { return false; }
};

inline IntVec takes_double(Vec g, Vec silu) { return (abs(silu) < kSmallestSilu) & (g != 0.0f); }

template <class T>
[[gnu::noinline]] void forward_row_again(const T* gate, const T* up, int64_t size, T* y) {
  fence_non_temporal();  // what is written over may be on its way past the caches
  for_each_vec(Ordinary{}, size, [&](int64_t i, auto lanes) {
    const Vec g = lanes.load(gate + i), u = lanes.load(up + i), silu = g * Sigmoid(g, gate).value;
    const DoubleVec exact = wide(g) * WideSigmoid(g).value * wide(u);
    lanes.store(y + i, takes_double(g, silu) ? narrow(exact) : silu * u);
  });
}

template <class T, class Way>
void forward_row(Way way, const T* gate, const T* up, int64_t size, T* y) {
  Extremes<T> extremes;
  for_each_vec(way, size, [&](int64_t i, auto lanes) {
    const Vec g = lanes.fetch(gate + i);
    extremes.add_gate(g);
    lanes.store(y + i, g * Sigmoid(g, gate).value * lanes.fetch(up + i));
  });
  if (extremes.leave_float32()) forward_row_again(gate, up, size, y);
}

template <class T>
[[gnu::noinline]] void backward_row_again(const T* gate, const T* up, const T* dy, int64_t size, T* dgate, T* dup) {
  fence_non_temporal();
  for_each_vec(Ordinary{}, size, [&](int64_t i, auto lanes) {
    const Vec g = lanes.load(gate + i), u = lanes.load(up + i), d = lanes.load(dy + i);
    const Sigmoid s(g, gate);
    const WideSigmoid w(g);
    const Vec silu = g * s.value, product = d * u;
    const DoubleVec exact_up = wide(d) * wide(g) * w.value;
    const DoubleVec exact_gate = wide(d) * wide(u) * w.value * (1.0 + wide(g) * w.complement);
    const IntVec again = takes_double(g, silu) | (abs(product) > __FLT_MAX__);
    lanes.store(dup + i, again ? narrow(exact_up) : d * silu);
    lanes.store(dgate + i, again ? narrow(exact_gate) : product * (s.value * fma(g, s.complement, broadcast(1.0f))));
  });
}

template <class T, class Way>
void backward_row(Way way, const T* gate, const T* up, const T* dy, int64_t size, T* dgate, T* dup) {
  Extremes<T> extremes;
  for_each_vec(way, size, [&](int64_t i, auto lanes) {
    const Vec g = lanes.fetch(gate + i), d = lanes.fetch(dy + i), product = d * lanes.fetch(up + i);
    const Sigmoid s(g, gate);
    extremes.add_gate(g);
    extremes.add_product(product);
    lanes.store(dup + i, d * (g * s.value));
    lanes.store(dgate + i, product * (s.value * fma(g, s.complement, broadcast(1.0f))));
  });
  if (extremes.leave_float32()) backward_row_again(gate, up, dy, size, dgate, dup);
}

// run(first_row, last_row, begin, end): elements [begin, end) of those rows. A single row is shared by its elements, in
// units that begin at cache lines where the row does.
template <class F>
void for_each_share(const Rows& rows, F run) {
  constexpr int64_t kUnit = 64;
  if (rows.count == 1)
    parallel_for((rows.size + kUnit - 1) / kUnit, kElementsPerShare / kUnit, [&](int64_t begin, int64_t end, int) {
      run(0, 1, begin * kUnit, end * kUnit < rows.size ? end * kUnit : rows.size);
    });
  else
    parallel_for(rows.count, kElementsPerShare / (rows.size + 1) + 1,
                 [&](int64_t begin, int64_t end, int) { run(begin, end, 0, rows.size); });
}

template <class T>
void forward(const Tensor& gate, const Tensor& up, const Tensor& y) {
  const Rows gate_rows = rows_of(gate), up_rows = rows_of(up);
  const int64_t size = gate_rows.size, num_bytes = 3 * gate_rows.count * size * sizeof(T);
  visit_way(num_bytes, begins_lines(y), [&](auto way) {
    for_each_share(gate_rows, [&](int64_t first_row, int64_t last_row, int64_t begin, int64_t end) {
      const RowReader<T> read_gate(gate_rows), read_up(up_rows);
      for (int64_t row = first_row; row < last_row; ++row)
        forward_row(way, read_gate(row) + begin, read_up(row) + begin, end - begin,
                    static_cast<T*>(y.data) + row * size + begin);
      way.finish();
    });
  });
}

template <class T>
void backward(const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate, const Tensor& dup) {
  const Rows gate_rows = rows_of(gate), up_rows = rows_of(up), dy_rows = rows_of(dy);
  const int64_t size = gate_rows.size, num_bytes = 5 * gate_rows.count * size * sizeof(T);
  visit_way(num_bytes, begins_lines(dgate) && begins_lines(dup), [&](auto way) {
    for_each_share(gate_rows, [&](int64_t first_row, int64_t last_row, int64_t begin, int64_t end) {
      const RowReader<T> read_gate(gate_rows), read_up(up_rows), read_dy(dy_rows);
      for (int64_t row = first_row; row < last_row; ++row) {
        const int64_t offset = row * size + begin;
        backward_row(way, read_gate(row) + begin, read_up(row) + begin, read_dy(row) + begin, end - begin,
                     static_cast<T*>(dgate.data) + offset, static_cast<T*>(dup.data) + offset);
      }
      way.finish();
    });
  });
}

}  // namespace

void swiglu(const Tensor& gate, const Tensor& up, const Tensor& y) {
  visit_floating(gate.dtype, [&](auto* type) { forward<std::remove_pointer_t<decltype(type)>>(gate, up, y); });
}

void swiglu_grad(const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate, const Tensor& dup) {
  visit_floating(gate.dtype,
                 [&](auto* type) { backward<std::remove_pointer_t<decltype(type)>>(gate, up, dy, dgate, dup); });
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
