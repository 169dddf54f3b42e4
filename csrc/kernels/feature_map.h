// SPDX-License-Identifier: Apache-2.0
// The view of a feature map that the backbone's ops share.
#pragma once

#include "common.h"

namespace fastyolo {

// [B, C, H, W] with any element strides; the sizes stand in the op's params.
template <class Pointer>
struct FeatureMapOf {
  Pointer data = nullptr;
  int64_t stride_b = 0;
  int64_t stride_c = 0;
  int64_t stride_h = 0;
  int64_t stride_w = 0;
};
using FeatureMap = FeatureMapOf<const void*>;
using MutableFeatureMap = FeatureMapOf<void*>;

}  // namespace fastyolo
