// SPDX-License-Identifier: Apache-2.0
// ECA on the GPU: all that counts is how often the maps move. The scale of channel c needs the means of channels c - r
// to c + r (r = k / 2), so a block of the resident kernel takes a few neighbouring planes of an image into shared
// memory, sums them there, sums the 2r planes beside them as well, and scales its own from shared memory: x comes from
// DRAM once and y goes there once. The planes beside come from the L2 cache, because the neighbouring blocks load them
// at the same time.
//
// Where too few planes fit, in channels_last and in backward, there are three launches: sums of slices of the planes,
// the gate (a block per image turns sums into scales and, in backward, shifts), and the pass that applies them.
// Backward reads x and grad_y for the sums and only grad_y to apply, since grad_x = grad_y * scale + shift: four maps
// move where three would be the least. The last pass starts at the end of the map, where the L2 cache still holds what
// was summed last. All sums have an order that depends on the shape, the strides and the alignment alone.
#include "eca.h"

#include <algorithm>
#include <initializer_list>

#include "dispatch.h"
#include "feature_map.cuh"

namespace fastyolo {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kBatch = 4;  // loads that a thread has in flight

// Four blocks of 53 KB fit into the 227 KB of an H100's multiprocessor: four float16 planes of 80x80 each.
constexpr int64_t kResidentBytes = 52 << 10;
constexpr int kMaxGroup = 256;        // planes of a resident block
constexpr int64_t kFewBlocks = 512;   // above it, a block takes more planes and so fewer twice
constexpr int kSegmentVectors = 128;  // of a plane in shared memory, scaled by one warp at a time

constexpr int kSliceBytes = 16 << 10;                              // of a plane, summed by a warp
constexpr int kSliceElements = 1 << 10;                            // the same where elements do not adjoin
constexpr int kSlicePixels = 16;                                   // of channels_last, summed by each thread
constexpr int kSlabVectors = 32;                                   // channels of a block in channels_last, in vectors
constexpr int kMinSlice = kThreads / kSlabVectors * kSlicePixels;  // no slice has fewer pixels

struct Problem {
  int32_t batch;
  int32_t channels;
  int32_t pixels;
  int32_t width;
  int32_t taps;
  DType weight_dtype;
  const void* weight;  // [k]
};

// What forward and backward keep between their launches, in float32.
struct Workspace {
  float* sums;         // [slices, B, C] of x
  float* products;     // [slices, B, C] of x * grad_y; backward
  float* means;        // [B, C]
  float* grad_logits;  // [B, C]; backward
  float* scales;       // [B, C]
  float* shifts;       // [B, C]; backward, else null
  float* grad_weight;  // [B, k]; backward
};

__device__ float load_parameter(const void* p, DType dtype, int i) {
  switch (dtype) {
    case DType::kFloat16: return load_float(static_cast<const __half*>(p) + i);
    case DType::kBFloat16: return load_float(static_cast<const __nv_bfloat16*>(p) + i);
    default: return load_float(static_cast<const float*>(p) + i);
  }
}

__device__ void store_parameter(void* p, DType dtype, int i, float value) {
  switch (dtype) {
    case DType::kFloat16: static_cast<__half*>(p)[i] = from_float<__half>(value); return;
    case DType::kBFloat16: static_cast<__nv_bfloat16*>(p)[i] = from_float<__nv_bfloat16>(value); return;
    default: static_cast<float*>(p)[i] = value;
  }
}

__device__ inline float sigmoid(float z) { return 1.f / (1.f + expf(-z)); }

// sum_j weight[j] * values[channel + kStep * (j - k / 2)], zero beyond the channels; values[0] is of channel `first`.
template <int kStep>
__device__ float convolve(const Problem& p, const float* values, int first, int channel) {
  float sum = 0.f;
  for (int j = 0; j < p.taps; ++j) {
    const int neighbour = channel + kStep * (j - p.taps / 2);
    if (neighbour < 0 || neighbour >= p.channels) continue;
    sum += load_parameter(p.weight, p.weight_dtype, j) * values[neighbour - first];
  }
  return sum;
}

template <class T, Layout kLayout>
struct Plane {
  T* data;
  int64_t stride_h;
  int64_t stride_w;
  int width;

