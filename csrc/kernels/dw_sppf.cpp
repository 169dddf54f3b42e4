// SPDX-License-Identifier: Apache-2.0
// The depthwise chain on the CPU. All stages of a plane run while it is in the cache: x is read once and each stage is
// written straight into the concatenation. Rows live in tiles with a gap of zeros after each, which is the right
// padding of its row and the left padding of the next, so a tile is one flat array: every tap is a constant distance,
// vectors run across row ends and even 20 columns waste few lanes. A mask puts the zeros back as results are stored.
// Rows a dilation apart share their taps' loads: a load that crosses a cache line costs two, and 9 loads for 9
// multiply-adds would bound the time. For channels_last, backward and in float64, a cell of the tile is a vector of
// channels instead of an element; distances are kLanes times longer and nothing else changes. What else is
// channels_last goes by whole pixels (dw_sppf_channels_last.cpp).
//
// A plane passes in steps of some rows, each stage a radius behind the one before, so that the stores of one step drain
// while the next computes. When a tall plane has filled the tiles, the rows that are still needed move to their top:
// nothing is computed twice.
//
// Backward runs the chain again and back in the same way. The gradient of stage i's input at a pixel and the gradients
// of its weights from that pixel take the same values of the gradient of its output: one load, two multiply-adds.
#include <algorithm>

#include "dispatch.h"
#include "dw_sppf_channels_last.h"
#include "dw_sppf_stage.h"
#include "pixel_parts.h"
#include "planes.h"

namespace fastyolo {
namespace FASTYOLO_ISA {
namespace {

constexpr int64_t kTileBudget = 512 * 1024;  // bytes of a thread's tiles, if the steps allow: a second-level cache's
constexpr int64_t kMinStepRows = 8;
constexpr int64_t kMaxStepRows = 20;  // few enough that their stores drain while the next step computes

int64_t tiles_of(const DwSppfParams& p, bool backward) {
  if (!backward) return 1 + kStages;                             // x and every stage
  return kStages + (1 + kStages) +                               // the stages' inputs and four gradients
         (p.activation == Activation::kSilu ? kStages - 1 : 0);  // slopes
}

// How a call divides its work and its workspace.
template <class C>
struct Plan {
  static constexpr int64_t kLead = 5 * kLanes<C>;  // elements around a tile's rows: 4 cells of padding, a vector's rest

  int64_t cell;    // channels in a tile's cell: 1 or kLanes
  int64_t groups;  // cells that the channels fill
  int64_t items;   // groups of all images
  int64_t slots;   // items are divided into as many ranges, each with tiles of its own

  int64_t radius;     // of a stage, in pixels
  int64_t pitch;      // elements from row to row
  int64_t kept_rows;  // that the next step needs
  int64_t step_rows;
  int64_t tile_rows;
  int64_t tile_stride;  // elements from tile to tile
  int64_t slot_bytes;   // tiles
  bool streamed;        // the result, past the caches
  int64_t sums_bytes;   // backward: C [B, C, 3, K * K + 1], each image's gradients of weight and bias

