"""`tensorrt`: engines on a CUDA device, fed from torch tensors without a copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from services.denoiser.backends.base import BackendError
from services.denoiser.backends.parts import GraphBackend, PartRunner, Profile
from services.denoiser.backends.tensorrt.plugin import ensure_registered
from services.denoiser.models.wan import WanTransformer


class EngineRunner(PartRunner):
    """One engine and its execution context; both live until `close`.

    Args:
        streaming_bytes: of weights that stay on the device, for an engine built with weight streaming; 0 is
            what the runtime deems best.
    """

    def __init__(
        self, module: ModuleType, runtime: Any, path: Path, device: torch.device, streaming_bytes: int = 0
    ) -> None:
        self._module, self._path, self._device = module, path, device
        with path.open("rb") as file:
            self._engine = runtime.deserialize_cuda_engine(file.read())
        if self._engine is None:
            raise BackendError(
                f"{path}: {module.__name__} {module.__version__} cannot load it on "
                f"{torch.cuda.get_device_name(device)}; build it there with `chorus engine build`"
            )
        if self._engine.streamable_weights_size:
            self._engine.weight_streaming_budget_v2 = (
                streaming_bytes or self._engine.get_weight_streaming_automatic_budget()
            )
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise BackendError(
                f"{path}: no memory for its activations: {self._engine.device_memory_size_v2} B"
            )
        self._types = _torch_types(module)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == module.TensorIOMode.INPUT]
        self._outputs = [name for name in names if modes[name] == module.TensorIOMode.OUTPUT]

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        held = []  # tensors whose memory the engine reads: not freed before they are enqueued
        for name in self._inputs:
            tensor = inputs[name].to(self._types[self._engine.get_tensor_dtype(name)]).contiguous()
            held.append(tensor)
            if not self._context.set_input_shape(name, tuple(tensor.shape)):
                raise BackendError(
                    f"{self._path.name}: {name} of {list(tensor.shape)} is outside its profile"
                )
            self._context.set_tensor_address(name, tensor.data_ptr())
        missing = self._context.infer_shapes()
        if missing:
            raise BackendError(f"{self._path.name}: without shapes: {', '.join(missing)}")
        out = {}
        for name in self._outputs:
            shape = tuple(self._context.get_tensor_shape(name))
            kind = self._types[self._engine.get_tensor_dtype(name)]
            out[name] = torch.empty(shape, dtype=kind, device=self._device)
            self._context.set_tensor_address(name, out[name].data_ptr())
        stream = torch.cuda.current_stream(self._device)
        if not self._context.execute_async_v3(stream.cuda_stream):
            raise BackendError(f"{self._path.name}: the engine refused to run; its log says why")
        for tensor in held:
            tensor.record_stream(stream)
        return out

    def close(self) -> None:
        # The context reads the engine's memory, so that it goes first.
        self._context = self._engine = None


def engine_backend(
    module: ModuleType,
    transformer: WanTransformer,
    paths: Sequence[Path],
    blocks_each: int,
    profile: Profile,
    device: torch.device,
    dtype: torch.dtype,
    *,
    plugin: bool = False,
    streaming_bytes: int = 0,
) -> GraphBackend:
    """Engines that were built for this device, one for each part.

    Raises BackendError where there is no CUDA device, or an engine cannot be loaded on it.
    """
    if device.type != "cuda":
        raise BackendError("tensorrt: needs a CUDA device; set CHORUS_DENOISER_DEVICE=cuda")
    if plugin:
        ensure_registered(module)
    with torch.cuda.device(device):
        runtime = module.Runtime(module.Logger(module.Logger.Severity.WARNING))
        runners = [EngineRunner(module, runtime, path, device, streaming_bytes) for path in paths]
    return GraphBackend(
        "tensorrt", transformer, blocks_each, runners, profile=profile, dtype=dtype, plugin=plugin
    )


def _torch_types(module: ModuleType) -> dict[Any, torch.dtype]:
    kinds = module.DataType
    return {kinds.FLOAT: torch.float32, kinds.HALF: torch.float16, kinds.BF16: torch.bfloat16}
