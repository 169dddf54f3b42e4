// SPDX-License-Identifier: Apache-2.0
// Vectors of the instruction set that this source is compiled for. Included by kernel sources only, which are compiled
// once per set (cmake/cpu_kernels.cmake); everything is in an anonymous namespace so that no copy leaks into another.
//
// The compiler's vector extension covers arithmetic on every target. What it has no operator for (masks as bits, fused
// multiply-add, min and max with x86 NaN rules) stands here once per set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "common.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace fastyolo {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Vec = typename VectorOf<T>::type;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// An element of a bfloat16 tensor: the upper half of a float32.
struct BFloat16 {
  uint16_t bits;
};

inline float to_float(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// Rounds to nearest even, as torch and CUDA do; NaN stays NaN.
inline BFloat16 to_bfloat16(float value) {
  if (value != value) return BFloat16{0x7fc0};
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return BFloat16{static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

template <DType D>
struct ElementOf;
template <>
struct ElementOf<DType::kFloat32> {
  using type = float;
};
template <>
struct ElementOf<DType::kFloat64> {
  using type = double;
};
template <>
struct ElementOf<DType::kBFloat16> {
  using type = BFloat16;
};
template <DType D>
using Element = typename ElementOf<D>::type;

// The type that an element is computed in.
template <class T>
struct ComputeOf {
  using type = T;
};
template <>
struct ComputeOf<BFloat16> {
  using type = float;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

template <class C, class T>
inline C convert(T value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return static_cast<C>(to_float(value));
  } else if constexpr (std::is_same_v<C, BFloat16>) {
    return to_bfloat16(value);
  } else {
    return static_cast<C>(value);
  }
}

template <class T>
inline Vec<T> splat(T value) {
  return Vec<T>{} + value;
}

// kLanes<C> consecutive elements, converted to C.
template <class C, class T>
inline Vec<C> load(const T* p) {
  Vec<C> v;
  if constexpr (std::is_same_v<C, T>) {
    std::memcpy(&v, p, sizeof(v));
  } else {
    for (int i = 0; i < kLanes<C>; ++i) v[i] = convert<C>(p[i]);
  }
  return v;
}

#if defined(__AVX512F__)
template <>
inline Vec<float> load<float, BFloat16>(const BFloat16* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (Vec<float>)_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
#elif defined(__AVX2__)
template <>
inline Vec<float> load<float, BFloat16>(const BFloat16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (Vec<float>)_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
#endif

// The bits of v rounded to bfloat16, in the upper half of each lane; what the lower half holds is left over.
inline Vec<uint32_t> round_to_bfloat16(Vec<float> v) {
  Vec<uint32_t> bits;
  std::memcpy(&bits, &v, sizeof(bits));
  const Vec<uint32_t> rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  return v == v ? rounded : splat(0x7fc00000u);
}

// Elements of T as memory has them, a vector or half of one.
template <class T>
struct RoundedOf {
  using type = Vec<T>;
};
template <>
struct RoundedOf<BFloat16> {
  typedef uint16_t type __attribute__((vector_size(kVectorBytes / 2)));
};
template <class T>
using Rounded = typename RoundedOf<T>::type;

// Rounded to nearest even.
template <class T>
inline Rounded<T> rounded(Vec<Compute<T>> v) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return __builtin_convertvector(round_to_bfloat16(v) >> 16, Rounded<T>);
  } else {
    return v;
  }
}

template <class T>
inline void store(T* p, Vec<Compute<T>> v) {
  const Rounded<T> values = rounded<T>(v);
  std::memcpy(p, &values, sizeof(values));
}

// The first `count` of them.
template <class T>
inline void store_some(T* p, Vec<Compute<T>> v, int64_t count) {
  const Rounded<T> values = rounded<T>(v);
  std::memcpy(p, &values, count * sizeof(T));
}

constexpr int64_t kLineBytes = 64;  // of a cache

// Past the caches, to an address that is a multiple of the size: whoever writes all of a line spares its reading. The
// writer calls fence_streams() when it is done, before another thread may know of it.
template <class V>
inline void stream(void* p, V v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(V) == 64) return _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
#endif
#if defined(__AVX2__)
  if constexpr (sizeof(V) == 32) return _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
#endif
#if defined(__SSE2__)
  if constexpr (sizeof(V) == 16) return _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
#endif
  std::memcpy(p, &v, sizeof(v));
}

inline void fence_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

// kPack<T> elements, as many as fill a vector, as parts in the type that they are computed in. The parts of bfloat16
// are the even and the odd elements: a shift and a mask, where their order in memory would take shuffles. For loops
// that treat all elements alike.
template <class T>
struct Pack {
  static constexpr int kParts = static_cast<int>(sizeof(Compute<T>) / sizeof(T));
  Vec<Compute<T>> part[kParts];
};
template <class T>
constexpr int kPack = kLanes<T>;

// As many zero bytes as a vector has, then as many ones.
struct KeepMasks {
  uint8_t bytes[2 * kVectorBytes] = {};

  constexpr KeepMasks() {
    for (int i = kVectorBytes; i < 2 * kVectorBytes; ++i) bytes[i] = 0xff;
  }
};
constexpr KeepMasks kKeepMasks;

// The first `count` lanes of a, the others of b.
template <class T>
inline Vec<T> join(Vec<T> a, Vec<T> b, int64_t count) {
  Vec<uint32_t> bits, tail, others;
  std::memcpy(&bits, &a, sizeof(bits));
  std::memcpy(&tail, &b, sizeof(tail));
  std::memcpy(&others, kKeepMasks.bytes + kVectorBytes - count * static_cast<int64_t>(sizeof(T)), sizeof(others));
  bits = (bits & ~others) | (tail & others);
  std::memcpy(&a, &bits, sizeof(a));
  return a;
}

// The first `count` elements from `a`, the others from where they are in `b`.
template <class T>
inline Vec<T> load_joined(const T* a, const T* b, int64_t count) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float>) {
    return (Vec<T>)_mm512_mask_loadu_ps((__m512)load<T>(a), static_cast<__mmask16>(0xffffu << count), b);
  }
#endif
  return join<T>(load<T>(a), load<T>(b), count);
}

