// SPDX-License-Identifier: Apache-2.0
// The engine behind include/cuda_runtime.h: what the shadowed headers, the engine's parts (scheduler.cpp, memory.cpp,
// report.cpp) and the bindings see of each other. README.md explains the model.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct CUstream_st {};

// Plain variables, set at every switch of threads, so that a debugger's conditions can name them. The section tells the
// memory checker that they are not shared memory.
#define SIMT_BUILTIN __attribute__((section("simt_builtin")))
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace simt {

constexpr int kWarpSize = 32;
constexpr unsigned kMaxBlockThreads = 1024;

// The place of a call in a kernel. Threads meet at a barrier only if they come from the same place.
struct Site {
  const char* file;
  int line;
  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
  bool operator==(const Site& other) const { return line == other.line && file == other.file; }
};

// --- scheduler.cpp: launches

struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t dynamic_shared_bytes;
  const CUstream_st* stream;
  void (*run)(const void* arguments);  // one thread
  const void* arguments;
};

bool execute(const Launch& launch);  // every block to its end, one after the other; false if it ended with a report

// The order in which blocks, and the ready threads of a block, run: 0 ascending, 1 descending, else shuffled by it.
void set_order(unsigned seed);

// --- runtime.cpp: the device

struct Device {
  int multiprocessors = 4;
  int capability = 75;  // major * 10 + minor
  unsigned block_threads = kMaxBlockThreads;
  size_t shared_bytes = 48 << 10;
  size_t shared_bytes_optin = 64 << 10;
};
extern Device device;  // what launches are held to; at first the smallest architecture that is supported

// Makes the launch after the next `count` fail, as for want of resources; -1: none.
void fail_launch_after(int count);

// Reports the error of a launch that nobody has looked at. Called before whatever follows on the stream, and by the
// bindings when an entry returns success.
void check_launch_error();

// --- scheduler.cpp: what the intrinsics are made of

// Waits until every thread of the block has come to the same place; how many came with a true predicate.
int block_barrier(bool predicate, Site site);

// Waits until every live lane of `mask` has come to the same place with the same mask, and exchanges one value each.
struct WarpValues {
  uint32_t present = 0;  // the lanes that took part
  uint64_t of[kWarpSize] = {0};
};
WarpValues warp_exchange(const char* intrinsic, uint32_t mask, uint64_t value, bool orders_memory, Site site);

int lane_id();
void yield();  // lets the other ready threads run

// --- memory.cpp

void* allocate(size_t bytes);  // device memory between guard zones, contents undefined
bool release(void* address);   // false if nothing was allocated there
// What cudaMemcpy and cudaMemset do; false after a report.
bool copy(void* to, const void* from, size_t bytes);
bool fill(void* to, int value, size_t bytes);

void* dynamic_shared_memory();
void thread_fence();
void before_atomic(void* address, size_t bytes);  // a scheduling point, then the checks of an access
// Before a load through the read-only cache, which need not see what the same launch has written.
void before_read_only(const void* address, size_t bytes);

// --- report.cpp

// Each says what is wrong and names the kernel, the block and thread where there is one, and the source lines.
void fail(const std::string& what);  // in the current thread, whose launch ends: no return; or in host code
void fail_waiting(const std::string& what, const std::string& where);  // in the waiting thread that threadIdx names
void fail_launch(const void* kernel, const std::string& what);
std::string take_report();  // the first report since the last call, or nothing

// --- between the engine's parts

// A thread's place in the order of its block: accesses before a barrier come before those after it, and accesses
// before a __syncwarp before those after it of the lanes it named.
struct Thread {
  unsigned id = 0;                 // in the block
  uint32_t clock = 1;              // counts this thread's __syncwarp since the last barrier
  uint32_t seen[kWarpSize] = {0};  // per lane of its warp: that lane's accesses up to this clock come before ours
  bool fenced = false;             // it has executed __threadfence
  bool acquired = false;           // it has executed an atomic: what was published is visible to it
};
extern Thread* current;  // null outside of kernels

void abort_launch();  // leaves the current thread for good
const void* running_kernel();
void begin_memory_of_launch(size_t blocks);
void begin_memory_of_block(size_t dynamic_shared_bytes);
void order_memory_of_block();
bool in_thread_stack(const void* address);

}  // namespace simt
