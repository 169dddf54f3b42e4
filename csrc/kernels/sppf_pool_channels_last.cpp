// SPDX-License-Identifier: Apache-2.0
// The chained max pools on maps in channels_last, forward: row by row, all channels of a pixel together, for the
// reasons in dw_sppf_channels_last.cpp. A row of a stage's input, with -inf on both sides, gives its maxima along the
// row, of which as many rows as a window has are kept; their maximum is a row of the stage, the next stage's input.
// From the second stage on, three of a window's rows and columns tell its maximum (sppf_pool_maximum.h).
#include "sppf_pool_channels_last.h"

#include <algorithm>

#include "dispatch.h"
#include "planes.h"
#include "sppf_pool_maximum.h"
#include "sppf_pool_workspace.h"

namespace fastyolo {
namespace FASTYOLO_ISA {
namespace {

using C = float;  // what both types are computed in

constexpr int kChainedTaps = 3;

// out[i] = the maximum of rows[j][i] over j < count, for i < size, a multiple of vectors.
template <int Count, bool Special>
void rows_max(const C* const* rows, int64_t count, C* out, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes<C>) {
    Vec<C> best = load<C>(rows[0] + i);
    for (int64_t j = 1; j < (Count > 0 ? Count : count); ++j) best = larger<Special, C>(load<C>(rows[j] + i), best);
    store(out + i, best);
  }
}

// One slot's rows and the parts that pass through them.
template <class T, int Kernel>
class Pools {
 public:
  Pools(const SppfPoolParams& params, const SppfPoolPixels& plan, int64_t slot)
      : p_(params),
        plan_(plan),
        memory_(reinterpret_cast<C*>(static_cast<char*>(params.workspace) + slot * plan.slot_bytes)) {
    std::memset(memory_, 0, plan.slot_bytes);
    const int64_t padding = p_.kernel / 2 * plan.channels;
    for (int stage = 0; stage < kSppfStages; ++stage) {
      C* const row = input(stage);
      std::fill(row - padding, row, -kInfinity<C>);
      std::fill(row + p_.width * plan.channels, row + p_.width * plan.channels + padding, -kInfinity<C>);
    }
  }

  void run(int64_t item) {
    image_ = item / plan_.parts;
    channel_ = item % plan_.parts * plan_.channels;
    channels_ = std::min(plan_.channels, p_.channels - channel_);
    special_ = false;
    const int64_t radius = p_.kernel / 2;
    for (int64_t y = 0; y < p_.height + kSppfStages * radius; ++y) {
      if (y < p_.height) read(y);
      for (int stage = 0; stage < kSppfStages; ++stage) {
        const int64_t h = y - (stage + 1) * radius;
        if (h >= 0 && h < p_.height) pool(stage, h);
      }
    }
  }

 private:
  // The current row of x, or of a stage from 1 on: its first pixel.
  C* input(int stage) const { return memory_ + stage * plan_.row + p_.kernel / 2 * plan_.channels; }

  // The maxima along row h of a stage's input.
  C* maxima(int stage, int64_t h) const {
    return memory_ + (1 + kSppfStages + stage * p_.kernel + h % p_.kernel) * plan_.row;
  }

  void read(int64_t h) {
    const Planes<const T> x = planes_of<T>(p_.x, image_, channel_, channels_);
    C* row = input(0);
    // Maxima that heed NaN take four times the operations: from the first one on.
    load_rows(x, h, h + 1, p_.width, plan_.channels, row, plan_.row, [&](Vec<C> v) { special_ |= !is_ordinary<C>(v); });
    copy_rows(x, planes_of<T>(p_.out, image_, channel_, channels_, plan_.streamed), h, h + 1, p_.width);
    pool_along(0, h);
  }

  // Row h of a stage.
  void pool(int stage, int64_t h) {
    const int64_t step = window_step(p_.kernel / 2, stage > 0);
    const WindowRows window(h, p_.height, p_.kernel / 2, step);
    const C* rows[kMaxPoolKernel] = {};
    for (int64_t j = 0; j < window.count; ++j) rows[j] = maxima(stage, window.first + j * step);
    C* const out = input(stage + 1);
    with_care([&](auto special) {
      with_count(window.count,
                 [&](auto count) { rows_max<count.value, special.value>(rows, window.count, out, size()); });
    });
    store_rows(out, plan_.row, h, h + 1, p_.width, plan_.channels,
               planes_of<T>(p_.out, image_, (stage + 1) * p_.channels + channel_, channels_, plan_.streamed));
    if (stage + 1 < kSppfStages) pool_along(stage + 1, h);
  }

  void pool_along(int stage, int64_t h) {
    const C* const in = input(stage) - p_.kernel / 2 * plan_.channels;
    const int64_t step = window_step(p_.kernel / 2, stage > 0);
    const int64_t taps = p_.kernel / 2 * 2 / step + 1;
    with_care([&](auto special) {
      with_count(taps, [&](auto count) {
        window_max<count.value, special.value>(in, step * plan_.channels, taps, maxima(stage, h), size());
      });
    });
  }

  // The counts of a first and of a later stage are known when this is compiled.
  template <class F>
  static void with_count(int64_t count, const F& f) {
    if (Kernel > 0 && count == Kernel) {
      f(std::integral_constant<int, Kernel>{});
    } else if (count == kChainedTaps) {
      f(std::integral_constant<int, kChainedTaps>{});
    } else {
      f(std::integral_constant<int, 0>{});
    }
  }

  template <class F>
  void with_care(const F& f) const {
    if (special_) {
      f(std::true_type{});
    } else {
      f(std::false_type{});
    }
  }

  int64_t size() const { return p_.width * plan_.channels; }

  const SppfPoolParams& p_;
  const SppfPoolPixels& plan_;
  C* memory_;
  int64_t image_ = 0;
  int64_t channel_ = 0;
  int64_t channels_ = 0;
  bool special_ = false;  // a NaN has come, or a -inf, which the same comparison finds
};

}  // namespace

Status sppf_pool_pixels(const SppfPoolParams& p, const ParallelFor& parallel_for) {
  if (p.batch * p.channels * p.height * p.width == 0) return Status{};
  return dispatch_dtype<DType::kFloat32, DType::kBFloat16>("x", p.dtype, [&](auto dtype) {
    using T = Element<dtype.value>;
    const SppfPoolPixels plan(p, parallel_for.num_threads());
    const Status status = check_workspace(p.workspace, p.workspace_bytes, plan.bytes());
    if (!status.ok()) return status;
    return dispatch_int<5>(p.kernel, [&](auto kernel) {
      parallel_for(plan.slots, 1, [&](int64_t begin, int64_t end) {
        for (int64_t slot = begin; slot < end; ++slot) {
          Pools<T, kernel.value> pools(p, plan, slot);
          const int64_t last = plan.items * (slot + 1) / plan.slots;
          for (int64_t item = plan.items * slot / plan.slots; item < last; ++item) pools.run(item);
        }
        fence_streams();
      });
      return Status{};
    });
  });
}

}  // namespace FASTYOLO_ISA
}  // namespace fastyolo
