// SPDX-License-Identifier: Apache-2.0
// The three chained max pools of SPPF on the CPU. A tile, one plane or for channels_last one vector of channels, is
// read once and stays in the first- or second-level cache through all stages; every stage is written once, straight
// into the concatenation. (Forward in channels_last goes by whole pixels, sppf_pool_channels_last.cpp, but in float64.)
// A window's maximum is separable: first along rows, then along columns. Rows are kept apart by a gap of -inf half a
// window wide, the right padding of one row and the left padding of the next, so that the tile is a single run of
// elements to the pass along rows and narrow planes fill vectors. Forward, the maxima of a stage cover each other: of a
// window of maxima the first, the middle and the last row and column tell the maximum of all.
//
// Backward runs the stages again and keeps which neighbour won: the leftmost column of each row's window, then the
// topmost row, which together are the first maximum in row-major order. The gradient goes back the same two steps, and
// each element collects from the windows that chose it, so nothing is scattered. A NaN beats what was chosen before it,
// which makes the last one win, as in torch.
#include <algorithm>

#include "dispatch.h"
#include "planes.h"
#include "sppf_pool_channels_last.h"
#include "sppf_pool_maximum.h"
#include "sppf_pool_workspace.h"

namespace fastyolo {
namespace FASTYOLO_ISA {
namespace {

// Cells of a tile: one element, or one vector of neighbouring channels.
struct Tile {
  int64_t height;
  int64_t width;
  int64_t radius;  // of the window
  int64_t cell;

