// SPDX-License-Identifier: Apache-2.0
// What CUDA kernels on feature maps share: which elements of a map adjoin, and whether vectors can take them.
#pragma once

#include "common.cuh"
#include "feature_map.h"

namespace fastyolo {
namespace {

enum class Layout {
  kPlanes,    // the pixels of a plane adjoin
  kChannels,  // the channels of a pixel adjoin
  kElements,  // anything else
};

template <class T>
__device__ const T* element(const FeatureMap& map, int image, int channel, int y, int x) {
  return static_cast<const T*>(map.data) + image * map.stride_b + channel * map.stride_c + y * map.stride_h +
         x * map.stride_w;
}

template <class T>
__device__ T* element(const MutableFeatureMap& map, int image, int channel, int y, int x) {
  return static_cast<T*>(map.data) + image * map.stride_b + channel * map.stride_c + y * map.stride_h +
         x * map.stride_w;
}

// --- host

inline FeatureMap as_source(const MutableFeatureMap& map) {
  return {map.data, map.stride_b, map.stride_c, map.stride_h, map.stride_w};
}

// From here on `p` has the sizes of `map`, whose strides may be anything where a size is 1.

template <class Params>
bool is_empty(const Params& p) {
  return p.batch == 0 || p.channels == 0 || p.height == 0 || p.width == 0;
}

template <class Params>
bool has_adjoining_pixels(const Params& p, const FeatureMap& map) {
  return (p.width == 1 || map.stride_w == 1) && (p.height == 1 || map.stride_h == p.width);
}

// Whether vectors of pixels begin at the same of them in all planes of both maps.
template <class T, class Params>
bool are_planes_alike(const Params& p, const FeatureMap& map, const FeatureMap& other) {
  const auto misalignment = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16; };
  return misalignment(map.data) == misalignment(other.data) &&
         (p.batch == 1 || (map.stride_b - other.stride_b) % kVectorElements<T> == 0) &&
         (p.channels == 1 || (map.stride_c - other.stride_c) % kVectorElements<T> == 0);
}

template <class T, class Params>
bool has_aligned_planes(const Params& p, const FeatureMap& map) {
  return is_aligned(map.data, 16) && (p.batch == 1 || map.stride_b % kVectorElements<T> == 0) &&
         (p.channels == 1 || map.stride_c % kVectorElements<T> == 0);
}

template <class T, class Params>
bool has_channel_vectors(const Params& p, const FeatureMap& map) {
  constexpr int64_t kWidth = kVectorElements<T>;
  return map.stride_c == 1 && p.channels % kWidth == 0 && is_aligned(map.data, 16) &&
         (p.batch == 1 || map.stride_b % kWidth == 0) && (p.height == 1 || map.stride_h % kWidth == 0) &&
         (p.width == 1 || map.stride_w % kWidth == 0);
}

}  // namespace
}  // namespace fastyolo
