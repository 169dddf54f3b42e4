// SPDX-License-Identifier: Apache-2.0
// Device memory, and what is known about each of its bytes.
//
// In the `checked` build the compiler calls __tsan_read4(address) and its siblings before every load and store of a
// kernel (-fsanitize=thread), and this file defines them: they look up who last wrote the byte and who has read it
// since, and report an access outside of every allocation, a read of a byte that nobody wrote, and two accesses, one of
// them a write, that nothing orders. In the `asan` build AddressSanitizer checks the bounds; this file tells it where
// they are.
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

#include "simt.h"

#ifdef SIMT_ASAN
#include <sanitizer/asan_interface.h>
#endif

extern "C" char __start_simt_builtin[], __stop_simt_builtin[];

namespace simt {
namespace {

// Which thread touched a byte, and when.
struct Access {
  uint64_t serial : 24;  // of the block, counted over the life of the process; 0: no thread did
  uint64_t thread : 10;
  uint64_t epoch : 14;  // barriers that the block had passed
  uint64_t clock : 15;  // Thread::clock
  uint64_t atomic : 1;
};
constexpr uint64_t kMaxSerial = (1 << 24) - 1, kMaxEpoch = (1 << 14) - 1, kMaxClock = (1 << 15) - 1;

struct Shadow {
  Access write;       // the last one
  Access first_read;  // since then, of those that are not ordered before the last one
  Access last_read;
};
// Values of Shadow::write before any thread wrote. All zero, as fresh pages are: not allocated.
constexpr Access kUnwritten = {0, 1, 0, 0, 0};
constexpr Access kWrittenByHost = {0, 2, 0, 0, 0};

// Tells AddressSanitizer, whose macros for this do nothing in a source that is not instrumented itself.
void set_accessible([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes,
                    [[maybe_unused]] bool accessible) {
#ifdef SIMT_ASAN
  (accessible ? __asan_unpoison_memory_region : __asan_poison_memory_region)(address, bytes);
#endif
}

char* reserve(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    std::perror("simt: cannot reserve address space");
    std::abort();
  }
  return static_cast<char*>(memory);
}

struct Region {
  char* begin;
  size_t bytes;
  Shadow* shadow;

