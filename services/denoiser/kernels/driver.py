"""Kernel launcher: loads and launches PTX through the CUDA driver with ctypes.

It is for TensorRT's plugin, which runs without PyTorch. The status of every driver call is checked. The
calling thread must have a current CUDA context, which is the case inside a plugin and after any PyTorch
operation on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from services.denoiser.kernels.aot import Kernel

# Constants of the CUDA driver API (cuda.h).
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_JIT_ERROR_LOG_BUFFER = 5
_JIT_ERROR_LOG_BUFFER_SIZE_BYTES = 6
_PLAIN_SHARED = 48 * 1024
_LOG_BYTES = 4096


class DriverError(RuntimeError):
    """Failure of the CUDA driver: it is missing or rejected a call."""


class Driver:
    """CUDA driver with a cache of loaded kernels.

    Args:
        library: Driver library loaded by ctypes. None loads the system's.

    Raises:
        DriverError: The machine has no CUDA driver.
    """

    def __init__(self, library: Any = None) -> None:
        if library is None:
            try:
                library = ctypes.CDLL("libcuda.so.1")
            except OSError as error:
                raise DriverError(f"this machine has no CUDA driver: {error}") from error
        self._library = library
        self._functions: dict[tuple[int, str, str], ctypes.c_void_p] = {}
        self._call("cuInit", 0)

    def launch(
        self, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[int], stream: int = 0
    ) -> None:
        """Enqueues a kernel on a stream.

        Args:
            grid: Blocks along x, y and z, each at least 1.
            arguments: Device address or number for each kernel parameter, in order.
            stream: Handle of a CUDA stream.

        Raises:
            ValueError: The arguments do not match the kernel's parameters.
            DriverError: The driver rejected a call.
        """
        values = [
            _to_ctypes(value, name, type_)
            for value, (name, type_) in zip(arguments, kernel.parameters, strict=True)
        ]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
        self._call(
            "cuLaunchKernel",
            self._load_function(kernel),
            *(ctypes.c_uint(n) for n in (*grid, 32 * kernel.num_warps, 1, 1, kernel.shared)),
            ctypes.c_void_p(stream),
            pointers,
            None,
        )

    def _load_function(self, kernel: Kernel) -> ctypes.c_void_p:
        context = ctypes.c_void_p()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        if not context.value:
            raise DriverError("this thread has no CUDA context")
        key = (context.value, kernel.sha256, kernel.name)
        if key not in self._functions:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            log = ctypes.create_string_buffer(_LOG_BYTES)
            names = (ctypes.c_int * 2)(_JIT_ERROR_LOG_BUFFER, _JIT_ERROR_LOG_BUFFER_SIZE_BYTES)
            values = (ctypes.c_void_p * 2)(ctypes.addressof(log), _LOG_BYTES)
            ptx = kernel.ptx.encode()
            try:
                self._call("cuModuleLoadDataEx", ctypes.byref(module), ptx, ctypes.c_uint(2), names, values)
            except DriverError as error:
                raise DriverError(f"{error}: {log.value.decode(errors='replace')}") from error
            self._call("cuModuleGetFunction", ctypes.byref(function), module, kernel.name.encode())
            if kernel.shared > _PLAIN_SHARED:
                self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, kernel.shared)
            self._functions[key] = function
        return self._functions[key]

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(text))
            raise DriverError(f"{name}: {text.value.decode() if text.value else status}")


def _to_ctypes(value: int, name: str, type_: str) -> ctypes.c_uint64 | ctypes.c_int32:
    if type_.startswith("*"):
        if value % 16:  # the kernel is compiled for aligned addresses and would read adjacent memory
            raise ValueError(f"{name}: the address must be a multiple of 16")
        return ctypes.c_uint64(value)
    if not 0 <= value < 2**31:
        raise ValueError(f"{name}: must be from 0 to 2^31 - 1, not {value}")
    return ctypes.c_int32(value)
