// SPDX-License-Identifier: Apache-2.0
// The pools of SPPF on the GPU. One map comes in and four go out, so the stages must never leave the chip: a block
// keeps whole planes, or tiles with a halo of three windows where they are too large, in two buffers of shared memory
// and pools from one to the other while the last result goes out.
//
// In shared memory a word of 32 bits is a pixel of two float16 or bfloat16 channels, so that one instruction takes two
// maxima, and neither odd widths nor tiles move a pixel against the others; in float32 it is a pixel of one channel.
// Where vectors fit the maps and windows are 5x5, a thread slides down two adjoining columns: three 8-byte reads of a
// row give the horizontal maxima of both, and those of the last four rows wait in registers for the vertical ones.
//
// Backward recomputes the stages with the choice of every window. The first pixel in row-major order with the largest
// value is the leftmost one of the topmost row that has it, so the choice separates: a column for each row of a window
// and a row for each window (with NaN, the last of both). The gradient follows it back in the same two steps, collected
// by the pixels that receive it: no atomics, one order of summation.
#include "sppf_pool.h"

#include <algorithm>

#include "dispatch.h"
#include "feature_map.cuh"

namespace fastyolo {
namespace {

constexpr int kThreads = 320;
constexpr int kFastKernel = 5;  // the only one of YOLO

// Four blocks with two buffers each fit into the 227 KB of an H100's multiprocessor. A buffer holds a plane of 80x80, 4
// of 40x40 or 16 of 20x20, whose strips of two columns are as many as a block has threads; with a few words between
// planes, 6464 of them.
constexpr int64_t kBufferWords = 6464;
constexpr int64_t kBanks = 32;
constexpr int kStripRows = 10;
constexpr int64_t kGradientBytes = 50 << 10;  // of shared memory in backward; four blocks as well
constexpr int64_t kFewBlocks = 512;           // above it, a block takes more planes

// Blocks for which a multiprocessor must have registers. Turing's has shared memory for one.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kMostBlocks = 1;
#else
constexpr int kMostBlocks = 4;
#endif
template <class T, Layout kLayout>
constexpr int kForwardBlocks = sizeof(T) == 4 || kLayout == Layout::kElements ? 1
                               : kLayout == Layout::kPlanes                   ? kMostBlocks
                                                                              : (kMostBlocks + 2) / 2;

// --- words

template <class T>
struct WordOf {
  using type = T;
};
template <>
struct WordOf<__half> {
  using type = __half2;
};
template <>
struct WordOf<__nv_bfloat16> {
  using type = __nv_bfloat162;
};
template <class T>
using Word = typename WordOf<T>::type;
template <class T>
constexpr int kWordChannels = 4 / static_cast<int>(sizeof(T));

// The larger one, or NaN if either is.
__device__ inline float larger(float a, float b) { return a > b || a != a ? a : b; }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800 && CUDART_VERSION < 12020  // which have no __hmax2_nan for these
template <class Pair>
__device__ inline Pair larger(Pair a, Pair b) {
  using T = decltype(a.x);
  return Pair{from_float<T>(larger(to_float(a.x), to_float(b.x))), from_float<T>(larger(to_float(a.y), to_float(b.y)))};
}
#else
__device__ inline __half2 larger(__half2 a, __half2 b) { return __hmax2_nan(a, b); }
__device__ inline __nv_bfloat162 larger(__nv_bfloat162 a, __nv_bfloat162 b) { return __hmax2_nan(a, b); }
#endif

template <class T>
__device__ Word<T> make_word(T first, T second) {
  if constexpr (kWordChannels<T> == 2) {
    return Word<T>{first, second};
  } else {
    return first;
  }
}

template <class T>
__device__ T channel_of(const Word<T>& word, int channel) {
  if constexpr (kWordChannels<T> == 2) {
    return channel == 0 ? word.x : word.y;
  } else {
    return word;
  }
}

template <class T>
__device__ Word<T> lowest() {
  return make_word<T>(from_float<T>(-kInfinity), from_float<T>(-kInfinity));
}

// --- tiles

struct Problem {
  int32_t batch;
  int32_t channels;
  int32_t height;
  int32_t width;
  int32_t kernel;
};

// How a grid shares the work: a block takes a tile of a group of planes, which in forward are planes of words.
struct Tiling {
  int group;   // planes of a block
  int groups;  // of an image
  int tile_height, tile_width;
  int tiles_y, tiles_x;
  int halo;
  int plane;  // elements of shared memory from plane to plane
};

// n / divisor for n * divisor < 2^32, in a multiplication.
class Divider {
 public:
  __device__ explicit Divider(int divisor)
      : divisor_(static_cast<uint32_t>(divisor)), inverse_(0xffffffffu / divisor_ + 1) {}

