// SPDX-License-Identifier: Apache-2.0
// The model itself: each intrinsic against what CUDA's programming guide says of it.
#include "intrinsics.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr unsigned kLowLanes = 0x0000ffffu;

#define EXPECT(condition) \
  if (!(condition)) simt::fail("not true: " #condition)

// Blocks of 8 x 4 x 3 threads: three whole warps.
__global__ void warp_kernel() {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int lane = thread % 32;
  EXPECT(__shfl_sync(kAllLanes, lane, 5) == 5);
  EXPECT(__shfl_sync(kAllLanes, lane, 5, 8) == lane / 8 * 8 + 5);
  EXPECT(__shfl_up_sync(kAllLanes, lane, 3) == (lane < 3 ? lane : lane - 3));
  EXPECT(__shfl_up_sync(kAllLanes, lane, 3, 8) == (lane % 8 < 3 ? lane : lane - 3));
  EXPECT(__shfl_down_sync(kAllLanes, lane, 3) == (lane > 28 ? lane : lane + 3));
  EXPECT(__shfl_xor_sync(kAllLanes, uint64_t{1} << lane, 7) == uint64_t{1} << (lane ^ 7));
  EXPECT(__shfl_xor_sync(kAllLanes, lane, 8, 8) == (lane < 8 ? lane : lane ^ 8) || lane / 8 % 2 == 0);
  EXPECT(__ballot_sync(kAllLanes, lane % 2) == 0xaaaaaaaau);
  EXPECT(__any_sync(kAllLanes, lane == 31) && !__any_sync(kAllLanes, lane == 32));
  EXPECT(__all_sync(kAllLanes, lane < 32) && !__all_sync(kAllLanes, lane < 31));
  EXPECT(__reduce_add_sync(kAllLanes, lane) == 496);
  EXPECT(__reduce_min_sync(kAllLanes, lane - 7) == -7);
  EXPECT(__reduce_max_sync(kAllLanes, static_cast<unsigned>(lane)) == 31u);
  EXPECT(__reduce_and_sync(kAllLanes, ~(1u << lane)) == 0);
  EXPECT(__reduce_or_sync(kAllLanes, 1u << lane) == kAllLanes);
  EXPECT(__reduce_xor_sync(kAllLanes, static_cast<unsigned>(lane)) == 0);
  EXPECT(__match_any_sync(kAllLanes, lane / 8) == 0xffu << lane / 8 * 8);
  if (lane < 16) {
    EXPECT(__ballot_sync(kLowLanes, 1) == kLowLanes);
    __syncwarp(kLowLanes);
  } else {
    EXPECT(__ballot_sync(~kLowLanes, 1) == ~kLowLanes);
  }
  // Lanes that have returned are not waited for.
  if (lane < 30) return;
  EXPECT(__ballot_sync(kAllLanes, 1) == 0xc0000000u);
}

__global__ void block_kernel(unsigned* counters) {
  unsigned* shared = static_cast<unsigned*>(simt::dynamic_shared_memory());
  __shared__ bool is_last;
  const unsigned thread = threadIdx.x;
  const unsigned count = blockDim.x;
  shared[thread] = thread;
  EXPECT(__syncthreads_count(thread % 3 == 0) == static_cast<int>((count + 2) / 3));
  EXPECT(shared[count - 1 - thread] == count - 1 - thread);
  EXPECT(__syncthreads_and(thread < count) && !__syncthreads_and(thread != 0));
  EXPECT(__syncthreads_or(thread == 1) && !__syncthreads_or(false));
  // Lanes of a warp exchange through shared memory.
  shared[thread] = 2 * thread;
  __syncwarp();
  EXPECT(shared[thread ^ 1] == 2 * (thread ^ 1));
  // Blocks exchange through global memory: the last one to come sees what the others wrote.
  if (thread == 0) {
    counters[2 + blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z)] = 1;
    __threadfence();
    is_last = atomicAdd(&counters[0], 1u) == gridDim.x * gridDim.y * gridDim.z - 1;
  }
  __syncthreads();
  if (!is_last || thread != 0) return;
  unsigned sum = 0;
  for (unsigned b = 0; b < gridDim.x * gridDim.y * gridDim.z; ++b) sum += counters[2 + b];
  counters[1] = sum;
}

__global__ void atomic_kernel(unsigned* word, float* sum) {
  const unsigned lane = threadIdx.x;
  const auto next = [=](unsigned value) {
    __syncthreads();
    if (lane == 0) *word = value;
    __syncthreads();
  };
  const auto is = [=](unsigned value) {
    __syncthreads();
    return *word == value;
  };
  next(5), atomicAdd(word, lane);
  EXPECT(is(501));
  next(500), atomicSub(word, 2);
  EXPECT(is(436));
  next(5), atomicMin(word, lane);
  EXPECT(is(0));
  next(5), atomicMax(word, lane);
  EXPECT(is(31));
  next(kAllLanes), atomicAnd(word, ~(1u << lane));
  EXPECT(is(0));
  next(0), atomicOr(word, 1u << lane);
  EXPECT(is(kAllLanes));
  next(0), atomicXor(word, lane);
  EXPECT(is(0));
  next(0), atomicInc(word, 2);
  EXPECT(is(32 % 3));
  next(7), atomicExch(word, 9);
  EXPECT(is(9));
  next(7);
  const bool won = atomicCAS(word, 7, lane) == 7;
  EXPECT(__reduce_add_sync(kAllLanes, static_cast<int>(won)) == 1);
  atomicAdd(sum, 0.5f);
}

