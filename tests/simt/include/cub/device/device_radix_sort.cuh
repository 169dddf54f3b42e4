// SPDX-License-Identifier: Apache-2.0
// Stands in for CUB's header of this name: what csrc/kernels/cub.cuh calls, on the host.
#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include <cuda_runtime.h>

namespace cub {

struct DeviceRadixSort {
  template <class Key, class Value>
  static cudaError_t SortPairsDescending(void* scratch, size_t& bytes, const Key* keys_in, Key* keys_out,
                                         const Value* values_in, Value* values_out, int count, int begin_bit,
                                         int end_bit, cudaStream_t stream) {
    if (!scratch) {
      bytes = 1 + count * sizeof(Key);
      return cudaSuccess;
    }
    std::vector<Key> keys(count);
    std::vector<Value> values(count);
    for (cudaError_t error :
         {cudaMemsetAsync(scratch, 0, bytes, stream),  // all of it must be there
          cudaMemcpyAsync(keys.data(), keys_in, count * sizeof(Key), cudaMemcpyDefault, stream),
          cudaMemcpyAsync(values.data(), values_in, count * sizeof(Value), cudaMemcpyDefault, stream)}) {
      if (error != cudaSuccess) return error;
    }
    const auto digits = [=](Key key) {
      return (key >> begin_bit) & (Key(~Key{0}) >> (8 * sizeof(Key) - (end_bit - begin_bit)));
    };
    std::vector<int> order(count);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return digits(keys[a]) > digits(keys[b]); });
    std::vector<Key> sorted_keys;
    std::vector<Value> sorted_values;
    for (int i : order) {
      sorted_keys.push_back(keys[i]);
      sorted_values.push_back(values[i]);
    }
    const cudaError_t error =
        cudaMemcpyAsync(keys_out, sorted_keys.data(), count * sizeof(Key), cudaMemcpyDefault, stream);
    if (error != cudaSuccess) return error;
    return cudaMemcpyAsync(values_out, sorted_values.data(), count * sizeof(Value), cudaMemcpyDefault, stream);
  }
};

}  // namespace cub
