// SPDX-License-Identifier: Apache-2.0
// A thread computes one pixel of the input, three channels. The arithmetic is that of ultralytics' LetterBox over
// cv2.resize with INTER_LINEAR: pixel centres at halves, no smoothing before shrinking, whole values before the
// division by 255. OpenCV rounds its weights to 11 bits, so that a value may differ by 1 of 255.
#include "letterbox.h"

#include <algorithm>
#include <cmath>

namespace {

constexpr int kThreads = 256;
constexpr float kPadding = 114.f;

__global__ void __launch_bounds__(kThreads) letterbox_kernel(const uint8_t* image, const Letterbox box, float* tensor) {
  const int pixels = box.net_width * box.net_height;
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= pixels) return;
  const int column = i % box.net_width - box.left;
  const int row = i / box.net_width - box.top;
  const bool padding = column < 0 || column >= box.resized_width || row < 0 || row >= box.resized_height;

  const float x = (column + 0.5f) * box.width / box.resized_width - 0.5f;
  const float y = (row + 0.5f) * box.height / box.resized_height - 0.5f;
  const float x_floor = floorf(x);
  const float y_floor = floorf(y);
  const float right = x - x_floor;  // weights
  const float below = y - y_floor;
  const int x0 = max(static_cast<int>(x_floor), 0);
  const int y0 = max(static_cast<int>(y_floor), 0);
  const int x1 = min(static_cast<int>(x_floor) + 1, box.width - 1);
  const int y1 = min(static_cast<int>(y_floor) + 1, box.height - 1);
  for (int c = 0; c < 3; ++c) {
    float value = kPadding;
    if (!padding) {
      const auto at = [&](int h, int w) { return static_cast<float>(image[(int64_t{h} * box.width + w) * 3 + c]); };
      const float upper = (1.f - right) * at(y0, x0) + right * at(y0, x1);
      const float lower = (1.f - right) * at(y1, x0) + right * at(y1, x1);
      value = rintf((1.f - below) * upper + below * lower);
    }
    tensor[int64_t{c} * pixels + i] = value / 255.f;
  }
}

}  // namespace

Letterbox fit(int width, int height, int net_width, int net_height) {
  const double gain = std::min(static_cast<double>(net_height) / height, static_cast<double>(net_width) / width);
  const auto round = [](double value) { return static_cast<int>(std::nearbyint(value)); };  // halves to even: Python's
  Letterbox box = {};
  box.width = width;
  box.height = height;
  box.net_width = net_width;
  box.net_height = net_height;
  box.resized_width = std::max(round(width * gain), 1);
  box.resized_height = std::max(round(height * gain), 1);
  box.left = round((net_width - box.resized_width) / 2.0 - 0.1);
  box.top = round((net_height - box.resized_height) / 2.0 - 0.1);
  return box;
}

cudaError_t letterbox(const uint8_t* image, const Letterbox& box, float* tensor, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3((box.net_width * box.net_height + kThreads - 1) / kThreads);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  return cudaLaunchKernelEx(&config, letterbox_kernel, image, box, tensor);
}