  __device__ int quotient(int n) const {
    return divisor_ == 1 ? n : static_cast<int>(uint64_t{static_cast<uint32_t>(n)} * inverse_ >> 32);
  }

 private:
  uint32_t divisor_;
  uint32_t inverse_;  // 2^32 / divisor, rounded up
};

// The tile of this block, and the region around it that its results depend on: the tile and its halo inside the map.
struct Tile {
  int image, first_plane, planes;
  int top, left, bottom, right;  // of the tile
  int y, x, rows, columns;       // of the region

  __device__ Tile(const Problem& p, const Tiling& t, int planes_of_image) {
    int block = static_cast<int>(blockIdx.x);
    const auto take = [&](int count) {
      const int index = block % count;
      block /= count;
      return index;
    };
    left = take(t.tiles_x) * t.tile_width;
    top = take(t.tiles_y) * t.tile_height;
    first_plane = take(t.groups) * t.group;
    image = block;
    planes = min(t.group, planes_of_image - first_plane);
    right = min(left + t.tile_width, p.width);
    bottom = min(top + t.tile_height, p.height);
    x = max(left - t.halo, 0);
    y = max(top - t.halo, 0);
    columns = min(right + t.halo, p.width) - x;
    rows = min(bottom + t.halo, p.height) - y;
  }

  __device__ bool is_inside(int row, int column) const {
    return row + y >= top && row + y < bottom && column + x >= left && column + x < right;
  }
};

// A pixel of the region in a block's group of planes.
struct Place {
  int plane, row, column;
};

// f(place) for every pixel of every plane of the region, neighbours in neighbouring lanes.
template <class F>
__device__ void for_each_place(const Tile& tile, F f) {
  const Divider by_columns(tile.columns);
  const Divider by_rows(tile.rows);
  for (int i = static_cast<int>(threadIdx.x); i < tile.planes * tile.rows * tile.columns; i += kThreads) {
    const int line = by_columns.quotient(i);
    const int plane = by_rows.quotient(line);
    f(Place{plane, line - plane * tile.rows, i - line * tile.columns});
  }
}

// --- forward: between device memory and words

// What a thread moves at a time: the words of kPixels adjoining pixels of a plane of words, or of one pixel in kPlanes
// adjoining planes of words.
template <class T, Layout kLayout>
struct Unit {
  static constexpr int kWidth = kLayout == Layout::kElements ? 1 : kVectorElements<T>;
  static constexpr int kPixels = kLayout == Layout::kPlanes ? kWidth : 1;
  static constexpr int kPlanes = kLayout == Layout::kChannels ? kWidth / kWordChannels<T> : 1;

  int image, channel, y, x;  // of the first word
  int shared;                // where it is in a buffer

  Word<T> words[kPixels * kPlanes];

  __device__ bool has_second(int channels) const { return kWordChannels<T> == 2 && channel + 1 < channels; }

  __device__ void load(const Problem& p, const FeatureMap& map) {
    const T* source = element<T>(map, image, channel, y, x);
    if constexpr (kLayout == Layout::kChannels) {
      const Raw<T, kWidth> raw = load_raw<kWidth>(source);
      std::memcpy(words, &raw, sizeof(raw));
    } else {
      const Vector<T, kWidth> first = load_vector<kWidth>(source);
      const Vector<T, kWidth> second = has_second(p.channels) ? load_vector<kWidth>(source + map.stride_c) : first;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) words[i] = make_word<T>(first.values[i], second.values[i]);
    }
  }

  __device__ void store(const Problem& p, const MutableFeatureMap& map, int stage) const {
    T* target = element<T>(map, image, stage * p.channels + channel, y, x);
    if constexpr (kLayout == Layout::kChannels) {
      Raw<T, kWidth> raw;
      std::memcpy(&raw, words, sizeof(raw));
      *reinterpret_cast<Raw<T, kWidth>*>(target) = raw;
    } else {
      Vector<T, kWidth> vector;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) vector.values[i] = channel_of<T>(words[i], 0);
      store_vector(target, vector);
      if (!has_second(p.channels)) return;
#pragma unroll
      for (int i = 0; i < kWidth; ++i) vector.values[i] = channel_of<T>(words[i], 1);
      store_vector(target + map.stride_c, vector);
    }
  }

