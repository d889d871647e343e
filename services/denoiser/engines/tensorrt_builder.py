"""An ONNX part of the graph -> a serialised engine. TensorRT-RTX builds without a GPU.

Strongly typed: every tensor has the type that the graph gives it, so that norms and modulation stay float32.
Tokens, text tokens and texts are dynamic, each with a range of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from services.denoiser.backends.base import BackendError, Progress
from services.denoiser.backends.graph_backend import Profile, Sizes
from services.denoiser.backends.tensorrt.module import is_rtx
from services.denoiser.engines.tensorrt_layers import Layers, read_layers

TEXTS = Sizes(1, 1, 2)


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    Args:
        target: compute capability, "sm_89"; "current" is the device's own. Only TensorRT-RTX builds for
            another device than it runs on.
        weight_streaming: weights that do not fit are streamed from the host while the engine runs.
        optimization_level: 0 to 5, the builder's own scale; more takes longer.
        workspace_bytes: scratch memory a kernel may take; 0 is the builder's own bound.
    """

    target: str = "current"
    weight_streaming: bool = False
    optimization_level: int = 3
    workspace_bytes: int = 0


@dataclass(frozen=True)
class Built:
    engine: Any  # a buffer: engines reach tens of GB, and a copy would take them twice
    layers: Layers


def build_engine(
    module: ModuleType,
    graph: Path,
    attentions: int,
    profile: Profile,
    options: BuildOptions,
    report: Progress,
) -> Built:
    """Builds one part.

    Args:
        graph: an .onnx file with its external data beside it.
        attentions: how many the part has; the layers tell how many were fused.

    Raises BackendError with the parser's or the builder's own words.
    """
    log = _logger(module)
    builder = module.Builder(log)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        faults = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BackendError(f"{graph}: {module.__name__} cannot parse it: {faults}")
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.weight_streaming:
        config.set_flag(module.BuilderFlag.WEIGHT_STREAMING)
    if options.target != "current":
        _set_target(module, config, options.target)
    config.add_optimization_profile(_profile(builder, network, graph, profile))
    config.progress_monitor = _progress(module, report)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise BackendError(f"{graph}: {module.__name__} built nothing: {log.last_error or 'no reason given'}")
    return Built(engine, read_layers(log.lines, attentions))


def _set_target(module: ModuleType, config: Any, target: str) -> None:
    known = [name for name in dir(getattr(module, "ComputeCapability", object)) if name.startswith("SM")]
    name = target.upper().replace("_", "")
    if not is_rtx(module) or name not in known:
        raise BackendError(
            f"target {target}: {module.__name__} {module.__version__} builds for "
            + (", ".join(known).lower().replace("sm", "sm_") if known else "the device it runs on")
            + " or for current"
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(module.ComputeCapability, name), 0)


def _profile(builder: Any, network: Any, graph: Path, profile: Profile) -> Any:
    """Ranges of every dynamic dimension, found by the name that the graph gives it."""
    ranges = {"tokens": profile.tokens, "keys": profile.keys, "texts": TEXTS}
    names = {
        entry.name: [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        for entry in onnx.load(graph, load_external_data=False).graph.input
    }
    made = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        if any(isinstance(size, str) for size in names[name]):
            made.set_shape(
                name,
                *(
                    tuple(
                        getattr(ranges[size], end) if isinstance(size, str) else size for size in names[name]
                    )
                    for end in ("min", "opt", "max")
                ),
            )
    return made


def _logger(module: ModuleType) -> Any:
    """Keeps what tells of layers and faults; the rest of a large build's log would fill memory."""
    layer = re.compile(r"^\s*Name: .*LayerType: ")

    class Logger(module.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.lines: list[str] = []
            self.last_error = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                self.last_error = message
            self.lines.extend(line for line in message.splitlines() if layer.match(line))

    return Logger()


def _progress(module: ModuleType, report: Progress) -> Any:
    class Monitor(module.IProgressMonitor):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            if parent_phase is None or num_steps > 1:
                report(f"{phase_name}: {num_steps} steps")

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self._steps.get(phase_name, 0)
            return report(f"{phase_name}: {step + 1} of {steps}") is not False if steps > 1 else True

    return Monitor()