  Plan(const DwSppfParams& p, bool backward, int num_threads) {
    constexpr int kWidth = kLanes<C>;
    cell = is_channels_last(p.x, p.channels, kWidth) ? kWidth : 1;
    groups = ceil_div(p.channels, cell);
    const int64_t pixels = p.height * p.width;
    items = pixels > 0 ? p.batch * groups : 0;
    slots = std::clamp(items * cell * pixels / kGrainElements, int64_t{1},
                       std::min<int64_t>(std::max(num_threads, 1), std::max<int64_t>(items, 1)));

    radius = p.dilation * (p.kernel / 2);
    const int64_t lags = backward ? 2 * kStages + 1 : kStages + 1;
    kept_rows = lags * radius;
    const int64_t row_unit = kWidth / p.dilation;  // so that an even number of rows divides into vectors
    pitch = ceil_div((p.width + radius) * cell, row_unit) * row_unit;
    const int64_t fitting = kTileBudget / (tiles_of(p, backward) * pitch * static_cast<int64_t>(sizeof(C)));
    const int64_t whole = p.height + 2 * radius;
    step_rows = kMaxStepRows;
    tile_rows = whole;
    if (whole > fitting) {
      step_rows = std::clamp((fitting - kept_rows - radius) / 2 * 2, kMinStepRows, kMaxStepRows);
      tile_rows = std::min(whole, std::max(fitting, kept_rows + step_rows + radius));
    }
    tile_stride = ceil_div<int64_t>(2 * kLead + tile_rows * pitch, kWidth) * kWidth;
    slot_bytes = align_up((tiles_of(p, backward) * tile_stride + mask_elements()) * sizeof(C));
    streamed = is_streamed(p, backward ? 1 : 1 + kStages, num_threads);
    sums_bytes = backward ? align_up(p.batch * p.channels * kStages * (p.kernel * p.kernel + 1) * sizeof(C)) : 0;
  }

  bool holds(int64_t rows) const { return rows + 2 * radius <= tile_rows; }
  int64_t mask_elements() const { return 2 * pitch + kLanes<C>; }
  int64_t bytes() const { return slots * slot_bytes + sums_bytes; }
};

template <class C>
using Lane = std::conditional_t<sizeof(C) == 4, int32_t, int64_t>;
template <class C>
using Mask = Vec<Lane<C>>;

template <class C>
Vec<C> keep(Vec<C> v, Mask<C> mask) {
  return (Vec<C>)((Mask<C>)v & mask);
}

// The gradient before the activation. `state` is the slope for silu and the value for relu, whose gradient passes at
// NaN as in torch.
template <Activation A, class C>
Vec<C> gradient(Vec<C> grad, Vec<C> state) {
  if constexpr (A == Activation::kSilu) return grad * state;
  if constexpr (A == Activation::kRelu) return state <= 0 ? Vec<C>{} : grad;
  return grad;
}

// N rows of results `row` elements apart, from `in` at the first result's pixel; each vector is loaded once.
template <int K, int N, class C>
inline void convolve(const C* in, int64_t row, int64_t column, const Filter<K, C>& filter, Vec<C> (&sums)[N]) {
  const Vec<C> bias = load<C>(filter.bias);
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) sums[n] = bias;
#pragma GCC unroll 8
  for (int dx = 0; dx < K; ++dx) {
    const C* from = in + (dx - K / 2) * column - K / 2 * row;
    keep_in_register(from);
#pragma GCC unroll 16
    for (int i = 0; i < N + K - 1; ++i) {
      const Vec<C> v = load<C>(from);
      from += row;
      keep_in_register(from);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        if (i >= n && i - n < K) sums[n] = fma(filter.tap(i - n, dx), v, sums[n]);
      }
    }
  }
}

// One slot's tiles and the planes that pass through them.
template <class T, int K, Activation A, bool Backward>
class Chain {
 public:
  using C = Compute<T>;

  Chain(const DwSppfParams& params, const Plan<C>& plan, int64_t slot)
      : p_(params),
        plan_(plan),
        memory_(reinterpret_cast<C*>(static_cast<char*>(p_.workspace) + slot * plan.slot_bytes)),
        sums_(reinterpret_cast<C*>(static_cast<char*>(p_.workspace) + plan.slots * plan.slot_bytes)) {
    std::memset(memory_, 0, plan.slot_bytes);
    mask_ = reinterpret_cast<Lane<C>*>(memory_ + tiles_of(p_, Backward) * plan.tile_stride);
    for (int64_t v = 0; v < plan.mask_elements(); ++v) mask_[v] = v % plan.pitch < p_.width * plan.cell ? -1 : 0;
  }

