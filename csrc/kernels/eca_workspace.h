// SPDX-License-Identifier: Apache-2.0
// How eca divides its workspace on the CPU.
#pragma once

#include <algorithm>

#include "eca.h"

namespace fastyolo {
namespace {

// Sizes depend on shapes only, so that sums do not depend on the number of threads.
struct EcaWorkspace {
  static constexpr int64_t kSlabElements = 1 << 15;  // of x: a few microseconds of work
  static constexpr int64_t kSlabPixels = 1 << 9;     // added in the element type; slabs are added in float64
  static constexpr int64_t kMaxSlabs = 64;           // bounds the workspace and the sums' last step
  static constexpr int64_t kSlotsAlignment = 32;     // bfloat16 elements in the widest vector

  bool channels_last;  // the maps that are read and written; grad_y may have any strides
  int64_t slab_rows;   // of an image in one partial sum
  int64_t slabs;       // per image
  int64_t slots;       // C, rounded up

  int64_t mean = 0;     // [B, C]
  int64_t grad = 0;     // [B, C], of the logit z
  int64_t scale = 0;    // [B, slots]
  int64_t offset = 0;   // [B, slots]
  int64_t partial = 0;  // [B, slabs, 2 in backward, slots]
  int64_t bytes = 0;

  EcaWorkspace(const EcaParams& p, bool backward) {
    const MutableFeatureMap& result = backward ? p.grad_x : p.y;
    channels_last = p.x.stride_c == 1 && result.stride_c == 1 && p.x.stride_w != 1;
    const int64_t row_elements = std::max<int64_t>(1, p.width * p.channels);
    const int64_t wanted_rows = std::min(ceil_div(kSlabElements, row_elements), ceil_div(kSlabPixels, p.width + 1));
    slab_rows = std::max({int64_t{1}, wanted_rows, ceil_div(p.height, kMaxSlabs)});
    slabs = ceil_div(p.height, slab_rows);
    slots = ceil_div(p.channels, kSlotsAlignment) * kSlotsAlignment;

    const auto take = [&](int64_t elements) {
      const int64_t at = bytes;
      bytes += align_up(elements * (p.dtype == DType::kFloat64 ? 8 : 4));
      return at;
    };
    if (channels_last || backward) mean = take(p.batch * p.channels);
    if (backward) grad = take(p.batch * p.channels);
    if (!channels_last) return;
    scale = take(p.batch * slots);
    if (backward) offset = take(p.batch * slots);
    partial = take(p.batch * slabs * (backward ? 2 : 1) * slots);
  }
};

}  // namespace
}  // namespace fastyolo
