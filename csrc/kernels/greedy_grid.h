// SPDX-License-Identifier: Apache-2.0
// Greedy suppression for thousands of kept boxes: those of a group stand in the cells of a grid, by their centers, each
// cell with a chain of its own and the bounds of its boxes. A candidate scans its own cell, where most of what is
// suppressed ends, and then the cells whose bounds it overlaps: boxes that do not overlap do not suppress each other,
// so the answers are those of one chain.
#pragma once

#include <cmath>

#include "greedy.h"

namespace fastyolo {
namespace {

// Cells along each axis where `boxes` of a group may be kept, 0 where a grid is not worth its while. Their product is a
// multiple of kBlockBoxes, and at most a 64th of the boxes.
inline int64_t grid_side(int64_t boxes) {
  return std::min<int64_t>(static_cast<int64_t>(std::sqrt(static_cast<double>(boxes) / 64)) / 4 * 4, 32);
}

// Boxes as a whole: where their centers are, and how large they are.
template <class T>
class Spread {
 public:
  void add(const Box<T>& box) {
    const T x = center(box.x1, box.x2);
    const T y = center(box.y1, box.y2);
    if (!std::isfinite(x) || !std::isfinite(y)) return;
    ++count_;
    width_ += std::max(box.x2 - box.x1, T{0});
    height_ += std::max(box.y2 - box.y1, T{0});
    centers_ = {std::min(centers_.x1, x), std::min(centers_.y1, y), std::max(centers_.x2, x), std::max(centers_.y2, y)};
  }

  const Box<T>& centers() const { return centers_; }

  // Of a grid's cells, those that a box meets, about. 1 if all boxes are in one place.
  double share(int64_t side) const {
    return share(width_, centers_.x2 - centers_.x1, side) * share(height_, centers_.y2 - centers_.y1, side);
  }

  static T center(T a, T b) { return a / 2 + b / 2; }

 private:
  double share(double total, double range, int64_t side) const {
    return std::min(1.0, (2 * total / static_cast<double>(count_)) / range + 1.0 / static_cast<double>(side));
  }

  static constexpr T kInfinity = std::numeric_limits<T>::infinity();

  Box<T> centers_{kInfinity, kInfinity, -kInfinity, -kInfinity};
  double width_ = 0;
  double height_ = 0;
  int64_t count_ = 0;
};

// Beyond it the chains of the cells, each with a block that it does not fill, cost more than one list.
constexpr double kLargestShare = 0.25;

// The bounds of the boxes of as many cells.
template <class T>
struct alignas(64) CellBounds {
  T x1[kBlockBoxes], y1[kBlockBoxes], x2[kBlockBoxes], y2[kBlockBoxes];
};

template <class T>
class GridGreedy {
 public:
  // heads [groups * side * side], blocks [Greedy::max_blocks(...)], slots [groups * side * side], used [groups] and
  // bounds [groups * side * side / kBlockBoxes] are the caller's. `centers` bounds those of the boxes.
  GridGreedy(int32_t* heads, int64_t groups, KeptBlock<T>* blocks, T iou_bound, int64_t side, const Box<T>& centers,
             int32_t* slots, int32_t* used, CellBounds<T>* bounds)
      : greedy_(heads, groups * side * side, blocks, iou_bound),
        side_(side),
        x1_(centers.x1),
        y1_(centers.y1),
        cells_per_x_(scale(side, centers.x1, centers.x2)),
        cells_per_y_(scale(side, centers.y1, centers.y2)),
        slots_(slots),
        used_(used),
        bounds_(bounds) {
    std::fill_n(slots, groups * side * side, -1);
    std::fill_n(used, groups, 0);
    constexpr T kInfinity = std::numeric_limits<T>::infinity();
    for (int64_t i = 0; i < groups * side * side / kBlockBoxes; ++i) {
      std::fill_n(bounds[i].x1, 2 * kBlockBoxes, kInfinity);  // x1 and y1: nothing overlaps a cell without boxes
      std::fill_n(bounds[i].x2, 2 * kBlockBoxes, -kInfinity);
    }
  }

  int32_t num_blocks() const { return greedy_.num_blocks(); }

  // As Greedy's.
  bool is_suppressed(int32_t group, const Box<T>& box, int32_t since = 0) const {
    const int64_t base = group * side_ * side_;
    const int32_t own = slots_[base + cell_of(box)];
    if (own >= 0 && greedy_.is_suppressed(static_cast<int32_t>(base) + own, box, since)) return true;
    for (int32_t first = 0; first < used_[group]; first += kBlockBoxes) {
      const CellBounds<T>& cells = bounds_[(base + first) / kBlockBoxes];
      for (int i = 0; i < kBlockBoxes; i += kLanes<T>) {
        uint32_t overlap =
            greater(load<T>(cells.x2 + i), splat(box.x1)) & greater(splat(box.x2), load<T>(cells.x1 + i)) &
            greater(load<T>(cells.y2 + i), splat(box.y1)) & greater(splat(box.y2), load<T>(cells.y1 + i));
        for (; overlap; overlap &= overlap - 1) {
          const int32_t slot = first + i + __builtin_ctz(overlap);
          if (slot != own && greedy_.is_suppressed(static_cast<int32_t>(base) + slot, box, since)) return true;
        }
      }
    }
    return false;
  }

  void keep(int32_t group, const Box<T>& box) {
    const int64_t base = group * side_ * side_;
    int32_t& slot = slots_[base + cell_of(box)];
    if (slot < 0) slot = used_[group]++;
    CellBounds<T>& cells = bounds_[(base + slot) / kBlockBoxes];
    const int32_t i = slot % kBlockBoxes;
    // Coordinates that are NaN leave the bounds as they are: such a box suppresses nothing.
    if (box.x1 < cells.x1[i]) cells.x1[i] = box.x1;
    if (box.y1 < cells.y1[i]) cells.y1[i] = box.y1;
    if (box.x2 > cells.x2[i]) cells.x2[i] = box.x2;
    if (box.y2 > cells.y2[i]) cells.y2[i] = box.y2;
    greedy_.keep(static_cast<int32_t>(base) + slot, box);
  }

 private:
  static T scale(int64_t side, T first, T last) { return last > first ? static_cast<T>(side) / (last - first) : T{0}; }

  int64_t along(T distance, T cells_per_unit) const {
    const T cell = distance * cells_per_unit;
    return cell > 0 ? static_cast<int64_t>(std::min(cell, static_cast<T>(side_ - 1))) : 0;  // NaN: the first
  }

  int64_t cell_of(const Box<T>& box) const {
    return along(Spread<T>::center(box.y1, box.y2) - y1_, cells_per_y_) * side_ +
           along(Spread<T>::center(box.x1, box.x2) - x1_, cells_per_x_);
  }

  Greedy<T> greedy_;
  int64_t side_;
  T x1_, y1_, cells_per_x_, cells_per_y_;
  int32_t* slots_;  // of a cell in its group, -1 without boxes
  int32_t* used_;   // slots of a group
  CellBounds<T>* bounds_;
};

}  // namespace
}  // namespace fastyolo
