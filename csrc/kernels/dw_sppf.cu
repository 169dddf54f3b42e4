// SPDX-License-Identifier: Apache-2.0
// dw_sppf on the GPU: a block is a pipeline through which the rows of a few planes flow. Each of its stations is one or
// more whole warps that do one thing to two rows per step, and passes its result to the next station through shared
// memory; one barrier per step orders them all. So x is read once, each result is written once, and nothing between the
// stages leaves the chip, however high the plane is.
//
// A lane owns four neighbouring columns. A convolving station reads its input row with the columns beside its own
// (8 words for 4 results at radius 2), and adds it to the K - 1 rows that are still open in registers, so that a row is
// read from shared memory once and not once for each of the K rows it contributes to:
//
//   forward   3 convolutions
//   backward  3 convolutions that compute the stages again, 3 transposed ones from the last stage's gradient to x's,
//             3 correlations of a stage's input with its gradient; each of the three behind the one whose rows it needs
//
// Lanes lie along rows (planes follow each other, so 20 columns fill 30 of 32 lanes), or, in channels_last, along
// channels. The weights' gradients are sums of a block's pixels, then of its planes' lanes, and a second kernel adds
// the blocks' in the order of images: nothing depends on the order in which blocks run.
#include "dw_sppf.h"

#include <algorithm>

#include "common.cuh"
#include "dispatch.h"

namespace fastyolo {
namespace {

constexpr int kColumns = 4;  // of a lane: a vector of global memory, two pairs of shared memory
constexpr int kSumThreads = 128;

// Rows that a station takes between two barriers: of each parity one, since at dilation 2 they know nothing of each
// other. Time is counted in rows, and each station is kLag behind the one before.
constexpr int kStepRows = 2;

template <int K, int D, bool kBackward>
struct Pipeline {
  static constexpr int kTaps = K * K;
  // Leaves 96 registers to a thread, enough for two blocks of 9 warps on a multiprocessor; 5x5 needs up to 168.
  static constexpr int kMaxThreads = K == 3 ? 576 : 384;
  static constexpr int kRadius = K / 2 * D;
  static constexpr int kReach = kRadius <= 2 ? 2 : 4;  // columns beside its own that a lane reads, in pairs
  static constexpr int kConvolutions = kBackward ? 2 * kDwSppfStages : kDwSppfStages;
  static constexpr int kStations = kBackward ? 3 * kDwSppfStages : kDwSppfStages;
  // What an output depends on, in rows and columns.
  static constexpr int kHalo = kConvolutions * kRadius;

  static constexpr int kLag = kStepRows + kRadius;  // of a station behind the one before it

  // Shared memory, in rows: what is read n rows of time later needs n and those of a step. The first two stages'
  // results wait until their gradients arrive, and with silu its slopes.
  static constexpr int kShort = 2 * kStepRows;
  static constexpr int kDepth1 = kBackward ? 4 * kLag + kStepRows : kShort;
  static constexpr int kDepth2 = kBackward ? 2 * kLag + kStepRows : kShort;
  static constexpr int kX = 0;
  static constexpr int kY1 = kX + kShort;
  static constexpr int kY2 = kY1 + kDepth1;
  static constexpr int kGrads = kY2 + kDepth2;                    // of stages 3, 2, 1 before their activation
  static constexpr int kLateX = kGrads + kDwSppfStages * kShort;  // x again, when the gradient of stage 1 arrives
  static constexpr int kSlopes = kLateX + kShort;                 // of the first two stages, laid out as kY1 and kY2

  static int rows(Activation activation) {
    if (!kBackward) return kGrads;
    return activation == Activation::kSilu ? kSlopes + kDepth1 + kDepth2 : kSlopes;
  }
};

// How a problem is cut into blocks, and a block into lanes.
struct Plan {
  int lanes;      // of a station: whole warps
  int positions;  // lanes along a row
  int planes;     // of a block
  bool channels_first;
  int rows, slots;  // of shared memory: in each row every lane has a slot, with zeros between the planes
  int tiles, tile_columns, halo_columns;
  int bands, band_rows;
  int groups;

  int64_t blocks() const { return int64_t{groups} * bands * tiles; }
};

template <class Pointer>
struct Map {
  FeatureMapOf<Pointer> view;
  bool vectors;  // a lane's four columns are one aligned vector
};

struct Problem {
  Map<const void*> x;         // [B, C, H, W]
  Map<const void*> grad_out;  // [B, 4C, H, W], backward
  Map<void*> result;          // out [B, 4C, H, W], or grad_x [B, C, H, W]
  const void* weight;         // [3, C, K, K]
  const void* bias;           // [3, C], or null
  bool float_parameters;      // they are float32, otherwise as x
  Activation activation;
  int channels, height, width;
  int planes;  // B * C
  Plan plan;
};

// A lane's part of the block's work.
struct Place {
  int lane;   // of its station
  int plane;  // b * C + c
  int column;
  int columns;  // that are inside the image: 0 to 4, 0 also if the lane has nothing to do
  bool owned;   // this block writes them, and not the next tile
  int slot, neighbour;
  int row_begin, row_end;  // that this block writes

