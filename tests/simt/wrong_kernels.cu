// SPDX-License-Identifier: Apache-2.0
#include "wrong_kernels.h"

#include <cuda_runtime.h>

#include <map>
#include <stdexcept>

namespace {

constexpr int kThreads = 64;
constexpr unsigned kAllLanes = 0xffffffffu;

// The sum of `in` in shared memory, as it should be.
__global__ void correct_kernel(const float* in, float* out) {
  __shared__ float sums[kThreads];
  const int i = threadIdx.x;
  sums[i] = in[i];
  for (int step = kThreads / 2; step > 0; step /= 2) {
    __syncthreads();
    if (i < step) sums[i] += sums[i + step];
  }
  if (i == 0) *out = sums[0];
}

__global__ void global_read_out_of_bounds_kernel(const float* in, float* out) {
  const int i = threadIdx.x;
  const float right = in[i + 1];  // wrong
  if (i == kThreads - 1) *out = right;
}

__global__ void global_write_out_of_bounds_kernel(const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];  // wrong
}

__global__ void shared_read_out_of_bounds_kernel(const float* in, float* out) {
  __shared__ float values[kThreads];
  const int i = threadIdx.x;
  values[i] = in[i];
  __syncthreads();
  const float right = values[i + 1];  // wrong
  if (i == kThreads - 1) *out = right;
}

__global__ void shared_write_out_of_bounds_kernel(const float* in, float* out) {
  __shared__ float values[kThreads];
  const int i = threadIdx.x;
  values[i + 1] = in[i];  // wrong
  __syncthreads();
  if (i == 1) *out = values[i];
}

// Where the compiler does not know the array's size.
__global__ void shared_pointer_out_of_bounds_kernel(const float* in, float* out) {
  __shared__ float values[kThreads];
  __shared__ float* pointer;
  const int i = threadIdx.x;
  if (i == 0) pointer = values + static_cast<int>(in[1]);
  __syncthreads();
  pointer[i] = in[i];  // wrong
  __syncthreads();
  if (i == 1) *out = values[i];
}

__global__ void dynamic_shared_out_of_bounds_kernel(const float* in, float* out) {
  float* values = static_cast<float*>(simt::dynamic_shared_memory());
  const int i = threadIdx.x;
  values[i + 1] = in[i];  // wrong
  __syncthreads();
  if (i == 1) *out = values[i];
}

__global__ void read_only_load_of_a_result_kernel(const float* in, float* out) {
  if (threadIdx.x == 0) *out = in[0];
  __syncthreads();
  if (threadIdx.x == 1) {
    const float result = __ldg(out);  // wrong
    *out = result + 1;
  }
}

__global__ void divergent_barrier_kernel(const float* in, float* out) {
  const int i = threadIdx.x;
  if (i == kThreads / 2) return;
  __syncthreads();  // wrong
  if (i == 0) *out = in[0];
}

__global__ void barrier_in_branch_kernel(const float* in, float* out) {
  if (threadIdx.x % 2) {
    __syncthreads();  // wrong
  } else {
    __syncthreads();
    if (threadIdx.x == 0) *out = in[0];
  }
}

__global__ void shuffle_from_absent_lane_kernel(const float* in, float* out) {
  const int i = threadIdx.x;
  if (i >= 16) return;
  const float value = __shfl_sync(0x0000ffffu, in[i], 20);  // wrong
  if (i == 0) *out = value;
}

__global__ void shuffle_that_lanes_miss_kernel(const float* in, float* out) {
  const int i = threadIdx.x;
  float value = in[i];
  if (i % 32 < 16) value += __shfl_xor_sync(kAllLanes, value, 1);  // wrong
  __syncwarp();
  if (i == 0) *out = value;
}

__global__ void missing_barrier_kernel(const float* in, float* out) {
  __shared__ float values[kThreads];
  const int i = threadIdx.x;
  values[i] = in[i];
  const float other = values[kThreads - 1 - i];  // wrong
  if (i == 0) *out = other;
}

__global__ void missing_barrier_before_write_kernel(const float* in, float* out) {
  __shared__ float value;
  const int i = threadIdx.x;
  if (i == 0) value = in[0];
  __syncthreads();
  const float first = value;
  if (i == 1) value = in[i];  // wrong
  __syncthreads();
  if (i == 2) *out = first + value;
}

// A shuffle makes lanes meet, but does not make their writes visible.
__global__ void missing_syncwarp_kernel(const float* in, float* out) {
  __shared__ float values[kThreads];
  const int i = threadIdx.x;
  values[i] = in[i];
  const float first = __shfl_sync(kAllLanes, in[i], 0);
  const float other = values[i ^ 1];  // wrong
  if (i == 0) *out = first + other;
}

__global__ void race_between_blocks_kernel(const float* in, float* out) {
  if (threadIdx.x == 0) *out = in[blockIdx.x];  // wrong
}

// The last block to arrive reads what the others wrote, but thread 0 announces it before thread 1 has written.
__global__ void missing_barrier_before_arrival_kernel(const float* in, float* out) {
  float* values = const_cast<float*>(in);  // [0] counts the blocks
  __shared__ bool is_last;
  const int i = threadIdx.x;
  if (i == 1) values[1 + blockIdx.x] = 1.f;
  if (i == 0) {
    __threadfence();
    is_last = atomicAdd(reinterpret_cast<unsigned*>(values), 1u) == 1;
  }
  __syncthreads();
  if (i == 0 && is_last) *out = values[1] + values[2];  // wrong
}