  __device__ void put(Word<T>* buffer, int plane_words) const {
    if constexpr (kPixels > 1) {
#pragma unroll
      for (int i = 0; i < kPixels; i += 4) {
        uint4 raw;
        std::memcpy(&raw, words + i, sizeof(raw));
        *reinterpret_cast<uint4*>(buffer + shared + i) = raw;
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPlanes; ++i) buffer[shared + i * plane_words] = words[i];
    }
  }

  // The words beyond the last column of an odd number.
  __device__ void pad(Word<T>* buffer, int plane_words) const {
#pragma unroll
    for (int i = 0; i < kPlanes; ++i) buffer[shared + kPixels + i * plane_words] = lowest<T>();
  }

  __device__ void take(const Word<T>* buffer, int plane_words) {
    if constexpr (kPixels > 1) {
#pragma unroll
      for (int i = 0; i < kPixels; i += 4) {
        const uint4 raw = *reinterpret_cast<const uint4*>(buffer + shared + i);
        std::memcpy(words + i, &raw, sizeof(raw));
      }
    } else {
#pragma unroll
      for (int i = 0; i < kPlanes; ++i) words[i] = buffer[shared + i * plane_words];
    }
  }
};

__device__ inline int pitch_of(const Tile& tile) { return (tile.columns + 1) / 2 * 2; }

// f(unit, whether it is in the tile) for all units of the region.
template <class T, Layout kLayout, class F>
__device__ void for_each_unit(const Tile& tile, const Tiling& tiling, F f) {
  Unit<T, kLayout> unit;
  unit.image = tile.image;
  if constexpr (kLayout == Layout::kPlanes) {  // the tile is as wide as the map, and rows follow each other
    const int units = tile.rows * tile.columns / unit.kPixels;
    const Divider by_units(units);
    for (int i = static_cast<int>(threadIdx.x); i < tile.planes * units; i += kThreads) {
      const int plane = by_units.quotient(i);
      const int pixel = (i - plane * units) * unit.kPixels;
      unit.channel = (tile.first_plane + plane) * kWordChannels<T>;
      unit.y = 0;
      unit.x = tile.y * tile.columns + pixel;
      unit.shared = plane * tiling.plane + pixel;
      f(unit, unit.x >= tile.top * tile.columns && unit.x < tile.bottom * tile.columns);
    }
  } else if constexpr (kLayout == Layout::kChannels) {
    const int vectors = tile.planes / unit.kPlanes;
    const Divider by_vectors(vectors);
    const Divider by_columns(tile.columns);
    for (int i = static_cast<int>(threadIdx.x); i < tile.rows * tile.columns * vectors; i += kThreads) {
      const int pixel = by_vectors.quotient(i);
      const int plane = (i - pixel * vectors) * unit.kPlanes;
      const int row = by_columns.quotient(pixel);
      const int column = pixel - row * tile.columns;
      unit.channel = (tile.first_plane + plane) * kWordChannels<T>;
      unit.y = tile.y + row;
      unit.x = tile.x + column;
      unit.shared = plane * tiling.plane + row * pitch_of(tile) + column;
      f(unit, tile.is_inside(row, column));
    }
  } else {
    for_each_place(tile, [&](const Place& place) {
      unit.channel = (tile.first_plane + place.plane) * kWordChannels<T>;
      unit.y = tile.y + place.row;
      unit.x = tile.x + place.column;
      unit.shared = place.plane * tiling.plane + place.row * pitch_of(tile) + place.column;
      f(unit, tile.is_inside(place.row, place.column));
    });
  }
}

// --- forward: pools

// The words of two adjoining columns, the first of them even.
template <class T>
using Pair = Vector<Word<T>, 2>;

template <class T>
__device__ Pair<T> larger(const Pair<T>& a, const Pair<T>& b) {
  return {{larger(a.values[0], b.values[0]), larger(a.values[1], b.values[1])}};
}