  __device__ explicit Place(const Problem& p) {
    const Plan& plan = p.plan;
    const int block = static_cast<int>(blockIdx.x);
    const int tile = block % plan.tiles;
    const int band = block / plan.tiles % plan.bands;
    const int first_plane = block / plan.tiles / plan.bands * plan.planes;
    lane = static_cast<int>(threadIdx.x) % plan.lanes;
    const int index = plan.channels_first ? lane % plan.planes : lane / plan.positions;
    const int position = plan.channels_first ? lane / plan.planes : lane % plan.positions;
    plane = first_plane + index;
    const int tile_begin = tile * plan.tile_columns;
    column = tile_begin - plan.halo_columns + position * kColumns;
    const bool used = lane < plan.planes * plan.positions && plane < p.planes && column >= 0;
    columns = used ? max(0, min(p.width - column, kColumns)) : 0;
    owned = columns > 0 && column >= tile_begin && column < tile_begin + plan.tile_columns;
    slot = plan.channels_first ? (position + 1) * plan.planes + index : index * (plan.positions + 1) + position + 1;
    neighbour = plan.channels_first ? plan.planes : 1;
    row_begin = band * plan.band_rows;
    row_end = min(row_begin + plan.band_rows, p.height);
  }
};

template <class T>
using Words = Raw<T, kColumns>;

// The columns of one lane in the rows of a map, any strides.
template <class T, class Element>
struct Columns {
  Element* row = nullptr;
  int64_t stride_h = 0;
  bool vectors = false;

  template <class Pointer>
  __device__ void point_to(const Map<Pointer>& map, const Problem& p, const Place& place, int stage, int first_row) {
    const int64_t channel = int64_t{stage} * p.channels + place.plane % p.channels;
    row = static_cast<Element*>(map.view.data) + place.plane / p.channels * map.view.stride_b +
          channel * map.view.stride_c + first_row * map.view.stride_h + place.column * map.view.stride_w;
    stride_h = map.view.stride_h;

    vectors = map.vectors;
  }

  // As words, which nothing looks at before they are needed: unpacking them would wait for the load.
  __device__ Words<T> load(int columns, int64_t stride_w) const {
    if (vectors) return __ldg(reinterpret_cast<const Words<T>*>(row));
    Vector<T, kColumns> loaded;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      loaded.values[c] = c < columns ? load_vector<1>(row + c * stride_w).values[0] : from_float<T>(0.f);
    }
    return to_raw(loaded);
  }

  // `distance`: of the first element from this row's.
  __device__ void store(const Vector<T, kColumns>& values, int columns, int64_t stride_w, int64_t distance) const {
    if (vectors) return store_vector(row + distance, values);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      if (c < columns) row[distance + c * stride_w] = values.values[c];
    }
  }
};

struct Times {
  int begin = 0, end = 0;

  __device__ bool contain(int t) const { return t >= begin && t < end; }
  // Contain t or a later row of its step. Not for ranges that are empty elsewhere than at 0.
  __device__ bool overlap(int t) const { return t + kStepRows > begin && t < end; }
};

// A lane's first pair in a ring of rows in shared memory: in the first row of this step, in the ring's first row, and
// behind its last.
struct Ring {
  float2 *at = nullptr, *begin = nullptr, *end = nullptr;

  Ring() = default;
  // `age`: how long ago the row was written.
  __device__ Ring(float2* memory, int first_row, int rows, int age, int row_pairs)
      : at(memory + (first_row + (rows - age) % rows) * row_pairs),
        begin(memory + first_row * row_pairs),
        end(begin + rows * row_pairs) {}

  __device__ void advance(int step_pairs) {
    at += step_pairs;
    if (at == end) at = begin;
  }
  // Of a ring of two steps, the other step's.
  __device__ float2* other(int step_pairs) const { return at == begin ? begin + step_pairs : begin; }
};

__device__ float sigmoid(float z) { return __fdividef(1.f, 1.f + __expf(-z)); }

__device__ void activate(Activation activation, float (&z)[kColumns]) {
  if (activation == Activation::kSilu) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) z[c] *= sigmoid(z[c]);
  } else if (activation == Activation::kRelu) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) z[c] = z[c] < 0.f ? 0.f : z[c];
  }
}