  void run(int64_t item) {
    image_ = item / plan_.groups;
    channel_ = item % plan_.groups * plan_.cell;
    channels_ = std::min(plan_.cell, p_.channels - channel_);
    for (int stage = 0; stage < kStages; ++stage) {
      read_filter<T>(p_, stage, channel_, plan_.cell == 1 ? 0 : channels_, filters_[stage]);
    }
    if constexpr (Backward) std::memset(totals_, 0, sizeof(totals_));
    top_ = -plan_.radius;
    const bool whole = plan_.holds(p_.height);
    if (!whole) clear_rows(top_, plan_.radius);
    int64_t next = 0;
    for (int64_t done = 0; done < p_.height; done = next) {
      next = std::min(done + plan_.step_rows, p_.height);
      if (!plan_.holds(next - top_ - plan_.radius)) drop_rows(done - plan_.kept_rows, done);
      if (!whole && next == p_.height) clear_rows(p_.height, plan_.radius);
      pass_rows(done, next);
    }
    if constexpr (Backward) write_totals();
  }

 private:
  static constexpr int kWidth = kLanes<C>;
  static constexpr int kTaps = K * K;
  static constexpr int kSums = kTaps + 1;  // and the bias

  // The tiles: forward has the input and its stages, backward the stages' inputs, the gradients of all four blocks and
  // for silu the slopes of the stages before the last.
  static constexpr int kValue = 0;
  static constexpr int kGradient = kStages;
  static constexpr int kSlope = kGradient + kStages + 1;

  C* row(int tile, int64_t h) const {
    return memory_ + tile * plan_.tile_stride + Plan<C>::kLead + (h - top_) * plan_.pitch;
  }

  void clear_rows(int64_t first, int64_t count) {
    for (int tile = 0; tile < tiles_of(p_, Backward); ++tile) {
      std::memset(row(tile, first), 0, count * plan_.pitch * sizeof(C));
    }
  }

  void drop_rows(int64_t first, int64_t last) {
    for (int tile = 0; tile < tiles_of(p_, Backward); ++tile) {
      std::memmove(row(tile, top_), row(tile, first), (last - first) * plan_.pitch * sizeof(C));
    }
    top_ = first;
  }

  // Rows that a step `lag` radii behind the input has done when `rows` rows of the input are there.
  int64_t done(int64_t rows, int lag) const {
    return rows == p_.height ? rows : std::max(rows - lag * plan_.radius, int64_t{0});
  }

  void load_block(const FeatureMap& map, int block, int tile, int64_t first, int64_t last) {
    const Planes<const T> planes = planes_of<T>(map, image_, block * p_.channels + channel_, channels_);
    load_rows(planes, first, last, p_.width, plan_.cell, row(tile, first), plan_.pitch);
  }

  void store_block(int tile, const MutableFeatureMap& map, int block, int64_t first, int64_t last) {
    const Planes<T> planes = planes_of<T>(map, image_, block * p_.channels + channel_, channels_, plan_.streamed);
    store_rows(row(tile, first), plan_.pitch, first, last, p_.width, plan_.cell, planes);
  }

  // Brings in rows [done_rows, next_rows) of the input and all else as far as they allow.
  void pass_rows(int64_t done_rows, int64_t next_rows) {
    const auto first = [&](int lag) { return done(done_rows, lag); };
    const auto last = [&](int lag) { return done(next_rows, lag); };
    load_block(p_.x, 0, kValue, first(0), last(0));
    if constexpr (Backward) {
      for (int stage = 0; stage < kStages - 1; ++stage) advance(stage, first(stage + 1), last(stage + 1));
      load_block(p_.grad_out, kStages, kGradient + kStages, first(kStages), last(kStages));
      turn(first(kStages), last(kStages));
      for (int stage = kStages - 1; stage >= 0; --stage) {
        const int lag = 2 * kStages - stage;
        load_block(p_.grad_out, stage, kGradient + stage, first(lag), last(lag));
        retreat(stage, first(lag), last(lag));
      }
      store_block(kGradient, p_.grad_x, 0, first(2 * kStages), last(2 * kStages));
    } else {
      copy_rows(planes_of<T>(p_.x, image_, channel_, channels_),
                planes_of<T>(p_.out, image_, channel_, channels_, plan_.streamed), first(0), last(0), p_.width);
      for (int stage = 0; stage < kStages; ++stage) {
        advance(stage, first(stage + 1), last(stage + 1));
        store_block(kValue + stage + 1, p_.out, stage + 1, first(stage + 1), last(stage + 1));
      }
    }
  }