  template <class Map>
  __device__ Plane(const Problem& p, const Map& map, int image, int channel)
      : data(element<std::remove_const_t<T>>(map, image, channel, 0, 0)),
        stride_h(map.stride_h),
        stride_w(map.stride_w),
        width(p.width) {}

  __device__ T* at(int i) const {
    return kLayout == Layout::kPlanes ? data + i : data + i / width * stride_h + i % width * stride_w;
  }
};

template <int kWidth>
using WidthConstant = std::integral_constant<int, kWidth>;

// A warp's way over elements [begin, end) of a plane, whose first element is at `data`: loaded = load(width, i) and
// use(i, loaded) for i a multiple of vectors or single elements. Elements before the first and after the last vector
// boundary of kPlanes go one to a lane.
template <Layout kLayout, class T, class Load, class Use>
__device__ void walk(const T* data, int begin, int end, Load load, Use use) {
  const int lane = lane_index();
  if constexpr (kLayout == Layout::kPlanes) {
    constexpr int kWidth = kVectorElements<T>;
    using Loaded = decltype(load(WidthConstant<kWidth>{}, 0));
    const int beyond = static_cast<int>(reinterpret_cast<uintptr_t>(data + begin) / sizeof(T) % kWidth);
    const int head = min((kWidth - beyond) % kWidth, end - begin);
    const int vectors = (end - begin - head) / kWidth;
    const int first = begin + head;
    const int tail = end - first - vectors * kWidth;
    if (lane < head + tail) {
      const int i = lane < head ? begin + lane : begin + lane + vectors * kWidth;
      use(i, load(WidthConstant<1>{}, i));
    }
    for (int v = lane; v < vectors; v += kWarp * kBatch) {
      Loaded loaded[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (v + u * kWarp < vectors) loaded[u] = load(WidthConstant<kWidth>{}, first + (v + u * kWarp) * kWidth);
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (v + u * kWarp < vectors) use(first + (v + u * kWarp) * kWidth, loaded[u]);
      }
    }
  } else {
    for (int i = begin + lane; i < end; i += kWarp) use(i, load(WidthConstant<1>{}, i));
  }
}

// Vectors at one place of x and, in backward, of grad_y.
template <class T, int kWidth, int kMaps>
struct Values {
  Raw<T, kWidth> raw[kMaps];

  __device__ Vector<T, kWidth> of(int map) const { return from_raw<T, kWidth>(raw[map]); }
};

struct Sums {
  float x = 0.f;
  float product = 0.f;  // of x and grad_y
};

// Adds element j of a vector to sums[j * kStep].
template <int kStep, class T, int kWidth, int kMaps>
__device__ void add(const Values<T, kWidth, kMaps>& values, Sums* sums) {
  const Vector<T, kWidth> x = values.of(0);
  const Vector<T, kWidth> grad_y = values.of(kMaps - 1);
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    sums[j * kStep].x += to_float(x.values[j]);
    if constexpr (kMaps == 2) sums[j * kStep].product += to_float(x.values[j]) * to_float(grad_y.values[j]);
  }
}

// What the last pass does to an element.
struct Gate {
  float scale;
  float shift;
  bool has_shift;  // else -0 stays -0

  template <class T>
  __device__ T apply(T x) const {
    const float product = to_float(x) * scale;
    return from_float<T>(has_shift ? product + shift : product);
  }

  template <class T, int kWidth>
  __device__ Vector<T, kWidth> apply(const Vector<T, kWidth>& x) const {
    Vector<T, kWidth> y;
#pragma unroll
    for (int j = 0; j < kWidth; ++j) y.values[j] = apply(x.values[j]);
    return y;
  }
};

// --- forward in one launch

// Groups of neighbouring planes of an image, one to a block. In shared memory planes keep their misalignment, so that
// vectors of device memory are vectors there. Behind them are the scales of the group and the means that these need.
struct Groups {
  int planes;          // of a group; 0: where those beside them would cost more than a second pass
  int count;           // of an image
  int plane_elements;  // in shared memory, from plane to plane