// silu'(z)
__device__ void differentiate(float (&z)[kColumns]) {
#pragma unroll
  for (int c = 0; c < kColumns; ++c) {
    const float s = sigmoid(z[c]);
    z[c] = s * fmaf(z[c], 1.f - s, 1.f);
  }
}

template <class T, int K, int D, bool kBackward>
class Station {
 public:
  using Shape = Pipeline<K, D, kBackward>;
  using Fed = Words<T>;

  __device__ Station(const Problem& p, const Place& place, float2* memory)
      : slots_(p.plan.slots),
        neighbour_(place.neighbour),
        columns_(place.columns),
        activation_(p.activation),
        height_(static_cast<unsigned>(p.height)),
        x_stride_w_(p.x.view.stride_w),
        grad_stride_w_(p.grad_out.view.stride_w),
        result_stride_w_(p.result.view.stride_w) {
    const int station = static_cast<int>(threadIdx.x) / p.plan.lanes;
    correlates_ = station >= Shape::kConvolutions;
    order_ = correlates_ ? station - kDwSppfStages + 1 : station + 1;
    const int first_row = max(0, place.row_begin - Shape::kHalo);
    duration_ = place.row_end - first_row + (kBackward ? Shape::kRadius : 0) + Shape::kConvolutions * Shape::kLag;
    if (columns_ == 0) return;
    connect(memory + place.slot);
    schedule(p, place, first_row);
    if (!correlates_) load_taps(p, place.plane % p.channels);
    fetch<0>(0);
    fetch<1>(1);
  }

  // The block's first row of x enters at time 0, and the last row of the last station is done before this.
  __device__ int duration() const { return duration_; }

  // Two rows of time. A row that comes before or after those that are needed may be taken with its neighbour: it is
  // never stored, and what it leaves in open rows is not used.
  __device__ void step(int t) {
    if (is_source() && fed_.overlap(t)) {
      in_phases([&](auto phase) { pass_on(t, phase.value, ahead_[phase.value]); });
    }
    if (active_.overlap(t)) {
      in_phases([&](auto phase) {
        if (!correlates_) {
          convolve<phase.value>(t + phase.value, ahead_[phase.value]);
        } else if constexpr (kBackward) {
          correlate<phase.value>(t + phase.value);
        }
      });
    }
    in_phases([&](auto phase) { fetch<phase.value>(t + kStepRows + phase.value); });
    result_.row += kStepRows * result_.stride_h;
    input_.advance(step_pairs());
    second_.advance(step_pairs());
  }

  __device__ bool has_sums() const { return correlates_; }
  __device__ int stage() const { return order_ <= kDwSppfStages ? order_ : 2 * kDwSppfStages + 1 - order_; }
  // The gradients of the weights, then the bias's, at the distance of `lanes`.
  __device__ void write_sums(float* sums, int lanes) const {
#pragma unroll
    for (int i = 0; i < Shape::kTaps; ++i) sums[i * lanes] = taps_[i];
    sums[Shape::kTaps * lanes] = bias_;
  }

 private:
  // Columns -kReach to kColumns + kReach - 1 beside a lane's first.
  struct Window {
    float values[kColumns + 2 * Shape::kReach] = {};

    __device__ void set(int column, float2 pair) {
      values[Shape::kReach + column] = pair.x;
      values[Shape::kReach + column + 1] = pair.y;
    }
    __device__ float at(int column) const { return values[Shape::kReach + column]; }
  };

  template <class F>
  __device__ static void in_phases(F&& f) {
    unrolled(std::make_integer_sequence<int, kStepRows>{}, f);
  }

  __device__ int row_pairs() const { return 2 * slots_; }
  __device__ int step_pairs() const { return kStepRows * row_pairs(); }
  __device__ int slopes_distance() const { return (Shape::kSlopes - Shape::kY1) * row_pairs(); }
  __device__ bool is_source() const { return order_ == 1 || (correlates_ && order_ == Shape::kConvolutions); }

  __device__ void connect(float2* memory) {
    using S = Shape;
    const auto ring = [&](int first, int rows, int age) { return Ring(memory, first, rows, age, row_pairs()); };
    const int grads = S::kGrads + S::kShort * (order_ - kDwSppfStages - 1);  // backward: what this order reads
    if (order_ == 1) {
      input_ = ring(S::kX, S::kShort, kStepRows);
      second_ = ring(S::kY1, S::kDepth1, 0);
    } else if (order_ == 2) {
      input_ = ring(S::kY1, S::kDepth1, kStepRows);
      second_ = ring(S::kY2, S::kDepth2, 0);
    } else if (order_ == 3) {
      input_ = ring(S::kY2, S::kDepth2, kStepRows);
      second_ = kBackward ? ring(S::kGrads, S::kShort, 0) : input_;  // forward, the last result goes nowhere else
    } else {
      input_ = ring(grads, S::kShort, kStepRows);
      if (order_ == 4) second_ = ring(S::kY2, S::kDepth2, 2 * S::kLag);
      if (order_ == 5) second_ = ring(S::kY1, S::kDepth1, 4 * S::kLag);
      if (order_ == 6) second_ = ring(S::kLateX, S::kShort, kStepRows);
    }
  }

