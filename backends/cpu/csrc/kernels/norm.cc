#include <cmath>
#include <type_traits>

#include "fusion_add_rms_norm.h"
#include "fusion_rms_norm.h"
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
template <class Way, class F>
[[gnu::always_inline]] inline float sum_of(Way way, int64_t size, F f) {
  constexpr int kAccumulators = 4;
  constexpr int64_t kStep = kAccumulators * kLanes, kBlock = 16 * kStep;
  Vec total{};
  int64_t i = 0;
  while (i + kStep <= size) {
    const int64_t end = size - i < kBlock ? size : i + kBlock;
    Vec part[kAccumulators] = {};
    for (; i + kStep <= end; i += kStep)
      for (int j = 0; j < kAccumulators; ++j) part[j] += f(i + j * kLanes, way);
    total += (part[0] + part[1]) + (part[2] + part[3]);
  }
  for (; i + kLanes <= size; i += kLanes) total += f(i, way);
  if constexpr (!Way::kIsWhole)
    if (i < size) total += f(i, Partial{size - i});
  return sum(total);
}

template <class T>
double wide_sum_of_squares(const T* h, int64_t size) {
  double squares = 0;
  for (int64_t i = 0; i < size; ++i) squares += static_cast<double>(to_float(h[i])) * to_float(h[i]);
  return squares;
}

// 1 / sqrt(mean(h^2) + epsilon). Squares outside of float32's range are summed again in float64.
template <class T>
double inverse_rms(double squares, const T* h, int64_t size, float epsilon) {
  const bool in_range = squares < 1e37 && (squares > 1e-30 || epsilon > 1e-20f);
  if (!in_range) squares = wide_sum_of_squares(h, size);
  return 1.0 / __builtin_sqrt(squares / static_cast<double>(size) + epsilon);
}

// Whether float32 holds 1 / rms to its last bit. Where it does not, h / rms is an ordinary number all the same, and the
// row is finished in double.
inline bool is_ordinary(float rstd) { return rstd >= 0x1p-126f && rstd <= 0x1p127f; }

template <class T, class H>
[[gnu::noinline]] void normalise_in_double(const H* h, double inverse, const float* weight, int64_t size, T* y) {
  fence_non_temporal();  // what is written over may be on its way past the caches
  for (int64_t i = 0; i < size; ++i) y[i] = from_float<T>(static_cast<float>(to_float(h[i]) * inverse * weight[i]));
}

// Each row is read twice: for a sum over it, then for its result. One loop finishes a row, by then in the caches, while
// it sums the next, so that memory is read and written all the time. A row has
//   Vec term(i, lanes, weight)     what it adds to the sum
//   void settle(sum)               what follows from the whole sum
//   void finish(i, lanes, weight)  the result
//   void mend(weight)              once finished, the result that float32 could not give
template <class Way, class RowOf>
[[gnu::always_inline]] inline void run_rows(Way way, int64_t begin, int64_t end, int64_t size, const float* weight,
                                            RowOf row_of) {
  if (begin == end) return;
  auto row = row_of(begin);
  row.settle(sum_of(way, size, [&](int64_t i, auto lanes) { return row.term(i, lanes, lanes.load(weight + i)); }));
  for (int64_t index = begin + 1; index < end; ++index) {
    auto next = row_of(index);
    next.settle(sum_of(way, size, [&](int64_t i, auto lanes) __attribute__((always_inline)) {
      const Vec w = lanes.load(weight + i);
      row.finish(i, lanes, w);
      return next.term(i, lanes, w);
    }));
    row.mend(weight);
    row = next;
  }
  for_each_vec(way, size, [&](int64_t i, auto lanes) { row.finish(i, lanes, lanes.load(weight + i)); });
  row.mend(weight);
  way.finish();
}

// What the rows of one forward call share.
struct Forward {
  int64_t size;
  float epsilon;
  float* rstd_out;  // or null
};

template <class T>
struct ForwardRow {
  const Forward* call;
  int64_t index;
  const T* x;
  T* y;
  double inverse = 0;
  float rstd = 0;

