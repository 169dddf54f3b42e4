# SPDX-License-Identifier: AGPL-3.0-or-later
"""TensorRT: the plugin library, engines from ONNX files, and the trtexec command that builds the same.

`load_plugins` is tested with TensorRT's real lean runtime. Building needs a GPU and has not run anywhere yet: it is
written against the documented interfaces of TensorRT 8.6 to 11.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import fastyolo
from fastyolo import _C
from fastyolo._files import replacing

# From the smallest to the largest shape of an input, with the one to optimise for in between.
Profile = tuple[Sequence[int], Sequence[int], Sequence[int]]

LOGGER = logging.getLogger(__name__)
PLUGIN_PREFIX = "FastYolo"
_PLUGINS = ("BatchedNMS", "DFLDecode", "DWSPPF", "DecodeNMS", "ECA", "SPPF")

# From here on a network's types are those of the file (strong typing) and precision flags are deprecated; TensorRT 11
# has no others.
_STRONG_TYPING = (10, 12)

_loaded: set[str] = set()  # TensorRT's modules whose registries have the plugins


def plugin_path() -> Path:
    """Where libfastyolo_plugins.so is: beside the compiled module, as the wheel and an editable build place it.

    Raises:
        ImportError: it is not built.
    """
    path = Path(_C.__file__).parent / "libfastyolo_plugins.so"
    if not path.exists():
        raise ImportError(
            f"fastyolo's TensorRT plugins are not built: {path} is missing; with nvcc on PATH and TensorRT's headers "
            f"installed or in TENSORRT_INCLUDE_DIR (pip install --no-deps kernel-lens==2.0.1 has those of 10.14), "
            f"build them in the repository with: FASTYOLO_PLUGINS=on {fastyolo.BUILD_COMMAND}"
        )
    return path


def built_for(library: Path) -> int:
    """The major version of TensorRT that a plugin library was built for, which is the version of its symbols.

    Raises:
        ValueError: the file is not such a library.
    """
    found = re.search(rb"\0TENSORRT_(\d+)\0", library.read_bytes())
    if not found:
        raise ValueError(f"{library} is not a plugin library of fastyolo: it does not say for which TensorRT it is.")
    return int(found[1])


def load_plugins(tensorrt: ModuleType | None = None) -> None:
    """Puts the plugins into TensorRT's registry, once; before an engine or a network that has them is read.

    Args:
        tensorrt: the module to load them into, as `tensorrt_lean`; None: `tensorrt`.

    Raises:
        ImportError: there is no TensorRT, the library is missing, or it was built for another major version.
        RuntimeError: TensorRT refuses the library.
    """
    module = tensorrt or _import_tensorrt()
    if module.__name__ in _loaded:
        return
    path = plugin_path()
    major = _version(module.__version__)[0]
    if built_for(path) != major:
        # Its virtual functions are in another order: calls would end in the wrong ones.
        raise ImportError(
            f"{path} is built for TensorRT {built_for(path)}, and {module.__name__} is {module.__version__}; build it "
            f"again with TENSORRT_INCLUDE_DIR set to the headers of TensorRT {major}: {fastyolo.BUILD_COMMAND}"
        )
    if not module.get_plugin_registry().load_library(str(path)):
        raise RuntimeError(
            f"{module.__name__} {module.__version__} does not load {path}: its log says why; a library whose plugins "
            f"the registry already has cannot be loaded again."
        )
    _loaded.add(module.__name__)


def build_engine(
    onnx: str | Path,
    path: str | Path,
    *,
    half: bool = False,
    int8: bool = False,
    workspace: float | None = None,
    timing_cache: str | Path | None = None,
    profiles: Mapping[str, Profile] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Builds a TensorRT engine from an ONNX file, for the GPU and the TensorRT of this machine.

    From TensorRT 10.12 on the network is strongly typed: float16 and INT8 are what the file says, and `half` and `int8`
    demand that it does. Before, they allow TensorRT to choose those precisions. INT8 is explicit in either case: the
    file has QuantizeLinear and DequantizeLinear nodes.

    Args:
        onnx: with plugin nodes or without.
        path: of the engine.
        half: float16.
        int8: INT8 where the file quantises.
        workspace: most scratch memory of a layer, GiB; None: all of the GPU's.
        timing_cache: a file of measurements that makes the next build faster; made if it is not there.
        profiles: by input, its smallest, usual and largest shape. Every input with free sizes needs one.
        metadata: of the model, to write into the file: its length (4 bytes, little-endian) and JSON before the engine,
            ultralytics' own form, which its `YOLO("model.engine")` reads; None: the bare engine, as trtexec writes it.

    Returns:
        `path`.

    Raises:
        FileNotFoundError: there is no such ONNX file.
        ImportError: TensorRT, or the library of the plugins that the file has, is missing or of another version.
        RuntimeError: there is no GPU, or TensorRT cannot read the file or build the engine.
        ValueError: a precision that the file does not have, an input without a profile, a profile that TensorRT
            refuses, or a timing cache of another machine.
    """
    onnx, path = Path(onnx), Path(path)
    model = onnx.read_bytes()
    trt = _import_tensorrt()
    if _has_plugins(model):
        load_plugins(trt)
    log = _make_log(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:  # pybind11's for a null pointer
        raise RuntimeError(
            f"TensorRT {trt.__version__} finds no GPU ({log.last_problem}); an engine is built on the GPU that runs it."
        ) from error
    strongly_typed = _version(trt.__version__) >= _STRONG_TYPING
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model, str(onnx.resolve())):
        errors = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise RuntimeError(f"TensorRT {trt.__version__} cannot read {onnx}: {errors}.")
    _check_precision(trt, network, onnx, half=half, int8=int8, strongly_typed=strongly_typed)

    config = builder.create_builder_config()
    if not strongly_typed:
        for flag, wanted in ((trt.BuilderFlag.FP16, half), (trt.BuilderFlag.INT8, int8)):
            if wanted:
                config.set_flag(flag)
    if workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(workspace * 2**30))
    _add_profile(builder, config, network, profiles or {})
    cache_file = Path(timing_cache) if timing_cache is not None else None
    if cache_file:
        _use_timing_cache(config, cache_file)

    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise RuntimeError(f"TensorRT {trt.__version__} cannot build an engine from {onnx}: {log.last_problem}.")
    with replacing(path) as temporary, temporary.open("wb") as file:
        if metadata is not None:
            document = json.dumps(dict(metadata)).encode()
            file.write(len(document).to_bytes(4, "little", signed=True))
            file.write(document)
        file.write(engine)
    if cache_file:
        with replacing(cache_file) as temporary:
            temporary.write_bytes(config.get_timing_cache().serialize())
    return path