  // When each row arrives, and what is done with it.
  __device__ void schedule(const Problem& p, const Place& place, int first_row) {
    constexpr int kRadius = Shape::kRadius;
    const int done = order_ * Shape::kLag - first_row;  // when the convolution of this order ends row 0
    const int ahead = (Shape::kConvolutions - order_) * kRadius;
    const int begin = max(0, place.row_begin - ahead);  // rows that the stations behind need
    const int end = min(p.height, place.row_end + ahead);
    if (place.owned) owned_ = {place.row_begin + done, place.row_end + done};
    if (!correlates_) {
      active_ = {max(0, begin - kRadius) + done - kRadius, end + done};
      input_start_ = done - kRadius;
    } else if (place.owned) {
      active_ = {place.row_begin + done - kRadius, place.row_end + done + kRadius};
      owned_ = {place.row_begin + done - kRadius, place.row_end + done - kRadius};
      input_start_ = done;
    }
    result_.point_to(p.result, p, place, kBackward ? 0 : order_, -done);
    copy_distance_ = Shape::kLag * p.result.view.stride_h - p.channels * p.result.view.stride_c;

    // x as it enters, the gradient that meets the result, x one step before its correlation.
    int fed = 0;  // when row 0 does
    if (is_source()) {
      fed = order_ == 1 ? -first_row : done - kStepRows;
      feed_.point_to(p.x, p, place, 0, -fed);
    } else if (kBackward && !correlates_ && order_ >= kDwSppfStages) {
      fed = done;
      feed_.point_to(p.grad_out, p, place, Shape::kConvolutions - order_, -fed);
    } else {
      return;
    }
    fed_ = {first_row + fed, min(p.height, place.row_end + Shape::kHalo) + fed};
  }

  __device__ void load_taps(const Problem& p, int channel) {
    const int filter = (stage() - 1) * p.channels + channel;
    const auto load = [&](auto* weight, auto* bias) {
#pragma unroll
      for (int i = 0; i < Shape::kTaps; ++i) {
        const int tap = order_ <= kDwSppfStages ? i : Shape::kTaps - 1 - i;
        taps_[i] = load_float(weight + int64_t{filter} * Shape::kTaps + tap);
      }
      if (bias && order_ <= kDwSppfStages) bias_ = load_float(bias + filter);
    };
    if (p.float_parameters) {
      load(static_cast<const float*>(p.weight), static_cast<const float*>(p.bias));
    } else {
      load(static_cast<const T*>(p.weight), static_cast<const T*>(p.bias));
    }
#pragma unroll
    for (int parity = 0; parity < D; ++parity) {
#pragma unroll
      for (int k = 0; k < K - 1; ++k) {
#pragma unroll
        for (int c = 0; c < kColumns; ++c) rows_[parity][k][c] = bias_;
      }
    }
  }

  // Loads what is taken at t.
  template <int kPhase>
  __device__ void fetch(int t) {
    if (fed_.contain(t)) {
      ahead_[kPhase] = feed_.load(columns_, kBackward && !is_source() ? grad_stride_w_ : x_stride_w_);
    }
    feed_.row += feed_.stride_h;
  }

  __device__ Window read(const float2* own) const {
    Window window;
    const float2* left = own - neighbour_;
    const float2* right = own + neighbour_;
    if (Shape::kReach == 4) window.set(-4, left[0]);
    window.set(-2, left[slots_]);
    window.set(0, own[0]);
    window.set(2, own[slots_]);
    window.set(4, right[0]);
    if (Shape::kReach == 4) window.set(6, right[slots_]);
    return window;
  }
  __device__ void read_own(const float2* own, float (&values)[kColumns]) const {
    const float2 first = own[0], second = own[slots_];
    values[0] = first.x;
    values[1] = first.y;
    values[2] = second.x;
    values[3] = second.y;
  }
  // Zeros beyond the image: what a convolution reads there.
  __device__ void write(float2* own, const float (&values)[kColumns]) const {
    own[0] = make_float2(values[0], columns_ > 1 ? values[1] : 0.f);
    own[slots_] = make_float2(columns_ > 2 ? values[2] : 0.f, columns_ > 3 ? values[3] : 0.f);
  }

