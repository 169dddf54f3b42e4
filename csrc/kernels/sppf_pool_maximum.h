// SPDX-License-Identifier: Apache-2.0
// Maxima with torch's rule for NaN. Included by kernel sources only, which are compiled once per instruction set.
#pragma once

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
