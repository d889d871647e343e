"""Builds a serialised engine from an ONNX part of the graph. TensorRT-RTX builds without a GPU.

Networks are strongly typed: every tensor keeps the type it has in the graph, so that norms and modulation
stay float32. Tokens, text tokens and texts are dynamic dimensions with separate ranges.
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
from services.denoiser.engines.tensorrt_layers import Layers, parse_layers

TEXTS = Sizes(1, 1, 2)


@dataclass(frozen=True)
class BuildOptions:
    """Options of the builder.

    Attributes:
        target: Compute capability such as "sm_89", or "current" for the current device. Only TensorRT-RTX
            builds for other devices.
        weight_streaming: Whether weights that do not fit are streamed from the host while the engine runs.
        optimization_level: Optimisation level of the builder, 0 to 5; higher levels take longer.
        workspace_bytes: Upper bound on a kernel's scratch memory, in bytes; 0 for the builder's default.
    """

    target: str = "current"
    weight_streaming: bool = False
    optimization_level: int = 3
    workspace_bytes: int = 0


@dataclass(frozen=True)
class BuildResult:
    """Result of a build.

    Attributes:
        engine: Buffer with the serialised engine. It is not copied, because engines reach tens of GB.
        layers: Layers of the engine.
    """

    engine: Any
    layers: Layers


def build_engine(
    module: ModuleType,
    graph: Path,
    attentions: int,
    profile: Profile,
    options: BuildOptions,
    report: Progress,
) -> BuildResult:
    """Builds one part.

    Args:
        graph: .onnx file, with its external data in the same folder.
        attentions: Number of attentions in the part.
        profile: Sizes to build for.
        report: Progress callback. Return False to cancel.

    Raises:
        BackendError: The parser or the builder failed. The message contains their reason.
    """
    log = _create_logger(module)
    builder = module.Builder(log)
    network = builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = module.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise BackendError(f"{graph}: {module.__name__} cannot parse it: {reasons}")
    config = builder.create_builder_config()
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = options.optimization_level
    if options.workspace_bytes:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.weight_streaming:
        config.set_flag(module.BuilderFlag.WEIGHT_STREAMING)
    if options.target != "current":
        _set_target(module, config, options.target)
    config.add_optimization_profile(_create_profile(builder, network, graph, profile))
    config.progress_monitor = _create_monitor(module, report)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        reason = log.last_error or "no reason reported"
        raise BackendError(f"{graph}: {module.__name__} built no engine: {reason}")
    return BuildResult(engine, parse_layers(log.lines, attentions))


def _set_target(module: ModuleType, config: Any, target: str) -> None:
    known = [name for name in dir(getattr(module, "ComputeCapability", object)) if name.startswith("SM")]
    name = target.upper().replace("_", "")
    if not is_rtx(module) or name not in known:
        raise BackendError(
            f"target {target}: {module.__name__} {module.__version__} builds for current"
            + (" or " + ", ".join(known).lower().replace("sm", "sm_") if known else " only")
        )
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(module.ComputeCapability, name), 0)


def _create_profile(builder: Any, network: Any, graph: Path, profile: Profile) -> Any:
    """Creates an optimisation profile with the range of every dynamic dimension, by its name in the graph."""
    ranges = {"tokens": profile.tokens, "keys": profile.keys, "texts": TEXTS}
    names = {
        entry.name: [dim.dim_param or dim.dim_value for dim in entry.type.tensor_type.shape.dim]
        for entry in onnx.load(graph, load_external_data=False).graph.input
    }
    created = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        name = network.get_input(i).name
        if any(isinstance(size, str) for size in names[name]):
            created.set_shape(
                name,
                *(
                    tuple(
                        getattr(ranges[size], end) if isinstance(size, str) else size for size in names[name]
                    )
                    for end in ("min", "opt", "max")
                ),
            )
    return created


def _create_logger(module: ModuleType) -> Any:
    """Creates a logger that keeps only layers and errors; the full log of a large build would fill memory."""
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


def _create_monitor(module: ModuleType, report: Progress) -> Any:
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
