// SPDX-License-Identifier: Apache-2.0
// A plugin's tensors as the kernels see them: sizes, element strides of the format, data; and the check of a shape.
#pragma once

#include <NvInferRuntime.h>

#include <algorithm>
#include <cstdio>
#include <initializer_list>

#include "kernels/common.h"
#include "kernels/feature_map.h"

namespace fastyolo {

using nvinfer1::DataType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

constexpr int64_t kFormatChannels = 8;  // kHWC8 pads the channels of a pixel to a multiple of it

class Tensor {
 public:
  Tensor(const PluginTensorDesc& desc, void* data) : desc_(desc), data_(data) {}

  int rank() const { return desc_.dims.nbDims; }
  int64_t size(int axis) const { return desc_.dims.d[axis]; }
  const auto* sizes() const { return desc_.dims.d; }  // int32 in TensorRT 8, int64 since
  DType dtype() const { return desc_.type == DataType::kHALF ? DType::kFloat16 : DType::kFloat32; }

  // In elements. In kHWC8 the axes are still [B, C, H, W], and lie in memory as [B, H, W, C padded].
  int64_t stride(int axis) const {
    if (desc_.format == TensorFormat::kHWC8) {
      const int64_t pixel = ceil_div(size(1), kFormatChannels) * kFormatChannels;
      const int64_t strides[] = {size(2) * size(3) * pixel, 1, size(3) * pixel, pixel};
      return strides[axis];
    }
    int64_t stride = 1;
    for (int i = axis + 1; i < rank(); ++i) stride *= size(i);
    return stride;
  }

  template <class T = void>
  T* data() const {
    return static_cast<T*>(data_);
  }

  template <class Map>
  Map map() const {
    return {data_, stride(0), stride(1), stride(2), stride(3)};
  }

 private:
  const PluginTensorDesc& desc_;
  void* data_;
};

// The inputs or the outputs of a call. While an engine is built there are no data.
class Tensors {
 public:
  Tensors(const PluginTensorDesc* descs, void* const* data) : descs_(descs), data_(data) {}

  Tensor operator[](int32_t i) const { return Tensor(descs_[i], data_ ? data_[i] : nullptr); }

 private:
  const PluginTensorDesc* descs_;
  void* const* data_;
};

constexpr int64_t kAny = -1;  // an expected size that is not checked

// "[2, 64, 80, 80]"; kAny is "any".
class ShapeText {
 public:
  template <class Size>
  ShapeText(const Size* sizes, int rank) {
    append("[");
    for (int i = 0; i < rank; ++i) {
      if (i > 0) append(", ");
      append(sizes[i] == kAny ? "any" : "%lld", static_cast<long long>(sizes[i]));
    }
    append("]");
  }

  const char* c_str() const { return text_; }

 private:
  template <class... Values>
  void append(const char* format, Values... values) {
    const size_t room = sizeof(text_) - length_;
    const int written = std::snprintf(text_ + length_, room, format, values...);
    length_ += std::min(static_cast<size_t>(written), room - 1);
  }

  char text_[96] = "";  // two of them and a sentence fill a Status
  size_t length_ = 0;
};

// Refuses a shape that is not the expected one.
inline Status check_shape(const char* name, const Tensor& tensor, std::initializer_list<int64_t> expected) {
  bool same = tensor.rank() == static_cast<int>(expected.size());
  for (int i = 0; same && i < tensor.rank(); ++i) {
    const int64_t wanted = expected.begin()[i];
    same = wanted == kAny || tensor.size(i) == wanted;
  }
  if (same) return Status{};
  return Status::error("%s must have shape %s, got %s", name,
                       ShapeText(expected.begin(), static_cast<int>(expected.size())).c_str(),
                       ShapeText(tensor.sizes(), tensor.rank()).c_str());
}

// Refuses channels that are not four distributions, or four distances.
inline Status check_distributions(const char* name, const Tensor& tensor) {
  if (tensor.size(1) > 0 && tensor.size(1) % 4 == 0) return Status{};
  return Status::error("%s must have 4 channels per bin, got %lld channels", name,
                       static_cast<long long>(tensor.size(1)));
}

// What every op on feature maps says of x.
template <class Params>
Params map_params(const Tensor& x) {
  Params params;
  params.dtype = x.dtype();
  params.batch = x.size(0);
  params.channels = x.size(1);
  params.height = x.size(2);
  params.width = x.size(3);
  params.x = x.map<FeatureMap>();
  return params;
}

}  // namespace fastyolo
