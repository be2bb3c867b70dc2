// A weight's codes become floats in registers: few rows multiply them there, more rows from panels of them.
#include "kernels/quantized_product.h"

#include "kernels/panels.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

constexpr int64_t kChain = FloatOperand::kLongestChain;
// Columns taken together: a vector of each is a sum, a scale and a minimum besides.
constexpr int kVectors = 4;
constexpr int kStripCols = kVectors * kLanes;
static_assert(kQuantizedCols % kStripCols == 0 && kStripCols % kPanelCols == 0);
constexpr int kRowsTogether = kLanes == 16 ? 4 : 2;

// What the compiler knows of a format.
template <int kBits_, bool kHasMinimums_>
struct Form {
  static constexpr int kBits = kBits_, kPerWord = 32 / kBits;
  static constexpr bool kHasMinimums = kHasMinimums_;

  // The bit of a word at which its i-th code begins.
  static constexpr int bit_of(int i) { return i < 4 ? 8 * i : 8 * (i - 4) + 4; }

  static Vec code(UintVec words, int bit) {
    if constexpr (kHasMinimums) return __builtin_convertvector((IntVec)(words >> bit & ((1u << kBits) - 1)), Vec);
    return __builtin_convertvector((IntVec)(words << (32 - kBits - bit)) >> (32 - kBits), Vec);
  }
};

// f(Form).
template <class F>
void visit_form(const QuantizedFormat& format, F f) {
  if (format.bits == 8) return format.has_minimums ? f(Form<8, true>{}) : f(Form<8, false>{});
  format.has_minimums ? f(Form<4, true>{}) : f(Form<4, false>{});
}

// Of a group, for the columns of a strip.
struct Scales {
  Vec scale[kVectors], minimum[kVectors];
};

template <class T>
void load_scales(const T* scales, bool has_minimums, Scales& loaded) {
  for (int n = 0; n < kVectors; ++n) {
    loaded.scale[n] = load(scales + n * kLanes);
    loaded.minimum[n] = has_minimums ? load(scales + kQuantizedCols + n * kLanes) : Vec{};
  }
}

void load_scales(const QuantizedFormat& format, const char* group, int64_t col, Scales& loaded) {
  if (format.scale_dtype == DType::kFloat16)
    return load_scales(reinterpret_cast<const Float16*>(group) + col, format.has_minimums, loaded);
  load_scales(reinterpret_cast<const float*>(group) + col, format.has_minimums, loaded);
}

// The words of a strip's columns, and their values.
struct Words {
  UintVec words[kVectors];

  explicit Words(const uint32_t* from) {
    for (int n = 0; n < kVectors; ++n) __builtin_memcpy(&words[n], from + n * kLanes, sizeof(UintVec));
  }

  // The value of the code at `bit` of the n-th vector's words: one rounding, or none if the product is exact.
  template <class Form>
  [[gnu::always_inline]] Vec value(Form, int n, int bit, const Scales& scales) const {
    const Vec code = Form::code(words[n], bit);
    return Form::kHasMinimums ? fma(code, scales.scale[n], scales.minimum[n]) : code * scales.scale[n];
  }
};

// f(k, end, words, scales) for all k's in order, some at a time: those of a call have one group and one chain. `words`
// are the strip's at k. Calls begin at a word: groups do, and so do chains.
template <class F>
[[gnu::always_inline]] inline void for_each_span(const QuantizedFormat& format, const void* panel, int64_t col,
                                                 const F& f) {
  const char* group = static_cast<const char*>(panel);
  for (int64_t k = 0; k < format.depth;) {
    const int64_t left = format.depth - k, size = left < format.group_size ? left : format.group_size;
    Scales scales;
    load_scales(format, group, col, scales);
    const auto* words = reinterpret_cast<const uint32_t*>(group + scale_bytes(format)) + col;
    for (const int64_t begin = k, group_end = k + size; k < group_end;) {
      const int64_t chain_end = (k / kChain + 1) * kChain, end = chain_end < group_end ? chain_end : group_end;
      f(k, end, words + (k - begin) / codes_per_word(format) * kQuantizedCols, scales);
      k = end;
    }
    group += group_bytes(format, size);
  }
}

