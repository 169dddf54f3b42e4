# SPDX-License-Identifier: AGPL-3.0-or-later
"""Engines from the ONNX files that `export` writes for TensorRT."""

from __future__ import annotations

from pathlib import Path

import onnx

from fastyolo.integrations import tensorrt
from fastyolo.integrations.tensorrt import Profile
from fastyolo.runtime.metadata import INPUT_NAME, Metadata

# Of the command for another machine, where TensorRT or the plugin library is not here to ask.
_VERSION = "10.12"
_PLUGINS = "./libfastyolo_plugins.so"


def build(
    file: Path, path: Path, *, half: bool = False, workspace: float | None = None, timing_cache: Path | None = None
) -> Path:
    """As `fastyolo.integrations.tensorrt.build_engine`, with the file's metadata in ultralytics' form."""
    profiles, properties = _profiles(file)
    return tensorrt.build_engine(
        file,
        path,
        half=half,
        workspace=workspace,
        timing_cache=timing_cache,
        profiles=profiles,
        metadata=properties,
    )


def trtexec_version() -> str:
    """Of the installed TensorRT; the flags of 10.12 hold for later ones of 10, where there is none."""
    return tensorrt.installed_version() or _VERSION


def trtexec_command(
    file: Path, path: Path, *, half: bool = False, workspace: float | None = None, timing_cache: Path | None = None
) -> str:
    """The command of TensorRT `trtexec_version()` that builds the same engine, without the metadata."""
    profiles, _ = _profiles(file)

    def command(plugins: str | None) -> str:
        return tensorrt.trtexec_command(
            file,
            path,
            version=trtexec_version(),
            half=half,
            workspace=workspace,
            timing_cache=timing_cache,
            profiles=profiles,
            plugins=plugins,
        )

    try:
        return command(None)
    except ImportError:  # it has plugins, and their library is not built
        return command(_PLUGINS)


def _profiles(file: Path) -> tuple[dict[str, Profile], dict[str, str]]:
    """Shapes of a dynamic file's input, and the file's metadata.

    The smallest is one image of one cell of the largest stride. Both the usual and the largest are those that the file
    was exported with.
    """
    document = onnx.load(file, load_external_data=False)
    properties = {entry.key: entry.value for entry in document.metadata_props}
    images = document.graph.input[0].type.tensor_type.shape
    if not any(size.dim_param for size in images.dim):
        return {}, properties
    metadata = Metadata.read(properties, str(file))
    largest = (int(properties["batch"]), 3, *metadata.imgsz)
    return {INPUT_NAME: ((1, 3, metadata.max_stride, metadata.max_stride), largest, largest)}, properties
