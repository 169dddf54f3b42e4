// SPDX-License-Identifier: Apache-2.0
// ECA on the CPU. The scale of channel c needs no more than the means of channels c - k / 2 to c + k / 2, so planes
// stream through a window: a block of them, and the halo ahead of it, is summed when it comes from memory, its scales
// are computed with channels as lanes, and it is scaled while it is still in the second-level cache. x is read from
// memory once and y written once, whatever the number of threads: a range of channels only takes the sums of its halo
// again. Backward moves the same way with twice the halo over x and grad_y, and saves nothing.
//
// In channels_last maps the channels are lanes and every pixel touches all of them: slabs of rows give partial sums,
// these the scales, and a second pass over the slabs writes the result.
#include <algorithm>
#include <limits>

#include "dispatch.h"
#include "eca_workspace.h"
#include "simd.h"

namespace fastyolo {
namespace FASTYOLO_ISA {
namespace {

constexpr int64_t kGrainElements = 1 << 14;         // ~5 us of work: less is not worth a thread
constexpr int64_t kSumBlock = 256 * kLanes<float>;  // elements added in the element type; blocks are added in float64
constexpr int64_t kBlockBytes = 1 << 18;  // of the planes between their sums and their scaling: they stay in cache
constexpr int64_t kHaloShare = 4;         // a range has at least that many times the channels of one convolution

// The pixels of one channel as rows of columns; a map without gaps is a single row.
struct Pixels {
  int64_t rows;
  int64_t columns;
};

template <class T>
struct Plane {
  T* data;
  int64_t stride_h;
  int64_t stride_w;

  T* at(int64_t row, int64_t column) const { return data + row * stride_h + column * stride_w; }
};

template <class T, class Map>
Plane<T> plane_of(const Map& map, int64_t image, int64_t channel) {
  return {static_cast<T*>(map.data) + image * map.stride_b + channel * map.stride_c, map.stride_h, map.stride_w};
}

// Up to kPack elements at any stride, of which the first `skip` and absent ones are 0.
template <class T>
Pack<T> load_pixels(const T* p, int64_t stride, int64_t count, int64_t skip = 0) {
  if (stride == 1 && count >= kPack<T>) return load_pack(p, skip);
  T elements[kPack<T>] = {};
  for (int64_t i = skip; i < std::min<int64_t>(count, kPack<T>); ++i) elements[i] = p[i * stride];
  return load_pack(elements);
}

template <class T>
void store_pixels(T* p, int64_t stride, int64_t count, const Pack<T>& pack) {
  if (stride == 1 && count >= kPack<T>) return store_pack(p, pack);
  T elements[kPack<T>];
  store_pack(elements, pack);
  for (int64_t i = 0; i < std::min<int64_t>(count, kPack<T>); ++i) p[i * stride] = elements[i];
}

// Where the pack that covers `column` starts: the last one of a row lies back over its neighbour, so that only rows
// shorter than a pack need single elements.
template <class T>
int64_t pack_start(int64_t column, int64_t columns) {
  return std::min(column, std::max<int64_t>(0, columns - kPack<T>));
}

// Over the pixels of one channel.
struct Sums {
  double x = 0;
  double product = 0;  // backward: of grad_y * x
};

template <class T, bool Backward>
struct Accumulator {
  using C = Compute<T>;
  Vec<C> x{};
  Vec<C> product{};

