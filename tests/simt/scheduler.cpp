// SPDX-License-Identifier: Apache-2.0
// Blocks run one after the other; the threads of a block are fibers of one system thread. A fiber runs until it has to
// wait for others (or comes to an atomic), then the scheduler resumes the next ready one in the chosen order.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <vector>

#include "simt.h"

#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

SIMT_BUILTIN uint3 threadIdx, blockIdx;
SIMT_BUILTIN dim3 blockDim, gridDim;

// Saves the callee-saved registers on the stack, stores the stack pointer, and continues on the other stack.
extern "C" void simt_switch(void** save_stack_pointer, void* stack_pointer);
#if defined(__x86_64__)
asm(R"(
.text
.hidden simt_switch
.type simt_switch, @function
.globl simt_switch
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");
#elif defined(__aarch64__)
asm(R"(
.text
.hidden simt_switch
.type simt_switch, @function
.globl simt_switch
simt_switch:
  sub sp, sp, #160
  stp x29, x30, [sp, #0]
  stp x19, x20, [sp, #16]
  stp x21, x22, [sp, #32]
  stp x23, x24, [sp, #48]
  stp x25, x26, [sp, #64]
  stp x27, x28, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x29, x30, [sp, #0]
  ldp x19, x20, [sp, #16]
  ldp x21, x22, [sp, #32]
  ldp x23, x24, [sp, #48]
  ldp x25, x26, [sp, #64]
  ldp x27, x28, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size simt_switch, .-simt_switch
.hidden simt_start
.globl simt_start
simt_start:
  mov x30, xzr
  br x19
)");
extern "C" void simt_start();
#else
#error "tests/simt switches stacks on x86-64 and aarch64 only"
#endif

namespace simt {

Thread* current = nullptr;

namespace {

constexpr size_t kStackBytes = 256 << 10;

struct Stack {
  void* pointer = nullptr;  // while it does not run; null: no thread has started on it
  const void* bottom = nullptr;
  size_t bytes = 0;
  void* fake = nullptr;  // AddressSanitizer's shadow of it
};

enum class State { kReady, kAtBarrier, kAtWarpIntrinsic, kExited };

struct Fiber : Thread {
  Stack stack;
  uint3 index;
  State state;
  // What it waits for.
  Site site;
  const char* intrinsic;
  uint32_t mask;
  uint64_t value;
  bool orders_memory;
  WarpValues* result;

  bool waits_with(const Fiber& other) const {
    return state == State::kAtWarpIntrinsic && intrinsic == other.intrinsic && mask == other.mask && site == other.site;
  }
};

Fiber fibers[kMaxBlockThreads];
Stack scheduler_stack;
Launch launch;
unsigned block_threads;
unsigned exited_threads;
unsigned barrier_arrivals;
const Fiber* first_at_barrier;
int barrier_true;    // predicates of those that arrived
int barrier_result;  // of the last barrier
bool aborted;

unsigned order_seed = 0;
std::mt19937 random_bits;

Fiber& self() { return static_cast<Fiber&>(*current); }

std::string describe(const Site& site) {
  const char* name = std::strstr(site.file, "csrc/");
  return std::string(name ? name : site.file) + ":" + std::to_string(site.line);
}

std::string describe(const uint3& i) {
  return "(" + std::to_string(i.x) + ", " + std::to_string(i.y) + ", " + std::to_string(i.z) + ")";
}

std::string describe(const Fiber& fiber) {
  std::string text = "thread " + describe(fiber.index);
  switch (fiber.state) {
    case State::kReady: return text + " runs";
    case State::kAtBarrier: return text + " waits at the barrier " + describe(fiber.site);
    case State::kAtWarpIntrinsic: return text + " waits at " + fiber.intrinsic + " " + describe(fiber.site);
    case State::kExited: return text + " has returned";
  }
  return text;
}

void switch_stack(Stack& from, Stack& to) {
#ifdef SIMT_ASAN
  __sanitizer_start_switch_fiber(&from.fake, to.bottom, to.bytes);
#endif
  simt_switch(&from.pointer, to.pointer);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
}

// Where a fiber starts. It outlives the thread: the next block's thread of the same number goes on here.
void thread_main() {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack.bottom, &scheduler_stack.bytes);
#endif
  for (;;) {
    launch.run(launch.arguments);
    self().state = State::kExited;
    switch_stack(self().stack, scheduler_stack);
  }
}

// Lays out the frame that simt_switch expects, as if thread_main had just been called from nowhere.
void prepare_stack(Stack& stack) {
  if (!stack.bottom) {
    const size_t guard = 64 << 10;
    char* memory = static_cast<char*>(
        mmap(nullptr, guard + kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    if (memory == MAP_FAILED || mprotect(memory, guard, PROT_NONE) != 0) std::abort();
    stack.bottom = memory + guard;
    stack.bytes = kStackBytes;
  }
#ifdef SIMT_ASAN
  __asan_unpoison_memory_region(stack.bottom, stack.bytes);  // an aborted kernel leaves its redzones
#endif
  void** top = reinterpret_cast<void**>(const_cast<char*>(static_cast<const char*>(stack.bottom)) + stack.bytes);
#if defined(__x86_64__)
  void** frame = top - 8;  // six registers, the address that `ret` takes, thread_main's own null return address
  std::fill(frame, top, nullptr);
  frame[6] = reinterpret_cast<void*>(thread_main);
#else
  void** frame = top - 20;
  std::fill(frame, top, nullptr);
  frame[1] = reinterpret_cast<void*>(simt_start);   // x30
  frame[2] = reinterpret_cast<void*>(thread_main);  // x19
#endif
  stack.pointer = frame;
}

void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.index;
  switch_stack(scheduler_stack, fiber.stack);
  current = nullptr;
}

// Releases the lanes that wait with `fiber` if every live lane of its mask does.
void try_release_warp(const Fiber& fiber) {
  const unsigned warp = fiber.id / kWarpSize * kWarpSize;
  Fiber* lanes[kWarpSize];
  int count = 0;
  for (uint32_t left = fiber.mask; left != 0; left &= left - 1) {
    const unsigned id = warp + __builtin_ctz(left);
    Fiber* lane = fibers + id;
    if (id >= block_threads || lane->state == State::kExited) continue;
    if (!lane->waits_with(fiber)) return;
    lanes[count++] = lane;
  }
  WarpValues values;
  uint32_t seen[kWarpSize] = {0};
  for (int n = 0; n < count; ++n) {
    Fiber* lane = lanes[n];
    const unsigned i = lane->id % kWarpSize;
    values.present |= 1u << i;
    values.of[i] = lane->value;
    if (!fiber.orders_memory) continue;
    lane->seen[i] = lane->clock;
    for (int k = 0; k < kWarpSize; ++k) seen[k] = std::max(seen[k], lane->seen[k]);
  }
  for (int n = 0; n < count; ++n) {
    Fiber* lane = lanes[n];
    *lane->result = values;
    lane->state = State::kReady;
    if (!fiber.orders_memory) continue;
    std::copy(seen, seen + kWarpSize, lane->seen);
    ++lane->clock;
  }
}

// No thread can go on: says who waits where, and who does not come.
void report_deadlock() {
  Fiber* end = fibers + block_threads;
  Fiber* waiting = std::find_if(fibers, end, [](Fiber& f) { return f.state == State::kAtWarpIntrinsic; });
  Fiber* missing;
  const char* what = "warp intrinsic";
  if (waiting != end) {
    missing = std::find_if(fibers + waiting->id / kWarpSize * kWarpSize, end, [&](Fiber& f) {
      return (waiting->mask >> f.id % kWarpSize & 1) && f.state != State::kExited && !f.waits_with(*waiting);
    });
  } else {
    what = "barrier";
    waiting = std::find_if(fibers, end, [](Fiber& f) { return f.state == State::kAtBarrier; });
    missing = std::find_if(fibers, end, [](Fiber& f) { return f.state == State::kExited; });
  }
  aborted = true;
  threadIdx = waiting->index;
  fail_waiting(std::string("divergent ") + what + ": " + describe(*waiting) + "; " + describe(*missing),
               describe(waiting->site));
}

void run_block() {
  std::vector<unsigned> order(block_threads);
  std::iota(order.begin(), order.end(), 0u);
  if (order_seed == 1) std::reverse(order.begin(), order.end());
  while (exited_threads < block_threads && !aborted) {
    if (order_seed > 1) std::shuffle(order.begin(), order.end(), random_bits);
    bool progress = false;
    for (unsigned i : order) {
      if (fibers[i].state != State::kReady) continue;
      progress = true;
      resume(fibers[i]);
      if (aborted) return;
      if (fibers[i].state != State::kExited) continue;
      ++exited_threads;
      const unsigned warp = i / kWarpSize * kWarpSize;
      for (unsigned k = warp; k < std::min(warp + kWarpSize, block_threads); ++k) {
        if (fibers[k].state == State::kAtWarpIntrinsic) try_release_warp(fibers[k]);  // may have waited for i alone
      }
    }
    if (!progress) report_deadlock();
  }
}

}  // namespace

void set_order(unsigned seed) {
  order_seed = seed;
  random_bits.seed(seed);
}

bool execute(const Launch& what) {
  launch = what;
  blockDim = launch.block;
  gridDim = launch.grid;
  block_threads = launch.block.x * launch.block.y * launch.block.z;
  aborted = false;

  const size_t blocks = size_t{launch.grid.x} * launch.grid.y * launch.grid.z;
  begin_memory_of_launch(blocks);
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (order_seed == 1) std::reverse(order.begin(), order.end());
  if (order_seed > 1) std::shuffle(order.begin(), order.end(), random_bits);

  for (uint32_t b : order) {
    blockIdx = {b % gridDim.x, b / gridDim.x % gridDim.y, b / gridDim.x / gridDim.y};
    begin_memory_of_block(launch.dynamic_shared_bytes);
    exited_threads = barrier_arrivals = barrier_true = 0;
    for (unsigned i = 0; i < block_threads; ++i) {
      Fiber& fiber = fibers[i];
      static_cast<Thread&>(fiber) = Thread{};
      fiber.id = i;
      fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
      fiber.state = State::kReady;
      if (!fiber.stack.pointer) prepare_stack(fiber.stack);
    }
    run_block();
    if (aborted) {
      for (Fiber& fiber : fibers) fiber.stack.pointer = nullptr;  // their frames are gone
      break;
    }
  }
  return !aborted;
}

int block_barrier(bool predicate, Site site) {
  if (barrier_arrivals == 0) {
    first_at_barrier = &self();
  } else if (!(first_at_barrier->site == site)) {
    fail("divergent barrier: this thread comes to " + describe(site) + "; " + describe(*first_at_barrier));
  }
  self().state = State::kAtBarrier;
  self().site = site;
  barrier_true += predicate;
  if (++barrier_arrivals == block_threads) {
    barrier_result = barrier_true;
    barrier_arrivals = barrier_true = 0;
    order_memory_of_block();
    for (unsigned i = 0; i < block_threads; ++i) {
      fibers[i].state = State::kReady;
      fibers[i].clock = 1;
      std::fill(fibers[i].seen, fibers[i].seen + kWarpSize, 0);
    }
  }
  yield();
  return barrier_result;
}

WarpValues warp_exchange(const char* intrinsic, uint32_t mask, uint64_t value, bool orders_memory, Site site) {
  Fiber& fiber = self();
  if (!(mask >> lane_id() & 1)) {
    char text[160];
    std::snprintf(text, sizeof(text), "%s: the mask 0x%08x does not name the calling lane %d", intrinsic, mask,
                  lane_id());
    fail(text);
  }
  WarpValues result;
  fiber.state = State::kAtWarpIntrinsic;
  fiber.intrinsic = intrinsic;
  fiber.mask = mask;
  fiber.value = value;
  fiber.orders_memory = orders_memory;
  fiber.site = site;
  fiber.result = &result;
  try_release_warp(fiber);
  yield();
  return result;
}

int lane_id() { return static_cast<int>(current->id % kWarpSize); }

void yield() { switch_stack(self().stack, scheduler_stack); }

void abort_launch() {
  aborted = true;
  yield();
}

const void* running_kernel() { return launch.kernel; }

bool in_thread_stack(const void* address) {
  const char* bottom = static_cast<const char*>(self().stack.bottom);
  return address >= bottom && address < bottom + self().stack.bytes;
}

}  // namespace simt
