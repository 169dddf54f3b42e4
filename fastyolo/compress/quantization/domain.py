# SPDX-License-Identifier: AGPL-3.0-or-later
"""Whether calibration images look like those that a network was trained on, and whether its values can be calibrated.

A batch normalisation keeps the mean and the variance of each channel that it saw in training. The same of other images
is compared with these by the Kullback-Leibler divergence of the two normal distributions, in the first layers, where it
tells colours, contrast and texture. These statistics are what data-free quantisation generates its images from (ZeroQ,
https://arxiv.org/abs/2001.00281). They are in checkpoints only: an export folds them into the convolutions.

What the first layers see alike is not told apart: images with red and blue exchanged, inverted or upside down, and
other objects in pictures of the same kind.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastyolo.runtime.letterbox import Float32, Letterbox, Size
from fastyolo.runtime.metadata import Preprocessing
from fastyolo.runtime.sources import read_image

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fastyolo.compress.quantization.calibration import Calibration
    from fastyolo.compress.quantization.ptq import Float32 as Float32Model

IMAGES = 32  # of the calibration images, which are enough for means and variances

_LAYERS = 10  # the first normalisations; later ones differ between training images, which are augmented, and others

# Of the divergence, in nats per channel. Detectors of photographs and of circuit boards came to 0.02 to 0.11 on images
# like those of their training, single ones among them, and to 0.57 and more on each other's, noise, and dark images.
_FOREIGN = 0.5

_BULK = 99.9  # percent of a tensor's values,
_OUTLIER = 100  # and how much larger than these its largest may be


class _EnoughError(Exception):
    """Ends a forward pass."""


def divergence(network: nn.Module, images: Iterable[Float32]) -> float | None:
    """How far the network's first layers are from what they saw in training, in nats: 0 is alike.

    The mean over the channels of KL(images || training), of the layer where it is largest.

    Args:
        network: in evaluation mode, its normalisations not folded; it is not changed.
        images: inputs [1, 3, H, W].

    Returns:
        None if the network has no normalisation with statistics, so that there is nothing to compare with.
    """
    import torch
    from torch import nn

    sums: dict[nn.BatchNorm2d, list[Any]] = {}
    seen: list[nn.Module] = []

    def observe(norm: nn.BatchNorm2d, inputs: tuple[Any, ...]) -> None:
        values = inputs[0].double()
        found = (values.sum((0, 2, 3)), values.square().sum((0, 2, 3)), values[:, 0].numel())
        sums[norm] = [a + b for a, b in zip(sums.get(norm, (0, 0, 0)), found, strict=True)]
        seen.append(norm)
        if len(seen) == _LAYERS:
            raise _EnoughError

    norms = [x for x in network.modules() if isinstance(x, nn.BatchNorm2d) and x.track_running_stats]
    handles = [norm.register_forward_pre_hook(observe) for norm in norms]
    try:
        with torch.inference_mode():
            for image in images if norms else ():
                seen.clear()
                with suppress(_EnoughError):
                    network(torch.from_numpy(image))
    finally:
        for handle in handles:
            handle.remove()
    return max((_of_layer(norm, *found) for norm, found in sums.items()), default=None)


def _of_layer(norm: nn.BatchNorm2d, total: Tensor, squares: Tensor, count: int) -> float:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean = total / count
    variance = squares / count - mean**2 + norm.eps
    expected = norm.running_var.double() + norm.eps
    ratio = variance / expected
    shift = (mean - norm.running_mean.double()) ** 2 / expected
    return float((ratio + shift - 1 - ratio.log()).mean() / 2)


def of_images(weights: str | Path, images: Sequence[Path], imgsz: Size, preprocessing: Preprocessing) -> str | None:
    """A sentence if images are not like those that a checkpoint was trained on, or if that cannot be known.

    Args:
        weights: a checkpoint; an ONNX file does not hold what this needs.
        images: files; some of them are looked at, and those that cannot be read are passed over.
        imgsz: height and width in pixels that they are letterboxed to.
        preprocessing: as the network was trained with.
    """
    from fastyolo.integrations.ultralytics.weights import read_checkpoint

    network = read_checkpoint(weights).model.float().eval()
    found = divergence(network, _inputs(images, imgsz, preprocessing))
    if found is None:
        return (
            f"The calibration images cannot be compared with those of the training, since {weights} has no batch "
            f"normalisations with statistics; make sure that they are of the same kind."
        )
    if not found <= _FOREIGN:  # NaN is not
        return (
            f"The calibration images do not look like those that the model was trained on: its first layers diverge by "
            f"{found:.2g} nats from the statistics of the training, where {_FOREIGN:g} is the most to expect; "
            "calibrate with images of the same kind and brightness. If they are, it was trained for too few steps for "
            "its statistics to settle."
        )
    return None


def warn(weights: str | Path, source: Float32Model, images: Sequence[Path]) -> None:
    """Give the sentence of `of_images` as a warning; of an ONNX file there is nothing to say.

    Args:
        weights: a checkpoint or an ONNX file.
        source: the same, to be calibrated.
        images: to calibrate on.
    """
    if Path(weights).suffix.lower() == ".onnx":
        return
    if sentence := of_images(weights, images, source.imgsz, source.metadata.preprocessing):
        warnings.warn(sentence, stacklevel=3)


def _inputs(images: Sequence[Path], imgsz: Size, preprocessing: Preprocessing) -> Iterator[Float32]:
    letterbox = Letterbox(preprocessing)
    for file in images[:: max(len(images) // IMAGES, 1)][:IMAGES]:
        with suppress(OSError, ValueError):
            yield letterbox([read_image(file)], imgsz, None, 1)[0]


def of_values(calibration: Calibration, tensors: Collection[str]) -> list[str]:
    """A sentence each for tensors that are constant on all images, and for those with extreme outliers."""
    largest = calibration.ranges("minmax")
    bulk = calibration.ranges("percentile", _BULK)
    low_high = {name: calibration.histograms[name][2:4] for name in tensors}
    sentences = []
    if constant := [name for name, (low, high) in low_high.items() if low == high]:
        sentences.append(
            f"{_some(constant)} the same value everywhere in all calibration images; calibrate with images of what the "
            f"model is to find, or keep these layers in float with keep_float."
        )
    spread = {name: largest[name] / bulk[name] for name in tensors if name not in constant and bulk[name] > 0}
    if outliers := sorted((name for name in spread if spread[name] > _OUTLIER), key=spread.__getitem__, reverse=True):
        first = outliers[0]
        sentences.append(
            f"{_some(outliers)} extreme outliers: up to {largest[first]:.3g} where {_BULK} % of the values stay below "
            f"{bulk[first]:.3g}; int8 cannot hold both, so see what is lost with --sensitivity and keep such layers in "
            f"float with keep_float."
        )
    return sentences


def _some(tensors: list[str]) -> str:
    further = len(tensors) - 1
    return f"The tensor {tensors[0]!r} has" if not further else f"The tensor {tensors[0]!r} and {further} more have"