  void add(const Pack<T>& a, const Pack<T>& g) {
    for (int i = 0; i < Pack<T>::kParts; ++i) {
      x += a.part[i];
      if constexpr (Backward) product = fma(g.part[i], a.part[i], product);
    }
  }
};

// Columns [first, last) of a row.
template <class T, bool Backward>
Sums sums_of_columns(const Plane<const T>& x, const Plane<const T>& grad_y, int64_t row, int64_t first, int64_t last,
                     int64_t columns) {
  const auto load = [&](const Plane<const T>& plane, int64_t column, int64_t skip) {
    return load_pixels(plane.at(row, column), plane.stride_w, columns - column, skip);
  };
  Accumulator<T, Backward> even, odd;  // additions in flight hide their latency
  int64_t column = first;
  if (x.stride_w == 1 && (!Backward || grad_y.stride_w == 1)) {
    const T* from = x.at(row, 0);
    const T* grad = Backward ? grad_y.at(row, 0) : from;
    for (; column + 2 * kPack<T> <= last; column += 2 * kPack<T>) {
      even.add(load_pack(from + column), load_pack(grad + column));
      odd.add(load_pack(from + column + kPack<T>), load_pack(grad + column + kPack<T>));
    }
  }
  for (; column < last; column += kPack<T>) {
    const int64_t start = pack_start<T>(column, columns);
    const Pack<T> a = load(x, start, column - start);
    even.add(a, Backward ? load(grad_y, start, column - start) : a);
  }
  Sums sums;
  sums.x = sum_lanes<Compute<T>>(even.x + odd.x);
  if constexpr (Backward) sums.product = sum_lanes<Compute<T>>(even.product + odd.product);
  return sums;
}

template <class T, bool Backward>
Sums sums_of(const Plane<const T>& x, const Plane<const T>& grad_y, const Pixels& pixels) {
  Sums total;
  for (int64_t row = 0; row < pixels.rows; ++row) {
    for (int64_t first = 0; first < pixels.columns; first += kSumBlock) {
      const int64_t last = std::min(first + kSumBlock, pixels.columns);
      const Sums sums = sums_of_columns<T, Backward>(x, grad_y, row, first, last, pixels.columns);
      total.x += sums.x;
      total.product += sums.product;
    }
  }
  return total;
}

// out = in * scale + offset; forward has no offset.
template <class T, bool Backward>
void scale_plane(const Plane<const T>& in, const Plane<T>& out, const Pixels& pixels, Compute<T> scale,
                 Compute<T> offset) {
  using C = Compute<T>;
  const Vec<C> scales = splat(scale);
  const Vec<C> offsets = splat(offset);
  const auto apply = [&](Pack<T> pack) {
    for (auto& part : pack.part) part = Backward ? fma(part, scales, offsets) : part * scales;
    return pack;
  };
  const bool dense = in.stride_w == 1 && out.stride_w == 1 && pixels.columns >= kPack<T>;
  for (int64_t row = 0; row < pixels.rows; ++row) {
    const T* from = in.at(row, 0);
    T* to = out.at(row, 0);
    for (int64_t column = 0; dense && column < pixels.columns; column += kPack<T>) {
      const int64_t start = pack_start<T>(column, pixels.columns);
      store_pack(to + start, apply(load_pack(from + start)));
    }
    for (int64_t column = 0; !dense && column < pixels.columns; column += kPack<T>) {
      const int64_t count = pixels.columns - column;
      const Pack<T> pack = load_pixels(from + column * in.stride_w, in.stride_w, count);
      store_pixels(to + column * out.stride_w, out.stride_w, count, apply(pack));
    }
  }
}

template <class C>
Vec<C> sigmoid(Vec<C> z) {
  const Vec<C> e = exp_nonpositive(min(z, -z));  // of -|z|: no overflow on either side
  const Vec<C> s = (z < 0 ? e : splat(C{1})) / (e + 1);
  return z < std::numeric_limits<C>::lowest() ? Vec<C>{} : s;  // exp_nonpositive(-inf) is small, but not 0
}

// The convolution's weights.
template <class C>
struct Taps {
  int64_t count;
  int64_t radius;
  C weight[kMaxEcaTaps];

  explicit Taps(const EcaParams& p) : count(p.taps), radius(p.taps / 2) {
    for (int64_t i = 0; i < count; ++i) {
      switch (p.weight_dtype) {
        case DType::kFloat64: weight[i] = static_cast<C>(static_cast<const double*>(p.weight)[i]); break;
        case DType::kBFloat16: weight[i] = to_float(static_cast<const BFloat16*>(p.weight)[i]); break;
        default: weight[i] = static_cast<const float*>(p.weight)[i];
      }
    }
  }

