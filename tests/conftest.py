# SPDX-License-Identifier: AGPL-3.0-or-later
from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before anything imports ultralytics: no test may reach for the network, install a package or write to the user's home.
os.environ.update(YOLO_OFFLINE="1", YOLO_AUTOINSTALL="0")
if "YOLO_CONFIG_DIR" not in os.environ:
    os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp(prefix="fastyolo-tests-")
    atexit.register(shutil.rmtree, os.environ["YOLO_CONFIG_DIR"], ignore_errors=True)

import pytest
import torch
from cases import CASES, DTYPES

torch.backends.cudnn.allow_tf32 = False  # on a GPU, convolutions would differ from the CPU's, and with the algorithm


@pytest.fixture
def data() -> Path:
    """The folder of weights and images that FASTYOLO_DATA names."""
    if not os.environ.get("FASTYOLO_DATA"):
        pytest.skip("FASTYOLO_DATA does not name the folder of weights and images")
    return Path(os.environ["FASTYOLO_DATA"])


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests of tiny maps, on which threads only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def ultralytics_log() -> Iterator[None]:
    """As ultralytics sets it up: fastyolo's commands lower it for the rest of their process."""
    yield
    logging.getLogger("ultralytics").setLevel("INFO")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with the arguments case, device and dtype runs the cases of its module's OPS; one with device alone runs
    on each."""
    marks = {"cpu": [], "cuda": [pytest.mark.cuda]}
    if "case" in metafunc.fixturenames:
        rows = [
            pytest.param(case, device, dtype, id=f"{case.id}-{device}-{dtype}", marks=marks[device])
            for case in CASES
            if case.op in metafunc.module.OPS
            for device, dtypes in DTYPES[case.op].items()
            for dtype in dtypes
        ]
        metafunc.parametrize(("case", "device", "dtype"), rows)
    elif "device" in metafunc.fixturenames:
        metafunc.parametrize("device", [pytest.param(device, marks=marks[device]) for device in marks])
