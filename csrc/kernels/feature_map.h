// SPDX-License-Identifier: Apache-2.0
// The view of a feature map that the backbone's ops share.
#pragma once

#include <algorithm>

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

namespace {  // compiled once per instruction set

// Whether a result of `maps` maps as large as x is written past the caches. One that outgrows the threads' second-level
// caches leaves them before it is read again, and its lines would be read for nothing before they are written.
template <class Params>
bool is_streamed(const Params& p, int64_t maps, int num_threads) {
  constexpr int64_t kCacheBytes = 1 << 20;  // of a thread
  return maps * p.batch * p.channels * p.height * p.width * size_of(p.dtype) > kCacheBytes * std::max(num_threads, 1);
}

}  // namespace
}  // namespace fastyolo