// The maxima of rows of 5 words around columns 0 and 1 of `row`; there is nothing beyond the region.
template <class T>
__device__ Pair<T> pool_row(const Word<T>* row, bool has_left, bool has_right) {
  const Pair<T> outside = {{lowest<T>(), lowest<T>()}};
  const Pair<T> middle = from_raw<Word<T>, 2>(read_raw<2>(row));
  const Pair<T> left = has_left ? from_raw<Word<T>, 2>(read_raw<2>(row - 2)) : outside;
  const Pair<T> right = has_right ? from_raw<Word<T>, 2>(read_raw<2>(row + 2)) : outside;
  const Word<T> shared = larger(larger(left.values[1], middle.values[0]), larger(middle.values[1], right.values[0]));
  return {{larger(shared, left.values[0]), larger(shared, right.values[1])}};
}

// Pools of 5x5 for kStripRows rows of a pair of columns, from the region's first word of the pair at `from` to `to`.
// Pairs of rows make the maxima of four, and one more row those of five.
template <class T>
__device__ void pool_strip(const Tile& tile, const Word<T>* from, Word<T>* to, int column, int first_row) {
  const int pitch = pitch_of(tile);
  const bool has_left = column > 0;
  const bool has_right = column + 2 < pitch;
  const bool is_padded = column + 1 >= tile.columns;
  const Pair<T> outside = {{lowest<T>(), lowest<T>()}};
  Pair<T> before[4] = {outside, outside, outside, outside};  // rows above, the nearest first
  Pair<T> pairs[2] = {outside, outside};                     // of the last two rows, and of the two above those
#pragma unroll
  for (int i = 0; i < kStripRows + kFastKernel - 1; ++i) {
    const int row = first_row + i - kFastKernel / 2;
    const bool is_inside = row >= 0 && row < tile.rows;
    const Pair<T> current = is_inside ? pool_row<T>(from + row * pitch, has_left, has_right) : outside;
    const Pair<T> pair = larger<T>(current, before[0]);
    const int target = row - kFastKernel / 2;
    if (i >= kFastKernel - 1 && target < tile.rows) {
      Pair<T> result = larger<T>(larger<T>(pair, pairs[1]), before[3]);
      if (is_padded) result.values[1] = lowest<T>();
      store_vector(to + target * pitch, result);
    }
    pairs[1] = pairs[0];
    pairs[0] = pair;
    before[3] = before[2];
    before[2] = before[1];
    before[1] = before[0];
    before[0] = current;
  }
}

// One pool of all planes, after a barrier in the buffer that it returns. kElements takes windows of any size.
// Neighbouring lanes take the pairs of a row, and then those of the same row in the next plane, where spread_planes()
// has them go on bank by bank.
template <class T, Layout kLayout>
__device__ Word<T>* pool(const Problem& p, const Tile& tile, const Tiling& tiling, Word<T>* from, Word<T>* to) {
  if constexpr (kLayout != Layout::kElements) {
    const int pairs = pitch_of(tile) / 2;
    const int strips = (tile.rows + kStripRows - 1) / kStripRows;
    const Divider by_pairs(pairs);
    const Divider by_planes(tile.planes);
    for (int i = static_cast<int>(threadIdx.x); i < strips * tile.planes * pairs; i += kThreads) {
      const int line = by_pairs.quotient(i);
      const int strip = by_planes.quotient(line);
      const int column = (i - line * pairs) * 2;
      const int offset = (line - strip * tile.planes) * tiling.plane + column;
      pool_strip<T>(tile, from + offset, to + offset, column, strip * kStripRows);
    }
    __syncthreads();
    return to;
  } else {
    const int radius = p.kernel / 2;
    const int pitch = pitch_of(tile);
    for_each_place(tile, [&](const Place& place) {
      const Word<T>* line = from + place.plane * tiling.plane + place.row * pitch;
      Word<T> largest = lowest<T>();
      for (int c = max(place.column - radius, 0); c <= min(place.column + radius, tile.columns - 1); ++c) {
        largest = larger(largest, line[c]);
      }
      to[place.plane * tiling.plane + place.row * pitch + place.column] = largest;
    });
    __syncthreads();
    for_each_place(tile, [&](const Place& place) {
      const Word<T>* line = to + place.plane * tiling.plane + place.column;
      Word<T> largest = lowest<T>();
      for (int r = max(place.row - radius, 0); r <= min(place.row + radius, tile.rows - 1); ++r) {
        largest = larger(largest, line[r * pitch]);
      }
      from[place.plane * tiling.plane + place.row * pitch + place.column] = largest;
    });
    __syncthreads();
    return from;
  }
}

