# SPDX-License-Identifier: AGPL-3.0-or-later
"""nvidia-modelopt's fake quantisation in a torch network: the only importer of modelopt.

A network in training is quantised where its ONNX graph will be. Convolutions round what they take, and their weights,
and residual sums round both of their inputs. Nothing else has to: what only moves values (concatenation, max pooling,
resizing to the nearest, channel shuffle) gives the same values whether they are rounded before it or, by the quantiser
of the convolution that reads them, after it, as long as all of them have one scale; hence the quantisers of one group
of `fastyolo.compress.quantization.qdq.Plan` are one object.

The network keeps its parameters, their names and its state_dict. modelopt changes the classes of modules in place, to
such as only this process knows, so a network is pickled after `remove`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fastyolo._quiet import silent_logger
from fastyolo.nn import DWSPPF, standard

with warnings.catch_warnings(), silent_logger("torch.utils.cpp_extension"):  # that has a word on nvcc without a GPU
    warnings.simplefilter("ignore", FutureWarning)  # modelopt compiles a function with torch.jit.script
    from modelopt.torch.opt.dynamic import DynamicModule
    from modelopt.torch.quantization.config import QuantizerAttributeConfig
    from modelopt.torch.quantization.nn import QuantModule, QuantModuleRegistry, TensorQuantizer

__all__ = ["quantize", "remove"]

_SUMS = frozenset({torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__})


def quantize(
    network: nn.Module,
    ranges: Sequence[float],
    convolutions: Mapping[str, Sequence[int]],
    sums: Mapping[str, Sequence[int | None]],
) -> None:
    """Let a network compute with int8's rounding, in place: of maps per tensor, of weights per output channel.

    Gradients pass the rounding as they are, and are 0 for values beyond their range. The ranges stay what they are; a
    weight's is its largest absolute value at the time.

    Args:
        network: not quantised yet.
        ranges: of each group of tensors, the largest absolute value that int8 reaches.
        convolutions: of each module with convolutions in int8, by its name, the group of what each of them takes, in
            the order of the computation.
        sums: of each module whose forward() adds maps, the group of the two inputs of each addition, likewise; None is
            an addition in float. Modules within these that add maps, too, are among them.

    Raises:
        ValueError: the network computes some of the convolutions otherwise in training than in its graph.
    """
    device = next(network.parameters()).device
    quantizers = [_activation_quantizer(value).to(device) for value in ranges]
    for name, groups in convolutions.items():
        _quantize_convolutions(name, network, [quantizers[group] for group in groups])
    for name, places in sums.items():
        module = network.get_submodule(name)
        if type(module) not in QuantModuleRegistry:
            QuantModuleRegistry.register({type(module): type(module).__qualname__})(_QuantSums)
        of_sums = [nn.Identity() if group is None else quantizers[group] for group in places]
        QuantModuleRegistry.convert(module, quantizers=of_sums)


def remove(network: nn.Module) -> None:
    """Make a network what it was before `quantize`, with the parameters that it has now, in place."""
    for module in network.modules():
        if isinstance(module, DynamicModule):
            module.export()
            vars(module).pop("_parallel_state", None)


def _activation_quantizer(largest: float) -> TensorQuantizer:
    quantizer = TensorQuantizer(QuantizerAttributeConfig(num_bits=8))
    # Not by its property: state_dict() is to be that of the network as it was, for checkpoints and averages of weights.
    quantizer.register_buffer("_amax", torch.tensor(largest), persistent=False)
    return quantizer


def _quantize_convolutions(name: str, network: nn.Module, quantizers: Sequence[TensorQuantizer]) -> None:
    module = dict(network.named_modules()).get(name)
    if type(module) is nn.Conv2d:
        QuantModuleRegistry.convert(module)
        (module.input_quantizer,) = quantizers
    elif type(module) is DWSPPF:
        QuantModuleRegistry.convert(module, quantizers=quantizers)
    else:
        raise ValueError(
            f"The convolution {name} is not one in training, but is made of several when it is exported; name its "
            "layer in keep_float."
        )


@QuantModuleRegistry.register({DWSPPF: "DWSPPF"})
class _QuantDWSPPF(QuantModule):  # type: ignore[misc]
    """A `DWSPPF` whose depthwise convolutions are quantised."""

    weight_quantizer: TensorQuantizer
    stage_quantizers: Sequence[TensorQuantizer]

    def _setup(self, quantizers: Sequence[TensorQuantizer]) -> None:
        per_channel = TensorQuantizer(QuantizerAttributeConfig(num_bits=8, axis=(0, 1)))
        self._register_temp_attribute("weight_quantizer", per_channel)
        self._register_temp_attribute("stage_quantizers", nn.ModuleList(quantizers))

    def _operators(self) -> Any:
        return self

    def dw_sppf(self, x: Tensor, weight: Tensor, bias: Tensor, *, dilation: int, activation: str) -> Tensor:
        """As fastyolo.nn.standard.dw_sppf, which each stage is one of."""
        stages = [x]
        for quantizer, filters, shifts in zip(self.stage_quantizers, self.weight_quantizer(weight), bias, strict=True):
            both = standard.dw_sppf(
                quantizer(stages[-1]), filters[None], shifts[None], dilation=dilation, activation=activation
            )
            stages.append(both[:, x.shape[1] :])
        return torch.cat(stages, 1)


class _QuantSums(QuantModule):  # type: ignore[misc]
    """A module whose forward() adds tensors: a residual block."""

    sum_quantizers: Sequence[nn.Module]

    def _setup(self, quantizers: Sequence[nn.Module]) -> None:
        self._register_temp_attribute("sum_quantizers", nn.ModuleList(quantizers))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with _RoundedSums(self.sum_quantizers):
            return super().forward(*args, **kwargs)


class _RoundedSums(TorchFunctionMode):
    """Rounds the inputs of additions of two tensors, the n-th by the n-th quantiser.

    A block writes its residual connection as `x + y`, which is no module to be replaced.
    """

    def __init__(self, quantizers: Sequence[nn.Module]) -> None:
        super().__init__()
        self._quantizers: Iterator[nn.Module] = iter(quantizers)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _SUMS and all(isinstance(value, Tensor) for value in args):
            quantizer = next(self._quantizers, None)
            if quantizer is None:
                raise ValueError(
                    "A layer adds more maps in training than when it is exported; name its block in keep_float."
                )
            with torch._C.DisableTorchFunction():  # the sum of a block within a block is none of the outer one's
                return func(*map(quantizer, args), **(kwargs or {}))
        return func(*args, **(kwargs or {}))
