#include "kernels/norm.h"

#include <type_traits>

#include "kernels/row_access.h"
#include "parallel.h"

namespace fusionkit_cpu {
namespace FUSIONKIT_ISA {
namespace {

constexpr int64_t kElementsPerShare = 16384;  // below this, waking a thread costs more than it saves

int64_t row_grain(int64_t size) { return kElementsPerShare / (size + 1) + 1; }

// The weight once per call as float32, whatever its storage and stride.
class FloatRow {
 public:
  explicit FloatRow(const Tensor& row)
      : size_(row.shape[0]), widened_(is_in_place(row) ? 0 : size_ * sizeof(float)), values_(nullptr) {
    if (is_in_place(row)) {
      values_ = static_cast<const float*>(row.data);
      return;
    }
    float* target = widened_.as<float>();
    visit_floating(row.dtype, [&](auto* type) {
      const auto* source = static_cast<decltype(type)>(row.data);
      for (int64_t i = 0; i < size_; ++i) target[i] = to_float(source[i * row.strides[0]]);
    });
    values_ = target;
  }
  const float* values() const { return values_; }

 private:
  static bool is_in_place(const Tensor& row) { return row.dtype == DType::kFloat32 && row.strides[0] == 1; }

  int64_t size_;
  Buffer widened_;
  const float* values_;
};

// Sum of f(i, lanes) in float32. Several accumulators hide the latency of the addition; short blocks keep the error
// small: of 5120 elements each goes through at most 40 additions with 4 lanes, 26 with 16.
template <class F>
[[gnu::always_inline]] inline float sum_of(int64_t size, F f) {
  constexpr int kAccumulators = 4;
  constexpr int64_t kStep = kAccumulators * kLanes, kBlock = 16 * kStep;
  Vec total{};
  int64_t i = 0;
  while (i + kStep <= size) {
    const int64_t end = size - i < kBlock ? size : i + kBlock;
    Vec part[kAccumulators] = {};
    for (; i + kStep <= end; i += kStep)
      for (int j = 0; j < kAccumulators; ++j) part[j] += f(i + j * kLanes, Whole{});
    total += (part[0] + part[1]) + (part[2] + part[3]);
  }
  for (; i + kLanes <= size; i += kLanes) total += f(i, Whole{});
  if (i < size) total += f(i, Partial{size - i});
  return sum(total);
}

// 1 / sqrt(mean(h^2) + epsilon). Squares outside of float32's range are summed again in float64.
template <class T>
float inverse_rms(const T* h, int64_t size, float epsilon) {
  double squares = sum_of(size, [&](int64_t i, auto lanes) {
    const Vec a = lanes.load(h + i);
    return a * a;
  });
  const bool in_range = squares < 1e37 && (squares > 1e-30 || epsilon > 1e-20f);
  if (!in_range) {
    squares = 0;
    for (int64_t i = 0; i < size; ++i) squares += static_cast<double>(to_float(h[i])) * to_float(h[i]);
  }
  return static_cast<float>(1.0 / __builtin_sqrt(squares / static_cast<double>(size) + epsilon));
}

template <class T, class Out>
void normalise_row(const T* h, const float* weight, float rstd, int64_t size, Out* y) {
  for_each_vec(size, [&](int64_t i, auto lanes) {
    lanes.store(y + i, lanes.load(h + i) * broadcast(rstd) * lanes.load(weight + i));
  });
}

template <class T>
void forward(const Tensor& x, const float* weight, float epsilon, const Tensor& y, float* rstd_out) {
  const Rows rows = rows_of(x);
  parallel_for(rows.count, row_grain(rows.size), [&](int64_t begin, int64_t end, int) {
    const RowReader<T> read_x(rows);
    for (int64_t row = begin; row < end; ++row) {
      const T* h = read_x(row);
      const float rstd = inverse_rms(h, rows.size, epsilon);
      normalise_row(h, weight, rstd, rows.size, static_cast<T*>(y.data) + row * rows.size);
      if (rstd_out) rstd_out[row] = rstd;
    }
  });
}

template <class T, class Residual>
void add_forward(const Tensor& x, const Tensor& residual, const float* weight, float epsilon, const Tensor& y,
                 const Tensor& residual_out, float* rstd_out) {
  const Rows rows = rows_of(x), residual_rows = rows_of(residual);
  const int64_t size = rows.size;
  parallel_for(rows.count, row_grain(size), [&](int64_t begin, int64_t end, int) {
    const RowReader<T> read_x(rows);
    const RowReader<Residual> read_residual(residual_rows);
    for (int64_t row = begin; row < end; ++row) {
      const T* a = read_x(row);
      const Residual* b = read_residual(row);
      Residual* h = static_cast<Residual*>(residual_out.data) + row * size;
      for_each_vec(size, [&](int64_t i, auto lanes) { lanes.store(h + i, lanes.load(a + i) + lanes.load(b + i)); });
      const float rstd = inverse_rms(h, size, epsilon);
      normalise_row(h, weight, rstd, size, static_cast<T*>(y.data) + row * size);
      if (rstd_out) rstd_out[row] = rstd;
    }
  });
}

// With n = h rstd and g = dy weight: dh = rstd (g - n mean(g n)) + dresidual_out, dweight += dy n.
template <class T, class Residual>
struct GradRow {
  const Residual* h;
  const T* dy;
  const Residual* dresidual_out;  // or null
  const float* weight;
  float rstd;
  int64_t size;
  T* dx;                // or null
  Residual* dresidual;  // or null
  float* dweight;       // this thread's sum, or null

