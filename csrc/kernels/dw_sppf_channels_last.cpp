// SPDX-License-Identifier: Apache-2.0
// The depthwise chain on maps in channels_last, forward. A pixel's channels are contiguous, and so are those of its
// results: the chain advances row by row, all its channels together, so that memory is read and written in runs of
// kilobytes. By vectors of channels, as the tiles of dw_sppf.cpp go, every access has a page of its own once the result
// has 1,024 channels, and every 64 bytes of a page fall into the same set of the first-level cache.
//
// Each stage's input passes through a ring of the rows that its next row needs, in the type that it is computed in,
// with zeros on both sides. Results a dilation apart in a row share their taps' loads.
#include "dw_sppf_channels_last.h"

#include <algorithm>

#include "dispatch.h"
#include "dw_sppf_stage.h"
#include "pixel_parts.h"
#include "planes.h"

namespace fastyolo {
namespace FASTYOLO_ISA {
namespace {

using C = float;  // what both types are computed in

// How a call divides its work and its workspace.
struct Plan : PixelParts {
  int64_t radius;  // of a stage, in pixels
  int64_t depth;   // rows of a ring
  int64_t row;     // elements of a row with its padding
  int64_t filter_bytes;
  int64_t slot_bytes;

  Plan(const DwSppfParams& p, int num_threads)
      : PixelParts(p, 1 + kStages, rows_of(p) * width_of(p) * kUnit * kElementBytes, kGrainElements, num_threads),
        radius(radius_of(p)),
        depth(2 * radius + 1),
        row(width_of(p) * channels),
        filter_bytes(align_up(kStages * channels / kLanes<C> *
                              static_cast<int64_t>(p.kernel == 3 ? sizeof(Filter<3, C>) : sizeof(Filter<5, C>)))),
        slot_bytes(filter_bytes + align_up(rows_of(p) * row * kElementBytes)) {}

  int64_t bytes() const { return slots * slot_bytes; }

 private:
  static constexpr int64_t kElementBytes = sizeof(C);

  static int64_t radius_of(const DwSppfParams& p) { return p.dilation * (p.kernel / 2); }
  // The rings, the last stage's row, and one of zeros.
  static int64_t rows_of(const DwSppfParams& p) { return kStages * (2 * radius_of(p) + 1) + 2; }
  static int64_t width_of(const DwSppfParams& p) { return p.width + 2 * radius_of(p); }
};

// N results `step` elements apart, from the one at `at` on; each vector is loaded once.
template <int K, int N>
inline void convolve(const C* const (&rows)[K], int64_t at, int64_t step, const Filter<K, C>& filter,
                     Vec<C> (&sums)[N]) {
  const Vec<C> bias = load<C>(filter.bias);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sums[n] = bias;
#pragma GCC unroll 8
  for (int dy = 0; dy < K; ++dy) {
    const C* from = rows[dy] + at - K / 2 * step;
    keep_in_register(from);
#pragma GCC unroll 16
    for (int i = 0; i < N + K - 1; ++i) {
      const Vec<C> v = load<C>(from);
      from += step;
      keep_in_register(from);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        if (i >= n && i - n < K) sums[n] = fma(filter.tap(dy, i - n), v, sums[n]);
      }
    }
  }
}

// One slot's rings and the parts that pass through them.
template <class T, int K, Activation A>
class Chain {
 public:
  Chain(const DwSppfParams& params, const Plan& plan, int64_t slot) : p_(params), plan_(plan) {
    char* memory = static_cast<char*>(p_.workspace) + slot * plan.slot_bytes;
    std::memset(memory, 0, plan.slot_bytes);
    filters_ = reinterpret_cast<Filter<K, C>*>(memory);
    rings_ = reinterpret_cast<C*>(memory + plan.filter_bytes) + plan.radius * plan.channels;
  }