  __device__ static Vector<T, kColumns> unpack(const Fed& fed) { return from_raw<T, kColumns>(fed); }
  __device__ static void to_floats(const Vector<T, kColumns>& elements, float (&values)[kColumns]) {
#pragma unroll
    for (int c = 0; c < kColumns; ++c) values[c] = to_float(elements.values[c]);
  }
  __device__ static Vector<T, kColumns> round(const float (&values)[kColumns]) {
    Vector<T, kColumns> rounded;
#pragma unroll
    for (int c = 0; c < kColumns; ++c) rounded.values[c] = from_float<T>(values[c]);
    return rounded;
  }

  __device__ void pass_on(int t, int phase, const Fed& fed) {
    const Vector<T, kColumns> elements = unpack(fed);
    float values[kColumns];
    to_floats(elements, values);
    write((correlates_ ? second_ : input_).other(step_pairs()) + phase * row_pairs(), values);
    // The results of this station are the same rows, kLag later.
    if (!kBackward && owned_.contain(t + phase + Shape::kLag)) {
      result_.store(elements, columns_, result_stride_w_, phase * result_.stride_h + copy_distance_);
    }
  }

  // Whether the row exists that is taken at t.
  __device__ bool has_input(int t) const { return static_cast<unsigned>(t - input_start_) < height_; }

  // Takes a row of the input; the row that this completes goes on.
  template <int kPhase>
  __device__ void convolve(int t, const Fed& fed) {
    Window window;
    if (has_input(t)) window = read(input_.at + kPhase * row_pairs());
    float (&open)[K - 1][kColumns] = rows_[kPhase % D];
    float done[kColumns];
#pragma unroll
    for (int k = K - 1; k >= 0; --k) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        float sum = k > 0 ? open[k > 0 ? k - 1 : 0][c] : bias_;
#pragma unroll
        for (int i = 0; i < K; ++i) sum = fmaf(taps_[k * K + i], window.at(c + i * D - Shape::kRadius), sum);
        (k == K - 1 ? done : open[k < K - 1 ? k : 0])[c] = sum;
      }
    }
    if (!kBackward || order_ <= kDwSppfStages) {
      finish_stage(t, kPhase, done, fed);
    } else {
      finish_gradient(t, kPhase, done, fed);
    }
  }

  __device__ void finish_stage(int t, int phase, float (&z)[kColumns], const Fed& fed) {
    float2* output = second_.at + phase * row_pairs();
    if constexpr (kBackward) {
      if (order_ == kDwSppfStages) return finish_last_stage(output, z, fed);
      if (activation_ == Activation::kSilu) {
        float slopes[kColumns];
#pragma unroll
        for (int c = 0; c < kColumns; ++c) slopes[c] = z[c];
        differentiate(slopes);
        write(output + slopes_distance(), slopes);
      }
    }
    activate(activation_, z);
    if (!kBackward && owned_.contain(t)) result_.store(round(z), columns_, result_stride_w_, phase * result_.stride_h);
    if (order_ < kDwSppfStages) write(output, z);
  }

  // The last stage's result is not needed, only its gradient before the activation.
  __device__ void finish_last_stage(float2* output, float (&z)[kColumns], const Fed& fed) const {
    float grads[kColumns];
    to_floats(unpack(fed), grads);
    if (activation_ == Activation::kSilu) differentiate(z);
    pass_activation(grads, z);
    write(output, grads);
  }

  __device__ void finish_gradient(int t, int phase, float (&grads)[kColumns], const Fed& fed) const {
    float others[kColumns];
    to_floats(unpack(fed), others);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) grads[c] += others[c];
    if (order_ == Shape::kConvolutions) {
      if (owned_.contain(t)) result_.store(round(grads), columns_, result_stride_w_, phase * result_.stride_h);
      return;
    }
    const bool silu = activation_ == Activation::kSilu;
    read_own(second_.at + phase * row_pairs() + (silu ? slopes_distance() : 0), others);
    pass_activation(grads, others);
    write(input_.other(step_pairs()) + (Shape::kShort + phase) * row_pairs(), grads);  // the ring after the input's
  }

  // The gradient before an activation. `values`: silu's slopes, or what has relu's sign, z or y. What relu cuts off is
  // 0 even of a NaN, and at 0 it cuts off; it lets a gradient pass where z is NaN.
  __device__ void pass_activation(float (&grads)[kColumns], const float (&values)[kColumns]) const {
    if (activation_ == Activation::kSilu) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) grads[c] *= values[c];
    } else if (activation_ == Activation::kRelu) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) grads[c] = values[c] <= 0.f ? 0.f : grads[c];
    }
  }

  // Takes a row of a stage's gradient, and the row of its input that is kRadius above. Only pairs of pixels that both
  // exist, so that a NaN gets into no weight that does not see it.
  template <int kPhase>
  __device__ void correlate(int t) {
    float grads[kColumns] = {};
    if (owned_.contain(t)) {
      read_own(input_.at + kPhase * row_pairs(), grads);
#pragma unroll
      for (int c = 0; c < kColumns; ++c) bias_ += grads[c];
    }
    float (&earlier)[K - 1][kColumns] = rows_[kPhase % D];
    if (has_input(t)) {
      const Window window = read(second_.at + kPhase * row_pairs());
#pragma unroll
      for (int k = 0; k < K; ++k) {
        if (!owned_.contain(t - k * D)) continue;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          if (c >= columns_) continue;
          const float grad = k > 0 ? earlier[k > 0 ? k - 1 : 0][c] : grads[c];
#pragma unroll
          for (int i = 0; i < K; ++i) {
            taps_[k * K + i] = fmaf(grad, window.at(c + i * D - Shape::kRadius), taps_[k * K + i]);
          }
        }
      }
    }
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
#pragma unroll
      for (int k = K - 2; k > 0; --k) earlier[k][c] = earlier[k - 1][c];
      earlier[0][c] = grads[c];
    }
  }

  int slots_;
  int neighbour_;
  int columns_;
  Activation activation_;
  unsigned height_;
  int64_t x_stride_w_, grad_stride_w_, result_stride_w_;
  bool correlates_;
  int order_;  // of the station in the pipeline, from 1; a correlation runs beside the convolution of its gradient

  int duration_;
  Times fed_, active_, owned_;
  int input_start_ = 0;  // when row 0 of the stage's input is taken, or of the gradient

  Ring input_;
  Ring second_;  // a stage's result; a gradient's: what its activation needs; a correlation's: the stage's input
  Columns<T, const T> feed_;
  Fed ahead_[kStepRows] = {};  // fed in the next step
  Columns<T, T> result_;
  int64_t copy_distance_ = 0;  // forward: from the first stage's row to the row of x that is fed

  // Of a convolution the weights, and the rows that are open; of a correlation the sums, and the gradient's last rows.
  float taps_[Shape::kTaps] = {};
  float bias_ = 0.f;
  float rows_[D][K - 1][kColumns] = {};
};

