# Each target works by itself on a fresh clone: Python 3.10 or later and a C++17 compiler are all it needs. nvcc is used
# if it is on PATH. `make PYTHON=python3.12 test` picks the interpreter; FASTYOLO_CUDA=on|off|auto and
# CMAKE_CUDA_ARCHITECTURES go to the build.
PYTHON ?= python3
WEIGHTS ?=
VENV := .venv
BIN := $(VENV)/bin
TAG := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
REQUIREMENTS := $(VENV)/requirements-$(TAG)
BUILT := $(VENV)/built-$(TAG)
SOURCES := pyproject.toml CMakeLists.txt $(wildcard cmake/* csrc/*/* plugins/*)
# About half of the time that all tests take: those of the CUDA kernels, and of training.
SECOND_HALF := tests/simt tests/test_cuda_compile.py $(addprefix tests/test_,train_cli.py trainer.py ultralytics.py verify.py)
CXX_FILES = $(shell find csrc plugins tests examples -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

.PHONY: setup demo test coverage bench lint clean

setup: $(BUILT)

$(REQUIREMENTS): constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps -r constraints.txt
	@touch $@

$(BUILT): $(REQUIREMENTS) $(SOURCES)
	$(BIN)/python -m pip install --disable-pip-version-check --no-build-isolation --no-deps --editable .
	$(BIN)/python -m pip check --disable-pip-version-check
	@touch $@

demo: $(BUILT)
	$(BIN)/fastyolo predict --save-dir runs/pictures $(if $(WEIGHTS),--weights "$(WEIGHTS)")

# Two runs side by side: each leaves a core idle most of the time. Threads that wait for others must not spin then, or
# they keep those from running.
test: export OMP_WAIT_POLICY := passive
test: export GOMP_SPINCOUNT := 0
test: $(BUILT)
	@mkdir -p build
	@$(BIN)/python -m pytest $(SECOND_HALF) > build/second-half.log 2>&1 & second=$$!; \
	$(BIN)/python -m pytest $(SECOND_HALF:%=--ignore=%); first=$$?; \
	wait $$second; second=$$?; cat build/second-half.log; exit $$((first | second))

coverage: $(BUILT)
	$(BIN)/python -m pytest --cov=fastyolo

bench: $(BUILT)
	$(BIN)/fastyolo bench ops --device cpu

lint: $(REQUIREMENTS)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

clean:
	rm -rf $(VENV) build
