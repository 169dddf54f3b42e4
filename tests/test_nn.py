# SPDX-License-Identifier: AGPL-3.0-or-later
"""The modules compute what their papers and stock blocks do, keep their values when copied, saved and fused, and leave
torch as standard operators."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastyolo import ops, reference
from fastyolo.nn import DWSPPF, ECA, GELAN, Conv, DSConv, FusedSPPF, standard
from fastyolo.nn.eca import eca_kernel_size
from fastyolo.nn.export import Exportable
from fastyolo.nn.gelan import round_up

OPERATORS = {"ECA": "eca", "DWSPPF": "dw_sppf", "FusedSPPF": "sppf_pool", "GELAN": "eca"}


class StockConv(nn.Module):
    """ultralytics' Conv of 1x1."""

    def __init__(self, c1: int, c2: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c1, c2, 1, bias=False)
        self.bn = nn.BatchNorm2d(c2)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class StockSPPF(nn.Module):
    """ultralytics' SPPF."""

    def __init__(self, c1: int, c2: int, k: int = 5, n: int = 3, shortcut: bool = False) -> None:
        super().__init__()
        self.cv1 = StockConv(c1, c1 // 2)
        self.cv2 = StockConv(c1 // 2 * (n + 1), c2)
        self.m = nn.MaxPool2d(kernel_size=k, stride=1, padding=k // 2)
        self.n = n
        self.add = shortcut and c1 == c2

    def forward(self, x: Tensor) -> Tensor:
        y = [self.cv1(x)]
        for _ in range(self.n):
            y.append(self.m(y[-1]))
        z = self.cv2(torch.cat(y, 1))
        return z + x if self.add else z


MODULES: dict[str, Callable[[], nn.Module]] = {
    "ECA": lambda: ECA(8),
    "DWSPPF": lambda: DWSPPF(8, 6),
    "FusedSPPF": lambda: FusedSPPF(StockSPPF(8, 6)),
    "GELAN": lambda: GELAN(8, 16, n=2, shortcut=True),
}


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> nn.Module:
    """Each of the modules, with normalisations that have seen something."""
    torch.manual_seed(0)
    return seasoned(MODULES[request.param]())


def seasoned(module: nn.Module) -> nn.Module:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.running_mean, -1, 1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -1, 1)
    return module.eval()


def feature_map(batch: int = 2, channels: int = 8, height: int = 9, width: int = 11) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(1))


# ---- what each of them computes


@pytest.mark.parametrize(
    "settings", [{}, {"k": 3}, {"k": 5, "s": 2}, {"k": 3, "s": 2, "groups": 4}, {"k": 3, "act": False}], ids=str
)
def test_conv_is_a_convolution_with_normalisation_and_silu(settings):
    torch.manual_seed(0)
    module, x = seasoned(Conv(8, 12, **settings)), feature_map()
    assert list(module.state_dict()) == ["conv.weight", *(f"bn.{name}" for name in nn.BatchNorm2d(1).state_dict())]
    k, bn = settings.get("k", 1), module.bn
    y = nn.functional.conv2d(
        x, module.conv.weight, stride=settings.get("s", 1), padding=k // 2, groups=settings.get("groups", 1)
    )
    y = nn.functional.batch_norm(y, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=1e-3)
    expected = y if settings.get("act") is False else y * y.sigmoid()
    torch.testing.assert_close(module(x), expected)
    module.fuse()
    module.fuse()
    assert list(module.state_dict()) == ["conv.weight", "conv.bias"]
    torch.testing.assert_close(module(x), expected)


def test_weights_start_at_one_scale_whatever_the_inputs_of_a_filter():
    for conv in (Conv(256, 256, 3, groups=256), Conv(96, 96, 3, groups=6), Conv(32, 256), Conv(64, 64, 3)):
        assert 0.019 < conv.conv.weight.std() < 0.021


def test_ds_conv_is_depthwise_then_pointwise():
    torch.manual_seed(0)
    module, x = seasoned(DSConv(8, 12, 5, 2)), feature_map()
    depthwise = module.depthwise.bn(nn.functional.conv2d(x, module.conv.weight, stride=2, padding=2, groups=8))
    expected = nn.functional.silu(module.pointwise.bn(module.pointwise.conv(depthwise)))
    assert expected.shape == (2, 12, 5, 6)
    torch.testing.assert_close(module(x), expected)


def gelan(module: GELAN, x: Tensor, *, shortcut: bool, shuffle: bool, context: bool, attention: bool) -> Tensor:
    """The block as its docstring has it, in plain torch."""

    def act(conv: Conv, x: Tensor) -> Tensor:
        return nn.functional.silu(conv.bn(conv.conv(x)))

    last = act(module.cv2, x)
    maps = [act(module.cv1, x), last]
    for i, conv in enumerate(module.m):
        shuffled = nn.functional.channel_shuffle(last, conv.conv.groups) if shuffle and i > 0 else last
        last = act(conv, shuffled) + (last if shortcut else 0)
        maps.append(last)
    if context:
        _, reduce, _, expand, _ = module.context
        maps[-1] = last * expand(reduce(last.mean((2, 3), keepdim=True)).relu()).sigmoid()
    y = act(module.cv3, torch.cat(maps, 1))
    return reference.eca(y, module.attention.weight) if attention else y


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize(("n", "g", "e"), [(1, 2, 0.375), (3, 2, 0.5), (2, 4, 1.0), (2, 1, 0.375)])
@pytest.mark.parametrize("without", [None, "shuffle", "context", "attention"])
def test_gelan_computes_what_it_says(without, n, g, e, shortcut):
    torch.manual_seed(0)
    parts = dict.fromkeys(("shuffle", "context", "attention"), True) | ({without: False} if without else {})
    module, x = seasoned(GELAN(8, 20, n, shortcut, g, e, **parts)), feature_map()
    assert module.cv1.conv.out_channels == module.cv2.conv.out_channels == {0.375: 8, 0.5: 16, 1.0: 24}[e]
    torch.testing.assert_close(module(x), gelan(module, x, shortcut=shortcut, **parts))


def test_each_switch_of_gelan_removes_its_part_alone():
    whole = set(GELAN(8, 16, n=2).state_dict())
    removed = {name: whole - set(GELAN(8, 16, n=2, **{name: False}).state_dict()) for name in ("context", "attention")}
    assert removed == {
        "context": {"context.1.weight", "context.1.bias", "context.3.weight", "context.3.bias"},
        "attention": {"attention.weight"},
    }
    torch.manual_seed(0)
    shuffled = seasoned(GELAN(8, 16, n=2))
    plain = GELAN(8, 16, n=2, shuffle=False).eval()
    plain.load_state_dict(shuffled.state_dict())
    assert not torch.allclose(plain(feature_map()), shuffled(feature_map()))


def test_gelan_has_the_gradients_of_its_formula():
    torch.manual_seed(0)
    module = seasoned(GELAN(2, 4, n=2, shortcut=True)).double()
    names, parameters = zip(*module.named_parameters(), strict=True)
    x = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *parameters), fast_mode=True)


