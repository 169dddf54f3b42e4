// SPDX-License-Identifier: Apache-2.0
// Reports: what is wrong, in which kernel, block and thread, and at which source lines.
#include <dlfcn.h>
#include <execinfo.h>

#include <csignal>
#include <cstdio>
#include <sstream>

#include "simt.h"

namespace simt {
namespace {

std::string first_report;

void remove_all(std::string& text, const std::string& piece) {
  for (size_t at; (at = text.find(piece)) != text.npos;) text.erase(at, piece.size());
}

// addr2line's "function at file:line" for each address of this module, inlined callers included, one a line.
std::string symbolize(void* const* addresses, int count) {
  Dl_info self;
  dladdr(reinterpret_cast<void*>(&take_report), &self);
  char piece[512];
  std::snprintf(piece, sizeof(piece), "env -u LD_PRELOAD addr2line -Cfip -e '%s'", self.dli_fname);
  std::string command = piece;
  for (int i = 0; i < count; ++i) {
    Dl_info info;
    if (!dladdr(addresses[i], &info) || info.dli_fbase != self.dli_fbase) continue;
    std::snprintf(piece, sizeof(piece), " %#tx", static_cast<char*>(addresses[i]) - static_cast<char*>(self.dli_fbase));
    command += piece;
  }
  std::string lines;
  std::FILE* pipe = popen(command.c_str(), "r");
  while (pipe && std::fgets(piece, sizeof(piece), pipe)) lines += piece;
  if (pipe) pclose(pipe);
  for (const char* noise : {"(anonymous namespace)::", " (inlined by) "}) remove_all(lines, noise);
  return lines;
}

// The lines of the calls that lead to here, without the stand-in's own.
std::string source_lines() {
  void* stack[32];
  const int count = backtrace(stack, 32);
  for (void*& address : stack) address = static_cast<char*>(address) - 1;  // the call, not what follows it
  std::istringstream all(symbolize(stack, count));
  std::string lines;
  for (std::string line; std::getline(all, line);) {
    if (line.find("simt::") != line.npos || line.find("tests/simt/include/") != line.npos) continue;
    if (line.find("__tsan") == 0 || line.find("??") != line.npos) continue;
    lines += "  at " + line + "\n";
  }
  return lines;
}

std::string kernel_name(const void* kernel) {
  void* address = const_cast<void*>(kernel);
  const std::string line = symbolize(&address, 1);
  return line.substr(0, line.find('('));
}

std::string thread_context() {
  char text[160];
  std::snprintf(text, sizeof(text), ", block (%u, %u, %u), thread (%u, %u, %u)\n", blockIdx.x, blockIdx.y, blockIdx.z,
                threadIdx.x, threadIdx.y, threadIdx.z);
  return "  in " + kernel_name(running_kernel()) + text;
}

void emit(const std::string& text) {
  std::fputs(text.c_str(), stderr);
  if (first_report.empty()) first_report = text;
}

#ifdef SIMT_ASAN
// The sanitizers write reports of their own and then, if their options say so, abort.
const bool handles_abort = [] {
  std::signal(SIGABRT, [](int) {
    if (current) emit("simt: the report above is\n" + thread_context());
  });
  return true;
}();
#endif

}  // namespace

void fail(const std::string& what) {
  if (!current) return emit("simt: " + what + "\n" + source_lines());
  emit("simt: " + what + "\n" + thread_context() + source_lines());
  abort_launch();
}

void fail_waiting(const std::string& what, const std::string& where) {
  emit("simt: " + what + "\n" + thread_context() + "  at " + where + "\n");
}

void fail_launch(const void* kernel, const std::string& what) {
  emit("simt: " + what + "\n  in the launch of " + kernel_name(kernel) + "\n" + source_lines());
}

std::string take_report() {
  std::string report;
  report.swap(first_report);
  return report;
}

}  // namespace simt