  template <class T>
  int64_t shared_bytes(int taps) const {
    return int64_t{planes} * plane_elements * static_cast<int64_t>(sizeof(T)) +
           (2 * int64_t{planes} + taps - 1) * static_cast<int64_t>(sizeof(float));
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 4)
    eca_resident_kernel(const Problem p, const FeatureMap x, const MutableFeatureMap y, const Groups groups) {
  constexpr int kWidth = kVectorElements<T>;
  using GlobalPlane = Plane<const T, Layout::kPlanes>;
  T* memory = shared_memory<T>();
  float* scales = reinterpret_cast<float*>(memory + groups.planes * groups.plane_elements);
  float* means = scales + groups.planes;

  const int image = static_cast<int>(blockIdx.x) / groups.count;
  const int first = static_cast<int>(blockIdx.x) % groups.count * groups.planes;
  const int planes = min(groups.planes, p.channels - first);
  const int halo_begin = max(first - p.taps / 2, 0);
  const int halo_end = min(first + planes + p.taps / 2, p.channels);
  const auto shared_plane = [&](int channel, const T* data) {
    return memory + (channel - first) * groups.plane_elements + reinterpret_cast<uintptr_t>(data) / sizeof(T) % kWidth;
  };

  for (int channel = halo_begin + warp_index(); channel < halo_end; channel += kWarps) {
    const GlobalPlane source(p, x, image, channel);
    const bool is_own = channel >= first && channel < first + planes;
    T* target = is_own ? shared_plane(channel, source.data) : nullptr;
    Sums sums;
    walk<Layout::kPlanes>(
        source.data, 0, p.pixels,
        [&](auto width, int i) {
          return Values<T, decltype(width)::value, 1>{{load_raw<decltype(width)::value>(source.at(i))}};
        },
        [&](int i, const auto& values) {
          add<0>(values, &sums);
          if (is_own) store_vector(target + i, values.of(0));
        });
    const float sum = warp_sum(sums.x);
    if (lane_index() == 0) means[channel - halo_begin] = sum / static_cast<float>(p.pixels);
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < planes; i += kThreads) {
    scales[i] = sigmoid(convolve<1>(p, means, halo_begin, first + i));
  }
  __syncthreads();

  const int segment_elements = kSegmentVectors * kWidth;
  const int segments = (p.pixels + segment_elements - 1) / segment_elements;
  for (int i = warp_index(); i < planes * segments; i += kWarps) {
    const int channel = first + i / segments;
    const int begin = i % segments * segment_elements;
    const Plane<T, Layout::kPlanes> target(p, y, image, channel);
    const T* source = shared_plane(channel, target.data);
    const Gate gate = {scales[channel - first], 0.f, false};
    walk<Layout::kPlanes>(
        target.data, begin, min(begin + segment_elements, p.pixels),
        [&](auto width, int k) {
          return Values<T, decltype(width)::value, 1>{{read_raw<decltype(width)::value>(source + k)}};
        },
        [&](int k, const auto& values) { store_vector(target.at(k), gate.apply(values.of(0))); });
  }
}

// --- sums, gate, apply

struct Sources {
  FeatureMap maps[2];  // x and, in backward, grad_y
};

// Where the warps of a grid work in kPlanes and kElements: slices of planes.
struct SlicedPlanes {
  int elements;  // of a slice
  int slices;    // of a plane
};

struct PlaneSlice {
  int slice, image, channel, begin, end;
  bool inside;