  // Rows [first, last) of a stage before its activation: calls use(element of the rows, values, mask).
  template <class Use>
  void convolve_rows(int stage, int64_t first, int64_t last, const Use& use) {
    const C* in = row(kValue + stage, first);
    const Filter<K, C>& filter = filters_[stage];
    const int64_t step = p_.dilation * plan_.pitch;
    const int64_t column = p_.dilation * plan_.cell;
    for_blocks(0, (last - first) * plan_.pitch, step, kWidth, [&](auto count, int64_t offset, int64_t v) {
      constexpr int kCount = decltype(count)::value;
      Vec<C> z[kCount];
      convolve<K, kCount>(in + offset, step, column, filter, z);
      const Mask<C> mask = load<Lane<C>>(mask_ + v);
#pragma GCC unroll 8
      for (int n = 0; n < kCount; ++n) use(offset + n * step, z[n], mask);
    });
  }

  // A stage's values, and in backward what its gradient will need.
  void advance(int stage, int64_t first, int64_t last) {
    C* values = row(kValue + stage + 1, first);
    C* slopes = Backward && A == Activation::kSilu ? row(kSlope + stage, first) : nullptr;
    convolve_rows(stage, first, last, [&](int64_t at, Vec<C> z, Mask<C> mask) {
      const Activated<C> y = activate<A, C>(z);
      store(values + at, keep<C>(y.value, mask));
      if constexpr (Backward && A == Activation::kSilu) store(slopes + at, y.slope);
    });
    end_rows(kValue + stage + 1, last);
  }

  // The last stage's activation backwards, in the place of its gradient.
  void turn(int64_t first, int64_t last) {
    C* grads = row(kGradient + kStages, first);
    convolve_rows(kStages - 1, first, last, [&](int64_t at, Vec<C> z, Mask<C> mask) {
      const Vec<C> state = A == Activation::kSilu ? activate<A, C>(z).slope : z;
      store(grads + at, keep<C>(gradient<A, C>(load<C>(grads + at), state), mask));
    });
    end_rows(kGradient + kStages, last);
  }

  // From a stage's gradient before its activation to that of the stage before, in place, and to those of its weights.
  void retreat(int stage, int64_t first, int64_t last) {
    const C* values = row(kValue + stage, first);
    const C* above = row(kGradient + stage + 1, first);
    const C* states = stage == 0 ? nullptr : A == Activation::kSilu ? row(kSlope + stage - 1, first) : values;
    C* grads = row(kGradient + stage, first);
    const Filter<K, C>& filter = filters_[stage];
    const int64_t step = p_.dilation * plan_.pitch;
    const int64_t column = p_.dilation * plan_.cell;
    Vec<C> sums[kSums] = {};
    for_blocks<1>(0, (last - first) * plan_.pitch, 2 * plan_.pitch, kWidth, [&](auto, int64_t at, int64_t v) {
      const Vec<C> value = load<C>(values + at);
      Vec<C> grad = load<C>(grads + at);
#pragma GCC unroll 8
      for (int dx = 0; dx < K; ++dx) {
        const C* from = above + at + (K / 2 - dx) * column - K / 2 * step;
        keep_in_register(from);
#pragma GCC unroll 8
        for (int dy = K - 1; dy >= 0; --dy) {
          const Vec<C> g = load<C>(from);
          from += step;
          keep_in_register(from);
          grad = fma(filter.tap(dy, dx), g, grad);
          sums[dy * K + dx] = fma(value, g, sums[dy * K + dx]);
          if (dy == K / 2 && dx == K / 2) sums[kTaps] += g;
        }
      }
      if (states) grad = gradient<A, C>(grad, load<C>(states + at));
      store(grads + at, keep<C>(grad, load<Lane<C>>(mask_ + v)));
    });
    end_rows(kGradient + stage, last);
    Vec<C> finite{};
    for (int t = 0; t < kSums; ++t) finite = fma(sums[t], Vec<C>{}, finite);
    if (sum_lanes<C>(finite) != 0) sum_pixels(stage, first, last, sums);
    for (int t = 0; t < kSums; ++t) store(totals_[stage][t], load<C>(totals_[stage][t]) + sums[t]);
  }

