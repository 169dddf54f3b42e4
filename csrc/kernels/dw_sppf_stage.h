// SPDX-License-Identifier: Apache-2.0
// What the forms of dw_sppf on the CPU share: a stage's filter, its activation, and blocks of vectors. Included by
// kernel sources only, which are compiled once per instruction set.
#pragma once

#include "dw_sppf.h"
#include "simd.h"

namespace fastyolo {
namespace {

constexpr int kStages = kDwSppfStages;
constexpr int64_t kGrainElements = 8192;  // ~10 us of work: less is not worth a thread
constexpr int kBlockRows = 5;             // divides the 10, 20 and 40 pairs of rows of YOLO's maps

// Where exp_nonpositive() has become infinity: its float32 steps hold for positive numbers too, up to 127.5 ln 2.
template <class C>
constexpr C kExpOverflow = static_cast<C>(sizeof(C) == 4 ? 88.5 : 1000);

template <class C>
struct Activated {
  Vec<C> value;
  Vec<C> slope;  // of silu alone
};

template <Activation A, class C>
Activated<C> activate(Vec<C> z) {
  if constexpr (A == Activation::kSilu) {
    // e^-z overflows where the sigmoid is nothing beside 1: silu(-inf) is -inf * 0, NaN, as in torch.
    const Vec<C> sigmoid = 1 / (1 + exp_nonpositive(min(splat(kExpOverflow<C>), -z)));
    const Vec<C> value = z * sigmoid;
    return {value, fma(value, 1 - sigmoid, sigmoid)};
  } else if constexpr (A == Activation::kRelu) {
    return {max(Vec<C>{}, z), Vec<C>{}};
  } else {
    return {z, Vec<C>{}};
  }
}

// What the taps of one stage multiply, a vector each: equal lanes, or one channel per lane.
template <int K, class C>
struct Filter {
  alignas(64) C weight[K * K][kLanes<C>];
  alignas(64) C bias[kLanes<C>];

  Vec<C> tap(int dy, int dx) const { return load<C>(weight[dy * K + dx]); }
};

// A parameter of neighbouring channels, `stride` elements from one to the next.
template <class C, class P>
Vec<C> gather(const P* data, int64_t channels, int64_t stride) {
  Vec<C> v{};
  for (int64_t c = 0; c < channels; ++c) v[c] = convert<C>(data[c * stride]);
  return v;
}

template <int K, class C, class P>
void read_filter(const P* weight, const P* bias, int64_t lanes, Filter<K, C>& filter) {
  constexpr int kTaps = K * K;
  if (lanes == 0) {
    for (int t = 0; t < kTaps; ++t) store(filter.weight[t], splat(convert<C>(weight[t])));
    store(filter.bias, splat(bias ? convert<C>(*bias) : C{}));
  } else {
    for (int t = 0; t < kTaps; ++t) store(filter.weight[t], gather<C>(weight + t, lanes, kTaps));
    store(filter.bias, bias ? gather<C>(bias, lanes, 1) : Vec<C>{});
  }
}

// The filter of a stage's channel in all lanes, or for `lanes` above 0 those of as many channels from there on.
template <class T, int K, class C>
void read_filter(const DwSppfParams& p, int stage, int64_t channel, int64_t lanes, Filter<K, C>& filter) {
  const int64_t first = stage * p.channels + channel;
  const auto read = [&](auto element) {
    using P = decltype(element);
    const P* bias = static_cast<const P*>(p.bias);
    read_filter(static_cast<const P*>(p.weight) + first * K * K, bias ? bias + first : nullptr, lanes, filter);
  };
  if (std::is_same_v<T, BFloat16> && p.weight_dtype == DType::kBFloat16) {
    read(BFloat16{});
  } else {
    read(C{});
  }
}

// Hides from the compiler what the pointer is a multiple of: for an unrolled loop it would keep the distances of all
// loads, in more registers than there are.
template <class C>
inline void keep_in_register(const C*& pointer) {
  asm("" : "+r"(pointer));
}

// Covers elements [offset, end) with vectors: calls body(constant<count>, offset, column) for vectors at
// offset + i * row, i < count, in blocks of as many rows as there are, up to kBlockRows.
template <int N = kBlockRows, class Body>
inline void for_blocks(int64_t offset, int64_t end, int64_t row, int64_t lanes, const Body& body) {
  for (; end - offset >= N * row; offset += N * row) {
    for (int64_t v = 0; v < row; v += lanes) body(std::integral_constant<int, N>{}, offset + v, v);
  }
  if constexpr (N > 1) {
    for_blocks<N - 1>(offset, end, row, lanes, body);
  } else {
    for (int64_t v = 0; offset + v < end; v += lanes) body(std::integral_constant<int, 1>{}, offset + v, v);
  }
}

}  // namespace
}  // namespace fastyolo