def trtexec_command(
    onnx: str | Path,
    path: str | Path,
    *,
    version: str | None = None,
    half: bool = False,
    int8: bool = False,
    workspace: float | None = None,
    timing_cache: str | Path | None = None,
    profiles: Mapping[str, Profile] | None = None,
    plugins: str | Path | None = None,
) -> str:
    """The trtexec command that builds what `build_engine` builds, for a shell; the engine is bare of metadata.

    Args:
        version: of TensorRT, on which the options depend; None: of the one that is installed, or else of the one that
            the plugins are built for.
        plugins: their library, for an ONNX file that has such nodes; None: `plugin_path()` if the file has them.

    The other arguments are those of `build_engine`.

    Raises:
        ImportError: neither TensorRT nor the plugin library is there to say the version.
    """
    if plugins is None and _has_plugins(Path(onnx).read_bytes()):
        plugins = plugin_path()
    number = _version(version or installed_version() or str(built_for(plugin_path())))
    options = [f"--onnx={onnx}", f"--saveEngine={path}"]
    if number >= _STRONG_TYPING:
        options += ["--stronglyTyped"] if number < (11,) else []  # TensorRT 11 knows nothing else
    else:
        options += ["--fp16"] if half else []
        options += ["--int8"] if int8 else []
    if workspace is not None:
        options.append(f"--memPoolSize=workspace:{workspace * 1024:.10g}")  # MiB
    if timing_cache is not None:
        options.append(f"--timingCacheFile={timing_cache}")
    if plugins is not None:
        # --plugins, of TensorRT 8.5 and before, only opens the library.
        options.append(f"--{'dynamicPlugins' if number >= (8, 6) else 'plugins'}={plugins}")
    for index, name in enumerate(("minShapes", "optShapes", "maxShapes")):
        shapes = [f"{input_}:{'x'.join(map(str, shape[index]))}" for input_, shape in (profiles or {}).items()]
        if shapes:
            options.append(f"--{name}={','.join(shapes)}")
    return shlex.join(["trtexec", *options])