  // Channels that one side of a block of results needs: in backward, those that its logits' gradients need.
  int64_t halo(bool backward) const { return backward ? 2 * radius : radius; }
};

// From the sums of a block of channels and its halo to the block's scales and offsets; channels are lanes.
template <class C, bool Backward>
class Gates {
 public:
  static constexpr int64_t kMaxChannels = 32;

  Gates(const EcaParams& p, const Taps<C>& taps)
      : taps_(taps), channels_(p.channels), area_(static_cast<C>(p.height * p.width)), halo_(taps.halo(Backward)) {}

  // Moves on to channels [first, first + count): asks sums_of(channel) for those that it has not got from the block
  // before, which must have ended at `first`.
  template <class SumsOf>
  void advance(int64_t first, int64_t count, SumsOf&& sums_of) {
    for (int64_t i = 0; i < known_; ++i) {
      mean_[i] = mean_[i + last_count_];
      product_[i] = product_[i + last_count_];
    }
    for (int64_t i = known_; i < count + 2 * halo_; ++i) {
      const int64_t channel = first - halo_ + i;
      const Sums sums = channel >= 0 && channel < channels_ ? sums_of(channel) : Sums{};
      mean_[i] = static_cast<C>(sums.x) / area_;
      product_[i] = static_cast<C>(sums.product);
    }
    known_ = 2 * halo_;
    last_count_ = count;

    // y = x s(z): the gradient of z is s (1 - s) sum(grad_y x), that of x is grad_y s and the mean's share of it.
    const int64_t margin = halo_ - taps_.radius;
    for (int64_t i = 0; i < count + 2 * margin; i += kLanes<C>) {
      Vec<C> z{};
      for (int64_t j = 0; j < taps_.count; ++j) z = fma(splat(taps_.weight[j]), load<C>(mean_ + i + j), z);
      const Vec<C> s = sigmoid<C>(z);
      store(scale_ + i, s);
      if constexpr (Backward) store(grad_ + i, load<C>(product_ + i + taps_.radius) * s * (C{1} - s));
    }
    if constexpr (Backward) {
      for (int64_t i = 0; i < count + 2 * margin; ++i) {
        const int64_t channel = first - margin + i;
        if (channel < 0 || channel >= channels_) grad_[i] = 0;
      }
      for (int64_t i = 0; i < count; i += kLanes<C>) {
        Vec<C> sum{};
        for (int64_t j = 0; j < taps_.count; ++j) {
          sum = fma(splat(taps_.weight[j]), load<C>(grad_ + i + 2 * taps_.radius - j), sum);
        }
        store(offset_ + i, sum / area_);
      }
    }
  }

  // Of channel first + i.
  C mean(int64_t i) const { return mean_[i + halo_]; }
  C scale(int64_t i) const { return scale_[i + halo_ - taps_.radius]; }
  C grad(int64_t i) const { return grad_[i + taps_.radius]; }  // of the logit z
  C offset(int64_t i) const { return offset_[i]; }

 private:
  // A block, its halo on both sides, and what a vector reaches beyond them.
  static constexpr int64_t kSpan = kMaxChannels + 2 * (kMaxEcaTaps - 1) + kLanes<C>;

  const Taps<C>& taps_;
  const int64_t channels_;
  const C area_;
  const int64_t halo_;
  int64_t known_ = 0;
  int64_t last_count_ = 0;
  C mean_[kSpan] = {};
  C product_[kSpan] = {};
  C scale_[kSpan] = {};
  C grad_[kSpan] = {};
  C offset_[kSpan] = {};
};

// The regions of the workspace.
template <class C>
struct Regions {
  C* mean;
  C* grad;
  C* scale;
  C* offset;
  C* partial;

  explicit Regions(const EcaParams& p, const EcaWorkspace& sizes)
      : mean(at(p, sizes.mean)),
        grad(at(p, sizes.grad)),
        scale(at(p, sizes.scale)),
        offset(at(p, sizes.offset)),
        partial(at(p, sizes.partial)) {}

