// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's header of this name. Conversions round to nearest even, as the hardware's.
#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;

  __half() = default;
  explicit __half(float value) {
    // The hardware has one NaN.
    const _Float16 rounded = static_cast<_Float16>(value);
    bits = value != value ? 0x7fff : simt::bit_cast<uint16_t>(rounded);
  }
  operator float() const { return static_cast<float>(simt::bit_cast<_Float16>(bits)); }
};
struct alignas(4) __half2 {
  __half x, y;
};
using half = __half;
using half2 = __half2;

inline float __half2float(__half a) { return a; }
inline __half __float2half(float a) { return __half(a); }
inline __half __float2half_rn(float a) { return __half(a); }
inline float2 __half22float2(__half2 a) { return {a.x, a.y}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline unsigned short __half_as_ushort(__half a) { return a.bits; }
inline __half __ushort_as_half(unsigned short a) { return simt::bit_cast<__half>(a); }

// NaN if either is; +0 is larger than -0.
inline __half __hmax_nan(__half a, __half b) {
  if (a != a || b != b) return __ushort_as_half(0x7fff);
  return a > b || (a == b && b.bits == 0x8000) ? a : b;
}
inline __half2 __hmax2_nan(__half2 a, __half2 b) { return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }
