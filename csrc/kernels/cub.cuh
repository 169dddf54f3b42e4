// SPDX-License-Identifier: Apache-2.0
// Device-wide algorithms, from CUB. This is the only file that includes it.
#pragma once

#include <cub/device/device_radix_sort.cuh>

#include "common.cuh"

namespace fastyolo {
namespace {

inline cudaError_t radix_sort(void* scratch, size_t& bytes, const uint32_t* keys_in, uint32_t* keys_out,
                              const uint32_t* values_in, uint32_t* values_out, int64_t count, Stream stream) {
  return cub::DeviceRadixSort::SortPairsDescending(scratch, bytes, keys_in, keys_out, values_in, values_out,
                                                   static_cast<int>(count), 0, 32, stream);
}

// Bytes of scratch that sort_descending needs on the current device; 0 without a device, where the sort fails anyway.
inline int64_t sort_scratch_bytes(int64_t count) {
  size_t bytes = 0;
  const cudaError_t error = radix_sort(nullptr, bytes, nullptr, nullptr, nullptr, nullptr, count, nullptr);
  return error == cudaSuccess ? static_cast<int64_t>(bytes) : 0;
}

// Sorts pairs by descending key; equal keys keep their order.
inline Status sort_descending(void* scratch, int64_t scratch_bytes, const uint32_t* keys_in, uint32_t* keys_out,
                              const uint32_t* values_in, uint32_t* values_out, int64_t count, Stream stream) {
  (void)cudaGetLastError();  // CUB reports what it finds, also an error that the caller has dealt with but not cleared
  auto bytes = static_cast<size_t>(scratch_bytes);
  return check_cuda(radix_sort(scratch, bytes, keys_in, keys_out, values_in, values_out, count, stream), "radix sort");
}

}  // namespace
}  // namespace fastyolo