  // A gap's zero times an infinity or a NaN is NaN, where the tap has no product at all: such rows again, one product
  // at a time.
  void sum_pixels(int stage, int64_t first, int64_t last, Vec<C> (&sums)[kSums]) {
    for (int t = 0; t < kTaps; ++t) {
      const int64_t down = (K / 2 - t / K) * p_.dilation;
      const int64_t right = (K / 2 - t % K) * p_.dilation;
      sums[t] = Vec<C>{};
      for (int64_t h = std::max(first, -down); h < std::min(last, p_.height - down); ++h) {
        const C* values = row(kValue + stage, h);
        const C* above = row(kGradient + stage + 1, h + down) + right * plan_.cell;
        const int64_t begin = std::max<int64_t>(0, -right) * plan_.cell;
        const int64_t end = (p_.width - std::max<int64_t>(0, right)) * plan_.cell;
        for (int64_t v = begin; v < end; ++v) sums[t][v % plan_.cell] += values[v] * above[v];
      }
    }
  }

  // The last vector may have run past the rows, into padding or into what is not there yet.
  void end_rows(int tile, int64_t last) { store(row(tile, last), Vec<C>{}); }

  void write_totals() {
    C* out = sums_ + (image_ * p_.channels + channel_) * kStages * kSums;
    for (int stage = 0; stage < kStages; ++stage) {
      for (int t = 0; t < kSums; ++t, ++out) {
        const C* lanes = totals_[stage][t];
        if (plan_.cell == 1) {
          *out = sum_lanes<C>(load<C>(lanes));
        } else {
          for (int64_t c = 0; c < channels_; ++c) out[c * kStages * kSums] = lanes[c];
        }
      }
    }
  }

  const DwSppfParams& p_;
  const Plan<C>& plan_;
  C* memory_;
  Lane<C>* mask_;  // [2 rows and a vector]: all bits in cells, none in gaps
  C* sums_;
  int64_t image_ = 0;
  int64_t channel_ = 0;
  int64_t channels_ = 0;
  int64_t top_ = 0;  // the image's row that is the tiles' first
  Filter<K, C> filters_[kStages];
  alignas(64) C totals_[Backward ? kStages : 1][kSums][kWidth];
};

// The gradients of weight and bias: the images' sums, added in order.
template <class T>
void add_images(const DwSppfParams& p, const Plan<Compute<T>>& plan, const ParallelFor& parallel_for) {
  using C = Compute<T>;
  const C* sums = reinterpret_cast<const C*>(static_cast<const char*>(p.workspace) + plan.slots * plan.slot_bytes);
  const int64_t taps = p.kernel * p.kernel;
  const int64_t images = plan.items > 0 ? p.batch : 0;
  const auto write = [&](void* to, int64_t i, double value) {
    if (p.weight_dtype == DType::kBFloat16) {
      static_cast<BFloat16*>(to)[i] = to_bfloat16(static_cast<float>(value));
    } else {
      static_cast<C*>(to)[i] = static_cast<C>(value);
    }
  };
  const int64_t channel_sums = kStages * (taps + 1);
  const int64_t grain = ceil_div(kGrainElements, channel_sums * std::max<int64_t>(images, 1));
  parallel_for(p.channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t i = 0; i < channel_sums; ++i) {
        double sum = 0;
        for (int64_t b = 0; b < images; ++b) sum += sums[(b * p.channels + c) * channel_sums + i];
        const int64_t stage_channel = i / (taps + 1) * p.channels + c;
        const int64_t t = i % (taps + 1);
        if (t < taps) {
          write(p.grad_weight, stage_channel * taps + t, sum);
        } else if (p.grad_bias) {
          write(p.grad_bias, stage_channel, sum);
        }
      }
    }
  });
}