def test_channels_are_rounded_up():
    assert [round_up(channels) for channels in (0.1, 8, 8.01, 24.0, 36.0)] == [8, 8, 16, 24, 40]


def test_eca_computes_its_operator():
    module, x = ECA(8, kernel_size=5), feature_map()
    torch.testing.assert_close(module(x), reference.eca(x, module.weight))
    assert ECA(64).weight.shape == (3,)


def test_eca_kernel_size_is_that_of_the_paper():
    for channels in range(1, 2049):
        t = int((math.log2(channels) + 1) / 2)  # gamma = 2, b = 1
        assert eca_kernel_size(channels) == (t if t % 2 else t + 1)


@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
@pytest.mark.parametrize(("k", "dilation"), [(3, 1), (3, 2), (5, 2)])
def test_dw_sppf_computes_a_chain_of_depthwise_convolutions(k, dilation, activation):
    torch.manual_seed(0)
    module, x = DWSPPF(8, 6, k, dilation, activation), feature_map()
    nn.init.normal_(module.bias)
    act = {"identity": nn.Identity(), "relu": nn.ReLU(), "silu": nn.SiLU()}[activation]
    stages = [module.cv1(x)]
    for weight, bias in zip(module.weight, module.bias, strict=True):
        conv = nn.Conv2d(4, 4, k, padding=k // 2 * dilation, dilation=dilation, groups=4)
        conv.load_state_dict({"weight": weight.unsqueeze(1), "bias": bias})
        stages.append(act(conv(stages[-1])))
    torch.testing.assert_close(module(x), module.cv2(torch.cat(stages, 1)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
def test_dw_sppf_starts_without_fading_or_growing(activation):
    """The second moments of the stages: in the middle of a map, where no padding takes part, and over many channels."""
    torch.manual_seed(0)
    module = DWSPPF(1024, 8, activation=activation).eval()
    before = nn.functional.silu(torch.randn(8, 512, 20, 20))  # as behind a normalisation
    with torch.no_grad():
        stages = ops.dw_sppf(before, module.weight, module.bias, dilation=2, activation=activation)
    moments = stages[..., 6:14, 6:14].square().unflatten(1, (4, 512)).mean((0, 2, 3, 4))
    assert (moments > moments[0] / 2).all()
    assert (moments < moments[0] * 2).all()


def test_dw_sppf_takes_the_convolutions_of_a_trained_sppf():
    stock = StockSPPF(8, 6)
    result = DWSPPF(8, 6).load_state_dict(stock.state_dict(), strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["weight", "bias"], [])


def test_dw_sppf_folds_its_normalisations():
    torch.manual_seed(0)
    module, x = DWSPPF(8, 6), feature_map()
    for _ in range(20):
        module(x)  # moves the statistics
    with pytest.raises(RuntimeError, match=r"fuse\(\) needs a module in evaluation mode"):
        module.fuse()
    expected = module.eval()(x)
    assert module.fuse() is module
    assert not any(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    torch.testing.assert_close(module(x), expected)
    assert set(module.fuse().state_dict()) == {
        "weight", "bias", "cv1.conv.weight", "cv1.conv.bias", "cv2.conv.weight", "cv2.conv.bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("c2", "settings"), [(6, {}), (8, {"k": 3}), (8, {"shortcut": True}), (6, {"shortcut": True})], ids=str
)
def test_fused_sppf_is_the_stock_block(c2, settings):
    torch.manual_seed(0)
    stock = StockSPPF(8, c2, **settings).double()
    fused = FusedSPPF(copy.deepcopy(stock))
    assert list(fused.state_dict()) == list(stock.state_dict())
    answers = []
    for block in (stock, fused):
        x = feature_map().double().requires_grad_()
        y = block(x)
        y.square().sum().backward()
        answers.append([y, x.grad, *(p.grad for p in block.parameters())])
    for expected, actual in zip(*answers, strict=True):
        torch.testing.assert_close(actual, expected)


def test_fused_sppf_shares_what_it_is_made_from():
    stock = StockSPPF(8, 6)
    calls = []
    stock.register_forward_hook(lambda *_: calls.append(1))
    stock.i = 9  # an attribute that others gave it
    fused = FusedSPPF(stock)
    assert (fused.cv1, fused.cv2, fused.i) == (stock.cv1, stock.cv2, 9)
    fused(feature_map())
    assert calls == [1]
    del stock.add  # as in older checkpoints
    del stock.n
    torch.testing.assert_close(FusedSPPF(stock)(feature_map()), fused(feature_map()))


# ---- what is refused


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ECA(8, kernel_size=4), "kernel_size must be odd and in [1, 31], got 4"),
        (lambda: ECA(8, kernel_size=33), "kernel_size must be odd and in [1, 31], got 33"),
        (lambda: DWSPPF(8, 8, k=4), "k must be 3 or 5, got 4"),
        (lambda: DWSPPF(8, 8, dilation=3), "dilation must be 1 or 2, got 3"),
        (
            lambda: DWSPPF(8, 8, activation="gelu"),
            "activation must be one of identity, relu, silu, got 'gelu'",
        ),
        (lambda: Conv(8, 8, 2), "k must be odd, got 2"),
        (lambda: Conv(8, 8, groups=3), "groups must divide c1 and c2, got 3 for 8 and 8 channels"),
        (lambda: Conv(8, 12, groups=8), "groups must divide c1 and c2, got 8 for 8 and 12 channels"),
        (lambda: Conv(8, 8, groups=0), "groups must divide c1 and c2, got 0 for 8 and 8 channels"),
        (lambda: GELAN(8, 8, n=0), "n must be at least 1, got 0"),
        (lambda: GELAN(8, 8, e=0), "e must be above 0, got 0"),
        (lambda: GELAN(8, 64, g=5), "g must divide the 24 channels of the chained convolutions, got 5"),
        (lambda: GELAN(8, 64, g=0), "g must divide the 24 channels of the chained convolutions, got 0"),
    ],
)
def test_wrong_arguments(build, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build()


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"n": 2}, "it has 2 of them"),
        ({"m": nn.AvgPool2d(5, 1, 2)}, "it pools with AvgPool2d"),
        ({"m": nn.MaxPool2d(4, 1, 2)}, "its kernel of 4 is not odd and at most 15"),
        ({"m": nn.MaxPool2d(17, 1, 8)}, "its kernel of 17 is not odd and at most 15"),
        ({"m": nn.MaxPool2d((5, 3), 1, (2, 1))}, "its kernel of (5, 3) is not odd and at most 15"),
        ({"m": nn.MaxPool2d(5, 1, 2, ceil_mode=True)}, "its pool is MaxPool2d(kernel_size=5, stride=1"),
        ({"m": nn.MaxPool2d(5, 1, 4, dilation=2)}, "its pool is MaxPool2d(kernel_size=5, stride=1, padding=4"),
        ({"m": nn.MaxPool2d(5, 2, 2)}, "its pool is MaxPool2d(kernel_size=5, stride=2"),
        ({"forward": lambda x: x}, "its forward is replaced"),
    ],
    ids=str,
)
def test_other_pools_are_not_fused(attributes, reason):
    stock = StockSPPF(8, 6)
    for name, value in attributes.items():
        setattr(stock, name, value)
    message = f"sppf must be a block of three max pools that keep the size, but {reason}"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        FusedSPPF(stock)