  void run(int64_t item) {
    image_ = item / plan_.parts;
    channel_ = item % plan_.parts * plan_.channels;
    channels_ = std::min(plan_.channels, p_.channels - channel_);
    for (int stage = 0; stage < kStages; ++stage) {
      for (int64_t c = 0; c < channels_; c += kWidth) {
        const int64_t lanes = std::min<int64_t>(kWidth, channels_ - c);
        read_filter<T>(p_, stage, channel_ + c, lanes, filters_[(stage * plan_.channels + c) / kWidth]);
      }
    }
    for (int64_t y = 0; y < p_.height + kStages * plan_.radius; ++y) {
      if (y < p_.height) {
        load_rows(planes_of<T>(p_.x, image_, channel_, channels_), y, y + 1, p_.width, plan_.channels, row(0, y),
                  plan_.row);
        copy_rows(planes_of<T>(p_.x, image_, channel_, channels_),
                  planes_of<T>(p_.out, image_, channel_, channels_, plan_.streamed), y, y + 1, p_.width);
      }
      for (int stage = 0; stage < kStages; ++stage) {
        const int64_t h = y - (stage + 1) * plan_.radius;
        if (h >= 0 && h < p_.height) advance(stage, h);
      }
    }
  }

 private:
  static constexpr int kWidth = kLanes<C>;

  // Of a ring, or for kStages what the last stage computes, which nothing else reads.
  C* row(int ring, int64_t h) const {
    return rings_ + (ring * plan_.depth + (ring < kStages ? h % plan_.depth : 0)) * plan_.row;
  }

  const C* zeros() const { return row(kStages, 0) + plan_.row; }

  // Row h of a stage's result.
  void advance(int stage, int64_t h) {
    const C* in[K];
    for (int dy = 0; dy < K; ++dy) {
      const int64_t from = h + (dy - K / 2) * p_.dilation;
      in[dy] = from >= 0 && from < p_.height ? row(stage, from) : zeros();
    }
    C* out = row(stage + 1, h);
    const int64_t pixel = plan_.channels;
    const Filter<K, C>* filters = filters_ + stage * pixel / kWidth;
    const int64_t step = p_.dilation * pixel;
    for_blocks(0, p_.width * pixel, step, kWidth, [&](auto count, int64_t at, int64_t v) {
      constexpr int kCount = decltype(count)::value;
      Vec<C> z[kCount];
      convolve<K, kCount>(in, at, step, filters[(v < pixel ? v : v - pixel) / kWidth], z);
#pragma GCC unroll 8
      for (int n = 0; n < kCount; ++n) store(out + at + n * step, activate<A, C>(z[n]).value);
    });
    store_rows(out, plan_.row, h, h + 1, p_.width, plan_.channels,
               planes_of<T>(p_.out, image_, (stage + 1) * p_.channels + channel_, channels_, plan_.streamed));
  }

  const DwSppfParams& p_;
  const Plan& plan_;
  Filter<K, C>* filters_;  // [3, vectors of channels]
  C* rings_;               // the first pixel of the first ring's first row
  int64_t image_ = 0;
  int64_t channel_ = 0;
  int64_t channels_ = 0;
};

template <class T, int K, Activation A>
void pass_parts(const DwSppfParams& p, const Plan& plan, const ParallelFor& parallel_for) {
  if (plan.items == 0) return;
  parallel_for(plan.slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      Chain<T, K, A> chain(p, plan, slot);
      const int64_t last = plan.items * (slot + 1) / plan.slots;
      for (int64_t item = plan.items * slot / plan.slots; item < last; ++item) chain.run(item);
    }
    fence_streams();
  });
}

template <class T, int K>
void pass_parts(const DwSppfParams& p, const Plan& plan, const ParallelFor& parallel_for) {
  switch (p.activation) {
    case Activation::kIdentity: return pass_parts<T, K, Activation::kIdentity>(p, plan, parallel_for);
    case Activation::kRelu: return pass_parts<T, K, Activation::kRelu>(p, plan, parallel_for);
    case Activation::kSilu: return pass_parts<T, K, Activation::kSilu>(p, plan, parallel_for);
  }
}

}  // namespace

int64_t dw_sppf_pixels_workspace_bytes(const DwSppfParams& p, int num_threads) { return Plan(p, num_threads).bytes(); }

Status dw_sppf_pixels(const DwSppfParams& p, const ParallelFor& parallel_for) {
  return dispatch_dtype<DType::kFloat32, DType::kBFloat16>("x", p.dtype, [&](auto dtype) {
    using T = Element<dtype.value>;
    const Plan plan(p, parallel_for.num_threads());
    const Status status = check_workspace(p.workspace, p.workspace_bytes, plan.bytes());
    if (!status.ok()) return status;
    if (p.kernel == 3) {
      pass_parts<T, 3>(p, plan, parallel_for);
    } else {
      pass_parts<T, 5>(p, plan, parallel_for);
    }
    return Status{};
  });
}

}  // namespace FASTYOLO_ISA
}  // namespace fastyolo
