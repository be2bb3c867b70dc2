// fused_linear and its gradient with a weight of 8 or 4 bits, whose bytes are written here as
// csrc/kernels/quantized_product.h says.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "fused_linear_packed.h"
#include "fused_linear_packed_grad.h"
#include "judge.h"

namespace kernel_tests {
namespace {

constexpr int64_t kHeaderBytes = 64, kCols = 64, kBlock = 256;

struct Quantized {
  int64_t in, out, group_size;
  int bits;
  DType scale_dtype;
  bool has_minimums, has_levels, rounds_x;

  int64_t scale_bytes() const { return has_levels ? 1 : scale_dtype == DType::kFloat16 ? 2 : 4; }
  // The floats of k's block in a panel; of in: where the groups begin.
  int64_t block_at(int64_t k) const {
    const int64_t block = k == in ? (in + kBlock - 1) / kBlock : k / kBlock;
    return has_levels ? block * kCols * 4 * (has_minimums ? 2 : 1) : 0;
  }
  int64_t words_at() const { return kCols * scale_bytes() * (has_minimums ? 2 : 1); }
  int64_t group_bytes(int64_t depth) const { return words_at() + (depth * bits + 31) / 32 * kCols * 4; }
  // Where the group of k begins in a panel; of in: where the panel ends.
  int64_t group_at(int64_t k) const {
    int64_t at = block_at(in);
    for (int64_t begin = 0; begin < in && begin + group_size <= k; begin += group_size)
      at += group_bytes(std::min(group_size, in - begin));
    return k == in && in % group_size != 0 ? at + group_bytes(in % group_size) : at;
  }
  int64_t num_bytes() const { return kHeaderBytes + (out + kCols - 1) / kCols * group_at(in); }
};

void write_header(const Quantized& q, unsigned char* packed) {
  const uint32_t format = 1;
  const int64_t sizes[] = {q.in, q.out, q.group_size, q.num_bytes()};
  std::memcpy(packed, "FKQUANTS", 8);
  std::memcpy(packed + 8, &format, sizeof format);
  packed[12] = static_cast<unsigned char>(q.bits);
  packed[13] = q.has_minimums;
  packed[14] = static_cast<unsigned char>(q.scale_bytes());
  packed[15] = q.rounds_x;
  std::memcpy(packed + 16, sizes, sizeof sizes);
}

// A scale or minimum that the dtype holds.
void write_value(DType dtype, double value, unsigned char* to) {
  Guarded one(dtype, {1});
  one.set(0, value);
  std::memcpy(to, one.data(), dtype == DType::kFloat16 ? 2 : 4);
}

// A scale or minimum, which is `unit` times an integer, of column `col` (those of minimums from kCols on).
void write_scale(const Quantized& q, double unit, int64_t factor, int64_t col, unsigned char* group,
                 unsigned char* block) {
  if (!q.has_levels)
    return write_value(q.scale_dtype, static_cast<double>(factor) * unit, group + col * q.scale_bytes());
  group[col] = static_cast<unsigned char>(factor);
  write_value(DType::kFloat32, unit, block + col * 4);
}

void write_code(const Quantized& q, int64_t code, int64_t k, int64_t col, unsigned char* words) {
  const int64_t per_word = 32 / q.bits, i = k % per_word;
  unsigned char* word = words + (k / per_word * kCols + col) * 4;
  const int64_t kept = code & ((1 << q.bits) - 1);
  word[i % 4] = static_cast<unsigned char>(word[i % 4] | kept << (i < 4 ? 0 : 4));
}

// Fills the block and returns the values, [in, out].
Doubles pack(const Quantized& q, unsigned char* packed) {
  std::memset(packed, 0, q.num_bytes());
  write_header(q, packed);
  Doubles weight(q.in * q.out);
  for (int64_t j = 0; j < q.out; ++j)
    for (int64_t k = 0; k < q.in; ++k) {
      unsigned char* panel = packed + kHeaderBytes + j / kCols * q.group_at(q.in);
      unsigned char *group = panel + q.group_at(k - k % q.group_size), *block = panel + q.block_at(k);
      const int64_t col = j % kCols, factor = (j + k / q.group_size) % 7 - 3, step = q.has_minimums ? j % 5 - 8 : 0;
      const double unit = static_cast<double>(1 + k / q.group_size * q.group_size / kBlock) / 64;
      const double scale = static_cast<double>(factor) * unit, minimum = static_cast<double>(step) * unit;
      if (k % q.group_size == 0) {
        write_scale(q, unit, factor, col, group, block);
        if (q.has_minimums) write_scale(q, unit, step, kCols + col, group, block);
      }
      const int64_t code = random_below(int64_t{1} << q.bits) - (q.has_minimums ? 0 : int64_t{1} << (q.bits - 1));
      write_code(q, code, k % q.group_size, col, group + q.words_at());
      weight[k * q.out + j] = static_cast<double>(code) * scale + minimum;
    }
  return weight;
}

// x as kernels/quantized_bytes.h says, where the weight asks for it.
Doubles multiplied(const Guarded& x, int64_t rows, const Quantized& q) {
  Doubles values(rows * q.in);
  for (int64_t i = 0; i < rows * q.in; ++i) values[i] = x[i];
  const int64_t run = q.group_size == 16 && q.in > 16 ? 16 : 32;
  for (int64_t row = 0; q.rounds_x && row < rows; ++row) {
    double* of_row = values.data() + row * q.in;
    double most = 0;
    for (int64_t k = 0; k < q.in; ++k) most = std::max(most, std::abs(of_row[k]));
    const double power = most > 0 ? std::exp2(std::floor(std::log2(most))) : 1;
    for (int64_t begin = 0; begin < q.in; begin += run) {
      const int64_t end = std::min(begin + run, q.in);
      float largest = 0x1p-90f;
      for (int64_t k = begin; k < end; ++k)
        largest = std::max(largest, static_cast<float>(std::abs(of_row[k]) / power));
      for (int64_t k = begin; k < end; ++k) {
        const float code = static_cast<float>(of_row[k] / power) * (127 / largest);
        of_row[k] = std::nearbyint(code) * double{largest / 127} * power;
      }
    }
  }
  return values;
}

void check_gradient(DType dtype, const Quantized& q, int64_t rows, Guarded& packed, const Doubles& weight) {
  const Guarded dy = random(dtype, {rows, q.out});
  Guarded dx(dtype, {rows, q.in}), dbias(DType::kFloat32, {q.out});
  fusionkit_cpu::linear_packed_grad(packed.data(), q.num_bytes(), q.in, q.out, dy, dx, dbias);
  Doubles want(rows * q.in), want_dbias(q.out);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < q.out; ++j) {
      want_dbias[j] += dy[i * q.out + j];
      for (int64_t k = 0; k < q.in; ++k) want[i * q.in + k] += dy[i * q.out + j] * weight[k * q.out + j];
    }
  expect_close("dx through the quantized weight", dx, want, {128, 0.52});
  expect_close("dbias beside the quantized weight", dbias, want_dbias, {128, 0.52});
}

void check(DType dtype, const Quantized& q, int64_t rows, bool with_bias) {
  begin_case(std::string("quantized ") + dtype_name(dtype) + " " + text({rows, q.in, q.out}) + " bits " +
             text({q.bits}) + " group " + text({q.group_size}) + " " +
             (q.has_levels ? "levels" : dtype_name(q.scale_dtype)) + (q.has_minimums ? " minimums" : "") +
             (q.rounds_x ? " x in int8" : "") + (with_bias ? " bias" : ""));
  const Guarded x = random(dtype, {rows, q.in}), bias = random(DType::kFloat32, {q.out});
  Guarded packed(DType::kBool, {q.num_bytes()}, 64), y(dtype, {rows, q.out});
  const Doubles weight = pack(q, static_cast<unsigned char*>(packed.data()));
  fusionkit_cpu::linear_packed(x, packed.data(), q.num_bytes(), q.in, q.out, with_bias ? bias.view() : Tensor{}, y);
  Doubles want(rows * q.out);
  const Doubles values = multiplied(x, rows, q);
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < q.out; ++j) {
      double& sum = want[i * q.out + j];
      for (int64_t k = 0; k < q.in; ++k) sum += values[i * q.in + k] * weight[k * q.out + j];
      if (with_bias) sum += bias[j];
    }
  expect_close("y of the quantized weight", y, want, {128, 0.52});
  if (!q.rounds_x) check_gradient(dtype, q, rows, packed, weight);
}

}  // namespace

void check_quantized(DType dtype) {
  struct Sizes {
    int64_t rows, in, out;
  };
  int number = 0;  // scale's dtype and bias go by turns
  for (const Sizes& s :
       {Sizes{1, 1, 1}, {1, 130, 65}, {2, 67, 64}, {7, 33, 3}, {8, 48, 129}, {9, 131, 70}, {15, 290, 5}})
    for (const int bits : {8, 4})
      for (const bool has_minimums : {false, true})
        for (const int64_t group_size : {int64_t{16}, int64_t{64}, s.in}) {
          const DType scale_dtype = ++number % 2 ? DType::kFloat16 : DType::kFloat32;
          for (const bool rounds_x : {false, true}) {
            check(dtype, {s.in, s.out, group_size, bits, scale_dtype, has_minimums, false, rounds_x}, s.rows,
                  number % 3 == 0);
            if (group_size == s.in) continue;
            check(dtype, {s.in, s.out, group_size, bits, DType::kFloat32, has_minimums, true, rounds_x}, s.rows,
                  number % 3 == 1);
          }
        }
}

}  // namespace kernel_tests
