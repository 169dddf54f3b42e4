# Each CPU kernel source is compiled once per instruction set into a namespace of its own; cpu_entries.cpp picks one at
# load. Everything that a kernel source defines or instantiates has internal linkage, apart from its entries: a shared
# inline function compiled for AVX-512 must not be the copy that the linker keeps for the baseline.
set(FASTYOLO_CXX_OPTIONS
  -Wall -Wextra -Wno-psabi -fno-math-errno -ffp-contract=off
  # Not for CUDA: nvcc loses the quotes around a path with spaces.
  "$<$<COMPILE_LANGUAGE:CXX>:-fmacro-prefix-map=${CMAKE_SOURCE_DIR}/=>")

function(fastyolo_add_cpu_kernels target)
  set(isas baseline)
  set(baseline_flags "")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND isas avx2 avx512)
    set(avx2_flags -mavx2 -mfma)
    # GCC 12 warns about its own AVX-512 headers (GCC bug 105593).
    set(avx512_flags -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mprefer-vector-width=512
      -Wno-uninitialized -Wno-maybe-uninitialized)
    target_compile_definitions(${target} PRIVATE FASTYOLO_X86)
  endif()
  foreach(isa IN LISTS isas)
    add_library(${target}_${isa} OBJECT ${ARGN})
    target_compile_options(${target}_${isa} PRIVATE ${FASTYOLO_CXX_OPTIONS} ${${isa}_flags})
    target_compile_definitions(${target}_${isa} PRIVATE FASTYOLO_ISA=${isa})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${target}_${isa}>)
  endforeach()
  list(JOIN isas " " names)
  set(FASTYOLO_CPU_ISAS "${names}" PARENT_SCOPE)
endfunction()