  // What write_grad_weight needs of channel first + i.
  void keep(const EcaParams& p, const Gates<C, true>& gates, int64_t image, int64_t first, int64_t i) const {
    mean[image * p.channels + first + i] = gates.mean(i);
    grad[image * p.channels + first + i] = gates.grad(i);
  }

  static C* at(const EcaParams& p, int64_t offset) {
    return reinterpret_cast<C*>(static_cast<char*>(p.workspace) + offset);
  }
};

// ---- channels_last

// Where the per-channel arrays hold channel c: in the order of the parts of a pack.
template <class T>
int64_t slot_of(int64_t channel) {
  const int64_t index = channel % kPack<T>;
  constexpr int64_t kParts = Pack<T>::kParts;
  return channel - index + index % kParts * kLanes<Compute<T>> + index / kParts;
}

// Adds Count neighbouring pixels of a row to the sums of all channels.
template <class T, bool Backward, int Count>
void add_pixels(const EcaParams& p, const Plane<const T>& x, const Plane<const T>& grad_y, int64_t row, int64_t column,
                Compute<T>* sums, Compute<T>* products) {
  using C = Compute<T>;
  for (int64_t channel = 0; channel < p.channels; channel += kPack<T>) {
    const int64_t count = p.channels - channel;
    Vec<C> sum[Pack<T>::kParts] = {};
    Vec<C> product[Pack<T>::kParts] = {};
    for (int pixel = 0; pixel < Count; ++pixel) {
      const Pack<T> a = load_pixels(x.at(row, column + pixel) + channel, 1, count);
      for (int i = 0; i < Pack<T>::kParts; ++i) sum[i] += a.part[i];
      if constexpr (Backward) {
        const T* from = grad_y.at(row, column + pixel) + channel * p.grad_y.stride_c;
        const Pack<T> g = load_pixels(from, p.grad_y.stride_c, count);
        for (int i = 0; i < Pack<T>::kParts; ++i) product[i] = fma(g.part[i], a.part[i], product[i]);
      }
    }
    for (int i = 0; i < Pack<T>::kParts; ++i) {
      C* to = sums + channel + i * kLanes<C>;
      store(to, load<C>(to) + sum[i]);
      if constexpr (Backward) {
        to = products + channel + i * kLanes<C>;
        store(to, load<C>(to) + product[i]);
      }
    }
  }
}

// The sums of one slab of one image over its rows.
template <class T, bool Backward>
void add_slab(const EcaParams& p, const EcaWorkspace& sizes, int64_t index, Compute<T>* partial) {
  constexpr int kPixels = 4;
  const int64_t image = index / sizes.slabs;
  const int64_t first = index % sizes.slabs * sizes.slab_rows;
  const int64_t last = std::min(first + sizes.slab_rows, p.height);
  const Plane<const T> x = plane_of<const T>(p.x, image, 0);
  const Plane<const T> grad_y = Backward ? plane_of<const T>(p.grad_y, image, 0) : Plane<const T>{};
  Compute<T>* sums = partial + index * (Backward ? 2 : 1) * sizes.slots;
  Compute<T>* products = sums + (Backward ? sizes.slots : 0);
  std::fill(sums, sums + (Backward ? 2 : 1) * sizes.slots, Compute<T>{0});
  for (int64_t row = first; row < last; ++row) {
    int64_t column = 0;
    for (; column + kPixels <= p.width; column += kPixels) {
      add_pixels<T, Backward, kPixels>(p, x, grad_y, row, column, sums, products);
    }
    for (; column < p.width; ++column) add_pixels<T, Backward, 1>(p, x, grad_y, row, column, sums, products);
  }
}

// From the slabs' sums of one image to its scales and, in backward, offsets.
template <class T, bool Backward>
void finish_image(const EcaParams& p, const EcaWorkspace& sizes, const Taps<Compute<T>>& taps,
                  const Regions<Compute<T>>& regions, int64_t image) {
  using C = Compute<T>;
  const int64_t row = (Backward ? 2 : 1) * sizes.slots;
  const C* partial = regions.partial + image * sizes.slabs * row;
  const auto total = [&](int64_t channel) {
    Sums sums;
    const C* from = partial + slot_of<T>(channel);
    for (int64_t slab = 0; slab < sizes.slabs; ++slab, from += row) {
      sums.x += from[0];
      if constexpr (Backward) sums.product += from[sizes.slots];
    }
    return sums;
  };
  Gates<C, Backward> gates(p, taps);
  for (int64_t first = 0; first < p.channels; first += gates.kMaxChannels) {
    const int64_t count = std::min(gates.kMaxChannels, p.channels - first);
    gates.advance(first, count, total);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t slot = image * sizes.slots + slot_of<T>(first + i);
      regions.scale[slot] = gates.scale(i);
      if constexpr (Backward) {
        regions.offset[slot] = gates.offset(i);
        regions.keep(p, gates, image, first, i);
      }
    }
  }
}

template <class T, bool Backward>
void scale_slab(const EcaParams& p, const EcaWorkspace& sizes, const Regions<Compute<T>>& regions, int64_t index) {
  using C = Compute<T>;
  const int64_t image = index / sizes.slabs;
  const int64_t first = index % sizes.slabs * sizes.slab_rows;
  const int64_t last = std::min(first + sizes.slab_rows, p.height);
  const FeatureMap& from = Backward ? p.grad_y : p.x;
  const Plane<const T> in = plane_of<const T>(from, image, 0);
  const Plane<T> out = plane_of<T>(Backward ? p.grad_x : p.y, image, 0);
  const C* scale = regions.scale + image * sizes.slots;
  const C* offset = regions.offset + image * sizes.slots;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t column = 0; column < p.width; ++column) {
      for (int64_t channel = 0; channel < p.channels; channel += kPack<T>) {
        const int64_t count = p.channels - channel;
        Pack<T> pack = load_pixels(in.at(row, column) + channel * from.stride_c, from.stride_c, count);
        for (int i = 0; i < Pack<T>::kParts; ++i) {
          const Vec<C> s = load<C>(scale + channel + i * kLanes<C>);
          pack.part[i] = Backward ? fma(pack.part[i], s, load<C>(offset + channel + i * kLanes<C>)) : pack.part[i] * s;
        }
        store_pixels(out.at(row, column) + channel, 1, count, pack);
      }
    }
  }
}