// The first `skip` elements become 0.
template <class T>
inline Pack<T> load_pack(const T* p, int64_t skip = 0) {
  Vec<uint32_t> bits, keep;
  std::memcpy(&bits, p, sizeof(bits));
  if (skip > 0) {
    std::memcpy(&keep, kKeepMasks.bytes + kVectorBytes - skip * static_cast<int64_t>(sizeof(T)), sizeof(keep));
    bits &= keep;
  }
  Pack<T> pack;
  if constexpr (std::is_same_v<T, BFloat16>) {
    const Vec<uint32_t> even = bits << 16;
    const Vec<uint32_t> odd = bits & 0xffff0000u;
    std::memcpy(&pack.part[0], &even, sizeof(even));
    std::memcpy(&pack.part[1], &odd, sizeof(odd));
  } else {
    std::memcpy(&pack.part[0], &bits, sizeof(bits));
  }
  return pack;
}

template <class T>
inline void store_pack(T* p, const Pack<T>& pack) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    const Vec<uint32_t> even = round_to_bfloat16(pack.part[0]);
    const Vec<uint32_t> odd = round_to_bfloat16(pack.part[1]);
    const Vec<uint32_t> pairs = (even >> 16) | (odd & 0xffff0000u);
    std::memcpy(p, &pairs, sizeof(pairs));
  } else {
    store(p, pack.part[0]);
  }
}

// min and max return their second operand when either is NaN; fma is fused where the set has it. greater gives a bit
// per lane of a > b, false for NaN.
#if defined(__AVX512F__)
inline Vec<float> min(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_min_ps((__m512)a, (__m512)b); }
inline Vec<float> max(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm512_max_ps((__m512)a, (__m512)b); }
inline Vec<double> min(Vec<double> a, Vec<double> b) { return (Vec<double>)_mm512_min_pd((__m512d)a, (__m512d)b); }
inline Vec<double> max(Vec<double> a, Vec<double> b) { return (Vec<double>)_mm512_max_pd((__m512d)a, (__m512d)b); }
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
inline uint32_t greater(Vec<float> a, Vec<float> b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GT_OQ); }
inline uint32_t greater(Vec<double> a, Vec<double> b) { return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, _CMP_GT_OQ); }
#elif defined(__AVX2__)
inline Vec<float> min(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_min_ps((__m256)a, (__m256)b); }
inline Vec<float> max(Vec<float> a, Vec<float> b) { return (Vec<float>)_mm256_max_ps((__m256)a, (__m256)b); }
inline Vec<double> min(Vec<double> a, Vec<double> b) { return (Vec<double>)_mm256_min_pd((__m256d)a, (__m256d)b); }
inline Vec<double> max(Vec<double> a, Vec<double> b) { return (Vec<double>)_mm256_max_pd((__m256d)a, (__m256d)b); }
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
inline uint32_t greater(Vec<float> a, Vec<float> b) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GT_OQ)));
}
inline uint32_t greater(Vec<double> a, Vec<double> b) {
  return static_cast<uint32_t>(_mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, _CMP_GT_OQ)));
}
#else
template <class V>
inline V min(V a, V b) {
  return a < b ? a : b;
}
template <class V>
inline V max(V a, V b) {
  return a > b ? a : b;
}
#if defined(__SSE2__)
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return a * b + c; }
inline uint32_t greater(Vec<float> a, Vec<float> b) {
  return static_cast<uint32_t>(_mm_movemask_ps(_mm_cmpgt_ps((__m128)a, (__m128)b)));
}
inline uint32_t greater(Vec<double> a, Vec<double> b) {
  return static_cast<uint32_t>(_mm_movemask_pd(_mm_cmpgt_pd((__m128d)a, (__m128d)b)));
}
#elif defined(__aarch64__)
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return (Vec<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
inline uint32_t greater(Vec<float> a, Vec<float> b) {
  constexpr uint32x4_t kBits = {1, 2, 4, 8};
  return vaddvq_u32(vandq_u32(vcgtq_f32((float32x4_t)a, (float32x4_t)b), kBits));
}
inline uint32_t greater(Vec<double> a, Vec<double> b) {
  constexpr uint64x2_t kBits = {1, 2};
  return static_cast<uint32_t>(vaddvq_u64(vandq_u64(vcgtq_f64((float64x2_t)a, (float64x2_t)b), kBits)));
}
#else
#error "fastyolo's CPU kernels know x86-64 and aarch64"
#endif
#endif

// Lanes of a and b, chosen by index: below kLanes from a, from there on from b.
template <class T, int... Index>
inline Vec<T> shuffle(Vec<T> a, Vec<T> b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Index...);
#else
  using Lane = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  return __builtin_shuffle(a, b, Vec<Lane>{Index...});
#endif
}