  template <class Lanes>
  [[gnu::always_inline]] Vec term(int64_t i, Lanes lanes, Vec) const {
    const Vec h = lanes.fetch(x + i);
    return h * h;
  }
  void settle(float squares) {
    inverse = inverse_rms(squares, x, call->size, call->epsilon);
    rstd = static_cast<float>(inverse);
    if (call->rstd_out) call->rstd_out[index] = rstd;
  }
  void mend(const float* weight) const {
    if (!is_ordinary(rstd)) normalise_in_double(x, inverse, weight, call->size, y);
  }
  template <class Lanes>
  [[gnu::always_inline]] void finish(int64_t i, Lanes lanes, Vec weight) const {
    lanes.store(y + i, lanes.load(x + i) * broadcast(rstd) * weight);
  }
};

template <class T>
void forward(const Tensor& x, const float* weight, const Forward& call, const Tensor& y) {
  const Rows rows = rows_of(x);
  const int64_t size = call.size;
  visit_way(2 * rows.count * size * sizeof(T), begins_lines(y), [&](auto way) {
    parallel_for(rows.count, row_grain(size), [&](int64_t begin, int64_t end, int) {
      const RowReader<T> read_x(rows);
      run_rows(way, begin, end, size, weight, [&](int64_t index) {
        return ForwardRow<T>{&call, index, read_x(index), static_cast<T*>(y.data) + index * size};
      });
    });
  });
}

// h = x + residual, rounded, is kept where finish() can read it: in residual_out itself, or beside it when that goes
// past the caches.
template <class T, class Residual>
struct AddRow {
  const Forward* call;
  int64_t index;
  const T* x;
  const Residual* residual;
  Residual* residual_out;
  Residual* kept;
  T* y;
  double inverse = 0;
  float rstd = 0;

  template <class Lanes>
  [[gnu::always_inline]] Vec term(int64_t i, Lanes lanes, Vec) const {
    const Vec sum = lanes.fetch(x + i) + lanes.fetch(residual + i);
    lanes.store(residual_out + i, sum);
    if (kept != residual_out) lanes.keep(kept + i, sum);
    const Vec h = lanes.load(kept + i);
    return h * h;
  }
  void settle(float squares) {
    inverse = inverse_rms(squares, kept, call->size, call->epsilon);
    rstd = static_cast<float>(inverse);
    if (call->rstd_out) call->rstd_out[index] = rstd;
  }
  void mend(const float* weight) const {
    if (!is_ordinary(rstd)) normalise_in_double(kept, inverse, weight, call->size, y);
  }
  template <class Lanes>
  [[gnu::always_inline]] void finish(int64_t i, Lanes lanes, Vec weight) const {
    lanes.store(y + i, lanes.load(kept + i) * broadcast(rstd) * weight);
  }
};

template <class T, class Residual>
void add_forward(const Tensor& x, const Tensor& residual, const float* weight, const Forward& call, const Tensor& y,
                 const Tensor& residual_out) {
  const Rows rows = rows_of(x), residual_rows = rows_of(residual);
  const int64_t size = call.size, num_bytes = 2 * rows.count * size * (sizeof(T) + sizeof(Residual));
  visit_way(num_bytes, begins_lines(y) && begins_lines(residual_out), [&](auto way) {
    parallel_for(rows.count, row_grain(size), [&](int64_t begin, int64_t end, int) {
      const RowReader<T> read_x(rows);
      const RowReader<Residual> read_residual(residual_rows);
      const Buffer beside(way.kKeepsResults ? 0 : 2 * size * sizeof(Residual));
      run_rows(way, begin, end, size, weight, [&](int64_t index) {
        Residual* out = static_cast<Residual*>(residual_out.data) + index * size;
        Residual* kept = way.kKeepsResults ? out : beside.as<Residual>() + index % 2 * size;
        T* result = static_cast<T*>(y.data) + index * size;
        return AddRow<T, Residual>{&call, index, read_x(index), read_residual(index), out, kept, result};
      });
    });
  });
}

// With n = h rstd and g = dy weight: dh = rstd (g - n mean(g n)) + dresidual_out, dweight += dy n. `rstd` is 0 where
// float32 does not hold it: then only mend() gives the results.
template <class T, class Residual>
struct GradRow {
  const Residual* h;
  const T* dy;
  const Residual* dresidual_out;  // or null
  float rstd;
  int64_t size;
  T* dx;                // or null
  Residual* dresidual;  // or null
  float* dweight;       // this thread's sum, or null
  float mean = 0;