  template <class Lanes>
  Vec normalised(int64_t i, Lanes lanes) const {
    return lanes.load(h + i) * broadcast(rstd);
  }

  float mean_product() const {
    const float products = sum_of(size, [&](int64_t i, auto lanes) {
      const Vec n = normalised(i, lanes), d = lanes.load(dy + i);
      if (dweight) lanes.store(dweight + i, fma(d, n, lanes.load(dweight + i)));
      return d * lanes.load(weight + i) * n;
    });
    return products / static_cast<float>(size);
  }

  void run() const {
    const float mean = mean_product();
    if (!dx && !dresidual) return;
    for_each_vec(size, [&](int64_t i, auto lanes) {
      const Vec g = lanes.load(dy + i) * lanes.load(weight + i);
      Vec dh = (g - normalised(i, lanes) * broadcast(mean)) * broadcast(rstd);
      if (dresidual_out) dh += lanes.load(dresidual_out + i);
      if (dx) lanes.store(dx + i, dh);
      if (dresidual) lanes.store(dresidual + i, dh);
    });
  }
};

template <class T, class Residual>
void backward(const Tensor& h, const float* weight, const Tensor& rstd, const Tensor& dy, const Tensor& dresidual_out,
              const Tensor& dx, const Tensor& dresidual, float* dweight_parts) {
  const Rows rows = rows_of(h), dy_rows = rows_of(dy), dout_rows = rows_of(dresidual_out);
  const int64_t size = rows.size;
  parallel_for(rows.count, row_grain(size), [&](int64_t begin, int64_t end, int thread) {
    const RowReader<Residual> read_h(rows), read_dout(dout_rows);
    const RowReader<T> read_dy(dy_rows);
    float* dweight = dweight_parts ? dweight_parts + thread * size : nullptr;
    if (dweight) __builtin_memset(dweight, 0, size * sizeof(float));
    for (int64_t row = begin; row < end; ++row) {
      const GradRow<T, Residual> grad{
          read_h(row),
          read_dy(row),
          dresidual_out ? read_dout(row) : nullptr,
          weight,
          static_cast<const float*>(rstd.data)[row * rstd.strides[0]],
          size,
          dx ? static_cast<T*>(dx.data) + row * size : nullptr,
          dresidual ? static_cast<Residual*>(dresidual.data) + row * size : nullptr,
          dweight,
      };
      grad.run();
    }
  });
}

// In thread order, so that equal calls give equal bits.
void add_parts(const float* parts, int num_parts, const Tensor& dweight) {
  const int64_t size = dweight.shape[0];
  visit_floating(dweight.dtype, [&](auto* type) {
    auto* target = static_cast<decltype(type)>(dweight.data);
    for_each_vec(size, [&](int64_t i, auto lanes) {
      Vec total{};
      for (int part = 0; part < num_parts; ++part) total += lanes.load(parts + part * size + i);
      lanes.store(target + i, total);
    });
  });
}

float* float_data(const Tensor& tensor) { return tensor ? static_cast<float*>(tensor.data) : nullptr; }

}  // namespace

void rms_norm(const Tensor& x, const Tensor& weight, float epsilon, const Tensor& y, const Tensor& rstd) {
  const FloatRow weights(weight);
  visit_floating(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    forward<T>(x, weights.values(), epsilon, y, float_data(rstd));
  });
}

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float epsilon, const Tensor& y,
                  const Tensor& residual_out, const Tensor& rstd) {
  const FloatRow weights(weight);
  visit_floating(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    visit_floating(residual.dtype, [&](auto* residual_type) {
      using Residual = std::remove_pointer_t<decltype(residual_type)>;
      add_forward<T, Residual>(x, residual, weights.values(), epsilon, y, residual_out, float_data(rstd));
    });
  });
}

void rms_norm_grad(const Tensor& normalised, const Tensor& weight, const Tensor& rstd, const Tensor& dy,
                   const Tensor& dresidual_out, const Tensor& dx, const Tensor& dresidual, const Tensor& dweight) {
  const FloatRow weights(weight);
  const int64_t size = weight.shape[0], num_rows = rstd.shape[0];
  const int num_parts = dweight && num_rows > 0 ? num_shares(num_rows, row_grain(size)) : 0;
  const Buffer parts(num_parts * size * sizeof(float));
  float* part_sums = num_parts > 0 ? parts.as<float>() : nullptr;
  visit_floating(dy.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    visit_floating(normalised.dtype, [&](auto* residual_type) {
      using Residual = std::remove_pointer_t<decltype(residual_type)>;
      backward<T, Residual>(normalised, weights.values(), rstd, dy, dresidual_out, dx, dresidual, part_sums);
    });
  });
  if (dweight) add_parts(part_sums, num_parts, dweight);
}

}  // namespace FUSIONKIT_ISA
}  // namespace fusionkit_cpu