__global__ void arithmetic_kernel() {
  EXPECT(__popc(0xf0f0u) == 8 && __popcll(~0ull) == 64);
  EXPECT(__ffs(0) == 0 && __ffs(8) == 4 && __ffsll(1ll << 40) == 41);
  EXPECT(__clz(0) == 32 && __clz(1) == 31 && __clzll(1) == 63);
  EXPECT(__brev(1) == 0x80000000u);
  EXPECT(__float_as_uint(1.f) == 0x3f800000u && __uint_as_float(0x40000000u) == 2.f);
  EXPECT(__float_as_int(-0.f) == INT32_MIN && __int_as_float(0x3f000000) == 0.5f);
  // 1 + 2^-12 squared is 1 + 2^-11 + 2^-24: the product alone loses the last term, a fused addition keeps it.
  const float a = 1.f + 0x1p-12f;
  EXPECT(__fadd_rn(__fmul_rn(a, a), -1.f) == 0x1p-11f && __fmaf_rn(a, a, -1.f) == 0x1p-11f + 0x1p-24f);
  EXPECT(__fsub_rn(1.f, 0x1p-26f) == 1.f && __fdiv_rn(1.f, 3.f) == 1.f / 3.f && __frcp_rn(4.f) == 0.25f);
  EXPECT(__saturatef(2.f) == 1.f && __saturatef(NAN) == 0.f);
  EXPECT(min(NAN, 1.f) == 1.f && max(1u, 2u) == 2u);
  const __half2 halves = __hmax2_nan(__floats2half2_rn(-0.f, NAN), __floats2half2_rn(0.f, 1.f));
  EXPECT(__half_as_ushort(halves.x) == 0 && __half_as_ushort(halves.y) == 0x7fff);
  const __nv_bfloat162 brains = __hmax2_nan(__floats2bfloat162_rn(0.f, 2.f), __floats2bfloat162_rn(-0.f, -1.f));
  EXPECT(__bfloat16_as_ushort(brains.x) == 0 && __bfloat16_as_ushort(brains.y) == 0x4000);
}

template <class... P, class... A>
void run(cudaStream_t stream, dim3 grid, dim3 block, size_t shared_bytes, void (*kernel)(P...), A... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  EXPECT(cudaLaunchKernelEx(&config, kernel, arguments...) == cudaSuccess);
}

}  // namespace

void run_intrinsics() {
  cudaStream_t stream;
  cudaEvent_t event;
  EXPECT(cudaStreamCreate(&stream) == cudaSuccess && cudaEventCreate(&event) == cudaSuccess);
  int limit = 0;
  EXPECT(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0) == cudaSuccess);
  EXPECT(cudaFuncSetAttribute(block_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit + 1) != cudaSuccess);
  EXPECT(cudaGetLastError() == cudaErrorInvalidValue && cudaGetLastError() == cudaSuccess);
  EXPECT(cudaFuncSetAttribute(block_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit) == cudaSuccess);

  constexpr int kBlocks = 2 * 3 * 4;
  unsigned host[2 + kBlocks];
  unsigned* counters;
  EXPECT(cudaMalloc(&counters, sizeof(host)) == cudaSuccess);
  EXPECT(cudaMemsetAsync(counters, 0, sizeof(host), stream) == cudaSuccess);
  run(stream, dim3(2, 2, 2), dim3(8, 4, 3), 0, warp_kernel);
  run(stream, dim3(2, 3, 4), dim3(70), limit, block_kernel, counters);
  EXPECT(cudaEventRecord(event, stream) == cudaSuccess && cudaStreamWaitEvent(stream, event) == cudaSuccess);
  EXPECT(cudaMemcpyAsync(host, counters, sizeof(host), cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  EXPECT(cudaEventSynchronize(event) == cudaSuccess && cudaStreamSynchronize(stream) == cudaSuccess);
  EXPECT(host[1] == kBlocks);

  float sum = 0.f;
  float* device_sum = reinterpret_cast<float*>(counters + 1);
  EXPECT(cudaMemcpyAsync(device_sum, &sum, sizeof(sum), cudaMemcpyHostToDevice, stream) == cudaSuccess);
  run(stream, dim3(1), dim3(32), 0, atomic_kernel, counters, device_sum);
  EXPECT(cudaMemcpyAsync(&sum, device_sum, sizeof(sum), cudaMemcpyDeviceToHost, stream) == cudaSuccess);
  EXPECT(sum == 16.f);
  run(stream, dim3(1), dim3(1), 0, arithmetic_kernel);
  EXPECT(cudaFree(counters) == cudaSuccess && cudaFree(counters) != cudaSuccess);
  EXPECT(cudaGetLastError() == cudaErrorInvalidValue);
  EXPECT(cudaEventDestroy(event) == cudaSuccess && cudaStreamDestroy(stream) == cudaSuccess);
}

uint16_t half_bits(float value) { return __half_as_ushort(__float2half_rn(value)); }
uint16_t bfloat16_bits(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
float half_value(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
float bfloat16_value(uint16_t bits) { return __bfloat162float(__ushort_as_bfloat16(bits)); }
