// A weight's codes and scales, written as a panel.
#include <cstring>

#include "kernels/quantized_product.h"
#include "kernels/scale_levels.h"
#include "kernels/simd.h"

namespace fusionkit_cpu::FUSIONKIT_ISA {
namespace {

using CodeRow = uint8_t[kQuantizedCols];

// `cols` codes of row k, and zeros up to a whole panel.
void load_codes(const QuantizedSource& source, int64_t k, int64_t col, int64_t cols, CodeRow& row) {
  const uint8_t* from = source.codes + k / source.codes_per_byte * source.row_stride + col * source.col_stride;
  std::memset(row, 0, sizeof row);
  if (source.col_stride == 1)
    std::memcpy(row, from, cols);
  else
    for (int64_t i = 0; i < cols; ++i) row[i] = from[i * source.col_stride];
  if (k % source.codes_per_byte == 1)
    for (uint8_t& codes : row) codes = static_cast<uint8_t>(codes >> 4);
}

void write_words(const CodeRow* rows, int bits, uint32_t* words) {
  for (int64_t i = 0; i < kQuantizedCols; ++i) {
    uint32_t word = 0;
    for (int byte = 0; byte < 4; ++byte) {
      const uint32_t low = rows[byte][i];
      word |= (bits == 8 ? low : (low & 15) | (rows[byte + 4][i] & 15u) << 4) << 8 * byte;
    }
    words[i] = word;
  }
}

template <class T>
void write_scales(const float* from, int64_t cols, T* to) {
  for (int64_t i = 0; i < kQuantizedCols; ++i) to[i] = from_float<T>(i < cols ? from[i] : 0);
}

void write_scales(const QuantizedFormat& format, const float* from, int64_t cols, char* to) {
  if (format.has_levels) return static_cast<void>(std::memset(to, 0, kQuantizedCols));  // see write_levels
  if (format.scale_dtype == DType::kFloat16) return write_scales(from, cols, reinterpret_cast<Float16*>(to));
  write_scales(from, cols, reinterpret_cast<float*>(to));
}

// f(values, count, which, group, i) of the scales (which: 0) and minimums (1) of each column col + i and each block,
// which has `count` groups from `group` on. Whether f was true of all.
template <class F>
bool true_of_blocks(const QuantizedSource& source, const QuantizedFormat& format, int64_t out_features, int64_t col,
                    F f) {
  const int64_t cols = out_features - col < kQuantizedCols ? out_features - col : kQuantizedCols;
  const int64_t groups = (format.depth + format.group_size - 1) / format.group_size;
  const int64_t step = kScaleBlock / format.group_size;
  for (int64_t group = 0; group < groups; group += step)
    for (int which = 0; which < (format.has_minimums ? 2 : 1); ++which)
      for (int64_t i = 0; i < cols; ++i) {
        const float* values = (which == 0 ? source.scales : source.minimums) + group * out_features + col + i;
        if (!f(values, groups - group < step ? groups - group : step, which, group, i)) return false;
      }
  return true;
}

// Where write_scales left zeros.
void write_levels(const QuantizedSource& source, const QuantizedFormat& format, int64_t out_features, int64_t col,
                  char* panel) {
  std::memset(panel, 0, groups_at(format));
  const int64_t step = group_bytes(format, format.group_size);
  true_of_blocks(source, format, out_features, col,
                 [&](const float* values, int64_t count, int which, int64_t group, int64_t i) {
                   const int64_t at = which * kQuantizedCols + i;
                   const ScaleLevels levels = find_levels(values, out_features, count);
                   char* block = panel + group * format.group_size / kScaleBlock * block_bytes(format);
                   reinterpret_cast<float*>(block)[at] = levels.scale;
                   char* to = panel + groups_at(format) + group * step + at;
                   for (int64_t n = 0; n < count; ++n) to[n * step] = static_cast<char>(levels.factors[n]);
                   return true;
                 });
}

}  // namespace

bool panel_has_levels(const QuantizedSource& source, const QuantizedFormat& format, int64_t out_features, int64_t col) {
  return true_of_blocks(source, format, out_features, col,
                        [&](const float* values, int64_t count, int, int64_t, int64_t) {
                          return find_levels(values, out_features, count).are_exact;
                        });
}

void pack_quantized_panel(const QuantizedSource& source, const QuantizedFormat& format, int64_t out_features,
                          int64_t col, void* panel) {
  const int64_t cols = out_features - col < kQuantizedCols ? out_features - col : kQuantizedCols;
  const int64_t per_word = codes_per_word(format);
  char* group = static_cast<char*>(panel) + groups_at(format);
  for (int64_t k = 0; k < format.depth; k += format.group_size) {
    const int64_t at = k / format.group_size * out_features + col;
    const int64_t end = format.depth - k < format.group_size ? format.depth : k + format.group_size;
    write_scales(format, source.scales + at, cols, group);
    if (format.has_minimums) write_scales(format, source.minimums + at, cols, group + scale_bytes(format) / 2);
    auto* words = reinterpret_cast<uint32_t*>(group + scale_bytes(format));
    for (int64_t first = k; first < end; first += per_word, words += kQuantizedCols) {
      CodeRow rows[8] = {};
      for (int64_t i = first; i < end && i < first + per_word; ++i) load_codes(source, i, col, cols, rows[i - first]);
      write_words(rows, format.bits, words);
    }
    group += group_bytes(format, end - k);
  }
  if (format.has_levels) write_levels(source, format, out_features, col, static_cast<char*>(panel));
}

}  // namespace fusionkit_cpu::FUSIONKIT_ISA