// One step of a transposition: swaps the off-diagonal blocks of Half rows and Half columns.
template <int Half, class T, int... J>
inline void swap_blocks(Vec<T>* rows, std::integer_sequence<int, J...>) {
  constexpr int kWidth = kLanes<T>;
  for (int i = 0; i < kWidth; ++i) {
    if (i & Half) continue;
    const Vec<T> a = rows[i];
    const Vec<T> b = rows[i | Half];
    rows[i] = shuffle<T, ((J & Half) ? kWidth + (J ^ Half) : J)...>(a, b);
    rows[i | Half] = shuffle<T, ((J & Half) ? kWidth + J : (J ^ Half))...>(a, b);
  }
}

// Adds the lanes of v, halves first.
template <int Half, class T, int... J>
inline Vec<T> fold_lanes(Vec<T> v, std::integer_sequence<int, J...>) {
  return v + shuffle<T, (J ^ Half)...>(v, v);
}
template <class T, int Half = kLanes<T> / 2>
inline T sum_lanes(Vec<T> v) {
  if constexpr (Half == 0) {
    return v[0];
  } else {
    return sum_lanes<T, Half / 2>(fold_lanes<Half, T>(v, std::make_integer_sequence<int, kLanes<T>>{}));
  }
}

// Transposes a square of kLanes rows in registers.
template <class T, int Half = 1>
inline void transpose(Vec<T>* rows) {
  if constexpr (Half < kLanes<T>) {
    swap_blocks<Half, T>(rows, std::make_integer_sequence<int, kLanes<T>>{});
    transpose<T, 2 * Half>(rows);
  }
}

// e^x for x <= 0, relative error below 2e-7: 2^n * e^r with n = round(x / ln 2), the Taylor polynomial of e^r up to r^6
// on |r| <= ln(2)/2 (remainder r^7/7! < 2e-7). Below -87 the result stays at e^-87, 1.6e-38: nothing beside the 1 that
// the largest term of a softmax is. NaN stays.
inline Vec<float> exp_nonpositive(Vec<float> x) {
  constexpr float kLog2E = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f;  // ln 2 split in two, so that x - n ln 2 keeps its bits
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer in the low mantissa bits
  const Vec<float> clamped = max(splat(-87.f), x);  // NaN passes: max returns its second operand
  const Vec<float> shifted = fma(clamped, splat(kLog2E), splat(kMagic));
  const Vec<float> n = shifted - kMagic;
  const Vec<float> r = fma(n, splat(-kLn2Low), fma(n, splat(-kLn2High), clamped));
  Vec<float> p = splat(1.f / 720);
  p = fma(p, r, splat(1.f / 120));
  p = fma(p, r, splat(1.f / 24));
  p = fma(p, r, splat(1.f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.f));
  p = fma(p, r, splat(1.f));
  Vec<uint32_t> bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  const Vec<uint32_t> scale_bits = (bits << 23) + 0x3f800000u;  // 2^n: the low bits of `shifted` hold n
  Vec<float> scale;
  std::memcpy(&scale, &scale_bits, sizeof(scale));
  return p * scale;
}

inline Vec<double> exp_nonpositive(Vec<double> x) {
  Vec<double> y;
  for (int i = 0; i < kLanes<double>; ++i) y[i] = std::exp(x[i]);
  return y;
}

inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return a * b + c; }

}  // namespace
}  // namespace fastyolo
