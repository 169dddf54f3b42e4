// SPDX-License-Identifier: Apache-2.0
// What the backbone's operators share: feature maps as the kernels see them, and new ones in the memory format of x.
#pragma once

#include "kernels/feature_map.h"
#include "torch/tensor.h"

namespace fastyolo {

inline FeatureMap view_of(const Tensor& map) {
  return {map.const_data_ptr(), map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

inline MutableFeatureMap mutable_view_of(const Tensor& map) {
  return {map.mutable_data_ptr(), map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

// Fills what every op's params say of x.
template <class Params>
Params params_of(const Tensor& x) {
  if (x.dim() != 4) refuse_shape(x, "x", "[B, C, H, W]");
  check_span(x, "x");
  Params params;
  params.dtype = dtype_of(x, "x");
  params.batch = x.size(0);
  params.channels = x.size(1);
  params.height = x.size(2);
  params.width = x.size(3);
  params.x = view_of(x);
  return params;
}

// The gradient of an output that has `channels` channels and is otherwise like x.
inline FeatureMap gradient_of(const Tensor& grad, Name name, const Tensor& x, int64_t channels) {
  check_shape(grad, name, {x.size(0), channels, x.size(2), x.size(3)});
  check_device(grad, name, x, "x");
  check_dtype(grad, name, x, "x");
  check_span(grad, name);
  return view_of(grad);
}

// The rule of torch's suggest_memory_format(), which the stable ABI lacks: channels, columns, rows and images in the
// order of their strides, each beyond the extent of the one before; no where sizes of 1 leave it open.
inline bool is_channels_last(const Tensor& map) {
  if (map.stride(1) == 0) return false;
  int64_t extent = 0;
  for (const int axis : {1, 3, 2, 0}) {
    const int64_t size = map.size(axis);
    const int64_t stride = map.stride(axis);
    if (size == 0 || stride < extent || (axis == 0 && extent == map.stride(1))) return false;
    extent = size * stride;
  }
  return true;
}

// An uninitialised feature map of `channels` channels that is otherwise like x, in the memory format of x.
inline Tensor empty_map_like(const Tensor& x, int64_t channels) {
  const std::array<int64_t, 4> sizes = {x.size(0), channels, x.size(2), x.size(3)};
  if (!is_channels_last(x)) return empty(x, sizes, dtype_code(x));
  const int64_t row = channels * sizes[3];
  return empty_strided(x, sizes, {row * sizes[2], 1, row, channels}, dtype_code(x));
}

}  // namespace fastyolo