  int64_t gap() const { return radius * cell; }
  int64_t row() const { return width * cell; }
  int64_t pitch() const { return row() + gap(); }
  int64_t size() const { return height * pitch(); }
};

template <class C>
void fill_gaps(const Tile& tile, C* data, C value) {
  for (int64_t i = 0; i <= tile.height; ++i) {
    C* gap = data + i * tile.pitch() - tile.gap();
    for (int64_t j = 0; j < tile.gap(); ++j) gap[j] = value;
  }
}

// window_max, and the j that won, plus `skipped`, in choice[i].
template <int Count, bool Special, class C>
void window_choice(const C* in, int64_t stride, int64_t count, int64_t skipped, C* out, C* choice, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes<C>) {
    Vec<C> best = load<C>(in + i);
    Vec<C> chosen = splat(static_cast<C>(skipped));
    for (int64_t j = 1; j < (Count > 0 ? Count : count); ++j) {
      const Vec<C> next = load<C>(in + i + j * stride);
      const auto wins = beats<Special, C>(next, best);
      best = wins ? next : best;
      chosen = wins ? splat(static_cast<C>(skipped + j)) : chosen;
    }
    store(out + i, best);
    store(choice + i, chosen);
  }
}

// Along rows with NaN or -inf, which ties with the padding: windows are clipped instead.
template <class C>
void clipped_row_choice(const Tile& tile, const C* in, C* out, C* choice) {
  for (int64_t y = 0; y < tile.height; ++y) {
    for (int64_t i = 0; i < tile.row(); ++i) {
      const int64_t x = i / tile.cell;
      const C* center = in + y * tile.pitch() + i;
      const int64_t last = std::min(tile.radius, tile.width - 1 - x);
      int64_t chosen = -std::min(tile.radius, x);
      for (int64_t j = chosen + 1; j <= last; ++j) {
        const C next = center[j * tile.cell];
        if (next > center[chosen * tile.cell] || next != next) chosen = j;
      }
      out[y * tile.pitch() + i] = center[chosen * tile.cell];
      choice[y * tile.pitch() + i] = static_cast<C>(chosen + tile.radius);
    }
  }
}

// out[i] (+)= the sum of grad[i + j * stride] over those j < count whose window chose i: those with choice `top` - j.
template <int Count, bool Add, class C>
void collect(const C* grad, const C* choice, int64_t stride, int64_t count, int64_t top, C* out, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes<C>) {
    Vec<C> sum{};
    if constexpr (Add) sum = load<C>(out + i);
    for (int64_t j = 0; j < (Count > 0 ? Count : count); ++j) {
      const Vec<C> term = load<C>(grad + i + j * stride);
      sum += load<C>(choice + i + j * stride) == splat(static_cast<C>(top - j)) ? term : Vec<C>{};
    }
    store(out + i, sum);
  }
}

// Calls f(rows, integral_constant) for each row of the tile: the count of a window's rows is Kernel but at the edges.
template <int Kernel, class F>
void for_each_row(const Tile& tile, F&& f) {
  for (int64_t y = 0; y < tile.height; ++y) {
    const WindowRows rows(y, tile.height, tile.radius);
    if (rows.count == Kernel) {
      f(y, rows, std::integral_constant<int, Kernel>{});
    } else {
      f(y, rows, std::integral_constant<int, 0>{});
    }
  }
}

// window_max for windows around each of `count` vectors that are `stride` apart, clipped to them. The window slides
// through registers, so that each vector is loaded once. Of each window every Step-th vector counts.
template <int Kernel, int Step, bool Special, class C, class Store>
void sliding_max(const C* in, int64_t stride, int64_t count, const Store& store_at) {
  constexpr int kRadius = Kernel / 2;
  Vec<C> window[Kernel];
  for (Vec<C>& v : window) v = splat(-kInfinity<C>);
  const auto push = [&](Vec<C> next) {
    for (int j = 1; j < Kernel; ++j) window[j - 1] = window[j];
    window[Kernel - 1] = next;
  };
  const auto store_max = [&](int64_t i) {
    Vec<C> best = window[0];
    for (int j = Step; j < Kernel; j += Step) best = larger<Special, C>(window[j], best);
    store_at(i * stride, best);
  };
  const int64_t ahead = std::min<int64_t>(kRadius, count);
  for (int64_t i = 0; i < ahead; ++i) push(load<C>(in + i * stride));
  for (int64_t i = ahead; i < kRadius; ++i) push(splat(-kInfinity<C>));
  for (int64_t i = 0; i < count - kRadius; ++i) {
    push(load<C>(in + (i + kRadius) * stride));
    store_max(i);
  }
  for (int64_t i = std::max<int64_t>(0, count - kRadius); i < count; ++i) {
    push(splat(-kInfinity<C>));
    store_max(i);
  }
}

// stage = the maxima of its windows; `row_max` is scratch. The window that is known when this is compiled slides. With
// Chained the stage holds such maxima already, so that three of a window's rows and columns tell its maximum.
template <int Kernel, bool Special, bool Chained, class C>
void pool(const Tile& tile, C* stage, C* row_max) {
  const int64_t step = window_step(tile.radius, Chained);
  const int64_t taps = 2 * tile.radius / step + 1;
  if constexpr (Kernel > 0) {
    constexpr int kStep = window_step(Kernel / 2, Chained);
    if (tile.cell == kLanes<C>) {
      for (int64_t y = 0; y < tile.height; ++y) {
        C* const out = row_max + y * tile.pitch();
        sliding_max<Kernel, kStep, Special>(stage + y * tile.pitch(), tile.cell, tile.width,
                                            [&](int64_t at, Vec<C> v) { store(out + at, v); });
      }
    } else {
      constexpr int kTaps = Kernel / 2 * 2 / kStep + 1;
      window_max<kTaps, Special>(stage - tile.gap(), step * tile.cell, taps, row_max, tile.size());
    }
    // From right to left: the last vectors of a row reach across the gap into the next row, which is then written over.
    const Vec<C> padding = splat(-kInfinity<C>);
    int64_t i = (tile.pitch() - 1) / kLanes<C> * kLanes<C>;
    for (; i > tile.row() - kLanes<C>; i -= kLanes<C>) {
      C* const out = stage + i;
      const int64_t inside = std::max(tile.row() - i, int64_t{0});
      sliding_max<Kernel, kStep, Special>(row_max + i, tile.pitch(), tile.height,
                                          [&](int64_t at, Vec<C> v) { store(out + at, join<C>(v, padding, inside)); });
    }
    for (; i >= 0; i -= kLanes<C>) {
      C* const out = stage + i;
      sliding_max<Kernel, kStep, Special>(row_max + i, tile.pitch(), tile.height,
                                          [&](int64_t at, Vec<C> v) { store(out + at, v); });
    }
  } else {
    window_max<0, Special>(stage - tile.gap(), step * tile.cell, taps, row_max, tile.size());
    for (int64_t y = 0; y < tile.height; ++y) {
      const WindowRows rows(y, tile.height, tile.radius, step);
      window_max<0, Special>(row_max + rows.first * tile.pitch(), step * tile.pitch(), rows.count,
                             stage + y * tile.pitch(), tile.row());
    }
    fill_gaps(tile, stage, -kInfinity<C>);
  }
}

// The same, with the choices along rows and along columns.
template <int Kernel, bool Special, class C>
void pool_and_choose(const Tile& tile, C* stage, C* row_max, C* columns, C* rows_chosen) {
  if constexpr (Special) {
    clipped_row_choice(tile, stage, row_max, columns);
  } else {
    window_choice<Kernel, false>(stage - tile.gap(), tile.cell, 2 * tile.radius + 1, 0, row_max, columns, tile.size());
  }
  for_each_row<Kernel>(tile, [&](int64_t y, const WindowRows& rows, auto count) {
    window_choice<count.value, Special>(row_max + rows.first * tile.pitch(), tile.pitch(), rows.count, rows.skipped,
                                        stage + y * tile.pitch(), rows_chosen + y * tile.pitch(), tile.row());
  });
  fill_gaps(tile, stage, -kInfinity<C>);
}

// Takes the gradient of a stage's rows back to its row maxima.
template <int Kernel, class C>
void collect_rows(const Tile& tile, const C* grad, const C* rows_chosen, C* row_grad) {
  for_each_row<Kernel>(tile, [&](int64_t y, const WindowRows& rows, auto count) {
    const int64_t from = rows.first * tile.pitch();
    collect<count.value, false>(grad + from, rows_chosen + from, tile.pitch(), rows.count,
                                2 * tile.radius - rows.skipped, row_grad + y * tile.pitch(), tile.row());
  });
  fill_gaps(tile, row_grad, C{0});
}

// Reads x into a tile with its padding; true if it has NaN or -inf.
template <class T, class C>
bool load_tile(const Tile& tile, const Planes<const T>& x, C* stage) {
  std::fill(stage - tile.gap(), stage + tile.size() + kLanes<C>, -kInfinity<C>);
  bool special = false;
  load_rows(x, 0, tile.height, tile.width, tile.cell, stage, tile.pitch(),
            [&](Vec<C> v) { special |= !is_ordinary<C>(v); });
  return special;
}

template <int Kernel, class T>
void forward_tile(const SppfPoolParams& p, const Tile& tile, int64_t image, int64_t channel, int64_t channels,
                  bool streamed, Compute<T>* stage, Compute<T>* row_max) {
  const auto store_stage = [&](int64_t i) {
    store_rows(stage, tile.pitch(), 0, tile.height, tile.width, tile.cell,
               planes_of<T>(p.out, image, i * p.channels + channel, channels, streamed));
  };
  const Planes<const T> x = planes_of<T>(p.x, image, channel, channels);
  copy_rows(x, planes_of<T>(p.out, image, channel, channels, streamed), 0, tile.height, tile.width);
  const auto pool_all = [&](auto special) {
    pool<Kernel, special.value, false>(tile, stage, row_max);
    store_stage(1);
    for (int i = 2; i <= kSppfStages; ++i) {
      pool<Kernel, special.value, true>(tile, stage, row_max);
      store_stage(i);
    }
  };
  if (load_tile(tile, x, stage)) {
    pool_all(std::true_type{});
  } else {
    pool_all(std::false_type{});
  }
}

template <int Kernel, class T>
void backward_tile(const SppfPoolParams& p, const Tile& tile, int64_t image, int64_t channel, int64_t channels,
                   bool streamed, Compute<T>* stage, Compute<T>* scratch,
                   Compute<T>* const (&choices)[kSppfStages][2]) {
  const bool special = load_tile(tile, planes_of<T>(p.x, image, channel, channels), stage);
  for (int i = 0; i < kSppfStages; ++i) {
    if (special) {
      pool_and_choose<Kernel, true>(tile, stage, scratch, choices[i][0], choices[i][1]);
    } else {
      pool_and_choose<Kernel, false>(tile, stage, scratch, choices[i][0], choices[i][1]);
    }
  }

  Compute<T>* const grad = stage;
  const auto load_grad = [&](int64_t i) {
    load_rows(planes_of<T>(p.grad_out, image, i * p.channels + channel, channels), 0, tile.height, tile.width,
              tile.cell, grad, tile.pitch());
  };
  load_grad(kSppfStages);
  for (int i = kSppfStages - 1; i >= 0; --i) {
    collect_rows<Kernel>(tile, grad, choices[i][1], scratch);
    load_grad(i);
    collect<Kernel, true>(scratch - tile.gap(), choices[i][0] - tile.gap(), tile.cell, 2 * tile.radius + 1,
                          2 * tile.radius, grad, tile.size());
  }
  store_rows(grad, tile.pitch(), 0, tile.height, tile.width, tile.cell,
             planes_of<T>(p.grad_x, image, channel, channels, streamed));
}

template <bool Backward>
Status run(const SppfPoolParams& p, const ParallelFor& parallel_for) {
  if (p.batch * p.channels * p.height * p.width == 0) return Status{};
  return dispatch_dtype<DType::kFloat32, DType::kBFloat16, DType::kFloat64>("x", p.dtype, [&](auto dtype) {
    using T = Element<dtype.value>;
    using C = Compute<T>;
    return dispatch_int<5>(p.kernel, [&](auto kernel) {
      const int64_t cell = is_channels_last(p.x, p.channels, kLanes<C>) ? kLanes<C> : 1;
      const Tile tile{p.height, p.width, p.kernel / 2, cell};
      const int64_t tiles = ceil_div(p.channels, cell);  // per image
      const SppfPoolWorkspace sizes(p, Backward, parallel_for.num_threads());
      const Status status = check_workspace(p.workspace, p.workspace_bytes, sizes.bytes);
      if (!status.ok()) return status;
      const bool streamed = is_streamed(p, Backward ? 1 : 1 + kSppfStages, parallel_for.num_threads());
      parallel_for(sizes.regions, 1, [&](int64_t begin, int64_t end) {
        for (int64_t region = begin; region < end; ++region) {
          const auto buffer = [&](int64_t i) {
            char* memory = static_cast<char*>(p.workspace) + (region * sizes.buffers + i) * sizes.buffer_bytes;
            return reinterpret_cast<C*>(memory) + tile.gap();
          };
          const int64_t last = (region + 1) * p.batch * tiles / sizes.regions;
          for (int64_t i = region * p.batch * tiles / sizes.regions; i < last; ++i) {
            const int64_t image = i / tiles;
            const int64_t channel = i % tiles * cell;
            const int64_t channels = std::min(cell, p.channels - channel);
            if constexpr (Backward) {
              C* const choices[kSppfStages][2] = {
                  {buffer(2), buffer(3)}, {buffer(4), buffer(5)}, {buffer(6), buffer(7)}};
              backward_tile<kernel.value, T>(p, tile, image, channel, channels, streamed, buffer(0), buffer(1),
                                             choices);
            } else {
              forward_tile<kernel.value, T>(p, tile, image, channel, channels, streamed, buffer(0), buffer(1));
            }
          }
        }
        fence_streams();
      });
      return Status{};
    });
  });
}

}  // namespace

Status sppf_pool_cpu(const SppfPoolParams& params, const ParallelFor& parallel_for) {
  return goes_by_pixels(params) ? sppf_pool_pixels(params, parallel_for) : run<false>(params, parallel_for);
}

Status sppf_pool_backward_cpu(const SppfPoolParams& params, const ParallelFor& parallel_for) {
  return run<true>(params, parallel_for);
}

}  // namespace FASTYOLO_ISA
}  // namespace fastyolo
