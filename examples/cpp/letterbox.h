// SPDX-License-Identifier: Apache-2.0
// From a photograph to the network's input, on the GPU.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

// Where the image lies in the network's input: scaled to `resized_width` x `resized_height` pixels, centred. The sides
// are rounded, so what is found in x lies at width / resized_width of its place, in y at height / resized_height.
struct Letterbox {
  int width, height;          // of the image
  int net_width, net_height;  // of the network's input
  int resized_width, resized_height;
  int left, top;
};

Letterbox fit(int width, int height, int net_width, int net_height);

// image [height, width, 3] RGB bytes -> tensor [1, 3, net_height, net_width] float32 in [0, 1], both on the GPU. Images
// of OpenCV are BGR: the kernel would read channel 2 - c of them.
cudaError_t letterbox(const uint8_t* image, const Letterbox& box, float* tensor, cudaStream_t stream);