  __device__ PlaneSlice(const Problem& p, const SlicedPlanes& sliced, uint32_t block) {
    const uint32_t unit = block * kWarps + static_cast<uint32_t>(warp_index());
    const uint32_t plane = unit / static_cast<uint32_t>(sliced.slices);
    slice = static_cast<int>(unit % static_cast<uint32_t>(sliced.slices));
    image = static_cast<int>(plane / static_cast<uint32_t>(p.channels));
    channel = static_cast<int>(plane % static_cast<uint32_t>(p.channels));
    begin = slice * sliced.elements;
    end = min(begin + sliced.elements, p.pixels);
    inside = image < p.batch;
  }
};

__device__ void store_sums(const Problem& p, const Workspace& workspace, int slice, int image, int channel,
                           const Sums& sums) {
  const int at = (slice * p.batch + image) * p.channels + channel;
  workspace.sums[at] = sums.x;
  if (workspace.products) workspace.products[at] = sums.product;
}

__device__ Gate load_gate(const Problem& p, const Workspace& workspace, int image, int channel) {
  const int at = image * p.channels + channel;
  const bool has_shift = workspace.shifts != nullptr;
  return {load_float(workspace.scales + at), has_shift ? load_float(workspace.shifts + at) : 0.f, has_shift};
}

// By one block of the last pass, which saves a launch.
__device__ void sum_grad_weight(const Problem& p, const Workspace& workspace, void* grad_weight) {
  for (int tap = warp_index(); tap < p.taps; tap += kWarps) {
    float sum = 0.f;
    for (int image = lane_index(); image < p.batch; image += kWarp) {
      sum += load_float(workspace.grad_weight + image * p.taps + tap);
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) store_parameter(grad_weight, p.weight_dtype, tap, sum);
  }
}

template <class T, Layout kLayout, int kMaps>
__global__ void __launch_bounds__(kThreads, 4)
    eca_sums_kernel(const Problem p, const SlicedPlanes sliced, const Sources sources, const Workspace workspace) {
  const PlaneSlice s(p, sliced, blockIdx.x);
  if (!s.inside) return;
  const Plane<const T, kLayout> x(p, sources.maps[0], s.image, s.channel);
  const Plane<const T, kLayout> grad_y(p, sources.maps[1], s.image, s.channel);
  Sums sums;
  walk<kLayout>(
      x.data, s.begin, s.end,
      [&](auto width, int i) {
        constexpr int kWidth = decltype(width)::value;
        Values<T, kWidth, kMaps> values;
        values.raw[0] = load_raw<kWidth>(x.at(i));
        if constexpr (kMaps == 2) values.raw[1] = load_raw<kWidth>(grad_y.at(i));
        return values;
      },
      [&](int, const auto& values) { add<0>(values, &sums); });
  sums.x = warp_sum(sums.x);
  if constexpr (kMaps == 2) sums.product = warp_sum(sums.product);
  if (lane_index() == 0) store_sums(p, workspace, s.slice, s.image, s.channel, sums);
}

// A block per image. What it writes first it reads again after a barrier.
__global__ void __launch_bounds__(kThreads) eca_gate_kernel(const Problem p, const Workspace workspace, int slices) {
  const int offset = static_cast<int>(blockIdx.x) * p.channels;
  const int thread = static_cast<int>(threadIdx.x);
  const bool is_backward = workspace.products != nullptr;
  const auto sum_slices = [&](const float* sums, int c) {
    float sum = 0.f;
    for (int slice = 0; slice < slices; ++slice) sum += load_float(sums + slice * p.batch * p.channels + offset + c);
    return sum;
  };
  float* means = workspace.means + offset;
  const float share = 1.f / static_cast<float>(p.pixels);
  for (int c = thread; c < p.channels; c += kThreads) means[c] = sum_slices(workspace.sums, c) * share;
  __syncthreads();
  float* grad_logits = workspace.grad_logits + offset;
  for (int c = thread; c < p.channels; c += kThreads) {
    const float scale = sigmoid(convolve<1>(p, means, 0, c));
    workspace.scales[offset + c] = scale;
    if (is_backward) grad_logits[c] = sum_slices(workspace.products, c) * scale * (1.f - scale);
  }
  if (!is_backward) return;
  __syncthreads();
  for (int c = thread; c < p.channels; c += kThreads) {
    workspace.shifts[offset + c] = convolve<-1>(p, grad_logits, 0, c) * share;
  }
  for (int tap = warp_index(); tap < p.taps; tap += kWarps) {
    const int distance = tap - p.taps / 2;
    float sum = 0.f;
    for (int c = max(0, -distance) + lane_index(); c < min(p.channels, p.channels - distance); c += kWarp) {
      sum += grad_logits[c] * means[c + distance];
    }
    sum = warp_sum(sum);
    if (lane_index() == 0) workspace.grad_weight[static_cast<int>(blockIdx.x) * p.taps + tap] = sum;
  }
}

template <class T, Layout kLayout>
__global__ void __launch_bounds__(kThreads, 4)
    eca_apply_kernel(const Problem p, const SlicedPlanes sliced, const FeatureMap source,
                     const MutableFeatureMap target, const Workspace workspace, void* grad_weight) {
  if (grad_weight && blockIdx.x == 0) sum_grad_weight(p, workspace, grad_weight);
  const PlaneSlice s(p, sliced, gridDim.x - 1 - blockIdx.x);
  if (!s.inside) return;
  const Plane<const T, kLayout> from(p, source, s.image, s.channel);
  const Plane<T, kLayout> to(p, target, s.image, s.channel);
  const Gate gate = load_gate(p, workspace, s.image, s.channel);
  walk<kLayout>(
      from.data, s.begin, s.end,
      [&](auto width, int i) {
        return Values<T, decltype(width)::value, 1>{{load_raw<decltype(width)::value>(from.at(i))}};
      },
      [&](int i, const auto& values) { store_vector(to.at(i), gate.apply(values.of(0))); });
}

// --- the same in channels_last

// Where the blocks of a grid work in kChannels: slices of an image's pixels times slabs of the channels.
struct SlicedPixels {
  int vectors;  // of a slab
  int slabs;    // of the channels
  int rows;     // pixels that a block reads at a time
  int pixels;   // of a slice
  int slices;   // of an image
};

// A thread keeps its vector of channels and walks over every rows-th pixel.
template <int kWidth>
struct PixelSlice {
  int slice, image, channel, row, step, begin, end;
  bool inside;