__global__ void shared_never_written_kernel(const float* in, float* out) {
  __shared__ float values[kThreads];
  const int i = threadIdx.x;
  if (i % 2) values[i] = in[i];
  __syncthreads();
  const float value = values[i];  // wrong
  if (i == 0) *out = value;
}

// Another block's shared memory is not this one's.
__global__ void shared_left_by_another_block_kernel(const float* in, float* out) {
  __shared__ float value;
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) value = in[0];
  if (blockIdx.x == 1) *out = value;  // wrong
}

__global__ void global_never_written_kernel(const float* in, float* out) {
  if (threadIdx.x == 0) *out += in[0];  // wrong
}

__global__ void unaligned_vector_kernel(const float* in, float* out) {
  __shared__ float4 quad;
  if (threadIdx.x != 0) return;
  quad = *reinterpret_cast<const float4*>(in + 1);  // wrong
  *out = quad.x + quad.y + quad.z + quad.w;
}

__global__ void first_element_kernel(const float* in, float* out) {
  if (threadIdx.x == 0) *out = in[0];  // wrong
}

struct Case {
  void (*kernel)(const float*, float*);
  int blocks = 1;
  int threads = kThreads;
  size_t dynamic_shared_bytes = 0;
};

const std::map<std::string, Case> kCases = {
    {"correct", {correct_kernel}},
    {"global_read_out_of_bounds", {global_read_out_of_bounds_kernel}},
    {"global_write_out_of_bounds", {global_write_out_of_bounds_kernel}},
    {"shared_read_out_of_bounds", {shared_read_out_of_bounds_kernel}},
    {"shared_write_out_of_bounds", {shared_write_out_of_bounds_kernel}},
    {"shared_pointer_out_of_bounds", {shared_pointer_out_of_bounds_kernel}},
    {"dynamic_shared_out_of_bounds", {dynamic_shared_out_of_bounds_kernel, 1, kThreads, kThreads * sizeof(float)}},
    {"read_only_load_of_a_result", {read_only_load_of_a_result_kernel}},
    {"divergent_barrier", {divergent_barrier_kernel}},
    {"barrier_in_branch", {barrier_in_branch_kernel}},
    {"shuffle_from_absent_lane", {shuffle_from_absent_lane_kernel}},
    {"shuffle_that_lanes_miss", {shuffle_that_lanes_miss_kernel}},
    {"missing_barrier", {missing_barrier_kernel}},
    {"missing_barrier_before_write", {missing_barrier_before_write_kernel}},
    {"missing_syncwarp", {missing_syncwarp_kernel}},
    {"race_between_blocks", {race_between_blocks_kernel, 2}},
    {"missing_barrier_before_arrival", {missing_barrier_before_arrival_kernel, 2}},
    {"shared_never_written", {shared_never_written_kernel}},
    {"shared_left_by_another_block", {shared_left_by_another_block_kernel, 2}},
    {"global_never_written", {global_never_written_kernel}},
    {"unaligned_vector", {unaligned_vector_kernel}},
    {"host_memory", {first_element_kernel}},
    {"too_many_threads", {first_element_kernel, 1, 2048}},
    {"too_much_shared_memory", {first_element_kernel, 1, kThreads, 1 << 20}},
    {"unchecked_launch_error", {first_element_kernel}},
    {"unordered_streams", {first_element_kernel}},
};

cudaError_t run(const Case& what, const float* in, float* out, cudaStream_t stream = nullptr) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(what.blocks);
  config.blockDim = dim3(what.threads);
  config.dynamicSmemBytes = what.dynamic_shared_bytes;
  config.stream = stream;
  return cudaLaunchKernelEx(&config, what.kernel, in, out);
}

}  // namespace

float run_wrong_kernel(const std::string& name) {
  const auto found = kCases.find(name);
  if (found == kCases.end()) throw std::invalid_argument("no kernel is called " + name);
  float host[kThreads];
  for (int i = 0; i < kThreads; ++i) host[i] = static_cast<float>(i);
  float* in = nullptr;
  float* out = nullptr;
  if (cudaMalloc(&in, sizeof(host)) || cudaMalloc(&out, sizeof(float)) ||
      cudaMemcpyAsync(in, host, sizeof(host), cudaMemcpyHostToDevice)) {
    throw std::bad_alloc();
  }
  if (name == "unchecked_launch_error") {
    simt::fail_launch_after(0);
    (void)run(found->second, in, out);
  }
  cudaStream_t stream = nullptr;  // the copy's, unless it is the mistake
  if (name == "unordered_streams" && cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking)) throw std::bad_alloc();
  float result = 0.f;
  cudaError_t error = run(found->second, name == "host_memory" ? host : in, out, stream);
  if (error == cudaSuccess) error = cudaMemcpyAsync(&result, out, sizeof(result), cudaMemcpyDeviceToHost);
  if (cudaFree(in) || cudaFree(out)) throw std::runtime_error("cudaFree failed");
  return result;
}