template <class T, Layout kLayout>
__global__ void __launch_bounds__(kThreads, kForwardBlocks<T, kLayout>)
    sppf_pool_kernel(const Problem p, const Tiling tiling, const FeatureMap x, const MutableFeatureMap out) {
  const Tile tile(p, tiling, (p.channels + kWordChannels<T> - 1) / kWordChannels<T>);
  Word<T>* const buffers = shared_memory<Word<T>>();
  Word<T>* const second = buffers + tiling.group * tiling.plane;
  for_each_unit<T, kLayout>(tile, tiling, [&](Unit<T, kLayout>& unit, bool is_in_tile) {
    unit.load(p, x);
    unit.put(buffers, tiling.plane);
    if (is_in_tile) unit.store(p, out, 0);
    if (unit.x + 1 == tile.x + tile.columns && tile.columns < pitch_of(tile)) unit.pad(buffers, tiling.plane);
  });
  __syncthreads();
  Word<T>* current = buffers;
  for (int stage = 1; stage <= kSppfStages; ++stage) {
    current = pool<T, kLayout>(p, tile, tiling, current, current == buffers ? second : buffers);
    for_each_unit<T, kLayout>(tile, tiling, [&](Unit<T, kLayout>& unit, bool is_in_tile) {
      if (!is_in_tile) return;
      unit.take(current, tiling.plane);
      unit.store(p, out, stage);
    });
  }
}

// --- backward

// Which pixel of its window each output takes: the row in the upper four bits and, for each row of a window, the column
// in the lower ones.
using Choice = unsigned char;
constexpr int kColumnBits = 4;
static_assert(kMaxPoolKernel < 1 << kColumnBits);

// One chain of pools on y: grads[i] is the gradient of stage i, where stage 0 is y itself.
struct Chain {
  FeatureMap y;
  FeatureMap grads[1 + kSppfStages];
  MutableFeatureMap grad_y;
  int stages;
};

// The largest of a window's values at position -radius to radius, as a value and a place in the window: the first one,
// or the last NaN.
template <int kKernel, class F>
__device__ int choose(int kernel, int position, int count, float* largest, F value_at) {
  const int size = kKernel > 0 ? kKernel : kernel;
  int choice = -1;
#pragma unroll
  for (int i = 0; i < size; ++i) {
    const int at = position + i - size / 2;
    if (at < 0 || at >= count) continue;
    const float value = value_at(at);
    if (choice < 0 || value > *largest || value != value) {
      *largest = value;
      choice = i;
    }
  }
  return choice;
}

// The sum of what the windows around `position` send there.
template <int kKernel, class F, class G>
__device__ float collect(int kernel, int position, int count, F choice_at, G grad_at) {
  const int size = kKernel > 0 ? kKernel : kernel;
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < size; ++i) {
    const int at = position + size / 2 - i;  // the window whose place i is here
    if (at >= 0 && at < count && choice_at(at) == i) sum += grad_at(at);
  }
  return sum;
}

