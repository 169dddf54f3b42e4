// SPDX-License-Identifier: Apache-2.0
// What libfastyolo_plugins.so exports, under the names that IPluginRegistry::loadLibrary() looks up. The library does
// not link TensorRT: it only implements its interfaces, so that one file serves every minor version of a major one.
#include <dlfcn.h>

#include <cstdio>

#include "creators.h"
#include "report.h"

#define FASTYOLO_EXPORT extern "C" __attribute__((visibility("default")))

namespace fastyolo {
namespace {

constexpr int32_t kCreators = 6;

bool is_loaded(const char* library, int32_t major) {
  char name[64];
  std::snprintf(name, sizeof(name), "%s.so.%d", library, static_cast<int>(major));
  void* const handle = dlopen(name, RTLD_NOLOAD | RTLD_LAZY);
  if (handle) dlclose(handle);
  return handle != nullptr;
}

// Of the TensorRT in this process; 0: unknown. A program that links it has its version among the global symbols;
// trtexec and Python open it privately, where it is found by its file's name.
int32_t tensorrt_major() {
  using GetVersion = int32_t (*)();
  if (const auto get_version = reinterpret_cast<GetVersion>(dlsym(RTLD_DEFAULT, "getInferLibVersion"))) {
    const int32_t version = get_version();
    return version / (version >= 100000 ? 10000 : 1000);  // 10.3.0 is 100300, 8.6.1 is 8601
  }
  for (const int32_t major : {NV_TENSORRT_MAJOR, 8, 10, 11}) {  // ours first, as a process may have two
    if (is_loaded("libnvinfer", major) || is_loaded("libnvinfer_lean", major)) return major;
  }
  return 0;
}

// Between major versions, the order of virtual functions differs.
bool is_other_major() {
  const int32_t major = tensorrt_major();
  if (major == 0 || major == NV_TENSORRT_MAJOR) return false;
  std::fprintf(stderr,
               "libfastyolo_plugins.so is built for TensorRT %d and this program has TensorRT %d: build it with "
               "TENSORRT_INCLUDE_DIR set to the headers of that version\n",
               NV_TENSORRT_MAJOR, static_cast<int>(major));
  return true;
}

CreatorInterface* const* creators(int32_t& count) noexcept {
  count = is_other_major() ? 0 : kCreators;
  static CreatorInterface* const list[kCreators] = {batched_nms_creator(), decode_nms_creator(), dfl_decode_creator(),
                                                    dw_sppf_creator(),     eca_creator(),        sppf_pool_creator()};
  return list;
}

}  // namespace
}  // namespace fastyolo

#if !FASTYOLO_TENSORRT_8_5
FASTYOLO_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder) { fastyolo::set_logger_finder(finder); }
#endif

#if FASTYOLO_PLUGIN_V2
FASTYOLO_EXPORT nvinfer1::IPluginCreator* const* getPluginCreators(int32_t& count) { return fastyolo::creators(count); }
#else
FASTYOLO_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  return fastyolo::creators(count);
}
#endif

#if FASTYOLO_TENSORRT_8_5
// Opening the library, as `trtexec --plugins` does, must register the plugins. Hosts with plugins of their own, and
// Python, have opened TensorRT privately.
__attribute__((constructor)) static void register_creators() {
  using GetRegistry = nvinfer1::IPluginRegistry* (*)();
  void* find = dlsym(RTLD_DEFAULT, "getPluginRegistry");
  if (void* const library = find ? nullptr : dlopen("libnvinfer.so.8", RTLD_NOLOAD | RTLD_LAZY)) {
    find = dlsym(library, "getPluginRegistry");
    dlclose(library);
  }
  if (!find) {
    std::fprintf(stderr, "libfastyolo_plugins.so finds no TensorRT in this program, so it has registered no plugins\n");
    return;
  }
  int32_t count = 0;
  nvinfer1::IPluginCreator* const* creators = fastyolo::creators(count);
  for (int32_t i = 0; i < count; ++i) reinterpret_cast<GetRegistry>(find)()->registerCreator(*creators[i], "");
}
#endif