  __device__ PixelSlice(const Problem& p, const SlicedPixels& sliced, uint32_t block) {
    const uint32_t slab = block % static_cast<uint32_t>(sliced.slabs);
    const uint32_t unit = block / static_cast<uint32_t>(sliced.slabs);
    const int vector = static_cast<int>(threadIdx.x) % sliced.vectors;
    slice = static_cast<int>(unit % static_cast<uint32_t>(sliced.slices));
    image = static_cast<int>(unit / static_cast<uint32_t>(sliced.slices));
    channel = (static_cast<int>(slab) * sliced.vectors + vector) * kWidth;
    row = static_cast<int>(threadIdx.x) / sliced.vectors;
    step = sliced.rows;
    begin = slice * sliced.pixels;
    end = min(begin + sliced.pixels, p.pixels);
    inside = row < sliced.rows && channel < p.channels;
  }

  template <class Map>
  __device__ int64_t offset(const Problem& p, const Map& map, int pixel) const {
    return image * map.stride_b + channel + pixel / p.width * map.stride_h + pixel % p.width * map.stride_w;
  }

  // use(pixel, load(pixel)) with kBatch loads in flight.
  template <class Load, class Use>
  __device__ void walk(Load load, Use use) const {
    if (!inside) return;
    for (int pixel = begin + row; pixel < end; pixel += step * kBatch) {
      decltype(load(0)) loaded[kBatch];
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (pixel + u * step < end) loaded[u] = load(pixel + u * step);
      }
#pragma unroll
      for (int u = 0; u < kBatch; ++u) {
        if (pixel + u * step < end) use(pixel + u * step, loaded[u]);
      }
    }
  }
};