// sums[row] += a[row] * the values of the code at `bit`.
template <int kRows, class Form>
[[gnu::always_inline]] inline void add_code(const float* a, int64_t a_stride, const Words& words, int bit,
                                            const Scales& scales, Vec (&sums)[kRows][kVectors]) {
  Vec value[kVectors];
#pragma GCC unroll 4
  for (int n = 0; n < kVectors; ++n) value[n] = words.value(Form{}, n, bit, scales);
#pragma GCC unroll 4
  for (int row = 0; row < kRows; ++row)
#pragma GCC unroll 4
    for (int n = 0; n < kVectors; ++n) sums[row][n] = fma(broadcast(a[row * a_stride]), value[n], sums[row][n]);
}

// totals[row][0 .. kStripCols) = a W for the strip of columns from `col` on.
template <int kRows, class Form>
void multiply_strip(const float* a, int64_t a_stride, const QuantizedFormat& format, const void* panel, int64_t col,
                    float* totals) {
  Vec sums[kRows][kVectors] = {};
  for_each_span(format, panel, col, [&](int64_t k, int64_t end, const uint32_t* at, const Scales& scales) {
    for (; k + Form::kPerWord <= end; k += Form::kPerWord, at += kQuantizedCols) {
      const Words words(at);
#pragma GCC unroll 8
      for (int i = 0; i < Form::kPerWord; ++i)
        add_code<kRows, Form>(a + k + i, a_stride, words, Form::bit_of(i), scales, sums);
    }
    if (k < end) {
      const Words words(at);
      for (int i = 0; k < end; ++i, ++k) add_code<kRows, Form>(a + k, a_stride, words, Form::bit_of(i), scales, sums);
    }
    if (end % kChain != 0 && end != format.depth) return;
    for (int row = 0; row < kRows; ++row)
      for (int n = 0; n < kVectors; ++n) {
        float* total = totals + row * kQuantizedCols + n * kLanes;
        store(total, end <= kChain ? sums[row][n] : sums[row][n] + load(total));
        sums[row][n] = Vec{};
      }
  });
}

template <int kRows, class Form>
void multiply_rows(Form, const Matrix& a, const QuantizedFormat& format, const void* panel, const Matrix& c,
                   const float* bias) {
  float totals[kRows * kQuantizedCols];
  for (int64_t col = 0; col < kQuantizedCols; col += kStripCols)
    multiply_strip<kRows, Form>(static_cast<const float*>(a.data), a.row_stride, format, panel, col, totals + col);
  convert_rows({totals, DType::kFloat32, kRows, c.cols, kQuantizedCols, 1}, DType::kFloat32, bias, c);
}

}  // namespace

void multiply_quantized(const Matrix& a, const QuantizedFormat& format, const void* panel, const Matrix& c,
                        const float* bias) {
  visit_form(format, [&](auto form) {
    int64_t row = 0;
    for (; row + kRowsTogether <= a.rows; row += kRowsTogether)
      multiply_rows<kRowsTogether>(form, slice_rows(a, row, row + kRowsTogether), format, panel,
                                   slice_rows(c, row, row + kRowsTogether), bias);
    for (; row < a.rows; ++row)
      multiply_rows<1>(form, slice_rows(a, row, row + 1), format, panel, slice_rows(c, row, row + 1), bias);
  });
}

void dequantize_panel(const QuantizedFormat& format, const void* panel, float* values) {
  visit_form(format, [&](auto form) {
    using Form = decltype(form);
    for (int64_t col = 0; col < kQuantizedCols; col += kStripCols)
      for_each_span(format, panel, col, [&](int64_t k, int64_t end, const uint32_t* at, const Scales& scales) {
        for (; k < end; at += kQuantizedCols) {
          const Words words(at);
          for (int i = 0; i < Form::kPerWord && k < end; ++i, ++k)
            for (int n = 0; n < kVectors; ++n) {
              const int64_t j = col + n * kLanes, own_panel = j / kPanelCols;
              store(values + (own_panel * format.depth + k) * kPanelCols + j % kPanelCols,
                    words.value(form, n, Form::bit_of(i), scales));
            }
        }
      });
  });
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
