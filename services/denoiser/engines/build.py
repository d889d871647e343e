"""Graphs and engines of a model: what one depends on, and how it comes to be."""

from __future__ import annotations

import hashlib
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch

from services.denoiser.backends.base import Backend, BackendError, Progress, as_backend_error
from services.denoiser.backends.graph_backend import Profile, Sizes
from services.denoiser.engines.store import (
    Artefact,
    ArtefactError,
    ArtefactKey,
    EngineStore,
    plain,
)
from services.denoiser.model.loaded import LoadedModel
from services.runtime.logs import get_logger

# Raise it when the graph or its export changes: older artefacts are then never found.
GRAPH_VERSION: Final = "1"

log = get_logger("denoiser.engines")

PRECISIONS: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class EngineOptions:
    """What is built.

    Args:
        runtime: "onnxruntime", "tensorrt", "tensorrt_rtx", or "auto": whichever TensorRT there is.
        precision: a key of PRECISIONS; the blocks' norms and modulation stay float32.
        fp8: the blocks' matrices in 8 bits, scaled by what they see in a few steps.
        blocks_each: blocks of one engine; 0 is all in one.
        profile: None: what the model's bounds allow.
        plugin: cross-attention by our own kernel, which gates biases by token as well. onnxruntime runs what
            it means, TensorRT-RTX takes none.
        target, weight_streaming, optimization_level, workspace_bytes: as in tensorrt.builder.BuildOptions.
    """

    runtime: str = "auto"
    precision: str = "bfloat16"
    fp8: bool = False
    blocks_each: int = 0
    plugin: bool = False
    profile: Profile | None = None
    target: str = "current"
    weight_streaming: bool = False
    optimization_level: int = 3
    workspace_bytes: int = 0


# The graph that onnxruntime runs on a CPU, which has no other type.
ONNX: Final = EngineOptions(runtime="onnxruntime", precision="float32", target="cpu")


def default_profile(model: LoadedModel) -> Profile:
    """Any part of any video within the model's bounds; best for a whole video of its default shape."""
    spec = model.spec
    video, bounds, text = spec.video, spec.bounds, spec.text

    def tokens(frames: int, height: int, width: int) -> int:
        t, h, w = model.token_grid(model.latent_shape(frames, height, width))
        return t * h * w

    usual = tokens(video.frames, video.height, video.width)
    most = max(usual, tokens(bounds.frames.max, bounds.height.max, bounds.width.max))
    keys = text.max_tokens if text.attend_padding else min(32, text.max_tokens)
    return Profile(Sizes(1, usual, most), Sizes(1, keys, text.max_tokens))


def key_of(model: LoadedModel, options: EngineOptions) -> ArtefactKey:
    """Everything that an artefact depends on. Raises BackendError when the runtime is not installed."""
    if options.precision not in PRECISIONS:
        raise BackendError(f"precision: must be one of {', '.join(PRECISIONS)}, not {options.precision!r}")
    if options.weight_streaming and options.blocks_each:
        raise BackendError("weight streaming: is of one engine; build without --blocks")
    return ArtefactKey(
        model_id=model.spec.id,
        weights_digest=model.weights_digest,
        adapters=tuple((adapter.digest, adapter.scale) for adapter in model.adapters),
        network=asdict(model.transformer.config),
        graph=f"{GRAPH_VERSION}, opset {_opset()}, torch {torch.__version__.partition('+')[0]}",
        runtime=_runtime(options),
        target=_target(model, options),
        precision=options.precision,
        fp8=options.fp8,
        blocks_each=options.blocks_each,
        profile=options.profile or default_profile(model),
        options={
            "weight_streaming": options.weight_streaming,
            "optimization_level": options.optimization_level,
            "workspace_bytes": options.workspace_bytes,
            "plugin": _sources_digest() if options.plugin else "",
        },
    )


def ensure_engine(
    model: LoadedModel, options: EngineOptions, store: EngineStore, report: Progress, *, rebuild: bool = False
) -> Artefact:
    """The artefact of a model, built if it is not there. Raises BackendError."""
    with as_backend_error("building"):
        key = key_of(model, options)

        def make(folder: Path) -> tuple[list[Path], dict[str, Any]]:
            return _make(model, options, key.profile, folder, report)

        return store.ensure(key, make, rebuild=rebuild, report=report)


def find_engine(model: LoadedModel, options: EngineOptions, store: EngineStore) -> Artefact:
    """The newest whole artefact that does what `options` ask for, however it was built otherwise.

    Its profile may be another, as long as it takes all that the model allows. Raises BackendError when there
    is none.
    """
    key = key_of(model, options)
    same = ("weights_digest", "adapters", "network", "graph", "runtime", "target", "precision", "fp8")
    wanted = {name: value for name, value in plain(key).items() if name in same}
    if options.blocks_each:
        wanted["blocks_each"] = options.blocks_each
    for digest, manifest in store.manifests():
        found = manifest["key"]
        if all(found.get(name) == value for name, value in wanted.items()):
            try:
                artefact = store.read(digest)
            except ArtefactError as error:
                log.warning("artefact rejected", reason=str(error))
                continue
            if artefact.profile.covers(key.profile):
                return artefact
    raise BackendError(
        f"no engine of {model.spec.id} for {key.runtime} on {key.target} in {store.root}: "
        f"build it with `chorus engine build`"
    )


