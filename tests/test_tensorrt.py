# SPDX-License-Identifier: AGPL-3.0-or-later
"""What build_engine does around TensorRT's builder, which needs a GPU: a stand-in takes its place here."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from fastyolo.integrations import tensorrt

onnx_package = pytest.importorskip("onnx")
SHAPES = ((1, 3, 32, 32), (1, 3, 64, 64), (2, 3, 64, 64))


class Config:
    """Of a builder: its answers are those that the documentation of TensorRT's Python package gives."""

    accepts_cache = True

    def __init__(self) -> None:
        self.cache = None

    def create_timing_cache(self, content: bytes):
        return SimpleNamespace(serialize=lambda: content + b"+")

    def set_timing_cache(self, cache, ignore_mismatch):
        assert not ignore_mismatch
        self.cache = cache if self.accepts_cache else None
        return self.accepts_cache

    def get_timing_cache(self):
        return self.cache

    def add_optimization_profile(self, profile):
        return 0


class Profile:
    def set_shape(self, name, smallest, usual, largest):
        if not all(a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True)):
            raise RuntimeError("Shape provided for max is inconsistent with other shapes.")


class Network:
    num_layers = 0
    num_inputs = 1
    shape = (-1, 3, -1, -1)

    def get_input(self, index):
        return SimpleNamespace(name="images", shape=self.shape)


class Builder:
    built = 0

    def __init__(self, log) -> None:
        self.create_network = lambda flags: Network()
        self.create_builder_config = Config
        self.create_optimization_profile = Profile

    def build_serialized_network(self, network, config):
        type(self).built += 1
        return b"ENGINE"


@pytest.fixture
def builder(monkeypatch):
    module = SimpleNamespace(
        __version__="11.1.0",
        Builder=Builder,
        ILogger=type("ILogger", (), {"INTERNAL_ERROR": 0, "ERROR": 1, "WARNING": 2, "INFO": 3}),
        LayerType=SimpleNamespace(QUANTIZE=1),
        NetworkDefinitionCreationFlag=SimpleNamespace(),
        OnnxParser=lambda network, log: SimpleNamespace(parse=lambda model, path: True),
        float16="float16",
    )
    monkeypatch.setattr(tensorrt, "_import_tensorrt", lambda: module)
    monkeypatch.setattr(Builder, "built", 0)
    return Builder


@pytest.fixture
def onnx(tmp_path):
    def write(*operators: str):
        nodes = [onnx_package.helper.make_node(operator, ["x"], ["y"], domain="fastyolo") for operator in operators]
        path = tmp_path / "model.onnx"
        onnx_package.save(
            onnx_package.helper.make_model(onnx_package.helper.make_graph(nodes, "FastYoloECA in a name", [], [])), path
        )
        return path

    return write


def test_an_engine_with_metadata_and_a_timing_cache(builder, onnx, tmp_path):
    cache = tmp_path / "timing.cache"
    cache.write_bytes(b"measured")
    engine = tensorrt.build_engine(
        onnx(),
        tmp_path / "model.engine",
        timing_cache=cache,
        profiles={"images": SHAPES},
        metadata={"stride": 32},
    )
    content = engine.read_bytes()
    length = int.from_bytes(content[:4], "little")
    assert json.loads(content[4 : 4 + length]) == {"stride": 32}
    assert content[4 + length :] == b"ENGINE"
    assert cache.read_bytes() == b"measured+"


def test_trtexec_gets_all_digits_of_the_workspace(onnx):
    command = tensorrt.trtexec_command(onnx(), "model.engine", version="10.12", workspace=1000.5)
    assert "--memPoolSize=workspace:1024512" in command.split()


@pytest.mark.parametrize("why", ["mismatch", "damaged"])
def test_a_timing_cache_of_another_machine_is_refused_before_the_build(builder, onnx, tmp_path, monkeypatch, why):
    if why == "mismatch":
        monkeypatch.setattr(Config, "accepts_cache", False)
    else:
        monkeypatch.setattr(Config, "create_timing_cache", lambda self, content: None)
    with pytest.raises(ValueError, match="is damaged, or of another GPU or version of TensorRT; name another file"):
        tensorrt.build_engine(
            onnx(), tmp_path / "model.engine", timing_cache=tmp_path / "cache", profiles={"images": SHAPES}
        )
    assert builder.built == 0
    assert not (tmp_path / "model.engine").exists()


@pytest.mark.parametrize(
    ("shape", "profiles", "message"),
    [
        ((-1, 3, -1, -1), {}, r"input 'images' has free sizes \(-1, 3, -1, -1\): give profiles="),
        ((-1, 3, -1, -1), {"image": SHAPES}, "profiles names the input 'image', and the network has images"),
        ((-1, 3, -1, -1), {"images": SHAPES[::-1]}, "each size must rise from smallest to largest"),
        ((1, 3, 64, 64), {"images": SHAPES}, "profiles names the input 'images', whose sizes are fixed; leave it out"),
    ],
)
def test_profiles_that_do_not_fit(builder, onnx, tmp_path, monkeypatch, shape, profiles, message):
    monkeypatch.setattr(Network, "shape", shape)
    with pytest.raises(ValueError, match=message):
        tensorrt.build_engine(onnx(), tmp_path / "model.engine", profiles=profiles)
    assert builder.built == 0


@pytest.mark.parametrize(
    ("operators", "expected"), [((), False), (("FastYoloECA",), True), (("Relu", "FastYoloDecodeNMS"), True)]
)
def test_nodes_of_plugins_are_told_from_names(onnx, operators, expected):
    assert tensorrt._has_plugins(onnx(*operators).read_bytes()) is expected