template <class T, int kKernel>
__global__ void __launch_bounds__(kThreads, kMostBlocks)
    sppf_pool_backward_kernel(const Problem p, const Tiling tiling, const Chain chain) {
  const Tile tile(p, tiling, p.channels);
  const int columns = tile.columns;
  const int all = tiling.group * tiling.plane;
  float* const grads = shared_memory<float>();
  float* const row_grads = grads + all;
  Choice* const choices = reinterpret_cast<Choice*>(row_grads + all);
  // The values make way for the gradients.
  T* const values = reinterpret_cast<T*>(grads);
  T* const row_values = reinterpret_cast<T*>(row_grads);
  const auto line_of = [&](const Place& place) { return place.plane * tiling.plane + place.row * columns; };
  const auto column_of = [&](const Place& place) { return place.plane * tiling.plane + place.column; };
  const auto from = [&](const FeatureMap& map, const Place& place) {
    return element<T>(map, tile.image, tile.first_plane + place.plane, tile.y + place.row, tile.x + place.column);
  };

  for_each_place(tile, [&](const Place& place) {
    values[line_of(place) + place.column] = load_vector<1>(from(chain.y, place)).values[0];
  });
  __syncthreads();
  for (int stage = 0; stage < chain.stages; ++stage) {
    Choice* const stage_choices = choices + stage * all;
    for_each_place(tile, [&](const Place& place) {
      const int line = line_of(place);
      float largest = 0.f;
      const int choice =
          choose<kKernel>(p.kernel, place.column, columns, &largest, [&](int c) { return to_float(values[line + c]); });
      row_values[line + place.column] = from_float<T>(largest);
      stage_choices[line + place.column] = static_cast<Choice>(choice);
    });
    __syncthreads();
    for_each_place(tile, [&](const Place& place) {
      const int column = column_of(place);
      float largest = 0.f;
      const int choice = choose<kKernel>(p.kernel, place.row, tile.rows, &largest,
                                         [&](int r) { return to_float(row_values[column + r * columns]); });
      values[line_of(place) + place.column] = from_float<T>(largest);
      stage_choices[line_of(place) + place.column] |= static_cast<Choice>(choice << kColumnBits);
    });
    __syncthreads();
  }

  for_each_place(tile, [&](const Place& place) {
    grads[line_of(place) + place.column] = load_float(from(chain.grads[chain.stages], place));
  });
  __syncthreads();
  for (int stage = chain.stages - 1; stage >= 0; --stage) {
    const Choice* const stage_choices = choices + stage * all;
    for_each_place(tile, [&](const Place& place) {
      const int column = column_of(place);
      row_grads[line_of(place) + place.column] = collect<kKernel>(
          p.kernel, place.row, tile.rows, [&](int r) { return stage_choices[column + r * columns] >> kColumnBits; },
          [&](int r) { return grads[column + r * columns]; });
    });
    __syncthreads();
    for_each_place(tile, [&](const Place& place) {
      const int line = line_of(place);
      const float pooled = collect<kKernel>(
          p.kernel, place.column, columns, [&](int c) { return stage_choices[line + c] & ((1 << kColumnBits) - 1); },
          [&](int c) { return row_grads[line + c]; });
      const float sum = pooled + load_float(from(chain.grads[stage], place));
      if (stage > 0) {
        grads[line + place.column] = sum;
      } else if (tile.is_inside(place.row, place.column)) {
        *element<T>(chain.grad_y, tile.image, tile.first_plane + place.plane, tile.y + place.row,
                    tile.x + place.column) = from_float<T>(sum);
      }
    });
    __syncthreads();
  }
}

// --- host

Problem describe(const SppfPoolParams& p) {
  Problem problem;
  problem.batch = static_cast<int32_t>(p.batch);
  problem.channels = static_cast<int32_t>(p.channels);
  problem.height = static_cast<int32_t>(p.height);
  problem.width = static_cast<int32_t>(p.width);
  problem.kernel = static_cast<int32_t>(p.kernel);
  return problem;
}

// The largest integer whose square fits.
int64_t square_side(int64_t area) {
  int64_t side = 1;
  while ((side + 1) * (side + 1) <= area) ++side;
  return side;
}

// Whether squares of that many elements leave a third of their sides to the tile.
constexpr bool has_room(int64_t halo, int64_t capacity) { return 9 * halo * halo <= capacity; }
static_assert(has_room(kSppfStages*(kMaxPoolKernel / 2), kBufferWords) &&
              has_room(kSppfStages * (kFastKernel / 2), kBufferWords / 4));  // four planes of words in channels_last

// Tiles whose regions have no more elements than `capacity`, at a pitch that is a multiple of `alignment`: bands of
// rows unless the halo leaves too little of them, squares then.
Tiling tile_planes(const SppfPoolParams& p, int64_t halo, int64_t capacity, int64_t alignment) {
  const auto pitch_for = [&](int64_t columns) { return ceil_div(columns, alignment) * alignment; };
  int64_t tile_width = p.width;
  int64_t pitch = pitch_for(p.width);
  if (capacity / pitch < std::min(p.height, std::max(int64_t{1}, 3 * halo))) {
    const int64_t side = square_side(capacity) / alignment * alignment;
    tile_width = std::min(p.width, side - 2 * halo);
    pitch = pitch_for(std::min(p.width, side));
  }
  const int64_t rows = capacity / pitch;  // of a region
  int64_t tiles_y = 1;
  if (p.height > rows) {
    tiles_y = ceil_div<int64_t>(p.height, 2) + halo <= rows ? 2 : ceil_div(p.height, rows - 2 * halo);
  }
  const int64_t tile_height = ceil_div(p.height, tiles_y);
  const int64_t region_height = std::min(p.height, tile_height + std::min<int64_t>(tiles_y - 1, 2) * halo);
  Tiling tiling;
  tiling.tile_height = static_cast<int>(tile_height);
  tiling.tile_width = static_cast<int>(tile_width);
  tiling.tiles_y = static_cast<int>(ceil_div(p.height, tile_height));
  tiling.tiles_x = static_cast<int>(ceil_div(p.width, tile_width));
  tiling.halo = static_cast<int>(halo);
  tiling.plane = static_cast<int>(region_height * pitch);
  return tiling;
}