template <bool Backward, class T, int K, Activation A>
void pass_planes(const DwSppfParams& p, const Plan<Compute<T>>& plan, const ParallelFor& parallel_for) {
  if (plan.items == 0) return;
  parallel_for(plan.slots, 1, [&](int64_t begin, int64_t end) {
    for (int64_t slot = begin; slot < end; ++slot) {
      Chain<T, K, A, Backward> chain(p, plan, slot);
      const int64_t last = plan.items * (slot + 1) / plan.slots;
      for (int64_t item = plan.items * slot / plan.slots; item < last; ++item) chain.run(item);
    }
    fence_streams();
  });
}

template <bool Backward, class T, int K>
void pass_planes(const DwSppfParams& p, const Plan<Compute<T>>& plan, const ParallelFor& parallel_for) {
  switch (p.activation) {
    case Activation::kIdentity: return pass_planes<Backward, T, K, Activation::kIdentity>(p, plan, parallel_for);
    case Activation::kRelu: return pass_planes<Backward, T, K, Activation::kRelu>(p, plan, parallel_for);
    case Activation::kSilu: return pass_planes<Backward, T, K, Activation::kSilu>(p, plan, parallel_for);
  }
}

template <bool Backward>
Status run(const DwSppfParams& p, const ParallelFor& parallel_for) {
  return dispatch_dtype<DType::kFloat32, DType::kBFloat16, DType::kFloat64>("x", p.dtype, [&](auto dtype) {
    using T = Element<dtype.value>;
    const Plan<Compute<T>> plan(p, Backward, parallel_for.num_threads());
    const Status status = check_workspace(p.workspace, p.workspace_bytes, plan.bytes());
    if (!status.ok()) return status;
    if (p.kernel == 3) {
      pass_planes<Backward, T, 3>(p, plan, parallel_for);
    } else {
      pass_planes<Backward, T, 5>(p, plan, parallel_for);
    }
    if constexpr (Backward) add_images<T>(p, plan, parallel_for);
    return Status{};
  });
}

int64_t workspace_bytes(const DwSppfParams& p, bool backward, int num_threads) {
  return p.dtype == DType::kFloat64 ? Plan<double>(p, backward, num_threads).bytes()
                                    : Plan<float>(p, backward, num_threads).bytes();
}

}  // namespace

int64_t dw_sppf_cpu_workspace_bytes(const DwSppfParams& params, int num_threads) {
  return goes_by_pixels(params) ? dw_sppf_pixels_workspace_bytes(params, num_threads)
                                : workspace_bytes(params, false, num_threads);
}

Status dw_sppf_cpu(const DwSppfParams& params, const ParallelFor& parallel_for) {
  return goes_by_pixels(params) ? dw_sppf_pixels(params, parallel_for) : run<false>(params, parallel_for);
}

int64_t dw_sppf_backward_cpu_workspace_bytes(const DwSppfParams& params, int num_threads) {
  return workspace_bytes(params, true, num_threads);
}

Status dw_sppf_backward_cpu(const DwSppfParams& params, const ParallelFor& parallel_for) {
  return run<true>(params, parallel_for);
}

}  // namespace FASTYOLO_ISA
}  // namespace fastyolo
