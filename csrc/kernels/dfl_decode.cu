// SPDX-License-Identifier: Apache-2.0
// DFL logits to boxes on the GPU, forward and backward. Both move the logits once (34 MB for 32 images of 8400 anchors,
// float16) and compute little, so all that matters is how they are read: a thread takes one side of an anchor and loads
// its 16 bins before it uses the first. In [B, 4R, A] neighbouring threads read neighbouring anchors, two at a time; in
// [B, A, 4R] a thread reads its bins as 16-byte vectors. Other strides and other numbers of bins go element by element.
//
// Backward recomputes the softmax: the gradient of logit i is p_i (i - E) * stride * grad_box, negative for the sides
// that are subtracted from the anchor.
#include "dfl_decode.h"

#include <initializer_list>

#include "dfl.cuh"
#include "dispatch.h"

namespace fastyolo {
namespace {

constexpr int kThreads = 256;

enum class Layout {
  kAnchorPairs,  // anchors adjoin
  kBinRows,      // bins adjoin
  kElements,     // anything else
};

struct Logits {
  const void* data;  // [B, 4R, A], element strides below
  int64_t stride_b;
  int64_t stride_c;
  int64_t stride_a;
};

struct Problem {
  Logits logits;
  const float* anchor_points;  // [2, A]
  const float* strides;        // [A]
  uint32_t batch;
  uint32_t anchors;
  int32_t bins;
};

// What a thread works on: one side of kAnchors anchors.
template <Layout kLayout>
struct Place {
  static constexpr int kAnchors = kLayout == Layout::kAnchorPairs ? 2 : 1;

  uint32_t image, side, anchor;
  bool inside;

  __device__ explicit Place(const Problem& p) {
    const uint32_t thread = blockIdx.x * kThreads + threadIdx.x;
    const uint32_t units = p.anchors / kAnchors;
    if (kLayout == Layout::kBinRows) {
      side = thread % 4;
      anchor = thread / 4 % units;
      image = thread / 4 / units;
    } else {
      anchor = thread % units * kAnchors;
      side = thread / units % 4;
      image = thread / units / 4;
    }
    inside = image < p.batch;
  }

  __device__ float direction() const { return side < 2 ? -1.f : 1.f; }
  __device__ int64_t offset(const Logits& l, int bins) const {
    return image * l.stride_b + int64_t{side} * bins * l.stride_c + anchor * l.stride_a;
  }
  __device__ int64_t box_offset(const Problem& p) const { return (int64_t{image} * 4 + side) * p.anchors + anchor; }
};

// The logits of one place, in registers.
template <class T, int kBins, Layout kLayout>
class Side {
 public:
  static constexpr int kAnchors = Place<kLayout>::kAnchors;

  __device__ void load(const T* logits, int64_t stride_c) {
#pragma unroll
    for (int j = 0; j < kVectors; ++j) vectors_[j] = load_vector<kWidth>(logits + j * step(stride_c));
  }

  __device__ void store(T* logits, int64_t stride_c) const {
#pragma unroll
    for (int j = 0; j < kVectors; ++j) store_vector<kWidth>(logits + j * step(stride_c), vectors_[j]);
  }

  __device__ T& at(int bin, int anchor) {
    return kLayout == Layout::kBinRows ? vectors_[bin / kWidth].values[bin % kWidth] : vectors_[bin].values[anchor];
  }

 private:
  static constexpr int kWidth = kLayout == Layout::kBinRows ? 16 / static_cast<int>(sizeof(T)) : kAnchors;
  static constexpr int kVectors = kBins * kAnchors / kWidth;

  __device__ static int64_t step(int64_t stride_c) { return kLayout == Layout::kBinRows ? kWidth : stride_c; }

