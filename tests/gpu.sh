#!/usr/bin/env bash
# SPDX-License-Identifier: AGPL-3.0-or-later
# What only a GPU can show, in one command: tests/gpu.sh FOLDER [STEP...]
#
# Leaves in FOLDER a log of each step, the benchmark's results (ops.json), and summary.txt with a line for each step.
# The exit status is 1 if a step failed; the others run all the same. Steps, in the default order:
#   build      the package, for this GPU
#   facts      what the machine and the build are
#   tests      pytest -m cuda
#   enqueue    every plugin's enqueue()
#   enqueue_memcheck, enqueue_racecheck   the same under that tool of compute-sanitizer
#   memcheck, racecheck, synccheck   the operators' small cases under that tool
#   bench      every operator against its peers
# PYTHON is the interpreter (default: that of .venv, else python3), LIMIT the seconds a step may take (default: 1800; the
# benchmark keeps what it has measured until then), BENCH options of the benchmark, as "--op eca --batch 32", TESTS those
# of pytest, as "-n 8" with pytest-xdist, and TENSORRT_INCLUDE_DIR the folder of TensorRT's headers (default: those of
# the PyPI package kernel-lens).
set -u
if [ $# = 0 ]; then
  sed -n '3,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"
  exit 2
fi
mkdir -p "$1"
out=$(cd "$1" && pwd)
shift
cd "$(dirname "${BASH_SOURCE[0]}")/.."
steps=${*:-build facts tests enqueue enqueue_memcheck enqueue_racecheck memcheck racecheck synccheck bench}
default=$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)
python=${PYTHON:-$default}
export CMAKE_CUDA_ARCHITECTURES=${CMAKE_CUDA_ARCHITECTURES:-native}
export FASTYOLO_CUDA=on  # without nvcc the build should fail, not the tests
export CUDAFLAGS="-lineinfo ${CUDAFLAGS:-}"  # compute-sanitizer then names lines
failed=0

tensorrt_headers() {
  echo "${TENSORRT_INCLUDE_DIR:-$("$python" -c '
import importlib.util
found = importlib.util.find_spec("kernel_lens")
print(*found.submodule_search_locations if found else ())')/include/tensorrt}"
}

# Without one, the tests would only be skipped.
"$python" -c 'import torch; raise SystemExit(None if torch.cuda.is_available() else "tests/gpu.sh: torch sees no GPU.")' ||
  exit 2
"$python" - <<'END' || exit 2
from importlib.util import find_spec
needed = {"pytest": "pytest", "pytest_timeout": "pytest-timeout", "cv2": "opencv-python-headless", "yaml": "pyyaml",
          "PIL": "pillow", "typer": "typer", "rich": "rich", "pybind11": "pybind11", "scikit_build_core": "scikit-build-core"}
missing = [package for module, package in needed.items() if find_spec(module) is None]
raise SystemExit(f"tests/gpu.sh needs more packages: pip install {' '.join(missing)}" if missing else None)
END
for tool in $([[ $steps == *enqueue* ]] && echo cmake) $([[ $steps == *check* ]] && echo compute-sanitizer); do
  command -v "$tool" > /dev/null || { echo "tests/gpu.sh needs $tool" >&2 && exit 2; }
done
if [[ $steps == *enqueue* ]] && [ ! -e "$(tensorrt_headers)/NvInferRuntime.h" ]; then
  echo "tests/gpu.sh: set TENSORRT_INCLUDE_DIR to the folder of TensorRT's headers, or pip install kernel-lens" >&2
  exit 2
fi

build() { "$python" -m pip install --no-build-isolation --no-deps --editable .; }

facts() {
  nvidia-smi && "$python" -c '
import fastyolo, torch
print(fastyolo.build_info())
print(torch.__version__, torch.cuda.get_device_name(), torch.cuda.get_device_capability())
fastyolo.ops.nms(torch.zeros(1, 4, device="cuda"), torch.zeros(1, device="cuda"), 0.5)'
}

# Warnings of packages in versions that these tests have not met are for another day.
tests() { "$python" -m pytest -m cuda -W default ${TESTS:-}; }

# Of the driver's calls a tool also reports those with which libraries ask for what an older driver lacks.
sanitizer() {
  compute-sanitizer --tool "$1" --error-exitcode 99 --report-api-errors no --target-processes all "${@:2}"
}

# A tool makes kernels ten to a thousand times slower, so torch's go without. Without torch's cache, each tensor is an
# allocation of its own, beyond the end of which the tool sees.
sanitized() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 sanitizer "$1" --kernel-regex kns=fastyolo \
    "$python" -m pytest -m cuda -W default -k "(matches_reference or gradient) and not (bfloat16 or every-score or 1203 or many or 3000 or \
    clustered or tied or 2049 or 160x160 or 1024)" tests/test_decode_nms.py tests/test_batched_nms.py \
    tests/test_dfl_decode.py tests/test_eca.py tests/test_dw_sppf.py tests/test_sppf_pool.py
}
memcheck() { sanitized memcheck; }
racecheck() { sanitized racecheck; }
synccheck() { sanitized synccheck; }

# As a C++ project does it, with a command before the test's if there is one.
run_enqueue() {
  local build=build/gpu settings
  settings=(-DCMAKE_CUDA_ARCHITECTURES="$CMAKE_CUDA_ARCHITECTURES" -DTENSORRT_INCLUDE_DIR="$(tensorrt_headers)")
  cmake -S . -B $build/cpp -DCMAKE_INSTALL_PREFIX=$build/installed "${settings[@]}" &&
    cmake --build $build/cpp --parallel "$(nproc)" && cmake --install $build/cpp &&
    cmake -S examples/cpp -B $build/examples -DCMAKE_PREFIX_PATH="$PWD/$build/installed" "${settings[@]}" &&
    cmake --build $build/examples --parallel "$(nproc)" --target enqueue_test || return 1
  "$@" $build/examples/enqueue_test "$(find $build/installed -name libfastyolo_plugins.so)"
}
enqueue() { run_enqueue; }
enqueue_memcheck() { run_enqueue sanitizer memcheck; }
enqueue_racecheck() { run_enqueue sanitizer racecheck; }

bench() { "$python" -m fastyolo bench ops --device cuda --json "$out/ops.json" ${BENCH:-}; }

export -f build facts tests sanitizer sanitized memcheck racecheck synccheck bench
export -f run_enqueue tensorrt_headers enqueue enqueue_memcheck enqueue_racecheck
export python out
for step in $steps; do
  start=$SECONDS
  timeout --signal=INT --kill-after=30 "${LIMIT:-1800}" bash -uc "$step" > "$out/$step.log" 2>&1
  status=$?
  printf '%-17s %s, %d s\n' "$step" "$([ $status = 0 ] && echo passed || echo "FAILED with $status, see $step.log")" \
    $((SECONDS - start)) | tee -a "$out/summary.txt"
  [ $status = 0 ] || failed=1
done
exit $failed