template <class T, int K, int D, bool kBackward>
__global__ void __launch_bounds__(Pipeline<K, D, kBackward>::kMaxThreads)
    dw_sppf_kernel(const Problem p, float* partials) {
  using Shape = Pipeline<K, D, kBackward>;
  const Plan& plan = p.plan;
  float2* memory = shared_memory<float2>();
  const int threads = Shape::kStations * plan.lanes;
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < plan.rows * 2 * plan.slots; i += threads) memory[i] = make_float2(0.f, 0.f);
  const Place place(p);
  Station<T, K, D, kBackward> station(p, place, memory);
  __syncthreads();
  for (int t = 0; t < station.duration(); t += kStepRows) {
    if (place.columns > 0) station.step(t);
    __syncthreads();
  }
  if constexpr (kBackward) {
    constexpr int kSums = Shape::kTaps + 1;
    const int lanes = plan.planes * plan.positions;
    float* sums = reinterpret_cast<float*>(memory);  // [stages, kSums, lanes]; the rows are done
    if (station.has_sums() && place.lane < lanes) {
      station.write_sums(sums + (station.stage() - 1) * kSums * lanes + place.lane, lanes);
    }
    __syncthreads();
    const int part = static_cast<int>(blockIdx.x) % (plan.tiles * plan.bands);
    const int first_plane = static_cast<int>(blockIdx.x) / (plan.tiles * plan.bands) * plan.planes;
    for (int i = thread; i < kDwSppfStages * kSums * plan.planes; i += threads) {
      const int plane = i % plan.planes;
      if (first_plane + plane >= p.planes) continue;
      const int row = i / plan.planes;
      const float* first = sums + row * lanes + plane * (plan.channels_first ? 1 : plan.positions);
      float sum = 0.f;
      for (int j = 0; j < plan.positions; ++j) sum += first[j * (plan.channels_first ? plan.planes : 1)];
      partials[(int64_t{part} * kDwSppfStages * kSums + row) * p.planes + first_plane + plane] = sum;
    }
  }
}