template <class T, bool Backward>
void run_channels_last(const EcaParams& p, const EcaWorkspace& sizes, const Taps<Compute<T>>& taps,
                       const Regions<Compute<T>>& regions, const ParallelFor& parallel_for) {
  const int64_t slabs = p.batch * sizes.slabs;
  const int64_t grain = ceil_div(kGrainElements, sizes.slab_rows * p.width * p.channels);
  parallel_for(slabs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) add_slab<T, Backward>(p, sizes, i, regions.partial);
  });
  parallel_for(p.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) finish_image<T, Backward>(p, sizes, taps, regions, i);
  });
  parallel_for(slabs, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) scale_slab<T, Backward>(p, sizes, regions, i);
  });
}

// ---- any other layout

// One row if no map has a gap between its rows.
template <bool Backward>
Pixels pixels_of(const EcaParams& p) {
  const auto dense = [&](const auto& map) { return map.stride_h == p.width * map.stride_w; };
  const bool whole = dense(p.x) && (Backward ? dense(p.grad_y) && dense(p.grad_x) : dense(p.y));
  return whole ? Pixels{1, p.height * p.width} : Pixels{p.height, p.width};
}

// Channels [begin, end) of one image, a block of planes at a time.
template <class T, bool Backward>
void scale_planes(const EcaParams& p, const Pixels& pixels, const Taps<Compute<T>>& taps,
                  const Regions<Compute<T>>& regions, int64_t image, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const int64_t plane_bytes = p.height * p.width * static_cast<int64_t>(sizeof(T)) * (Backward ? 2 : 1);
  const auto sums = [&](int64_t channel) {
    Plane<const T> grad_y{};
    if constexpr (Backward) grad_y = plane_of<const T>(p.grad_y, image, channel);
    return sums_of<T, Backward>(plane_of<const T>(p.x, image, channel), grad_y, pixels);
  };
  Gates<C, Backward> gates(p, taps);
  const int64_t block = std::clamp<int64_t>(kBlockBytes / plane_bytes, 1, gates.kMaxChannels);
  for (int64_t first = begin; first < end; first += block) {
    const int64_t count = std::min(block, end - first);
    gates.advance(first, count, sums);
    for (int64_t i = 0; i < count; ++i) {
      scale_plane<T, Backward>(plane_of<const T>(Backward ? p.grad_y : p.x, image, first + i),
                               plane_of<T>(Backward ? p.grad_x : p.y, image, first + i), pixels, gates.scale(i),
                               gates.offset(i));
      if constexpr (Backward) regions.keep(p, gates, image, first, i);
    }
  }
}