# ---- what holds for all of them


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_compute_the_same(module, duplicate):
    x = feature_map()
    twin = duplicate(module)
    assert torch.equal(twin(x), module(x))
    for mine, theirs in zip(twin.parameters(), module.parameters(), strict=True):
        assert mine is not theirs


def test_state_dict_carries_everything(module):
    x = feature_map()
    other = MODULES[type(module).__name__]().eval()
    assert not torch.equal(other(x), module(x))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))


def test_memory_format_is_kept(module):
    x = feature_map()
    contiguous, channels_last = module(x), module(x.to(memory_format=torch.channels_last))
    assert contiguous.is_contiguous()
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(channels_last, contiguous)


def test_training_step_in_mixed_precision(module):
    module.train()
    x = feature_map().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    y.float().square().mean().backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    assert all(gradient.dtype == torch.float32 and gradient.abs().max() > 0 for gradient in gradients.values())
    assert x.grad.abs().max() > 0


def use_standard_operators(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, Exportable):
            part.export = True


def test_standard_operators_compute_the_same(module):
    x = feature_map()
    expected = module(x)
    use_standard_operators(module)
    torch.testing.assert_close(module(x), expected)


def targets(module: nn.Module, x: Tensor) -> set[str]:
    program = torch.export.export(module, (x,))
    torch.testing.assert_close(program.module()(x), module(x))
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


