# Decides whether the TensorRT plugins are built, and against which headers. TensorRT itself is not needed: the plugins
# implement its interfaces and link nothing of it. One library serves one major version.
set(FASTYOLO_PLUGINS "auto" CACHE STRING "Build the TensorRT plugins: on, off, or auto (with CUDA, when headers are found)")
set(TENSORRT_INCLUDE_DIR "" CACHE PATH "The folder of NvInferRuntime.h; empty: the system's, then kernel-lens's")
set(FASTYOLO_WITH_PLUGINS OFF)
set(FASTYOLO_TENSORRT_VERSION "")
string(TOLOWER "${FASTYOLO_PLUGINS}" plugins_choice)
if(NOT plugins_choice MATCHES "^(on|off|auto|1|0|true|false|yes|no)$")
  message(FATAL_ERROR "FASTYOLO_PLUGINS must be on, off or auto, not '${FASTYOLO_PLUGINS}'.")
endif()

# The folder of the headers in `result`, or nothing.
function(fastyolo_find_tensorrt_headers result)
  if(TENSORRT_INCLUDE_DIR)
    if(NOT EXISTS "${TENSORRT_INCLUDE_DIR}/NvInferRuntime.h")
      message(FATAL_ERROR "TENSORRT_INCLUDE_DIR is ${TENSORRT_INCLUDE_DIR}, which has no NvInferRuntime.h.")
    endif()
    set(${result} "${TENSORRT_INCLUDE_DIR}" PARENT_SCOPE)
    return()
  endif()
  find_path(FASTYOLO_SYSTEM_TENSORRT NvInferRuntime.h
    PATHS /usr/local/tensorrt/include /usr/src/tensorrt/include /opt/tensorrt/include ${CUDAToolkit_INCLUDE_DIRS})
  if(FASTYOLO_SYSTEM_TENSORRT)
    set(${result} "${FASTYOLO_SYSTEM_TENSORRT}" PARENT_SCOPE)
    return()
  endif()
  # The PyPI package that has the headers, and nothing to load.
  find_package(Python 3.10 QUIET COMPONENTS Interpreter)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import importlib.util; print(*importlib.util.find_spec('kernel_lens').submodule_search_locations)"
    OUTPUT_VARIABLE kernel_lens OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(kernel_lens AND EXISTS "${kernel_lens}/include/tensorrt/NvInferRuntime.h")
    set(${result} "${kernel_lens}/include/tensorrt" PARENT_SCOPE)
  endif()
endfunction()

# NV_TENSORRT_MAJOR.NV_TENSORRT_MINOR of the headers, which name TRT_*_ENTERPRISE in their place since 10.14.
function(fastyolo_read_tensorrt_version folder result)
  file(READ "${folder}/NvInferVersion.h" text)
  set(numbers "")
  foreach(part IN ITEMS MAJOR MINOR)
    if(NOT text MATCHES "#define (NV_TENSORRT_${part}|TRT_${part}_ENTERPRISE) ([0-9]+)")
      message(FATAL_ERROR "${folder}/NvInferVersion.h does not say which version of TensorRT it is of.")
    endif()
    list(APPEND numbers ${CMAKE_MATCH_2})
  endforeach()
  list(JOIN numbers "." version)
  set(${result} "${version}" PARENT_SCOPE)
endfunction()

if(plugins_choice STREQUAL "auto" OR FASTYOLO_PLUGINS)
  set(tensorrt_headers "")
  if(FASTYOLO_WITH_CUDA)
    fastyolo_find_tensorrt_headers(tensorrt_headers)
  endif()
  if(tensorrt_headers)
    fastyolo_read_tensorrt_version("${tensorrt_headers}" FASTYOLO_TENSORRT_VERSION)
    if(FASTYOLO_TENSORRT_VERSION VERSION_LESS 8.5)
      message(FATAL_ERROR "The plugins need TensorRT 8.5 or later; ${tensorrt_headers} is of ${FASTYOLO_TENSORRT_VERSION}.")
    endif()
    set(FASTYOLO_WITH_PLUGINS ON)
    add_library(tensorrt_headers INTERFACE)
    target_include_directories(tensorrt_headers SYSTEM INTERFACE "${tensorrt_headers}")
    target_compile_options(tensorrt_headers INTERFACE -Wno-deprecated-declarations)  # IPluginV2's, by TensorRT 8 itself
  elseif(NOT plugins_choice STREQUAL "auto" AND NOT FASTYOLO_WITH_CUDA)
    message(FATAL_ERROR "FASTYOLO_PLUGINS=${FASTYOLO_PLUGINS} needs the CUDA kernels: put nvcc on PATH.")
  elseif(NOT plugins_choice STREQUAL "auto")
    message(FATAL_ERROR
      "FASTYOLO_PLUGINS=${FASTYOLO_PLUGINS}, but TensorRT's headers were not found: set TENSORRT_INCLUDE_DIR to the "
      "folder of NvInferRuntime.h, or install them with: pip install --no-deps kernel-lens==2.0.1")
  endif()
endif()
if(TENSORRT_INCLUDE_DIR AND NOT FASTYOLO_WITH_PLUGINS AND NOT FASTYOLO_WITH_CUDA AND plugins_choice STREQUAL "auto")
  message(WARNING
    "TENSORRT_INCLUDE_DIR is set, but the TensorRT plugins are left out: they need the CUDA kernels, so put nvcc on PATH.")
endif()
message(STATUS "fastyolo: TensorRT plugins ${FASTYOLO_WITH_PLUGINS} ${FASTYOLO_TENSORRT_VERSION}")