template <class T, bool Backward>
void run_planes(const EcaParams& p, const Taps<Compute<T>>& taps, const Regions<Compute<T>>& regions,
                const ParallelFor& parallel_for) {
  const Pixels pixels = pixels_of<Backward>(p);
  const int64_t grain = std::max(ceil_div(kGrainElements, p.height * p.width), kHaloShare * taps.count);
  parallel_for(p.batch * p.channels, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {  // the range may cross images
      const int64_t image = begin / p.channels;
      const int64_t first = begin % p.channels;
      const int64_t last = std::min(p.channels, first + end - begin);
      scale_planes<T, Backward>(p, pixels, taps, regions, image, first, last);
      begin += last - first;
    }
  });
}

// grad_weight[i] = sum of grad[b, c] * mean[b, c + i - k / 2], in a fixed order.
template <class C>
void write_grad_weight(const EcaParams& p, const Taps<C>& taps, const Regions<C>& regions, int64_t images) {
  for (int64_t i = 0; i < taps.count; ++i) {
    const int64_t shift = i - taps.radius;
    const int64_t first = std::max<int64_t>(0, -shift);
    const int64_t last = std::min(p.channels, p.channels - shift);
    double total = 0;
    for (int64_t image = 0; image < images; ++image) {
      const C* grad = regions.grad + image * p.channels;
      const C* mean = regions.mean + image * p.channels + shift;
      Vec<C> sum{};
      int64_t c = first;
      for (; c + kLanes<C> <= last; c += kLanes<C>) sum = fma(load<C>(grad + c), load<C>(mean + c), sum);
      total += sum_lanes<C>(sum);
      for (; c < last; ++c) total += grad[c] * mean[c];
    }
    switch (p.weight_dtype) {
      case DType::kFloat64: static_cast<double*>(p.grad_weight)[i] = total; break;
      case DType::kBFloat16: static_cast<BFloat16*>(p.grad_weight)[i] = to_bfloat16(static_cast<float>(total)); break;
      default: static_cast<float*>(p.grad_weight)[i] = static_cast<float>(total);
    }
  }
}

template <bool Backward>
Status run(const EcaParams& p, const ParallelFor& parallel_for) {
  return dispatch_dtype<DType::kFloat32, DType::kBFloat16, DType::kFloat64>("x", p.dtype, [&](auto dtype) {
    using T = Element<dtype.value>;
    using C = Compute<T>;
    const Taps<C> taps(p);
    const EcaWorkspace sizes(p, Backward);
    const Regions<C> regions(p, sizes);
    const bool empty = p.batch * p.channels * p.height * p.width == 0;
    if (!empty) {
      if (sizes.channels_last) {
        run_channels_last<T, Backward>(p, sizes, taps, regions, parallel_for);
      } else {
        run_planes<T, Backward>(p, taps, regions, parallel_for);
      }
    }
    if constexpr (Backward) write_grad_weight(p, taps, regions, empty ? 0 : p.batch);
    return Status{};
  });
}

}  // namespace

Status eca_cpu(const EcaParams& params, const ParallelFor& parallel_for) { return run<false>(params, parallel_for); }

Status eca_backward_cpu(const EcaParams& params, const ParallelFor& parallel_for) {
  return run<true>(params, parallel_for);
}

}  // namespace FASTYOLO_ISA
}  // namespace fastyolo