  Vector<T, kWidth> vectors_[kVectors];
};

template <class T, int kBins, Layout kLayout>
__global__ void __launch_bounds__(kThreads, 4) dfl_decode_kernel(const Problem p, T* boxes) {
  const Place<kLayout> place(p);
  if (!place.inside) return;
  constexpr int kAnchors = Place<kLayout>::kAnchors;
  const T* logits = static_cast<const T*>(p.logits.data) + place.offset(p.logits, p.bins);
  Vector<T, kAnchors> out;
  const auto decode = [&](int v, float distance) {
    const float point = __ldg(p.anchor_points + place.side % 2 * p.anchors + place.anchor + v);
    const float coordinate = (point + place.direction() * distance) * __ldg(p.strides + place.anchor + v);
    out.values[v] = from_float<T>(coordinate);
  };
  if constexpr (kBins > 0) {
    Side<T, kBins, kLayout> side;
    side.load(logits, p.logits.stride_c);
    unrolled(std::make_integer_sequence<int, kAnchors>{}, [&](auto constant) {
      constexpr int v = decltype(constant)::value;
      decode(v, decode_distance<kBins>(kBins, [&](int i) { return to_float(side.at(i, v)); }));
    });
  } else {
    decode(0, decode_distance<0>(p.bins, [&](int i) { return load_float(logits + i * p.logits.stride_c); }));
  }
  store_vector(boxes + place.box_offset(p), out);
}

template <class T, int kBins, Layout kLayout>
__global__ void __launch_bounds__(kThreads, 3)
    dfl_decode_backward_kernel(const Problem p, const T* grad_boxes, T* grad_data, const Logits grad) {
  const Place<kLayout> place(p);
  if (!place.inside) return;
  constexpr int kAnchors = Place<kLayout>::kAnchors;
  const T* logits = static_cast<const T*>(p.logits.data) + place.offset(p.logits, p.bins);
  T* grad_logits = grad_data + place.offset(grad, p.bins);
  const auto out = load_vector<kAnchors>(grad_boxes + place.box_offset(p));
  const auto grad_distance = [&](int v) {
    return place.direction() * __ldg(p.strides + place.anchor + v) * to_float(out.values[v]);
  };
  if constexpr (kBins > 0) {
    Side<T, kBins, kLayout> side;
    side.load(logits, p.logits.stride_c);
    unrolled(std::make_integer_sequence<int, kAnchors>{}, [&](auto constant) {
      constexpr int v = decltype(constant)::value;
      const auto logit = [&](int i) { return to_float(side.at(i, v)); };
      const Distribution<kBins, decltype(logit)> distribution(kBins, logit);
      const float grad_expectation = grad_distance(v);
#pragma unroll
      for (int i = 0; i < kBins; ++i) side.at(i, v) = from_float<T>(distribution.grad_logit(i, grad_expectation));
    });
    side.store(grad_logits, grad.stride_c);
  } else if (p.bins == 1) {
    *grad_logits = from_float<T>(grad_distance(0));
  } else {
    const auto logit = [&](int i) { return load_float(logits + i * p.logits.stride_c); };
    const Distribution<0, decltype(logit)> distribution(p.bins, logit);
    const float grad_expectation = grad_distance(0);
    for (int i = 0; i < p.bins; ++i) {
      grad_logits[i * grad.stride_c] = from_float<T>(distribution.grad_logit(i, grad_expectation));
    }
  }
}

// --- host

template <class T>
bool has_anchor_pairs(const Logits& l, int64_t anchors) {
  return l.stride_a == 1 && anchors % 2 == 0 && l.stride_b % 2 == 0 && l.stride_c % 2 == 0 &&
         is_aligned(l.data, 2 * sizeof(T));
}

template <class T>
bool has_bin_rows(const Logits& l) {
  constexpr int64_t kWidth = 16 / sizeof(T);
  return l.stride_c == 1 && l.stride_a % kWidth == 0 && l.stride_b % kWidth == 0 && is_aligned(l.data, 16);
}

Problem describe(const DflDecodeParams& p) {
  Problem problem;
  problem.logits = {p.logits, p.logits_stride_b, p.logits_stride_c, p.logits_stride_a};
  problem.anchor_points = static_cast<const float*>(p.anchor_points);
  problem.strides = static_cast<const float*>(p.strides);
  problem.batch = static_cast<uint32_t>(p.batch);
  problem.anchors = static_cast<uint32_t>(p.anchors);
  problem.bins = static_cast<int32_t>(p.bins);
  return problem;
}

template <Layout L>
using LayoutConstant = std::integral_constant<Layout, L>;

// Calls f(element type, integral_constant<int, bins>, LayoutConstant) for the layout that all of `logits` have.
// `boxes` are those that the kernel reads or writes.
template <class F>
Status dispatch(const DflDecodeParams& p, const void* boxes, std::initializer_list<Logits> all, F&& f) {
  return dispatch_dtype<DType::kFloat32, DType::kFloat16, DType::kBFloat16>("logits", p.dtype, [&](auto dtype) {
    using T = Element<dtype.value>;
    return dispatch_int<16>(p.bins, [&](auto bins) {
      if constexpr (bins.value > 0) {
        bool pairs = is_aligned(boxes, 2 * sizeof(T));
        bool rows = true;
        for (const Logits& l : all) {
          pairs &= has_anchor_pairs<T>(l, p.anchors);
          rows &= has_bin_rows<T>(l);
        }
        if (pairs) return f(T{}, bins, LayoutConstant<Layout::kAnchorPairs>{});
        if (rows) return f(T{}, bins, LayoutConstant<Layout::kBinRows>{});
      }
      return f(T{}, bins, LayoutConstant<Layout::kElements>{});
    });
  });
}

template <Layout kLayout>
int64_t blocks_for(const DflDecodeParams& p) {
  return ceil_div<int64_t>(p.batch * 4 * p.anchors / Place<kLayout>::kAnchors, kThreads);
}

}  // namespace

Status dfl_decode(const DflDecodeParams& p, Stream stream) {
  const Status status = check_dfl_decode(p);
  if (!status.ok()) return status;
  const Problem problem = describe(p);
  return dispatch(p, p.boxes, {problem.logits}, [&](auto element, auto bins, auto layout) {
    using T = decltype(element);
    return launch("dfl_decode_kernel", dfl_decode_kernel<T, bins.value, layout.value>, blocks_for<layout.value>(p),
                  kThreads, stream, problem, static_cast<T*>(p.boxes));
  });
}

Status dfl_decode_backward(const DflDecodeParams& p, Stream stream) {
  const Status status = check_dfl_decode(p);
  if (!status.ok()) return status;
  const Problem problem = describe(p);
  const Logits grad = {p.grad_logits, p.grad_logits_stride_b, p.grad_logits_stride_c, p.grad_logits_stride_a};
  return dispatch(p, p.grad_boxes, {problem.logits, grad}, [&](auto element, auto bins, auto layout) {
    using T = decltype(element);
    return launch("dfl_decode_backward_kernel", dfl_decode_backward_kernel<T, bins.value, layout.value>,
                  blocks_for<layout.value>(p), kThreads, stream, problem, static_cast<const T*>(p.grad_boxes),
                  static_cast<T*>(p.grad_logits), grad);
  });
}

}  // namespace fastyolo
