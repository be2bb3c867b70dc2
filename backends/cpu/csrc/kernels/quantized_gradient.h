// What the gradient through a weight of 8 or 4 bits needs beside `dequantize_panel`.
#pragma once

#include "kernels/products.h"
#include "kernels/quantized_product.h"

FUSIONKIT_KERNELS(quantized_gradient,
                  // From the values of a panel, [own panel][k][column] as dequantize_panel gives them, to the panels of
                  // the transpose, own_panels(float32, number of columns): the panel's kQuantizedCols columns are steps
                  // from `step` on. What lies past the last k is zero.
                  void transpose_values(const float* values, int64_t depth, const PanelFormat& to, int64_t step,
                                        float* panels);)
