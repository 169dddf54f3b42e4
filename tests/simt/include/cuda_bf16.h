// SPDX-License-Identifier: Apache-2.0
// Stands in for CUDA's header of this name. Conversions round to nearest even, as the hardware's.
#pragma once

#include "cuda_runtime.h"

struct __nv_bfloat16 {
  uint16_t bits;

  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) {
    const uint32_t wide = simt::bit_cast<uint32_t>(value);
    // The hardware has one NaN. Adding half of the last kept place, less one unless that place is odd, rounds the rest.
    bits = value != value ? 0x7fff : static_cast<uint16_t>((wide + 0x7fffu + (wide >> 16 & 1u)) >> 16);
  }
  operator float() const { return simt::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};

inline float __bfloat162float(__nv_bfloat16 a) { return a; }
inline __nv_bfloat16 __float2bfloat16(float a) { return __nv_bfloat16(a); }
inline __nv_bfloat16 __float2bfloat16_rn(float a) { return __nv_bfloat16(a); }
inline float2 __bfloat1622float2(__nv_bfloat162 a) { return {a.x, a.y}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 a) { return a.bits; }
inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short a) { return simt::bit_cast<__nv_bfloat16>(a); }

// NaN if either is; +0 is larger than -0.
inline __nv_bfloat16 __hmax_nan(__nv_bfloat16 a, __nv_bfloat16 b) {
  if (a != a || b != b) return __ushort_as_bfloat16(0x7fff);
  return a > b || (a == b && b.bits == 0x8000) ? a : b;
}
inline __nv_bfloat162 __hmax2_nan(__nv_bfloat162 a, __nv_bfloat162 b) {
  return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)};
}
