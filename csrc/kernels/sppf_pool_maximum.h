// SPDX-License-Identifier: Apache-2.0
// Maxima with torch's rule for NaN. Included by kernel sources only, which are compiled once per instruction set.
#pragma once

#include <algorithm>
#include <limits>

#include "simd.h"

namespace fastyolo {
namespace {

// True where b replaces a as the maximum. With Special there may be NaN.
template <bool Special, class C>
auto beats(Vec<C> b, Vec<C> a) {
  if constexpr (Special) {
    return (b > a) | (b != b);
  } else {
    return b > a;
  }
}

template <bool Special, class C>
Vec<C> larger(Vec<C> b, Vec<C> a) {
  if constexpr (Special) {
    return beats<true, C>(b, a) ? b : a;
  } else {
    return max(b, a);
  }
}

template <class C>
constexpr C kInfinity = std::numeric_limits<C>::infinity();

// False if a value is NaN, or -inf, which the padding is.
template <class C>
bool is_ordinary(Vec<C> v) {
  constexpr uint32_t kAll = (uint32_t{1} << kLanes<C>)-1;
  return greater(v, splat(-kInfinity<C>)) == kAll;
}

// From one row or column of a window to the next that tells its maximum. In a map of such maxima (`chained`) those a
// radius apart do: what lies between them is part of both.
constexpr int64_t window_step(int64_t radius, bool chained) { return chained && radius > 0 ? radius : 1; }

// Every step-th row of the window around row y, as far as they exist.
struct WindowRows {
  int64_t first;
  int64_t count;
  int64_t skipped;  // above the map

  WindowRows(int64_t y, int64_t height, int64_t radius, int64_t step = 1) {
    const int64_t above = std::min(radius, y) / step;
    first = y - above * step;
    count = above + std::min(radius, height - 1 - y) / step + 1;
    skipped = radius / step - above;
  }
};

// out[i] = the maximum of in[i + j * stride] over j < count, for i < size and up to a vector beyond.
template <int Count, bool Special, class C>
void window_max(const C* in, int64_t stride, int64_t count, C* out, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes<C>) {
    Vec<C> best = load<C>(in + i);
    for (int64_t j = 1; j < (Count > 0 ? Count : count); ++j) {
      best = larger<Special, C>(load<C>(in + i + j * stride), best);
    }
    store(out + i, best);
  }
}

}  // namespace
}  // namespace fastyolo
