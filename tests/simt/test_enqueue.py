# SPDX-License-Identifier: AGPL-3.0-or-later
"""Every TensorRT plugin's enqueue() on the stand-in for CUDA: examples/cpp/enqueue_test.cpp, as on a GPU."""

from __future__ import annotations

import re
import subprocess

import pytest
import simt

# Of cases, types and formats; all that the plugins offer for the program's shapes.
RUNS = 103


@pytest.fixture(scope="module", params=simt.ENQUEUE_TESTS)
def output(request: pytest.FixtureRequest) -> str:
    """What enqueue_test prints, with IPluginV3 and with IPluginV2DynamicExt."""
    if not simt.tensorrt_headers():
        pytest.skip("TensorRT's headers (kernel-lens) are not installed")
    simt.build(target=request.param)
    done = subprocess.run(
        [simt.BUILD / request.param], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_every_plugin_gives_what_the_cpu_kernel_gives(output: str) -> None:
    assert output.endswith(f"{RUNS} passed, 0 failed\n"), output


@pytest.mark.parametrize("op", ["decode_nms", "multiclass_nms", "dfl_decode", "eca", "dw_sppf", "sppf"])
def test_every_type_and_format_ran(output: str, op: str) -> None:
    variants = set(re.findall(rf"^ok +{op}\b.*, (\S+ [a-z ]+)$", output, re.MULTILINE))
    formats = {"float32 linear", "float16 linear"}
    if op not in ("multiclass_nms", "dfl_decode"):
        formats.add("float16 channels last")
    assert variants == formats


@pytest.mark.parametrize(
    "message",
    [
        "FastYoloDWSPPF: weight must have shape [3, 8, 3, 3], got [3, 4, 3, 3]",
        "FastYoloDWSPPF: weight must have kernels of 3x3 or 5x5, got 7x7",
        "FastYoloDWSPPF: bias must have shape [3, 8], got [3, 4]",
        "FastYoloECA: weight must have an odd number of elements up to 31, got 4",
        "FastYoloECA: the inputs must be x and weight, got 3",
        "FastYoloECA: input 0, x, must have 4 dimensions, got 3",
        "FastYoloDFLDecode: logits must have 4 channels per bin, got 6 channels",
        "FastYoloDFLDecode: anchor_points must have shape [2, 10], got [2, 9]",
        "FastYoloDecodeNMS: cls_maps[1] must have shape [1, 80, 2, 2], got [1, 80, 2, 3]",
        "FastYoloDecodeNMS: box_maps[1] must have shape [1, 64, any, any], got [1, 60, 2, 2]",
        "FastYoloDecodeNMS: the inputs must be as many box maps and then class maps as there are strides, and "
        "optionally thresholds, got 3",
        "FastYoloBatchedNMS: scores must have shape [1, any, 10], got [1, 80, 9]",
        "FastYoloBatchedNMS: thresholds must have shape [2], got [3]",
    ],
)
def test_shapes_that_do_not_fit_are_refused(output: str, message: str) -> None:
    assert message in output.splitlines()