// Puts words between the planes, so that each begins at the bank at which a row of the one before ends. Vectors of four
// words stay vectors.
void spread_planes(const SppfPoolParams& p, Tiling* tiling) {
  const int64_t columns = std::min(p.width, int64_t{tiling->tile_width} + 2 * tiling->halo);
  const int64_t pitch = ceil_div<int64_t>(columns, 2) * 2;
  const int64_t gap = ((pitch - tiling->plane) % kBanks + kBanks) % kBanks;
  tiling->plane += static_cast<int>(ceil_div<int64_t>(gap, 4) * 4);
}

// As many of `planes` per image to a block as fit, unless that leaves few blocks; a multiple of `unit`.
void group_planes(const SppfPoolParams& p, int64_t planes, int64_t capacity, int64_t unit, Tiling* tiling) {
  const int64_t units = planes / unit;
  const int64_t fitting = capacity / (tiling->plane * unit);
  const int64_t wanted = p.batch * units * tiling->tiles_y * tiling->tiles_x / kFewBlocks;
  const int64_t groups = ceil_div(units, std::max(int64_t{1}, std::min(fitting, wanted)));
  tiling->group = static_cast<int>(ceil_div(units, groups) * unit);
  tiling->groups = static_cast<int>(ceil_div(planes, int64_t{tiling->group}));
}

int64_t blocks_of(const SppfPoolParams& p, const Tiling& tiling) {
  return p.batch * tiling.groups * tiling.tiles_y * tiling.tiles_x;
}

// The same map from a later channel on.
template <class Map>
Map from_channel(const SppfPoolParams& p, Map map, int64_t channel) {
  using Bytes = std::conditional_t<std::is_const_v<std::remove_pointer_t<decltype(map.data)>>, const char, char>;
  map.data = static_cast<Bytes*>(map.data) + channel * map.stride_c * size_of(p.dtype);
  return map;
}

// Vectors of pixels in the maps are vectors of words in shared memory, and no band of rows begins inside of one.
template <class T>
bool has_pixel_vectors(const SppfPoolParams& p, const Tiling& tiling) {
  for (const FeatureMap& map : {p.x, as_source(p.out)}) {
    if (!has_adjoining_pixels(p, map) || !has_aligned_planes<T>(p, map)) return false;
  }
  return p.width % 2 == 0 && p.height * p.width % kVectorElements<T> == 0 && p.out.stride_c % kVectorElements<T> == 0 &&
         tiling.tiles_x == 1 && (tiling.tiles_y == 1 || p.width % kVectorElements<T> == 0);
}

template <class T, Layout kLayout>
Status run_forward(const SppfPoolParams& p, Tiling tiling, Stream stream) {
  constexpr int64_t kUnit = Unit<T, kLayout>::kPlanes;
  if (kLayout != Layout::kElements) spread_planes(p, &tiling);
  group_planes(p, ceil_div<int64_t>(p.channels, kWordChannels<T>), kBufferWords, kUnit, &tiling);
  const int64_t shared_bytes = 2 * int64_t{tiling.group} * tiling.plane * static_cast<int64_t>(sizeof(Word<T>));
  return launch_shared("sppf_pool_kernel", sppf_pool_kernel<T, kLayout>, blocks_of(p, tiling), kThreads, shared_bytes,
                       stream, describe(p), tiling, p.x, p.out);
}

template <class T>
Status run_forward(const SppfPoolParams& p, Stream stream) {
  const int64_t halo = kSppfStages * (p.kernel / 2);
  const Tiling tiling = tile_planes(p, halo, kBufferWords, 2);
  if (p.kernel == kFastKernel && has_channel_vectors<T>(p, p.x) && has_channel_vectors<T>(p, as_source(p.out))) {
    constexpr int64_t kUnit = Unit<T, Layout::kChannels>::kPlanes;
    return run_forward<T, Layout::kChannels>(p, tile_planes(p, halo, kBufferWords / kUnit, 2), stream);
  }
  if (p.kernel == kFastKernel && has_pixel_vectors<T>(p, tiling)) {
    return run_forward<T, Layout::kPlanes>(p, tiling, stream);
  }
  return run_forward<T, Layout::kElements>(p, tiling, stream);
}

