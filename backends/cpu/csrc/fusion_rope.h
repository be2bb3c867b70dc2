#pragma once

#include "kernels/table.h"

// x [B, S, heads, D]; cos, sin [max_position, D / 2] float32; position_ids [B, S] int32 / int64, or absent (0..S-1).
// A position outside [0, max_position) throws. inverse=true rotates by the negative angle: the gradient.
FUSIONKIT_ENTRY_POINTS(void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& position_ids,
                                 bool interleaved, bool inverse, const Tensor& y);)

FUSIONKIT_KERNELS(fusion_rope,
                  // positions has one entry for each of the B * S tokens.
                  void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const int64_t* positions,
                            bool interleaved, bool inverse, const Tensor& y);)
