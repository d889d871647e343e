"""Builds and loads the engines of a model, keyed by everything they depend on."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch

from services.denoiser.backends.base import Backend, BackendError, Progress, as_backend_error
from services.denoiser.backends.graph_backend import Profile, Sizes
from services.denoiser.engines.store import BuiltEngine, EngineError, EngineKey, EngineStore
from services.denoiser.model.loaded import LoadedModel
from services.runtime.logs import get_logger

# Increase it when the graph or its export changes, so that older engines are no longer found.
GRAPH_VERSION: Final = "1"
OPSET: Final = 20  # of the exported graph; onnx_export.py has the reason

_DENOISER = Path(__file__).resolve().parents[1]
# Code that determines the graph for onnxruntime. Its digest is part of the key, because that backend is the
# default on a CPU and an export takes seconds: no change can be forgotten.
_GRAPH_SOURCES: Final = tuple(
    _DENOISER / name
    for name in (
        "network/wan.py",
        "backends/graph.py",
        "backends/tensorrt/onnx_domain.py",
        "engines/onnx_export.py",
        "engines/onnx_fusion.py",
    )
)

log = get_logger("denoiser.engines")

PRECISIONS: Final = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class EngineOptions:
    """Options of an engine.

    Attributes:
        runtime: "onnxruntime", "tensorrt", "tensorrt_rtx", or "auto" for the installed TensorRT.
        precision: Key of PRECISIONS. Norms and modulation of the blocks stay float32.
        fp8: Whether the matrices of the blocks are 8-bit floats, scaled by ranges measured in a few runs.
        blocks_each: Number of blocks in each engine; 0 for a single engine.
        plugin: Whether cross-attention uses the amplified attention kernel, which supports biases gated by
            token. onnxruntime runs its definition in standard operators; TensorRT-RTX does not support it.
        profile: Sizes that the engine supports; None for the model's bounds.
        target: Compute capability, as in `tensorrt_builder.BuildOptions`.
        weight_streaming: Option of `tensorrt_builder.BuildOptions`.
        optimization_level: Option of `tensorrt_builder.BuildOptions`.
        workspace_bytes: Option of `tensorrt_builder.BuildOptions`, in bytes.
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


# Graph for onnxruntime on a CPU, which supports no other type.
ONNX: Final = EngineOptions(runtime="onnxruntime", precision="float32", target="cpu")


def build_default_profile(model: LoadedModel) -> Profile:
    """Returns a profile for any subset of a video within the model's bounds.

    It is optimised for all tokens of the default shape.
    """
    spec = model.spec
    video, bounds, text = spec.video, spec.bounds, spec.text

    def tokens(frames: int, height: int, width: int) -> int:
        t, h, w = model.token_grid(model.latent_shape(frames, height, width))
        return t * h * w

    default = tokens(video.frames, video.height, video.width)
    largest = max(default, tokens(bounds.frames.max, bounds.height.max, bounds.width.max))
    keys = text.max_tokens if text.attend_padding else min(32, text.max_tokens)
    return Profile(Sizes(1, default, largest), Sizes(1, keys, text.max_tokens))


def build_engine_key(model: LoadedModel, options: EngineOptions) -> EngineKey:
    """Returns the key of an engine. Raises BackendError if the runtime is not installed."""
    if options.precision not in PRECISIONS:
        raise BackendError(f"precision: must be one of {', '.join(PRECISIONS)}, not {options.precision!r}")
    if options.weight_streaming and options.blocks_each:
        raise BackendError("weight streaming: requires a single engine; build without --blocks")
    return EngineKey(
        model_id=model.spec.id,
        weights_digest=model.weights_digest,
        adapters=tuple((adapter.digest, adapter.scale) for adapter in model.adapters),
        network=asdict(model.transformer.config),
        graph=_describe_graph(options),
        runtime=_describe_runtime(options),
        target=_resolve_target(model, options),
        precision=options.precision,
        fp8=options.fp8,
        blocks_each=options.blocks_each,
        profile=options.profile or build_default_profile(model),
        options={
            "weight_streaming": options.weight_streaming,
            "optimization_level": options.optimization_level,
            "workspace_bytes": options.workspace_bytes,
            "plugin": _compute_kernel_digest() if options.plugin else "",
        },
    )


