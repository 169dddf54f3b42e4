// SPDX-License-Identifier: Apache-2.0
// Rows of a feature map between memory of any strides and a tile of the kernel's own. A tile holds cells: one channel's
// pixel, or for channels_last the pixel's values of neighbouring channels, which are contiguous in memory and fill one
// or more vectors. Included by kernel sources only, which are compiled once per instruction set.
#pragma once

#include <algorithm>

#include "feature_map.h"
#include "simd.h"

namespace fastyolo {
namespace {

// One image's plane of a channel, or its planes of `channels` neighbouring channels.
template <class T>
struct Planes {
  T* data;
  int64_t stride_c;
  int64_t stride_h;
  int64_t stride_w;
  int64_t channels;
  bool streamed = false;  // written past the caches
};

template <class T>
Planes<const T> planes_of(const FeatureMap& map, int64_t image, int64_t channel, int64_t channels) {
  const T* data = static_cast<const T*>(map.data) + image * map.stride_b + channel * map.stride_c;
  return {data, map.stride_c, map.stride_h, map.stride_w, channels};
}

template <class T>
Planes<T> planes_of(const MutableFeatureMap& map, int64_t image, int64_t channel, int64_t channels, bool streamed) {
  T* data = static_cast<T*>(map.data) + image * map.stride_b + channel * map.stride_c;
  return {data, map.stride_c, map.stride_h, map.stride_w, channels, streamed};
}

// True if a vector of channels is contiguous and a vector of a row is not.
inline bool is_channels_last(const FeatureMap& map, int64_t channels, int64_t lanes) {
  return map.stride_c == 1 && map.stride_w != 1 && 2 * channels > lanes;
}

// Walks a row of `width` cells of `cell` lanes: whole(tile offset, map offset) for vectors that are contiguous on both
// sides, single(tile offset, map offset) for all else. Where a row of single elements does not divide into vectors, the
// last two overlap.
template <class C, class T, class Whole, class Single>
inline void walk_row(const Planes<T>& planes, int64_t width, int64_t cell, Whole&& whole, Single&& single) {
  constexpr int kWidth = kLanes<C>;
  if (cell == 1 && planes.stride_w == 1 && width >= kWidth) {
    for (int64_t w = 0; w < width - kWidth; w += kWidth) whole(w, w);
    whole(width - kWidth, width - kWidth);
    return;
  }
  const int64_t vectors = cell > 1 && planes.stride_c == 1 ? planes.channels / kWidth * kWidth : 0;
  for (int64_t w = 0; w < width; ++w) {
    for (int64_t c = 0; c < vectors; c += kWidth) whole(w * cell + c, w * planes.stride_w + c);
    for (int64_t c = vectors; c < planes.channels; ++c) single(w * cell + c, w * planes.stride_w + c * planes.stride_c);
  }
}

// Rows [first, last) of a map into a tile whose rows are `pitch` elements apart; `tile` is where row `first` goes.
// Calls see(vector) for all that is read.
template <class T, class C, class See>
void load_rows(const Planes<const T>& planes, int64_t first, int64_t last, int64_t width, int64_t cell, C* tile,
               int64_t pitch, See&& see) {
  for (int64_t h = first; h < last; ++h, tile += pitch) {
    const T* row = planes.data + h * planes.stride_h;
    walk_row<C>(
        planes, width, cell,
        [&](int64_t to, int64_t from) {
          const Vec<C> v = load<C>(row + from);
          see(v);
          store(tile + to, v);
        },
        [&](int64_t to, int64_t from) {
          tile[to] = convert<C>(row[from]);
          see(splat(tile[to]));
        });
  }
}

template <class T, class C>
void load_rows(const Planes<const T>& planes, int64_t first, int64_t last, int64_t width, int64_t cell, C* tile,
               int64_t pitch) {
  load_rows(planes, first, last, width, cell, tile, pitch, [](Vec<C>) {});
}

// The elements of a tile's rows one after the other, without what lies between the rows, by vectors.
template <class C>
struct Run {
  const C* row;
  int64_t pitch;
  int64_t width;  // at least a vector
  int64_t column = 0;