  [[gnu::noinline]] void mend_in_double(const float* weight) const {
    fence_non_temporal();
    const bool in_range = rstd > 0;
    const double inverse = in_range ? rstd : inverse_rms(INFINITY, h, size, 0);
    double products = 0;
    for (int64_t i = 0; i < size; ++i)
      products += static_cast<double>(to_float(dy[i])) * weight[i] * (to_float(h[i]) * inverse);
    for (int64_t i = 0; i < size; ++i) {
      const double n = to_float(h[i]) * inverse, g = static_cast<double>(to_float(dy[i])) * weight[i];
      double dh = (g - n * (products / static_cast<double>(size))) * inverse;
      if (dresidual_out) dh += to_float(dresidual_out[i]);
      if (dx) dx[i] = from_float<T>(static_cast<float>(dh));
      if (dresidual) dresidual[i] = from_float<Residual>(static_cast<float>(dh));
      if (dweight && !in_range) dweight[i] += static_cast<float>(to_float(dy[i]) * n);
    }
  }
  void mend(const float* weight) const {
    if (!(rstd > 0 && __builtin_isfinite(mean))) mend_in_double(weight);
  }

  template <class Lanes>
  [[gnu::always_inline]] Vec term(int64_t i, Lanes lanes, Vec weight) const {
    const Vec n = lanes.fetch(h + i) * broadcast(rstd), d = lanes.fetch(dy + i);
    if (dweight) lanes.keep(dweight + i, fma(d, n, lanes.load(dweight + i)));
    return d * weight * n;
  }
  void settle(float products) { mean = products / static_cast<float>(size); }
  template <class Lanes>
  [[gnu::always_inline]] void finish(int64_t i, Lanes lanes, Vec weight) const {
    const Vec g = lanes.load(dy + i) * weight, n = lanes.load(h + i) * broadcast(rstd);
    Vec dh = (g - n * broadcast(mean)) * broadcast(rstd);
    if (dresidual_out) dh += lanes.fetch(dresidual_out + i);
    if (dx) lanes.store(dx + i, dh);
    if (dresidual) lanes.store(dresidual + i, dh);
  }
};

template <class T, class Residual>
void backward(const Tensor& h, const float* weight, const Tensor& rstd, const Tensor& dy, const Tensor& dresidual_out,
              const Tensor& dx, const Tensor& dresidual, float* dweight_parts) {
  const Rows rows = rows_of(h), dy_rows = rows_of(dy), dout_rows = rows_of(dresidual_out);
  const int64_t size = rows.size;
  const int num_rows_of_t = 1 + dx.present, num_rows_of_residual = 1 + dresidual_out.present + dresidual.present;
  const int64_t num_bytes = rows.count * size * (num_rows_of_t * sizeof(T) + num_rows_of_residual * sizeof(Residual));
  const bool on_lines = (dx || dresidual) && begins_lines(dx) && begins_lines(dresidual);
  visit_way(num_bytes, on_lines, [&](auto way) {
    parallel_for(rows.count, row_grain(size), [&](int64_t begin, int64_t end, int thread) {
      const RowReader<Residual> read_h(rows), read_dout(dout_rows);
      const RowReader<T> read_dy(dy_rows);
      float* dweight = dweight_parts ? dweight_parts + thread * size : nullptr;
      if (dweight) __builtin_memset(dweight, 0, size * sizeof(float));
      run_rows(way, begin, end, size, weight, [&](int64_t index) {
        const float inverse = static_cast<const float*>(rstd.data)[index * rstd.strides[0]];
        return GradRow<T, Residual>{
            read_h(index),
            read_dy(index),
            dresidual_out ? read_dout(index) : nullptr,
            is_ordinary(inverse) ? inverse : 0,
            size,
            dx ? static_cast<T*>(dx.data) + index * size : nullptr,
            dresidual ? static_cast<Residual*>(dresidual.data) + index * size : nullptr,
            dweight,
        };
      });
    });
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
    forward<T>(x, weights.values(), {weight.shape[0], epsilon, float_data(rstd)}, y);
  });
}

void add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, float epsilon, const Tensor& y,
                  const Tensor& residual_out, const Tensor& rstd) {
  const FloatRow weights(weight);
  visit_floating(x.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    visit_floating(residual.dtype, [&](auto* residual_type) {
      using Residual = std::remove_pointer_t<decltype(residual_type)>;
      add_forward<T, Residual>(x, residual, weights.values(), {weight.shape[0], epsilon, float_data(rstd)}, y,
                               residual_out);
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