int64_t gradient_elements(int stages) { return kGradientBytes / (2 * static_cast<int64_t>(sizeof(float)) + stages); }

Tiling tile_gradients(const SppfPoolParams& p, int stages) {
  return tile_planes(p, 2 * stages * (p.kernel / 2), gradient_elements(stages), 1);
}

// Whether one launch does it: else the halos would cost more than the maps between three.
bool is_one_chain(const SppfPoolParams& p) {
  const int64_t capacity = gradient_elements(kSppfStages);
  if (p.height * p.width <= capacity) return true;
  if (!has_room(2 * kSppfStages * (p.kernel / 2), capacity)) return false;
  const Tiling tiling = tile_gradients(p, kSppfStages);
  return tiling.plane <= 2 * int64_t{tiling.tile_height} * tiling.tile_width;
}

Status run_chain(const SppfPoolParams& p, const Chain& chain, Stream stream) {
  Tiling tiling = tile_gradients(p, chain.stages);
  group_planes(p, p.channels, gradient_elements(chain.stages), 1, &tiling);
  const int64_t shared_bytes =
      int64_t{tiling.group} * tiling.plane * (2 * static_cast<int64_t>(sizeof(float)) + chain.stages);
  return dispatch_dtype<DType::kFloat32, DType::kFloat16, DType::kBFloat16>("x", p.dtype, [&](auto dtype) {
    return dispatch_int<kFastKernel>(p.kernel, [&](auto kernel) {
      return launch_shared("sppf_pool_backward_kernel", sppf_pool_backward_kernel<Element<dtype.value>, kernel.value>,
                           blocks_of(p, tiling), kThreads, shared_bytes, stream, describe(p), tiling, chain);
    });
  });
}

}  // namespace

int64_t sppf_pool_workspace_bytes(const SppfPoolParams&) { return 0; }

Status sppf_pool(const SppfPoolParams& p, Stream stream) {
  const Status status = check_sppf_pool(p);
  if (!status.ok()) return status;
  return dispatch_dtype<DType::kFloat32, DType::kFloat16, DType::kBFloat16>(
      "x", p.dtype, [&](auto dtype) { return is_empty(p) ? Status{} : run_forward<Element<dtype.value>>(p, stream); });
}

int64_t sppf_pool_backward_workspace_bytes(const SppfPoolParams& p) {
  if (is_empty(p) || is_one_chain(p)) return 0;
  return (1 + kSppfStages) * p.batch * p.channels * p.height * p.width * size_of(p.dtype);
}

Status sppf_pool_backward(const SppfPoolParams& p, Stream stream) {
  Status status = check_sppf_pool(p);
  if (status.ok()) status = check_workspace(p.workspace, p.workspace_bytes, sppf_pool_backward_workspace_bytes(p));
  if (!status.ok()) return status;
  if (is_empty(p)) return status;
  const auto grad_of = [&](int stage) { return from_channel(p, p.grad_out, stage * p.channels); };
  if (is_one_chain(p)) {
    return run_chain(p, {p.x, {grad_of(0), grad_of(1), grad_of(2), grad_of(3)}, p.grad_x, kSppfStages}, stream);
  }

  // The stages again, in workspace. The gradients of stages 2 and 1 take the places of 3 and 0, which no launch reads.
  const int64_t pixels = p.height * p.width;
  const MutableFeatureMap stages = {p.workspace, (1 + kSppfStages) * p.channels * pixels, pixels, p.width, 1};
  const auto stage_map = [&](int stage) { return from_channel(p, stages, stage * p.channels); };
  SppfPoolParams forward = p;
  forward.out = stages;
  status = sppf_pool(forward, stream);
  FeatureMap above = grad_of(kSppfStages);
  for (int stage = kSppfStages - 1; status.ok() && stage >= 0; --stage) {
    const FeatureMap y = stage == 0 ? p.x : as_source(stage_map(stage));
    const MutableFeatureMap grad_y = stage == 0 ? p.grad_x : stage_map(stage == 2 ? 3 : 0);
    status = run_chain(p, {y, {grad_of(stage), above}, grad_y, 1}, stream);
    above = as_source(grad_y);
  }
  return status;
}

}  // namespace fastyolo