// partials [parts, 3 * (taps + 1), images * channels] -> grad_weight [3, channels, taps] and, unless null, grad_bias
// [3, channels]. Neighbouring threads take neighbouring channels.
template <class W>
__global__ void __launch_bounds__(kSumThreads)
    dw_sppf_sum_kernel(const float* partials, int parts, int images, int channels, int taps, W* grad_weight,
                       W* grad_bias) {
  const int thread = static_cast<int>(blockIdx.x * kSumThreads + threadIdx.x);
  const int channel = thread % channels;
  const int row = thread / channels;
  const int rows = kDwSppfStages * (taps + 1);
  if (row >= rows) return;
  float sum = 0.f;
  for (int part = 0; part < parts; ++part) {
    const float* first = partials + (int64_t{part} * rows + row) * images * channels + channel;
#pragma unroll 8
    for (int image = 0; image < images; ++image) sum += load_float(first + int64_t{image} * channels);
  }
  const int filter = row / (taps + 1) * channels + channel;
  const int tap = row % (taps + 1);
  if (tap < taps) {
    grad_weight[int64_t{filter} * taps + tap] = from_float<W>(sum);
  } else if (grad_bias) {
    grad_bias[filter] = from_float<W>(sum);
  }
}

// --- host

// Enough blocks for two on each of an H100's 132 multiprocessors. A constant: the weights' gradients depend on the cut.
constexpr int64_t kEnoughBlocks = 264;
constexpr int kMaxChannels = 32;  // of a block in channels_last: a warp's worth

template <class Shape>
Plan make_plan(const DwSppfParams& p, bool channels_first) {
  constexpr int kMaxLanes = Shape::kMaxThreads / Shape::kStations / kWarp * kWarp;
  const int rows = Shape::rows(p.activation);
  const int max_slots = static_cast<int>(kMaxSharedBytes / (rows * 2 * sizeof(float2)));
  const int max_positions = std::min(kMaxLanes, max_slots - 2);
  const int planes = static_cast<int>(p.batch * p.channels);
  const int width = static_cast<int>(p.width);
  const int height = static_cast<int>(p.height);
  Plan plan = {};
  plan.rows = rows;
  plan.channels_first = channels_first;
  plan.positions = std::min(ceil_div(width, kColumns), max_positions);
  plan.tile_columns = width;
  if (plan.positions * kColumns < width) {
    plan.halo_columns = ceil_div(Shape::kHalo, kColumns) * kColumns;
    plan.tile_columns = max_positions * kColumns - 2 * plan.halo_columns;
  }
  plan.tiles = ceil_div(width, plan.tile_columns);

  const auto fit = [&](int lanes) {  // planes in so many lanes
    const int slots = channels_first ? max_slots / (plan.positions + 2) : (max_slots - 1) / (plan.positions + 1);
    return std::min({lanes / plan.positions, slots, planes});
  };
  if (channels_first) {
    plan.planes = std::min(fit(kMaxLanes), kMaxChannels);
    if (plan.planes > 8) plan.planes -= plan.planes % 8;  // 16 bytes of half precision
  } else {
    // The fewest warps that leave no more than one lane in ten idle, or else the best.
    double best = 0;
    for (int lanes = kWarp; lanes <= kMaxLanes && best < 0.9; lanes += kWarp) {
      const double busy = static_cast<double>(fit(lanes) * plan.positions) / lanes;
      if (busy <= best) continue;
      best = busy;
      plan.planes = fit(lanes);
    }
  }
  plan.lanes = ceil_div(plan.planes * plan.positions, kWarp) * kWarp;
  plan.slots = channels_first ? plan.planes * (plan.positions + 2) : plan.planes * (plan.positions + 1) + 1;
  plan.groups = ceil_div(planes, plan.planes);

  // Bands compute kHalo rows above and below again.
  const int64_t blocks = int64_t{plan.groups} * plan.tiles;
  const int64_t bands = std::min<int64_t>(kEnoughBlocks / blocks, height / (4 * Shape::kHalo));
  plan.band_rows = ceil_div(height, static_cast<int>(std::max<int64_t>(bands, 1)));
  plan.bands = ceil_div(height, plan.band_rows);
  return plan;
}

template <class Pointer>
Map<Pointer> describe(const DwSppfParams& p, const FeatureMapOf<Pointer>& view) {
  const auto whole = [](int64_t size, int64_t stride) { return size == 1 || stride % kColumns == 0; };
  const bool vectors = p.width % kColumns == 0 && view.stride_w == 1 && whole(p.height, view.stride_h) &&
                       view.stride_c % kColumns == 0 && whole(p.batch, view.stride_b) &&
                       is_aligned(view.data, static_cast<size_t>(kColumns * size_of(p.dtype)));
  return {view, vectors};
}

// `map`: the one with most bytes decides how lanes lie.
template <class Shape, class Pointer>
Problem describe(const DwSppfParams& p, const FeatureMapOf<Pointer>& map, const MutableFeatureMap& result) {
  Problem problem;
  problem.x = describe(p, p.x);
  problem.grad_out = describe(p, p.grad_out);
  problem.result = describe(p, result);
  problem.weight = p.weight;
  problem.bias = p.bias;
  problem.float_parameters = p.weight_dtype == DType::kFloat32;
  problem.activation = p.activation;
  problem.channels = static_cast<int>(p.channels);
  problem.height = static_cast<int>(p.height);
  problem.width = static_cast<int>(p.width);
  problem.planes = static_cast<int>(p.batch * p.channels);
  problem.plan = make_plan<Shape>(p, p.channels > 1 && map.stride_c == 1 && map.stride_w != 1);
  return problem;
}

