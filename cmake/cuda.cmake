# Decides whether the CUDA kernels are built: never asked of torch, so that a CPU torch gets a library that also works
# under a CUDA torch. CUDA is enabled before any target exists; targets made earlier would have no architectures.
set(FASTYOLO_WITH_CUDA OFF)
set(FASTYOLO_CUDA_ARCHITECTURES "")
string(TOLOWER "${FASTYOLO_CUDA}" cuda_choice)
if(NOT cuda_choice MATCHES "^(on|off|auto|1|0|true|false|yes|no)$")
  message(FATAL_ERROR "FASTYOLO_CUDA must be on, off or auto, not '${FASTYOLO_CUDA}'.")
endif()

if(cuda_choice STREQUAL "auto" OR FASTYOLO_CUDA)
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(choose_architectures OFF)
    if(NOT CMAKE_CUDA_ARCHITECTURES)
      set(choose_architectures ON)
      set(CMAKE_CUDA_ARCHITECTURES 75)  # of CMake's own checks, before it knows the version
    endif()
    enable_language(CUDA)
    if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 11.8)
      message(FATAL_ERROR
        "The CUDA kernels need CUDA 11.8 or later, got ${CMAKE_CUDA_COMPILER_VERSION}; FASTYOLO_CUDA=off leaves them out.")
    endif()
    if(choose_architectures)
      # Turing to Blackwell. The PTX of 10.0 serves what is between and after, as Jetson Thor's 11.0.
      set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real 86-real 87-real 89-real 90-real 100 120-real)
      if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
        list(REMOVE_ITEM CMAKE_CUDA_ARCHITECTURES 90-real 100 120-real)
        list(APPEND CMAKE_CUDA_ARCHITECTURES 90)
      endif()
      if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13)
        list(PREPEND CMAKE_CUDA_ARCHITECTURES 72-real)  # Jetson Xavier
      endif()
    endif()
    find_package(CUDAToolkit REQUIRED)
    set(CMAKE_CUDA_STANDARD 17)
    set(CMAKE_CUDA_STANDARD_REQUIRED ON)
    set(FASTYOLO_WITH_CUDA ON)
    list(JOIN CMAKE_CUDA_ARCHITECTURES " " FASTYOLO_CUDA_ARCHITECTURES)
  elseif(NOT cuda_choice STREQUAL "auto")
    message(FATAL_ERROR
      "FASTYOLO_CUDA=${FASTYOLO_CUDA}, but no CUDA compiler was found: put nvcc on PATH or set CMAKE_CUDA_COMPILER.")
  endif()
endif()
message(STATUS "fastyolo: CUDA kernels ${FASTYOLO_WITH_CUDA} ${FASTYOLO_CUDA_ARCHITECTURES}")

function(fastyolo_add_cuda_kernels target)
  target_sources(${target} PRIVATE ${ARGN})
  # The IoU arithmetic spells out every rounding; fused multiply-adds elsewhere are welcome.
  set_source_files_properties(${ARGN} PROPERTIES COMPILE_OPTIONS "--threads=0;-Wno-deprecated-gpu-targets")
  target_link_libraries(${target} PUBLIC CUDA::cudart_static)
  target_compile_definitions(${target} PUBLIC FASTYOLO_WITH_CUDA)
endfunction()