  Vec<C> vector() const {
    const int64_t rest = width - column;
    return rest < kLanes<C> ? load_joined(row + column, row + pitch - rest, rest) : load<C>(row + column);
  }
  void skip(int64_t count) {
    column += count;
    if (column >= width) {
      column -= width;
      row += pitch;
    }
  }
};

template <class T, class C>
void store_run(Run<C> run, int64_t count, T* out) {
  for (int64_t i = 0;;) {
    store(out + i, run.vector());
    const int64_t step = std::min<int64_t>(kLanes<C>, count - kLanes<C> - i);  // the last two overlap
    if (step == 0) return;
    run.skip(step);
    i += step;
  }
}

// Whole lines past the caches.
template <class T, class C>
void stream_run(Run<C> run, int64_t count, T* out) {
  constexpr int kWidth = kLanes<C>;
  constexpr int64_t kLine = kLineBytes / sizeof(T);
  const auto store_to = [&](const T* end) {
    while (out < end) {
      const int64_t step = std::min<int64_t>(kWidth, end - out);
      store_some(out, run.vector(), step);
      run.skip(step);
      out += step;
    }
  };
  T* const end = out + count;
  const int64_t before = -static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) / sizeof(T)) & (kLine - 1);
  store_to(out + std::min(before, count));
  for (T* const last = out + (end - out) / kLine * kLine; out < last; out += kWidth) {
    stream(out, rounded<T>(run.vector()));
    run.skip(kWidth);
  }
  store_to(end);
}

// And back, rounded to the map's type.
template <class T, class C>
void store_rows(const C* tile, int64_t pitch, int64_t first, int64_t last, int64_t width, int64_t cell,
                const Planes<T>& planes) {
  if (cell == 1 && planes.stride_w == 1 && planes.stride_h == width && width >= kLanes<C>) {
    const Run<C> run{tile, pitch, width};
    const int64_t count = (last - first) * width;
    if (planes.streamed) {
      stream_run(run, count, planes.data + first * width);
    } else if (count > 0) {
      store_run(run, count, planes.data + first * width);
    }
    return;
  }
  const uintptr_t together =
      reinterpret_cast<uintptr_t>(planes.data) | (planes.channels | planes.stride_h | planes.stride_w) * sizeof(T);
  const bool lines = planes.streamed && cell > 1 && planes.stride_c == 1 && together % kLineBytes == 0;
  for (int64_t h = first; h < last; ++h, tile += pitch) {
    T* row = planes.data + h * planes.stride_h;
    walk_row<C>(
        planes, width, cell,
        [&](int64_t from, int64_t to) {
          const Vec<C> v = load<C>(tile + from);
          if (lines) {
            stream(row + to, rounded<T>(v));
          } else {
            store(row + to, v);
          }
        },
        [&](int64_t from, int64_t to) { row[to] = convert<T>(tile[from]); });
  }
}

inline void copy_bytes(const void* from, void* to, int64_t bytes, bool streamed) {
  const char* in = static_cast<const char*>(from);
  char* out = static_cast<char*>(to);
  if (streamed) {
    const int64_t head = std::min<int64_t>(-reinterpret_cast<uintptr_t>(out) & (kLineBytes - 1), bytes);
    std::memcpy(out, in, head);
    int64_t i = head;
    for (; i + kLineBytes <= bytes; i += kLineBytes) {
      for (int64_t j = i; j < i + kLineBytes; j += kVectorBytes) {
        Vec<uint32_t> v;
        std::memcpy(&v, in + j, sizeof(v));
        stream(out + j, v);
      }
    }
    in += i;
    out += i;
    bytes -= i;
  }
  std::memcpy(out, in, bytes);
}

// Rows [first, last) of a map into the same rows of another.
template <class T>
void copy_rows(const Planes<const T>& from, const Planes<T>& to, int64_t first, int64_t last, int64_t width) {
  const bool rows = from.channels == 1 && from.stride_w == 1 && to.stride_w == 1;
  if (rows && from.stride_h == width && to.stride_h == width) {
    copy_bytes(from.data + first * width, to.data + first * width, (last - first) * width * sizeof(T), to.streamed);
    return;
  }
  const bool cells = from.stride_c == 1 && to.stride_c == 1;
  for (int64_t h = first; h < last; ++h) {
    const T* in = from.data + h * from.stride_h;
    T* out = to.data + h * to.stride_h;
    if (rows) {
      copy_bytes(in, out, width * sizeof(T), to.streamed);
      continue;
    }
    for (int64_t w = 0; w < width; ++w, in += from.stride_w, out += to.stride_w) {
      if (cells) {
        copy_bytes(in, out, from.channels * sizeof(T), to.streamed);
      } else {
        for (int64_t c = 0; c < from.channels; ++c) out[c * to.stride_c] = in[c * from.stride_c];
      }
    }
  }
}

}  // namespace
}  // namespace fastyolo