bool is_empty(const DwSppfParams& p) { return p.batch == 0 || p.channels == 0 || p.height == 0 || p.width == 0; }

template <int V>
using Int = std::integral_constant<int, V>;

// Calls f with K and D as constants; they have been checked.
template <class F>
auto dispatch_filter(const DwSppfParams& p, F&& f) {
  const auto dispatch_dilation = [&](auto kernel) {
    return p.dilation == 1 ? f(kernel, Int<1>{}) : f(kernel, Int<2>{});
  };
  return p.kernel == 3 ? dispatch_dilation(Int<3>{}) : dispatch_dilation(Int<5>{});
}

template <class F>
Status dispatch_element(const char* argument, DType dtype, F&& f) {
  return dispatch_dtype<DType::kFloat32, DType::kFloat16, DType::kBFloat16>(
      argument, dtype, [&](auto constant) { return f(Element<constant.value>{}); });
}

template <class T, int K, int D, bool kBackward>
Status launch_pipeline(const Problem& problem, float* partials, Stream stream) {
  using Shape = Pipeline<K, D, kBackward>;
  const Plan& plan = problem.plan;
  const int64_t shared_bytes = int64_t{plan.rows} * 2 * plan.slots * static_cast<int64_t>(sizeof(float2));
  return launch_shared("dw_sppf_kernel", dw_sppf_kernel<T, K, D, kBackward>, plan.blocks(),
                       Shape::kStations * plan.lanes, shared_bytes, stream, problem, partials);
}

}  // namespace

int64_t dw_sppf_workspace_bytes(const DwSppfParams&) { return 0; }

Status dw_sppf(const DwSppfParams& p, Stream stream) {
  const Status status = check_dw_sppf(p);
  if (!status.ok() || is_empty(p)) return status;
  return dispatch_element("x", p.dtype, [&](auto element) {
    return dispatch_filter(p, [&](auto kernel, auto dilation) {
      constexpr int K = kernel.value, D = dilation.value;
      const Problem problem = describe<Pipeline<K, D, false>>(p, p.out, p.out);
      return launch_pipeline<decltype(element), K, D, false>(problem, nullptr, stream);
    });
  });
}

// A sum per weight, plane and part of the plane.
int64_t dw_sppf_backward_workspace_bytes(const DwSppfParams& p) {
  if (is_empty(p)) return 0;
  return dispatch_filter(p, [&](auto kernel, auto dilation) {
    const Plan plan = describe<Pipeline<kernel.value, dilation.value, true>>(p, p.grad_out, p.grad_x).plan;
    const int64_t sums = kDwSppfStages * (p.kernel * p.kernel + 1);
    return plan.tiles * plan.bands * sums * p.batch * p.channels * static_cast<int64_t>(sizeof(float));
  });
}

Status dw_sppf_backward(const DwSppfParams& p, Stream stream) {
  Status status = check_dw_sppf(p);
  if (!status.ok()) return status;
  status = check_workspace(p.workspace, p.workspace_bytes, dw_sppf_backward_workspace_bytes(p));
  if (!status.ok()) return status;
  float* partials = static_cast<float*>(p.workspace);
  int parts = 0;
  if (!is_empty(p)) {
    status = dispatch_element("x", p.dtype, [&](auto element) {
      return dispatch_filter(p, [&](auto kernel, auto dilation) {
        constexpr int K = kernel.value, D = dilation.value;
        const Problem problem = describe<Pipeline<K, D, true>>(p, p.grad_out, p.grad_x);
        parts = problem.plan.tiles * problem.plan.bands;
        return launch_pipeline<decltype(element), K, D, true>(problem, partials, stream);
      });
    });
    if (!status.ok()) return status;
  }
  return dispatch_element("weight", p.weight_dtype, [&](auto element) {
    using W = decltype(element);
    const int taps = static_cast<int>(p.kernel * p.kernel);
    const int64_t sums = kDwSppfStages * (taps + 1) * p.channels;
    return launch("dw_sppf_sum_kernel", dw_sppf_sum_kernel<W>, ceil_div<int64_t>(sums, kSumThreads), kSumThreads,
                  stream, partials, parts, static_cast<int>(p.batch), static_cast<int>(p.channels), taps,
                  static_cast<W*>(p.grad_weight), static_cast<W*>(p.grad_bias));
  });
}

}  // namespace fastyolo