template <class T, int kMaps>
__global__ void __launch_bounds__(kThreads, 2)
    eca_channel_sums_kernel(const Problem p, const SlicedPixels sliced, const Sources sources,
                            const Workspace workspace) {
  constexpr int kWidth = kVectorElements<T>;
  __shared__ Sums partial[kWidth][kThreads];
  const PixelSlice<kWidth> s(p, sliced, blockIdx.x);
  Sums sums[kWidth];
  s.walk(
      [&](int pixel) {
        Values<T, kWidth, kMaps> values;
#pragma unroll
        for (int m = 0; m < kMaps; ++m) {
          const FeatureMap& map = sources.maps[m];
          values.raw[m] = load_raw<kWidth>(static_cast<const T*>(map.data) + s.offset(p, map, pixel));
        }
        return values;
      },
      [&](int, const Values<T, kWidth, kMaps>& values) { add<1>(values, sums); });
#pragma unroll
  for (int j = 0; j < kWidth; ++j) partial[j][threadIdx.x] = sums[j];
  __syncthreads();
  if (s.row != 0 || !s.inside) return;
#pragma unroll
  for (int j = 0; j < kWidth; ++j) {
    for (int row = 1; row < sliced.rows; ++row) {
      const Sums other = partial[j][row * sliced.vectors + static_cast<int>(threadIdx.x)];
      sums[j].x += other.x;
      sums[j].product += other.product;
    }
    store_sums(p, workspace, s.slice, s.image, s.channel + j, sums[j]);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    eca_channel_apply_kernel(const Problem p, const SlicedPixels sliced, const FeatureMap source,
                             const MutableFeatureMap target, const Workspace workspace, void* grad_weight) {
  constexpr int kWidth = kVectorElements<T>;
  if (grad_weight && blockIdx.x == 0) sum_grad_weight(p, workspace, grad_weight);
  const PixelSlice<kWidth> s(p, sliced, gridDim.x - 1 - blockIdx.x);
  if (!s.inside) return;
  Gate gates[kWidth];
#pragma unroll
  for (int j = 0; j < kWidth; ++j) gates[j] = load_gate(p, workspace, s.image, s.channel + j);
  s.walk(
      [&](int pixel) { return load_vector<kWidth>(static_cast<const T*>(source.data) + s.offset(p, source, pixel)); },
      [&](int pixel, Vector<T, kWidth> values) {
#pragma unroll
        for (int j = 0; j < kWidth; ++j) values.values[j] = gates[j].apply(values.values[j]);
        store_vector(static_cast<T*>(target.data) + s.offset(p, target, pixel), values);
      });
}

// --- host

template <class T>
Layout layout_of(const EcaParams& p, std::initializer_list<FeatureMap> maps) {
  bool channels = true;
  bool planes = true;
  for (const FeatureMap& map : maps) {
    channels &= has_channel_vectors<T>(p, map);
    planes &= has_adjoining_pixels(p, map) && are_planes_alike<T>(p, map, *maps.begin());
  }
  return channels ? Layout::kChannels : planes ? Layout::kPlanes : Layout::kElements;
}

Problem describe(const EcaParams& p) {
  Problem problem;
  problem.batch = static_cast<int32_t>(p.batch);
  problem.channels = static_cast<int32_t>(p.channels);
  problem.pixels = static_cast<int32_t>(p.height * p.width);
  problem.width = static_cast<int32_t>(p.width);
  problem.taps = static_cast<int32_t>(p.taps);
  problem.weight_dtype = p.weight_dtype;
  problem.weight = p.weight;
  return problem;
}

// Without a base, only its size counts. There are as many slices as any layout has.
int64_t lay_out(const EcaParams& p, bool is_backward, void* base, Workspace* workspace) {
  const int64_t planes = p.batch * p.channels;
  const int64_t slices = ceil_div<int64_t>(p.height * p.width, kMinSlice);
  Regions regions;
  const auto add = [&](int64_t count, bool is_used = true) {
    return is_used ? region<float>(base, regions.add(count * static_cast<int64_t>(sizeof(float)))) : nullptr;
  };
  workspace->sums = add(slices * planes);
  workspace->products = add(slices * planes, is_backward);
  workspace->means = add(planes);
  workspace->grad_logits = add(planes, is_backward);
  workspace->scales = add(planes);
  workspace->shifts = add(planes, is_backward);
  workspace->grad_weight = add(p.batch * p.taps, is_backward);
  return regions.bytes;
}

SlicedPlanes slice_planes(const Problem& p, int elements) { return {elements, ceil_div(p.pixels, elements)}; }

template <int kWidth>
SlicedPixels slice_pixels(const Problem& p) {
  const int vectors = p.channels / kWidth;
  SlicedPixels sliced;
  sliced.slabs = ceil_div(vectors, kSlabVectors);
  sliced.vectors = ceil_div(vectors, sliced.slabs);
  sliced.rows = kThreads / sliced.vectors;
  sliced.pixels = sliced.rows * kSlicePixels;
  sliced.slices = ceil_div(p.pixels, sliced.pixels);
  return sliced;
}

// The launches of sums, gate and the pass that writes `target` from the last of the kMaps sources.
template <class T, int kMaps>
Status run_passes(const Problem& p, Layout layout, const Sources& sources, const MutableFeatureMap& target,
                  const Workspace& workspace, void* grad_weight, Stream stream) {
  const auto run = [&](auto sums_kernel, auto apply_kernel, const auto& sliced, int64_t blocks) {
    Status status = launch("eca_sums_kernel", sums_kernel, blocks, kThreads, stream, p, sliced, sources, workspace);
    if (!status.ok()) return status;
    status = launch("eca_gate_kernel", eca_gate_kernel, p.batch, kThreads, stream, p, workspace, sliced.slices);
    if (!status.ok()) return status;
    return launch("eca_apply_kernel", apply_kernel, blocks, kThreads, stream, p, sliced, sources.maps[kMaps - 1],
                  target, workspace, grad_weight);
  };
  const auto plane_blocks = [&](const SlicedPlanes& sliced) {
    return ceil_div<int64_t>(int64_t{p.batch} * p.channels * sliced.slices, kWarps);
  };
  if (layout == Layout::kChannels) {
    const SlicedPixels sliced = slice_pixels<kVectorElements<T>>(p);
    return run(eca_channel_sums_kernel<T, kMaps>, eca_channel_apply_kernel<T>, sliced,
               int64_t{p.batch} * sliced.slices * sliced.slabs);
  }
  if (layout == Layout::kPlanes) {
    const SlicedPlanes sliced = slice_planes(p, kSliceBytes / sizeof(T));
    return run(eca_sums_kernel<T, Layout::kPlanes, kMaps>, eca_apply_kernel<T, Layout::kPlanes>, sliced,
               plane_blocks(sliced));
  }
  const SlicedPlanes sliced = slice_planes(p, kSliceElements);
  return run(eca_sums_kernel<T, Layout::kElements, kMaps>, eca_apply_kernel<T, Layout::kElements>, sliced,
             plane_blocks(sliced));
}

template <class T>
Groups group_planes(const EcaParams& p) {
  constexpr int64_t kWidth = kVectorElements<T>;
  const int64_t plane_elements = ceil_div(p.height * p.width + kWidth - 1, kWidth) * kWidth;
  const int64_t plane_bytes = plane_elements * static_cast<int64_t>(sizeof(T));
  const int64_t fitting = std::min({kResidentBytes / plane_bytes, p.channels, int64_t{kMaxGroup}});
  const int64_t halo = p.taps / 2;
  if (fitting < std::min(std::max(halo, int64_t{1}), p.channels)) return {};
  const int64_t wanted = std::max({2 * halo, p.batch * p.channels / kFewBlocks, int64_t{1}});
  const int64_t count = ceil_div(p.channels, std::min(wanted, fitting));
  return {static_cast<int>(ceil_div(p.channels, count)), static_cast<int>(count), static_cast<int>(plane_elements)};
}

template <class F>
Status dispatch(const EcaParams& p, F&& f) {
  return dispatch_dtype<DType::kFloat32, DType::kFloat16, DType::kBFloat16>(
      "x", p.dtype, [&](auto dtype) { return f(Element<dtype.value>{}); });
}

}  // namespace

int64_t eca_workspace_bytes(const EcaParams& p) {
  Workspace workspace;
  return lay_out(p, false, nullptr, &workspace);
}

Status eca(const EcaParams& p, Stream stream) {
  Status status = check_eca(p);
  if (status.ok()) status = check_workspace(p.workspace, p.workspace_bytes, eca_workspace_bytes(p));
  if (!status.ok()) return status;
  return dispatch(p, [&](auto element) {
    using T = decltype(element);
    if (is_empty(p)) return Status{};
    const Problem problem = describe(p);
    const Layout layout = layout_of<T>(p, {p.x, as_source(p.y)});
    const Groups groups = layout == Layout::kPlanes ? group_planes<T>(p) : Groups{};
    if (groups.planes > 0) {
      return launch_shared("eca_resident_kernel", eca_resident_kernel<T>, p.batch * groups.count, kThreads,
                           groups.shared_bytes<T>(problem.taps), stream, problem, p.x, p.y, groups);
    }
    Workspace workspace;
    lay_out(p, false, p.workspace, &workspace);
    return run_passes<T, 1>(problem, layout, {{p.x, {}}}, p.y, workspace, nullptr, stream);
  });
}

int64_t eca_backward_workspace_bytes(const EcaParams& p) {
  Workspace workspace;
  return lay_out(p, true, nullptr, &workspace);
}

Status eca_backward(const EcaParams& p, Stream stream) {
  Status status = check_eca(p);
  if (status.ok()) status = check_workspace(p.workspace, p.workspace_bytes, eca_backward_workspace_bytes(p));
  if (!status.ok()) return status;
  return dispatch(p, [&](auto element) {
    using T = decltype(element);
    if (is_empty(p)) {
      return check_cuda(cudaMemsetAsync(p.grad_weight, 0, p.taps * size_of(p.weight_dtype), stream), "cudaMemsetAsync");
    }
    const Layout layout = layout_of<T>(p, {p.x, p.grad_y, as_source(p.grad_x)});
    Workspace workspace;
    lay_out(p, true, p.workspace, &workspace);
    return run_passes<T, 2>(describe(p), layout, {{p.x, p.grad_y}}, p.grad_x, workspace, p.grad_weight, stream);
  });
}

}  // namespace fastyolo
