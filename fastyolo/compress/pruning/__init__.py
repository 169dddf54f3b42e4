# SPDX-License-Identifier: AGPL-3.0-or-later
"""Structural pruning: whole channels are removed, so that the network is smaller in every runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastyolo import _arguments

if TYPE_CHECKING:
    from fastyolo.compress.pruning.report import Report
    from fastyolo.integrations.ultralytics.export import YOLO

IMPORTANCES = ("gamma", "l1", "l2")
PARTS = ("backbone", "neck", "head")
RANKINGS = ("global", "per-layer")

# Arguments of a training that follow from those of `prune`.
TAKEN = {"data", "epochs", "exist_ok", "imgsz", "model", "name", "project", "resume", "save_dir"}


def prune(
    weights: str | Path | YOLO,
    data: str | Path | None = None,
    *,
    ratio: float | None = None,
    flops: float | None = None,
    latency: float | None = None,
    ranking: str | None = None,
    importance: str | None = None,
    parts: Sequence[str] = PARTS,
    head_first: bool = False,
    multiple: int = 16,
    imgsz: int = 640,
    threads: int | None = None,
    steps: int = 1,
    epochs: int | None = None,
    sparsity: float = 0.0,
    sparsity_epochs: int = 30,
    distill: bool = True,
    training: Mapping[str, Any] | None = None,
    path: str | Path | None = None,
    folder: str | Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Remove the least important channels of a detector and, with data, train what remains.

    With data, each step is: choose and remove channels, then train, by default with the model as it was given for a
    teacher. A run that is interrupted goes on when it is called again with the same arguments.

    Channels that several layers have in common go together (DepGraph, https://arxiv.org/abs/2301.12900). C2f, C3k2 and
    C2PSA blocks are first rewritten to compute the same without a chunk, and stay so. Self-attention, Ghost
    convolutions, those without normalisation and the head's outputs keep their channels, every layer at least a tenth
    of its own. ECA mixes neighbouring channels, and has other neighbours afterwards.

    Args:
        weights: a checkpoint of a detection model or, without data, a `YOLO` object, which stays as it is.
        data: a data set, as ultralytics describes it; `None`: no training.
        ratio: the share of the channels to remove, or
        flops: the share of the FLOPs to remove, those of `fastyolo info`, or
        latency: what the network may take in ONNX Runtime on this machine, in milliseconds for one image.
        ranking: "global" removes the least important channels of the network, "per-layer" a share of each layer's;
            `None`: "global" after a training with sparsity, here or of the checkpoint, else "per-layer".
        importance: of a channel: "gamma", the factors of its normalisations, which tell little without a training with
            sparsity; "l1" or "l2", the norms of all filters and normalisations that it has a part in; `None`: "gamma"
            after such a training, else "l1".
        parts: which of PARTS may lose channels.
        head_first: nothing is removed elsewhere before all that can be is removed from the head.
        multiple: what channels are rounded to, in each group of grouped convolutions: a multiple of 8. ONNX Runtime
            computes in blocks of 16 on CPUs with AVX-512, tensor cores in blocks of 8 (float16) and 16 (INT8).
        imgsz: side of the input in pixels that FLOPs and latency are of, and that is trained with.
        threads: of ONNX Runtime, for `latency` alone; `None`: one for each core.
        steps: of removing and training, with the same share removed in each.
        epochs: of the training after each step; `None`: 30.
        sparsity: the setting `sparsity` of a training before the first step; 0: none.
        sparsity_epochs: of that training.
        distill: take the unpruned model for the teacher.
        training: further arguments of the trainings: ultralytics' and fastyolo's settings; `distill_model` is another
            teacher.
        path: of the checkpoint to write; `None`: beside the weights, NAME-pruned.pt.
        folder: of the trainings; `None`: that path without its suffix.
        say: called with a line for each thing that is done.

    Returns:
        What became of the channels, the FLOPs, the latency and the accuracy.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        TypeError: an argument is of another type.
        ValueError: an argument is not as above, the target cannot be reached, which the message then says of what can,
            or the model cannot be pruned.
        ModuleNotFoundError: a package is missing.
    """
    targets = {"ratio": ratio, "flops": flops, "latency": latency}
    given = {name: value for name, value in targets.items() if value is not None}
    if len(given) != 1:
        got = ", ".join(given) or "none"
        raise ValueError(f"ratio, flops or latency must be given, exactly one of them, got {got}.")
    (kind, value), *_ = given.items()
    value = _arguments.number(kind, value, 0.0, float("inf"))
    if not 0 < value < (float("inf") if kind == "latency" else 1):
        expected = "above 0 milliseconds" if kind == "latency" else "a share between 0 and 1"
        raise ValueError(f"{kind} must be {expected}, got {value:g}.")
    for name, choice, known in (("ranking", ranking, RANKINGS), ("importance", importance, IMPORTANCES)):
        if choice is not None and choice not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {choice!r}.")
    _arguments.choices("parts", parts, PARTS)
    if not parts:
        raise ValueError(f"parts must hold at least one of {', '.join(PARTS)}, got none.")
    _arguments.boolean("head_first", head_first)
    if head_first and "head" not in parts:
        raise ValueError(f"head_first needs the head among the parts, got {', '.join(parts)}.")
    if _arguments.integer("multiple", multiple, 8) % 8:
        raise ValueError(f"multiple must be a multiple of 8, got {multiple}.")
    _arguments.integer("imgsz", imgsz, 32)
    _arguments.integer("steps", steps, 1)
    if epochs is not None:
        _arguments.integer("epochs", epochs, 1)
    _arguments.integer("sparsity_epochs", sparsity_epochs, 1)
    _arguments.number("sparsity", sparsity, 0.0, 1.0)
    _arguments.boolean("distill", distill)
    if threads is not None:
        _arguments.integer("threads", threads, 1)
        if latency is None:
            raise ValueError(f"threads is for latency, got {kind}; leave it out.")
    asked = {"steps": steps != 1, "sparsity": sparsity > 0, "epochs": epochs is not None, "distill=False": not distill}
    asked |= {"training": bool(training), "folder": folder is not None}
    if data is None and any(asked.values()):
        names = ", ".join(name for name, given_one in asked.items() if given_one)
        raise ValueError(f"data must be given to train with, got none with {names}.")
    if data is not None and not isinstance(weights, str | Path):
        raise TypeError(f"weights must be the path of a checkpoint to train with data, got {type(weights).__name__}.")
    if taken := sorted(TAKEN & set(training or {})):
        raise ValueError(f"training (--set) must not hold {', '.join(taken)}, which other arguments of prune tell.")
    _arguments.optional_path("path", path)
    _arguments.optional_path("folder", folder)
    if path is not None and Path(path).suffix != ".pt":
        raise ValueError(f"path must end in '.pt', got {str(path)!r}.")
    from fastyolo.compress.pruning.run import Options, run
    from fastyolo.integrations.ultralytics.export import load
    from fastyolo.integrations.ultralytics.pruning import is_sparse

    model = load(weights)
    sparse = sparsity > 0 or is_sparse(model)
    options = Options(
        kind=kind,
        value=value,
        ranking=ranking or ("global" if sparse else "per-layer"),
        importance=importance or ("gamma" if sparse else "l1"),
        parts=tuple(parts),
        head_first=head_first,
        multiple=multiple,
        imgsz=imgsz,
        steps=steps,
        epochs=30 if epochs is None else epochs,
        sparsity=sparsity,
        sparsity_epochs=sparsity_epochs,
        distill=distill,
        data=None if data is None else str(data),
        training=dict(training or {}),
    )
    return run(model, options, sparse, path, folder, threads, say)