def ensure_engine(
    model: LoadedModel, options: EngineOptions, store: EngineStore, report: Progress, *, rebuild: bool = False
) -> BuiltEngine:
    """Returns the engine of a model and builds it if it does not exist. Raises BackendError."""
    with as_backend_error("building"):
        key = build_engine_key(model, options)

        def build(folder: Path) -> tuple[list[Path], dict[str, Any]]:
            return _build(model, options, key.profile, folder, report)

        return store.ensure(key, build, rebuild=rebuild, report=report)


def find_engine(model: LoadedModel, options: EngineOptions, store: EngineStore) -> BuiltEngine:
    """Returns the newest intact engine that satisfies `options`, regardless of other build options.

    Its profile may differ but must cover everything that the model allows.

    Raises:
        BackendError: No such engine exists.
    """
    key = build_engine_key(model, options)
    compared = ("weights_digest", "adapters", "network", "graph", "runtime", "target", "precision", "fp8")
    required = {name: value for name, value in key.to_json().items() if name in compared}
    if options.blocks_each:
        required["blocks_each"] = options.blocks_each
    for digest, manifest in store.manifests():
        if all(manifest["key"].get(name) == value for name, value in required.items()):
            try:
                engine = store.read(digest)
            except EngineError as error:
                log.warning("engine rejected", reason=str(error))
                continue
            if engine.profile.covers(key.profile):
                return engine
    raise BackendError(
        f"no engine of {model.spec.id} for {key.runtime} on {key.target} in {store.root}: "
        f"build it with `chorus engine build`"
    )


def load_engine(model: LoadedModel, engine: BuiltEngine, options: EngineOptions) -> Backend:
    """Returns a backend that runs an engine. Raises BackendError if the model's device cannot run it."""
    with as_backend_error("loading"):
        return _load(model, engine, options)


def _load(model: LoadedModel, engine: BuiltEngine, options: EngineOptions) -> Backend:
    each, plugin = int(engine.key["blocks_each"]), bool(engine.key["options"]["plugin"])
    if options.runtime == "onnxruntime":
        from services.denoiser.backends.onnx_runtime import onnx_backend

        if model.device.type != "cpu":
            raise BackendError("onnxruntime: runs on the CPU; set CHORUS_DENOISER_DEVICE=cpu")
        return onnx_backend(model.transformer, engine.files, each, plugin=plugin)
    from services.denoiser.backends.tensorrt.module import load_module
    from services.denoiser.backends.tensorrt.runtime import engine_backend

    return engine_backend(
        load_module(options.runtime),
        model.transformer,
        engine.files,
        each,
        engine.profile,
        model.device,
        PRECISIONS[str(engine.key["precision"])],
        plugin=plugin,
    )


