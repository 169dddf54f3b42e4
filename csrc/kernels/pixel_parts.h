// SPDX-License-Identifier: Apache-2.0
// How the kernels that go through maps in channels_last by whole pixels divide their work.
#pragma once

#include <algorithm>

#include "feature_map.h"

namespace fastyolo {
namespace {

// An image's channels as parts that pass together: all of them, unless the rows that a thread keeps outgrow its
// second-level cache or there are threads without work.
struct PixelParts {
  static constexpr int64_t kUnit = 16;                // float32 values in the longest vector
  static constexpr int64_t kCacheBytes = 512 * 1024;  // for one thread's rows

  int64_t channels;  // of a part, a multiple of kUnit
  int64_t parts;     // of an image
  int64_t items;     // parts of all images
  int64_t slots;     // items are divided into as many ranges, each with rows of its own
  bool streamed;     // the result, past the caches

  // maps: of the result; unit_bytes: of the rows of kUnit channels; grain: elements that are worth a thread.
  template <class Params>
  PixelParts(const Params& p, int64_t maps, int64_t unit_bytes, int64_t grain, int num_threads)
      : streamed(is_streamed(p, maps, num_threads)) {
    const int64_t threads = std::max(num_threads, 1);
    const int64_t units = std::max<int64_t>(ceil_div(p.channels, kUnit), 1);
    const int64_t fitting = kCacheBytes / std::max<int64_t>(unit_bytes, 1);  // a map of no width has none
    const int64_t for_cache = ceil_div(units, std::max<int64_t>(fitting, 1));
    const int64_t for_threads = ceil_div(threads, std::max<int64_t>(p.batch, 1));
    channels = ceil_div(units, std::min(std::max(for_cache, for_threads), units)) * kUnit;
    parts = ceil_div(p.channels, channels);
    items = p.height * p.width > 0 ? p.batch * parts : 0;
    slots = std::clamp<int64_t>(items * channels * p.height * p.width / grain, 1,
                                std::min(threads, std::max<int64_t>(items, 1)));
  }
};

// True for the maps that they take: those whose pixels have vectors of channels. float64, which is there to check
// gradients, takes the form for planes.
template <class Params>
bool goes_by_pixels(const Params& p) {
  return p.dtype != DType::kFloat64 && p.x.stride_c == 1 && p.x.stride_w != 1 && 2 * p.channels > PixelParts::kUnit;
}

}  // namespace
}  // namespace fastyolo