  Region(char* begin, size_t bytes)
      : begin(begin), bytes(bytes), shadow(reinterpret_cast<Shadow*>(reserve(bytes * sizeof(Shadow)))) {}
  size_t offset(const void* address) const { return static_cast<size_t>(static_cast<const char*>(address) - begin); }
  bool contains(const void* address) const { return offset(address) < bytes; }
};

constexpr size_t kPage = 4096;
constexpr size_t kDeviceBytes = size_t{1} << 30;
constexpr size_t kMaxDynamicSharedBytes = 256 << 10;

// This module's segments. A kernel's `static` variables lie in the writable one, and so static shared memory does.
struct Segments {
  char *writable_begin = nullptr, *writable_end = nullptr;
  char *constant_begin = nullptr, *constant_end = nullptr;
};

Segments find_segments() {
  Segments result;
  const auto visit = [](dl_phdr_info* info, size_t, void* opaque) {
    Segments found;
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const ElfW(Phdr) & header = info->dlpi_phdr[i];
      if (header.p_type != PT_LOAD) continue;
      char* begin = reinterpret_cast<char*>(info->dlpi_addr + header.p_vaddr);
      char* end = begin + header.p_memsz;
      if (header.p_flags & PF_W) {
        found.writable_begin = begin;
        found.writable_end = end;
      } else {
        if (!found.constant_begin) found.constant_begin = begin;
        found.constant_end = end;
      }
    }
    const bool ours = __start_simt_builtin >= found.writable_begin && __start_simt_builtin < found.writable_end;
    if (ours) *static_cast<Segments*>(opaque) = found;
    return static_cast<int>(ours);
  };
  dl_iterate_phdr(visit, &result);
  return result;
}

const Segments segments = find_segments();
Region device_memory(reserve(kDeviceBytes), kDeviceBytes);
Region dynamic_shared(reserve(kMaxDynamicSharedBytes), kMaxDynamicSharedBytes);
Region static_shared(segments.writable_begin, segments.writable_end - segments.writable_begin);

std::map<char*, size_t> allocations;
char* next_allocation = device_memory.begin;

uint32_t launch_serial = 1;  // of the first block of this launch
uint32_t block_serial = 0;   // of this block
uint32_t next_serial = 1;
uint32_t block_epoch;
size_t dynamic_shared_bytes;

// An atomic after __threadfence publishes what comes before it to the blocks that then execute an atomic themselves.
struct Release {
  bool done = false;
  unsigned thread;
  uint32_t epoch;
  uint32_t seen[kWarpSize];
};
std::vector<Release> releases;  // the last one of each block of this launch
uint32_t first_acquire;         // the epoch in which a thread of this block first executed an atomic
constexpr uint32_t kNever = ~0u;

bool same(Access a, Access b) { return std::memcmp(&a, &b, sizeof(Access)) == 0; }

// Whether an access is certain to come before this point of a thread of its block.
bool precedes(const Access& access, unsigned thread, uint32_t epoch, const uint32_t* seen) {
  if (access.thread == thread || access.epoch < epoch) return true;
  return access.thread / kWarpSize == thread / kWarpSize && seen[access.thread % kWarpSize] >= access.clock;
}

// Whether `earlier` is certain to come before what the current thread does now.
bool is_ordered(const Access& earlier) {
  if (earlier.serial < launch_serial) return true;
  if (earlier.serial == block_serial) return precedes(earlier, current->id, block_epoch, current->seen);
  const Release& release = releases[earlier.serial - launch_serial];
  return (current->acquired || first_acquire < block_epoch) && release.done &&
         precedes(earlier, release.thread, release.epoch, release.seen);
}

std::string describe(const Access& access) {
  char text[64];
  const bool here = access.serial == block_serial;
  std::snprintf(text, sizeof(text), here ? "thread %u of this block" : "thread %u of another block",
                static_cast<unsigned>(access.thread));
  return text;
}

std::string describe_place(const void* address) {
  char text[128];
  if (!device_memory.contains(address)) {
    std::snprintf(text, sizeof(text), "byte %zu of the dynamic shared memory of %zu bytes",
                  dynamic_shared.offset(address), dynamic_shared_bytes);
    return dynamic_shared.contains(address) ? text : "static shared memory";
  }
  auto after = allocations.upper_bound(const_cast<char*>(static_cast<const char*>(address)));
  if (after == allocations.begin()) return "memory before the first allocation";
  const auto& [begin, bytes] = *std::prev(after);
  std::snprintf(text, sizeof(text), "byte %td of the %zu bytes allocated", static_cast<const char*>(address) - begin,
                bytes);
  return text;
}

enum class Kind { kRead, kWrite, kAtomic };

void report(Kind kind, size_t bytes, const void* address, const std::string& problem) {
  const char* verb = kind == Kind::kRead ? "read" : kind == Kind::kWrite ? "write" : "atomic access";
  fail(problem + ": " + verb + " of " + std::to_string(bytes) + " bytes at " + describe_place(address));
}

[[maybe_unused]] void check(const void* address, size_t bytes, Kind kind) {
  if (!current) {
    if (device_memory.contains(address)) report(kind, bytes, address, "device memory used by host code");
    return;
  }
  const Region* region = &device_memory;
  if (!region->contains(address)) {
    if (in_thread_stack(address)) return;
    region = static_shared.contains(address) ? &static_shared : &dynamic_shared;
    if (!region->contains(address)) {
      const char* p = static_cast<const char*>(address);
      if (p >= segments.constant_begin && p < segments.constant_end && kind == Kind::kRead) return;
      fail("access to memory that is neither global, shared nor local");
    }
    const char* p = static_cast<const char*>(address);
    if (p >= __start_simt_builtin && p < __stop_simt_builtin) return;
    if (region == &dynamic_shared && region->offset(address) + bytes > dynamic_shared_bytes) {
      report(kind, bytes, address, "out of bounds");
    }
  }
  if (block_epoch > kMaxEpoch || current->clock > kMaxClock) fail("more barriers in one block than the checker counts");

  const bool is_shared = region != &device_memory;
  const Access now = {block_serial, current->id, block_epoch, current->clock, kind == Kind::kAtomic};
  Shadow* shadow = region->shadow + region->offset(address);
  for (Shadow* s = shadow; s < shadow + bytes; ++s) {
    if (is_shared && s->write.serial != block_serial) s->write = kUnwritten;
    if (is_shared && s->first_read.serial != block_serial) s->first_read = s->last_read = Access{};
    if (same(s->write, Access{})) report(kind, bytes, address, "out of bounds");
    if (kind != Kind::kWrite && same(s->write, kUnwritten)) report(kind, bytes, address, "nobody wrote what is read");
    if (!is_ordered(s->write) && !(s->write.atomic && now.atomic)) {
      report(kind, bytes, address, "race with the write of " + describe(s->write));
    }
    if (kind == Kind::kRead) {
      if (is_ordered(s->first_read)) s->first_read = now;
      s->last_read = now;
      continue;
    }
    for (const Access& read : {s->first_read, s->last_read}) {
      if (!is_ordered(read)) report(kind, bytes, address, "race with the read of " + describe(read));
    }
    s->write = now;
    s->first_read = s->last_read = Access{};
  }
}

[[maybe_unused]] void check_aligned(const void* address, size_t bytes, Kind kind) {
  const bool aligned = reinterpret_cast<uintptr_t>(address) % bytes == 0;
  if (current && !aligned && !in_thread_stack(address)) report(kind, bytes, address, "unaligned");
  check(address, bytes, kind);
}

// Only the `checked` build keeps a shadow of its own.
void mark([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes, [[maybe_unused]] Access write) {
#ifndef SIMT_ASAN
  Shadow* shadow = device_memory.shadow + device_memory.offset(address);
  std::fill(shadow, shadow + bytes, Shadow{write, {}, {}});
#endif
}

// For host operations: the first byte that is not allocated, or that nobody wrote; null if there is none.
const char* unusable(const void* address, size_t bytes, bool must_be_written) {
  const char* begin = static_cast<const char*>(address);
#ifdef SIMT_ASAN
  (void)must_be_written;
  return static_cast<const char*>(__asan_region_is_poisoned(const_cast<char*>(begin), bytes));
#else
  const Shadow* shadow = device_memory.shadow + device_memory.offset(address);
  for (size_t i = 0; i < bytes; ++i) {
    if (same(shadow[i].write, Access{}) || (must_be_written && same(shadow[i].write, kUnwritten))) return begin + i;
  }
  return nullptr;
#endif
}

}  // namespace

void* allocate(size_t bytes) {
  // The address is a multiple of 256, as cudaMalloc's, and of no larger power of two; guards of a page at least.
  const size_t span = (256 + bytes + 2 * kPage - 1) / kPage * kPage;
  if (device_memory.begin + kDeviceBytes - next_allocation < static_cast<ptrdiff_t>(span) && allocations.empty()) {
    next_allocation = device_memory.begin;
  }
  if (device_memory.begin + kDeviceBytes - next_allocation < static_cast<ptrdiff_t>(span)) return nullptr;
  set_accessible(next_allocation, span, false);
  char* address = next_allocation + 256;
  next_allocation += span;
  set_accessible(address, bytes, true);
  std::memset(address, 0xa5, bytes);
  mark(address, bytes, kUnwritten);
  allocations[address] = bytes;
  return address;
}

bool release(void* address) {
  auto found = allocations.find(static_cast<char*>(address));
  if (found == allocations.end()) return address == nullptr;
  char* begin = found->first - 256;
  const size_t span = (256 + found->second + kPage - 1) / kPage * kPage;
  allocations.erase(found);
  madvise(begin, span, MADV_DONTNEED);
  madvise(device_memory.shadow + device_memory.offset(begin), span * sizeof(Shadow), MADV_DONTNEED);
  set_accessible(begin, span, false);
  return true;
}

bool copy(void* to, const void* from, size_t bytes) {
  if (device_memory.contains(from)) {
    if (const char* bad = unusable(from, bytes, true)) {
      fail("cudaMemcpy reads what nobody wrote: " + describe_place(bad));
      return false;
    }
  }
  if (device_memory.contains(to)) {
    if (const char* bad = unusable(to, bytes, false)) {
      fail("cudaMemcpy writes out of bounds: " + describe_place(bad));
      return false;
    }
    mark(to, bytes, kWrittenByHost);
  }
  std::memcpy(to, from, bytes);
  return true;
}

bool fill(void* to, int value, size_t bytes) {
  if (bytes == 0) return true;
  if (!device_memory.contains(to)) {
    fail("cudaMemset of memory that is not the device's");
    return false;
  }
  if (const char* bad = unusable(to, bytes, false)) {
    fail("cudaMemset writes out of bounds: " + describe_place(bad));
    return false;
  }
  mark(to, bytes, kWrittenByHost);
  std::memset(to, value, bytes);
  return true;
}

void* dynamic_shared_memory() { return dynamic_shared.begin; }

void thread_fence() { current->fenced = true; }

void before_read_only([[maybe_unused]] const void* address, [[maybe_unused]] size_t bytes) {
#ifndef SIMT_ASAN
  if (!current || !device_memory.contains(address)) return;
  const Shadow* shadow = device_memory.shadow + device_memory.offset(address);
  for (const Shadow* s = shadow; s < shadow + bytes; ++s) {
    if (s->write.serial >= launch_serial)
      report(Kind::kRead, bytes, address, "read-only load of what this launch wrote");
  }
#endif
}

void before_atomic([[maybe_unused]] void* address, [[maybe_unused]] size_t bytes) {
  yield();
  current->acquired = true;
  first_acquire = std::min(first_acquire, block_epoch);
  if (current->fenced) {
    Release& release = releases[block_serial - launch_serial];
    release = {true, current->id, block_epoch, {}};
    std::copy(current->seen, current->seen + kWarpSize, release.seen);
  }
#ifndef SIMT_ASAN
  check(address, bytes, Kind::kAtomic);
#endif
}

void begin_memory_of_launch(size_t blocks) {
  launch_serial = next_serial;
  if (next_serial + blocks > kMaxSerial) {
    std::fprintf(stderr, "simt: more blocks in one process than the checker counts (%ju)\n", uintmax_t{kMaxSerial});
    std::abort();
  }
  releases.assign(blocks, Release{});
}

void begin_memory_of_block(size_t dynamic_bytes) {
  block_serial = next_serial++;
  block_epoch = 0;
  first_acquire = kNever;
  dynamic_shared_bytes = dynamic_bytes;
  set_accessible(dynamic_shared.begin, dynamic_shared.bytes, false);
  set_accessible(dynamic_shared.begin, dynamic_bytes, true);
  std::memset(dynamic_shared.begin, 0xa5, dynamic_bytes);
}

void order_memory_of_block() { ++block_epoch; }

}  // namespace simt

#ifndef SIMT_ASAN
extern "C" {

// Sizes are powers of two; vector loads and stores demand that alignment.
#define SIMT_HOOK(bytes)                                                                 \
  void __tsan_read##bytes(void* p) { simt::check_aligned(p, bytes, simt::Kind::kRead); } \
  void __tsan_write##bytes(void* p) { simt::check_aligned(p, bytes, simt::Kind::kWrite); }
SIMT_HOOK(1)
SIMT_HOOK(2)
SIMT_HOOK(4)
SIMT_HOOK(8)
SIMT_HOOK(16)
#undef SIMT_HOOK

void __tsan_read_range(void* p, size_t bytes) { simt::check(p, bytes, simt::Kind::kRead); }
void __tsan_write_range(void* p, size_t bytes) { simt::check(p, bytes, simt::Kind::kWrite); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void*, void*) {}
void __tsan_init() {}
}
#endif
