"""`tensorrt` backend: runs engines on a CUDA device with torch tensors as inputs, without copies.

The engines of one network run in sequence, so they share one block of activation memory. They run on a
separate stream, because on the default stream TensorRT synchronises with the host at every call.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from services.denoiser.backends.base import BackendError, as_backend_error
from services.denoiser.backends.graph_backend import GraphBackend, PartRunner, Profile
from services.denoiser.backends.tensorrt.plugin import ensure_registered
from services.denoiser.network.wan import WanTransformer

# Required alignment of tensor addresses, in bytes (`setTensorAddress` in TensorRT's documentation).
_ALIGNMENT = 256


class EngineRunner(PartRunner):
    """Runs one engine. Engine and execution context live until `close`.

    Args:
        stream: Stream of the engine. Inputs and outputs belong to the current stream.
    """

    def __init__(
        self, module: ModuleType, runtime: Any, path: Path, device: torch.device, stream: torch.cuda.Stream
    ) -> None:
        self._path, self._device, self._stream = path, device, stream
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            self._engine = runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise BackendError(
                f"{path}: {module.__name__} {module.__version__} cannot load it on "
                f"{torch.cuda.get_device_name(device)}; build it there with `chorus engine build`"
            )
        if self._engine.streamable_weights_size:
            budget = self._engine.get_weight_streaming_automatic_budget()
            self._engine.weight_streaming_budget_v2 = budget
        self._context = self._engine.create_execution_context(
            module.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._context is None:
            raise BackendError(f"{path}: not enough memory for its execution context")
        self._types = _torch_types(module)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        modes = {name: self._engine.get_tensor_mode(name) for name in names}
        self._inputs = [name for name in names if modes[name] == module.TensorIOMode.INPUT]
        self._outputs = [name for name in names if modes[name] == module.TensorIOMode.OUTPUT]
        self._memory: Tensor | None = None

    @property
    def memory_bytes(self) -> int:
        """Size of the activation memory, in bytes."""
        return int(self._engine.device_memory_size_v2)

    def use_memory(self, memory: Tensor) -> None:
        """Sets the activation memory, uint8 [at least memory_bytes]."""
        self._memory = memory  # kept alive while the context may write to it
        self._context.set_device_memory(memory.data_ptr(), memory.numel())

    def run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        with as_backend_error(self._path.name), torch.cuda.device(self._device):
            return self._run(inputs)

    def _run(self, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        bound = [self._bind(name, inputs[name]) for name in self._inputs]
        missing = self._context.infer_shapes()
        if missing:
            raise BackendError(f"{self._path.name}: unknown shapes: {', '.join(missing)}")
        out = {name: self._allocate(name) for name in self._outputs}
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise BackendError(f"{self._path.name}: the engine failed to run; TensorRT's log has the reason")
        current.wait_stream(self._stream)
        for tensor in (*bound, *out.values()):
            tensor.record_stream(self._stream)  # the allocator must not reuse it before the engine finishes
        return out

    def _bind(self, name: str, source: Tensor) -> Tensor:
        tensor = source.to(self._device, self._types[self._engine.get_tensor_dtype(name)]).contiguous()
        if tensor.data_ptr() % _ALIGNMENT:
            tensor = tensor.clone()  # a slice of the text may start at any address
        if not self._context.set_input_shape(name, tuple(tensor.shape)):
            raise BackendError(f"{self._path.name}: {name} of {list(tensor.shape)} is outside its profile")
        self._set_address(name, tensor)
        return tensor

    def _allocate(self, name: str) -> Tensor:
        dtype = self._types[self._engine.get_tensor_dtype(name)]
        tensor = torch.empty(tuple(self._context.get_tensor_shape(name)), dtype=dtype, device=self._device)
        self._set_address(name, tensor)
        return tensor

    def _set_address(self, name: str, tensor: Tensor) -> None:
        if not self._context.set_tensor_address(name, tensor.data_ptr()):
            raise BackendError(f"{self._path.name}: the engine rejects the address of {name}")

    def close(self) -> None:
        # The context reads the engine's memory and must be released first.
        self._context = self._engine = self._memory = None


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
) -> GraphBackend:
    """Creates the backend from engines built for this device.

    Args:
        module: Module returned by `load_module`.
        paths: One engine file per part.
        blocks_each: Number of blocks in each part; 0 for a single part.
        profile: Sizes that the engines were built for.
        dtype: Type in which the engines compute.
        plugin: Whether the engines contain the amplified attention plugin.

    Raises:
        BackendError: The device is not a CUDA device, or it cannot load an engine.
    """
    if device.type != "cuda":
        raise BackendError("tensorrt: needs a CUDA device; set CHORUS_DENOISER_DEVICE=cuda")
    if plugin:
        ensure_registered(module)
    with torch.cuda.device(device):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        runtime = module.Runtime(module.Logger(module.Logger.Severity.WARNING))
        runners = [EngineRunner(module, runtime, path, device, stream) for path in paths]
        size = max(1, *(runner.memory_bytes for runner in runners))
        memory = torch.empty(size, dtype=torch.uint8, device=device)
        for runner in runners:
            runner.use_memory(memory)
    return GraphBackend(
        "tensorrt", transformer, blocks_each, runners, profile=profile, dtype=dtype, plugin=plugin
    )


def _torch_types(module: ModuleType) -> dict[Any, torch.dtype]:
    types = module.DataType
    return {types.FLOAT: torch.float32, types.HALF: torch.float16, types.BF16: torch.bfloat16}