def _import_tensorrt() -> ModuleType:
    try:
        return importlib.import_module("tensorrt")
    except ImportError as error:
        raise ImportError(
            f"TensorRT's Python package cannot be imported ({error}); install the one for your CUDA, as in "
            f"'pip install tensorrt-cu13', or on a Jetson the one of JetPack."
        ) from error


def installed_version() -> str | None:
    """Of the tensorrt package; None: there is none that can be imported."""
    try:
        return str(_import_tensorrt().__version__)
    except ImportError:
        return None


def _version(text: str) -> tuple[int, ...]:
    """Major and, where it is given, minor version."""
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _has_plugins(onnx: bytes) -> bool:
    """Whether a node of an ONNX file is one of ours: its type stands in it as field 4, with its length before it."""
    names = [f"{PLUGIN_PREFIX}{plugin}".encode() for plugin in _PLUGINS]
    return any(bytes((4 << 3 | 2, len(name))) + name in onnx for name in names)


def _network_flags(trt: Any) -> int:
    version = _version(trt.__version__)
    flags = trt.NetworkDefinitionCreationFlag
    if version < (10,):  # which has networks without a batch axis as well
        return 1 << int(flags.EXPLICIT_BATCH)
    return 1 << int(flags.STRONGLY_TYPED) if _STRONG_TYPING <= version < (11,) else 0


def _check_precision(trt: Any, network: Any, onnx: Path, *, half: bool, int8: bool, strongly_typed: bool) -> None:
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    if int8 and not any(layer.type == trt.LayerType.QUANTIZE for layer in layers):
        raise ValueError(f"int8 needs an ONNX file with QuantizeLinear nodes, and {onnx} has none; quantise it first.")
    outputs = (layer.get_output(index) for layer in layers for index in range(layer.num_outputs))
    if half and strongly_typed and not any(tensor.dtype == trt.float16 for tensor in outputs):
        raise ValueError(
            f"half needs an ONNX file in float16 with TensorRT {trt.__version__}, which takes types from the file, and "
            f"{onnx} has no float16; export it with half=True."
        )


def _use_timing_cache(config: Any, file: Path) -> None:
    cache = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        raise ValueError(
            f"timing_cache {str(file)!r} is damaged, or of another GPU or version of TensorRT; name another file, or "
            f"delete it."
        )


def _add_profile(builder: Any, config: Any, network: Any, profiles: Mapping[str, Profile]) -> None:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    unknown = sorted(set(profiles) - {tensor.name for tensor in inputs})
    if unknown:
        names = ", ".join(tensor.name for tensor in inputs)
        raise ValueError(f"profiles names the input {unknown[0]!r}, and the network has {names}.")
    free = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
    if fixed := sorted(set(profiles) - {tensor.name for tensor in free}):
        raise ValueError(f"profiles names the input {fixed[0]!r}, whose sizes are fixed; leave it out.")
    for tensor in free:
        if tensor.name not in profiles:
            raise ValueError(
                f"input {tensor.name!r} has free sizes {tuple(tensor.shape)}: give profiles={{{tensor.name!r}: "
                f"(smallest, usual, largest shape)}}."
            )
    if not free:
        return
    profile = builder.create_optimization_profile()
    try:
        for tensor in free:
            profile.set_shape(tensor.name, *(tuple(shape) for shape in profiles[tensor.name]))
        accepted = config.add_optimization_profile(profile) >= 0
    except RuntimeError:  # of shapes that do not rise
        accepted = False
    if not accepted:
        raise ValueError(
            f"TensorRT refuses the profiles {dict(profiles)}; each size must rise from smallest to largest."
        )


def _make_log(trt: Any) -> Any:
    """TensorRT's messages, in Python's log; remembers the last of the worst, for an exception's sentence."""
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
        trt.ILogger.INFO: logging.INFO,
    }

    class Log(trt.ILogger):  # type: ignore[misc]
        last_problem = "it does not say why"
        worst = logging.WARNING

        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # pybind11 forbids super() here

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level >= self.worst:
                self.worst, self.last_problem = level, message
            LOGGER.log(level, message)

    return Log()
