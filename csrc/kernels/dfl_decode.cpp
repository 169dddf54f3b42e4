// SPDX-License-Identifier: Apache-2.0
// DFL decode on the CPU. The op is bound by its exponentials (64 per anchor at 16 bins), so anchors are lanes: a block
// of kLanes anchors reads each bin as one vector, keeps the exponentials in registers and never needs a horizontal
// operation. Logits whose anchors are not contiguous ([B, A, 4R], the training layout) go through a small transposed
// tile that stays in the first-level cache, so no layout costs a copy of the tensor. Backward recomputes the softmax
// from the logits: p_i (i - E) g, nothing else is saved.
#include "dfl_decode.h"

#include <algorithm>

#include "dfl.h"
#include "dispatch.h"

namespace fastyolo {
namespace FASTYOLO_ISA {
namespace {

constexpr int64_t kGrainAnchors = 512;  // ~10 us of work: less is not worth a thread

template <class T>
struct View {
  T* data;
  int64_t stride_c;
  int64_t stride_a;

  T* at(int64_t channel, int64_t anchor) const { return data + channel * stride_c + anchor * stride_a; }
};

// One side of one block of lanes: forward returns its distances, backward writes p_i (i - E) g.
template <int Bins, class In>
Vec<Compute<In>> distance_of(const In* logits, int64_t row, int64_t bins) {
  if (bins == 1) return load<Compute<In>>(logits);
  return Distribution<Bins, In>(logits, row, bins).expectation();
}

template <int Bins, class In, class Out>
void write_gradient(const In* logits, int64_t row, int64_t bins, Vec<Compute<In>> grad, Out* out, int64_t out_row) {
  using C = Compute<In>;
  if (bins == 1) {
    store(out, grad);
    return;
  }
  const Distribution<Bins, In> d(logits, row, bins);
  const Vec<C> scale = grad / d.sum();
  const Vec<C> offset = scale * d.expectation();
  for (int64_t i = 0; i < (Bins > 0 ? Bins : bins); ++i) {
    const Vec<C> slope = fma(splat(static_cast<C>(i)), scale, -offset);  // (i - E) g / sum
    store(out + i * out_row, d.weight(i) * slope);
  }
}

// Copies one side's bins of up to kLanes anchors into a tile [bins, kLanes] and back; absent lanes repeat the first.
template <class T, class C>
void gather(const View<const T>& logits, int64_t channel, int64_t bins, int64_t anchor, int lanes, C* tile) {
  constexpr int kWidth = kLanes<C>;
  if (logits.stride_c == 1 && lanes == kWidth && bins % kWidth == 0) {
    for (int64_t i = 0; i < bins; i += kWidth) {
      Vec<C> rows[kWidth];
      for (int lane = 0; lane < kWidth; ++lane) rows[lane] = load<C>(logits.at(channel + i, anchor + lane));
      transpose<C>(rows);
      for (int bin = 0; bin < kWidth; ++bin) store(tile + (i + bin) * kWidth, rows[bin]);
    }
    return;
  }
  for (int lane = 0; lane < kWidth; ++lane) {
    const T* from = logits.at(channel, anchor + (lane < lanes ? lane : 0));
    for (int64_t i = 0; i < bins; ++i) tile[i * kWidth + lane] = convert<C>(from[i * logits.stride_c]);
  }
}

template <class T, class C>
void scatter(const C* tile, int64_t bins, int lanes, const View<T>& out, int64_t channel, int64_t anchor) {
  constexpr int kWidth = kLanes<C>;
  if (out.stride_c == 1 && lanes == kWidth && bins % kWidth == 0) {
    for (int64_t i = 0; i < bins; i += kWidth) {
      Vec<C> rows[kWidth];
      for (int bin = 0; bin < kWidth; ++bin) rows[bin] = load<C>(tile + (i + bin) * kWidth);
      transpose<C>(rows);
      for (int lane = 0; lane < kWidth; ++lane) store(out.at(channel + i, anchor + lane), rows[lane]);
    }
    return;
  }
  for (int lane = 0; lane < lanes; ++lane) {
    T* to = out.at(channel, anchor + lane);
    for (int64_t i = 0; i < bins; ++i) to[i * out.stride_c] = convert<T>(tile[i * kWidth + lane]);
  }
}

template <int Bins, class T, bool Backward>
void decode_range(const DflDecodeParams& p, int64_t image, int64_t first, int64_t last) {
  using C = Compute<T>;
  constexpr int kWidth = kLanes<C>;
  const int64_t bins = Bins > 0 ? Bins : p.bins;
  const int64_t anchors = p.anchors;
  const C* points = static_cast<const C*>(p.anchor_points);
  const C* strides = static_cast<const C*>(p.strides);
  const View<const T> logits{static_cast<const T*>(p.logits) + image * p.logits_stride_b, p.logits_stride_c,
                             p.logits_stride_a};
  const View<T> grads{static_cast<T*>(p.grad_logits) + (Backward ? image * p.grad_logits_stride_b : 0),
                      p.grad_logits_stride_c, p.grad_logits_stride_a};
  const T* grad_boxes = static_cast<const T*>(p.grad_boxes) + (Backward ? image * 4 * anchors : 0);
  T* boxes = static_cast<T*>(p.boxes) + (Backward ? 0 : image * 4 * anchors);

  alignas(64) C tile[kMaxBins * kWidth];
  alignas(64) C tile_out[Backward ? kMaxBins * kWidth : 1];

  // Sides outside, anchors inside: a side's planes are as many streams as the hardware follows, all sides' are not.
  for (int side = 0; side < 4; ++side) {
    const int64_t channel = side * bins;
    // The first two distances go left and up, the last two right and down.
    const Vec<C> sign = splat(static_cast<C>(side < 2 ? -1 : 1));
    for (int64_t a = first; a < last; a += kWidth) {
      const int lanes = static_cast<int>(std::min<int64_t>(kWidth, last - a));
      const bool whole = lanes == kWidth;
      const auto row_of = [&](const C* row) {
        if (whole) return load<C>(row + a);
        Vec<C> v = splat(row[a]);
        for (int i = 0; i < lanes; ++i) v[i] = row[a + i];
        return v;
      };
      const Vec<C> stride = row_of(strides);
      const bool direct = whole && logits.stride_a == 1;
      if (direct) {
        for (int64_t i = 0; i < bins; ++i) __builtin_prefetch(logits.at(channel + i, a + 4 * kWidth));
      } else {
        gather(logits, channel, bins, a, lanes, tile);
      }

      if constexpr (Backward) {
        const T* from = grad_boxes + side * anchors + a;
        Vec<C> grad{};
        if (whole) {
          grad = load<C>(from);
        } else {
          for (int i = 0; i < lanes; ++i) grad[i] = convert<C>(from[i]);
        }
        grad = grad * stride * sign;
        if (direct && grads.stride_a == 1) {
          write_gradient<Bins>(logits.at(channel, a), logits.stride_c, bins, grad, grads.at(channel, a),
                               grads.stride_c);
        } else {
          if (direct) gather(logits, channel, bins, a, lanes, tile);
          write_gradient<Bins>(static_cast<const C*>(tile), kWidth, bins, grad, tile_out, kWidth);
          scatter(tile_out, bins, lanes, grads, channel, a);
        }
      } else {
        const Vec<C> distance = direct ? distance_of<Bins>(logits.at(channel, a), logits.stride_c, bins)
                                       : distance_of<Bins>(static_cast<const C*>(tile), kWidth, bins);
        const Vec<C> corner = (row_of(points + (side & 1) * anchors) + sign * distance) * stride;
        T* to = boxes + side * anchors + a;
        if (whole) {
          store(to, corner);
        } else {
          for (int i = 0; i < lanes; ++i) to[i] = convert<T>(corner[i]);
        }
      }
    }
  }
}

template <bool Backward>
Status run(const DflDecodeParams& p, const ParallelFor& parallel_for) {
  return dispatch_dtype<DType::kFloat32, DType::kBFloat16, DType::kFloat64>("logits", p.dtype, [&](auto dtype) {
    using T = Element<dtype.value>;
    return dispatch_int<16, 8>(p.bins, [&](auto bins) {
      const int64_t blocks = ceil_div(p.anchors, kGrainAnchors);  // per image, so that no range spans two images
      const int64_t grain = kGrainAnchors / std::clamp(p.anchors, int64_t{1}, kGrainAnchors);
      parallel_for(p.batch * blocks, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t first = i % blocks * kGrainAnchors;
          decode_range<bins.value, T, Backward>(p, i / blocks, first, std::min(first + kGrainAnchors, p.anchors));
        }
      });
      return Status{};
    });
  });
}

}  // namespace

Status dfl_decode_cpu(const DflDecodeParams& params, const ParallelFor& parallel_for) {
  return run<false>(params, parallel_for);
}

Status dfl_decode_backward_cpu(const DflDecodeParams& params, const ParallelFor& parallel_for) {
  return run<true>(params, parallel_for);
}

}  // namespace FASTYOLO_ISA
}  // namespace fastyolo