def _build(
    model: LoadedModel, options: EngineOptions, profile: Profile, folder: Path, report: Progress
) -> tuple[list[Path], dict[str, Any]]:
    from services.denoiser.engines.fp8 import measure_input_ranges
    from services.denoiser.engines.onnx_export import add_function, export

    begin = time.perf_counter()
    dtype = PRECISIONS[options.precision]
    ranges = measure_input_ranges(model) if options.fp8 else None
    graphs = export(
        model.transformer,
        folder,
        dtype,
        options.blocks_each,
        report,
        fp8_ranges=ranges,
        plugin=options.plugin,
        fused=options.runtime == "onnxruntime",
    )
    facts: dict[str, Any] = {
        "adapters": [adapter.id for adapter in model.adapters],
        "export_seconds": round(time.perf_counter() - begin, 3),
    }
    if options.runtime == "onnxruntime":
        if options.plugin:
            for graph in graphs:
                add_function(graph)
        return graphs, facts
    from services.denoiser.backends.graph import split_into_parts
    from services.denoiser.backends.tensorrt.module import load_module
    from services.denoiser.engines.tensorrt_builder import BuildOptions, build_engine
    from services.denoiser.engines.tensorrt_layers import merge_layers

    module = load_module(options.runtime)
    if options.plugin:
        _register_plugin(module, folder, report)
    build_options = BuildOptions(
        options.target, options.weight_streaming, options.optimization_level, options.workspace_bytes
    )
    begin, engines, layers = time.perf_counter(), [], []
    device = torch.cuda.device(_build_device(model)) if torch.cuda.is_available() else nullcontext()
    for number, (part, graph) in enumerate(
        zip(split_into_parts(model.transformer, options.blocks_each), graphs, strict=True)
    ):
        if report(f"building engine {number + 1} of {len(graphs)}") is False:
            raise BackendError("the build was cancelled")
        # Every block has self-attention and cross-attention.
        with device:
            result = build_engine(module, graph, 2 * len(part.blocks), profile, build_options, report)
        path = graph.with_suffix(".engine")
        with path.open("wb") as file:
            file.write(memoryview(result.engine))
        engines.append(path)
        layers.append(result.layers)
    for path in folder.iterdir():
        if path.suffix in (".onnx", ".data"):
            path.unlink()  # graphs are as large as engines and can be exported again in minutes
    facts |= {
        "build_seconds": round(time.perf_counter() - begin, 3),
        "layers": merge_layers(layers).as_dict(),
    }
    return engines, facts


def _register_plugin(module: ModuleType, folder: Path, report: Progress) -> None:
    """Compiles the kernel for the device and registers the plugin with TensorRT. Raises BackendError."""
    from services.denoiser.backends.tensorrt.module import describe_module, is_rtx
    from services.denoiser.backends.tensorrt.plugin import ensure_registered
    from services.denoiser.kernels import aot

    if is_rtx(module):
        raise BackendError(
            f"plugin: {describe_module(module)} does not support plugins; build without --plugin"
        )
    if not torch.cuda.is_available():
        raise BackendError("plugin: needs the CUDA device that will run the engine")
    try:
        arch = aot.select_arch(*torch.cuda.get_device_capability())
        # Stored next to the engines and for every type, because every build of this process loads it.
        manifest = aot.build(
            folder.parent / "plugin" / f"sm_{arch}",
            archs=[arch],
            progress=report,
        )
        ensure_registered(module, manifest, arch)
    except aot.KernelError as error:
        raise BackendError(f"plugin: {error}") from error


def _compute_kernel_digest() -> str:
    from services.denoiser.kernels.aot import SOURCES

    return _digest_files(SOURCES)


def _digest_files(paths: Iterable[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _describe_graph(options: EngineOptions) -> str:
    words = f"{GRAPH_VERSION}, opset {OPSET}, torch {torch.__version__.partition('+')[0]}"
    if options.runtime != "onnxruntime":
        return words
    return f"{words}, code {_digest_files(_GRAPH_SOURCES)[:16]}"


def _describe_runtime(options: EngineOptions) -> str:
    if options.runtime == "onnxruntime":
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(f"{error}: install it (pip install -e ./client -e '.[denoiser]')") from error
        return f"onnxruntime {onnxruntime.__version__}"
    from services.denoiser.backends.tensorrt.module import describe_module, load_module

    return describe_module(load_module(options.runtime))


def _resolve_target(model: LoadedModel, options: EngineOptions) -> str:
    """Replaces "current" by the device's name, so that an engine is found only on the device it is for."""
    if options.target != "current" or not torch.cuda.is_available():
        return options.target
    device = _build_device(model)
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}, {torch.cuda.get_device_name(device)}"


def _build_device(model: LoadedModel) -> torch.device:
    """Returns the model's device, or the current CUDA device if the model is on the CPU."""
    return model.device if model.device.type == "cuda" else torch.device("cuda", torch.cuda.current_device())