def test_torch_export_keeps_the_operator_unless_told_not_to(module):
    operator = f"fastyolo.{OPERATORS[type(module).__name__]}.default"
    assert operator in targets(module, feature_map())
    use_standard_operators(module)
    assert not any(target.startswith("fastyolo") for target in targets(module, feature_map()))


def test_torch_compile_keeps_the_operator(module):
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    x = feature_map()
    torch.testing.assert_close(torch.compile(module, fullgraph=True, backend=backend)(x), module(x))
    (graph,) = graphs
    assert f"fastyolo.{OPERATORS[type(module).__name__]}.default" in {str(node.target) for node in graph.graph.nodes}


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # torch.jit is on its way out
def test_traces_hold_standard_operators_of_any_batch(module):
    traced = torch.jit.trace(module, feature_map())
    assert "fastyolo::" not in str(traced.inlined_graph)
    x = feature_map(batch=3)
    torch.testing.assert_close(traced(x), module(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_onnx_holds_standard_operators(module):
    onnx = pytest.importorskip("onnx")
    reference_evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    file, x = io.BytesIO(), feature_map()
    names = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": {"x": {0: "batch"}}}
    torch.onnx.export(module, (x,), file, dynamo=False, **names)
    model = onnx.load_from_string(file.getvalue())
    assert {node.domain for node in model.graph.node} == {""}
    kinds = {node.op_type for node in model.graph.node}
    own = {"ECA": "ReduceMean", "DWSPPF": "Conv", "FusedSPPF": "MaxPool", "GELAN": "GlobalAveragePool"}
    assert own[type(module).__name__] in kinds
    assert "BatchNormalization" not in kinds  # folded
    for x in (feature_map(), feature_map(batch=3)):
        (y,) = reference_evaluator(model).run(None, {"x": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(y), module(x).detach(), rtol=1e-4, atol=1e-5)


def test_standard_operators_are_the_reference_in_float64():
    x = feature_map().double()
    weight, bias = torch.randn(3, 8, 3, 3).double(), torch.randn(3, 8).double()
    torch.testing.assert_close(standard.eca(x, weight[0, 0, 0]), reference.eca(x, weight[0, 0, 0]))
    torch.testing.assert_close(standard.sppf_pool(x), reference.sppf_pool(x), rtol=0, atol=0)
    for activation in ("identity", "relu", "silu"):
        settings = {"dilation": 1, "activation": activation}
        torch.testing.assert_close(
            standard.dw_sppf(x, weight, bias, **settings), reference.dw_sppf(x, weight, bias, **settings)
        )
    torch.testing.assert_close(standard.dw_sppf(x, weight), reference.dw_sppf(x, weight))