def load_engine(model: LoadedModel, artefact: Artefact, options: EngineOptions) -> Backend:
    """A backend that runs an artefact. Raises BackendError where it cannot be run on the model's device."""
    with as_backend_error("loading"):
        return _load(model, artefact, options)


def _load(model: LoadedModel, artefact: Artefact, options: EngineOptions) -> Backend:
    each, plugin = int(artefact.key["blocks_each"]), bool(artefact.key["options"]["plugin"])
    if options.runtime == "onnxruntime":
        from services.denoiser.backends.onnx_runtime import onnx_backend

        if model.device.type != "cpu":
            raise BackendError("onnxruntime: runs on the CPU; set CHORUS_DENOISER_DEVICE=cpu")
        return onnx_backend(model.transformer, artefact.files, each, plugin=plugin)
    from services.denoiser.backends.tensorrt.module import load_module
    from services.denoiser.backends.tensorrt.runtime import engine_backend

    return engine_backend(
        load_module(options.runtime),
        model.transformer,
        artefact.files,
        each,
        artefact.profile,
        model.device,
        PRECISIONS[str(artefact.key["precision"])],
        plugin=plugin,
    )


def _make(
    model: LoadedModel, options: EngineOptions, profile: Profile, folder: Path, report: Progress
) -> tuple[list[Path], dict[str, Any]]:
    from services.denoiser.engines.fp8 import input_ranges
    from services.denoiser.engines.onnx_export import add_function, export

    begin = time.perf_counter()
    dtype = PRECISIONS[options.precision]
    ranges = input_ranges(model) if options.fp8 else None
    graphs = export(
        model.transformer,
        folder,
        dtype,
        options.blocks_each,
        report,
        fp8_ranges=ranges,
        plugin=options.plugin,
    )
    facts: dict[str, Any] = {"export_seconds": round(time.perf_counter() - begin, 3)}
    if options.runtime == "onnxruntime":
        if options.plugin:
            for graph in graphs:
                add_function(graph)
        return graphs, facts
    from services.denoiser.backends.graph import split_into_parts
    from services.denoiser.backends.tensorrt.module import load_module
    from services.denoiser.engines.tensorrt_builder import BuildOptions, build_engine
    from services.denoiser.engines.tensorrt_layers import merged

    module = load_module(options.runtime)
    if options.plugin:
        _register_plugin(module, folder, report)
    how = BuildOptions(
        options.target, options.weight_streaming, options.optimization_level, options.workspace_bytes
    )
    begin, engines, layers = time.perf_counter(), [], []
    where = torch.cuda.device(_device(model)) if torch.cuda.is_available() else nullcontext()
    for number, (part, graph) in enumerate(
        zip(split_into_parts(model.transformer, options.blocks_each), graphs, strict=True)
    ):
        if report(f"build {number + 1} of {len(graphs)}") is False:
            raise BackendError("building was stopped")
        # Every block attends to the tokens and to the text.
        with where:
            built = build_engine(module, graph, 2 * len(part.blocks), profile, how, report)
        path = graph.with_suffix(".engine")
        with path.open("wb") as file:
            file.write(memoryview(built.engine))
        engines.append(path)
        layers.append(built.layers)
    for path in folder.iterdir():
        if path.suffix in (".onnx", ".data"):
            path.unlink()  # graphs are as large as engines, and made anew in minutes
    facts |= {"build_seconds": round(time.perf_counter() - begin, 3), "layers": merged(layers).as_dict()}
    return engines, facts


def _register_plugin(module: ModuleType, folder: Path, report: Progress) -> None:
    """Compiles the kernel for the device and makes it known to TensorRT. Raises BackendError."""
    from services.denoiser.backends.tensorrt.module import describe_module, is_rtx
    from services.denoiser.backends.tensorrt.plugin import ensure_registered
    from services.denoiser.kernels import aot

    if is_rtx(module):
        raise BackendError(f"plugin: {describe_module(module)} builds no plugins; build without --plugin")
    if not torch.cuda.is_available():
        raise BackendError("plugin: needs the CUDA device that the engine is for")
    try:
        arch = aot.select_arch(*torch.cuda.get_device_capability())
        # Beside the engines and for every type: TensorRT reads it at each build of this process.
        manifest = aot.build(
            folder.parent / "plugin" / f"sm_{arch}",
            archs=[arch],
            progress=report,
        )
        ensure_registered(module, manifest, arch)
    except aot.KernelError as error:
        raise BackendError(f"plugin: {error}") from error


def _sources_digest() -> str:
    from services.denoiser.kernels.aot import SOURCES

    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()


def _opset() -> int:
    from services.denoiser.engines.onnx_export import OPSET

    return OPSET


def _runtime(options: EngineOptions) -> str:
    if options.runtime == "onnxruntime":
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(f"{error}: install chorus-serving[onnx]") from error
        return f"onnxruntime {onnxruntime.__version__}"
    from services.denoiser.backends.tensorrt.module import describe_module, load_module

    return describe_module(load_module(options.runtime))


def _target(model: LoadedModel, options: EngineOptions) -> str:
    """What "current" is, by name: an engine built on one device is not to be found on another."""
    if options.target != "current" or not torch.cuda.is_available():
        return options.target
    device = _device(model)
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}, {torch.cuda.get_device_name(device)}"


def _device(model: LoadedModel) -> torch.device:
    """Of the build: the model's, or where that is on the CPU the current one."""
    return model.device if model.device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())
