# torch's stable ABI needs headers and two libraries, not find_package(Torch): that would rewrite the CUDA
# architectures and pull in ATen. The libraries are loaded already when ours is, since torch is imported first.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c "import pathlib, torch; print(torch.__version__, pathlib.Path(torch.__file__).parent, sep=';')"
  OUTPUT_VARIABLE torch_facts OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE torch_failed)
if(torch_failed)
  message(FATAL_ERROR
    "torch was not found by ${Python_EXECUTABLE}: install torch 2.11 or later and build with --no-build-isolation, "
    "or set FASTYOLO_TORCH=off to build the NumPy kernels alone.")
endif()
list(GET torch_facts 0 torch_version)
list(GET torch_facts 1 torch_root)
if(torch_version VERSION_LESS 2.11)
  message(FATAL_ERROR "fastyolo needs torch 2.11 or later to build its operators; found ${torch_version}.")
endif()

add_library(torch_stable INTERFACE)
target_include_directories(torch_stable SYSTEM INTERFACE ${torch_root}/include)
# 2.11: the oldest torch the library runs on. USE_CUDA declares the stream getter; library.cpp makes it a weak symbol.
target_compile_definitions(torch_stable INTERFACE TORCH_TARGET_VERSION=0x020b000000000000 USE_CUDA)
target_link_libraries(torch_stable INTERFACE
  ${torch_root}/lib/libtorch_cpu.so -Wl,--no-as-needed ${torch_root}/lib/libtorch.so -Wl,--as-needed)
