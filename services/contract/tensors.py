"""Encoding of small tensors inside control messages."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from chorus.common.v1 import latents_pb2
from chorus_rpc.errors import invalid

_DTYPES: dict[int, np.dtype[np.floating]] = {
    latents_pb2.D_TYPE_FLOAT32: np.dtype("<f4"),
    latents_pb2.D_TYPE_FLOAT16: np.dtype("<f2"),
}


def encode_tensor(array: npt.NDArray[np.floating]) -> latents_pb2.Tensor:
    """Encodes a float32 or float16 array as a message."""
    for code, dtype in _DTYPES.items():
        if array.dtype == dtype:
            return latents_pb2.Tensor(
                dtype=latents_pb2.DType.Name(code),  # type: ignore[arg-type]
                shape=array.shape,
                data=np.ascontiguousarray(array).tobytes(),
            )
    raise TypeError(f"control messages carry float32 and float16 only, not {array.dtype}")


def decode_tensor(
    tensor: latents_pb2.Tensor, field: str, *, rank: int, max_elements: int
) -> npt.NDArray[np.float32]:
    """Decodes the array of a message, as float32.

    Raises INVALID_FIELD that names `field` for an invalid dtype, rank, size or length, before anything is
    allocated, and for values that are not finite.
    """
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise invalid(f"{field}.dtype", "must be D_TYPE_FLOAT32 or D_TYPE_FLOAT16")
    shape = tuple(tensor.shape)
    if len(shape) != rank or not 0 < math.prod(shape) <= max_elements:
        raise invalid(
            f"{field}.shape",
            f"must have {rank} dimensions and 1 to {max_elements} elements, not {list(shape)}",
        )
    if len(tensor.data) != math.prod(shape) * dtype.itemsize:
        raise invalid(
            f"{field}.data", f"must hold {math.prod(shape) * dtype.itemsize} bytes, not {len(tensor.data)}"
        )
    array = np.frombuffer(tensor.data, dtype=dtype).reshape(shape).astype(np.float32)
    if not np.isfinite(array).all():
        raise invalid(f"{field}.data", "must be finite: it holds NaN or infinity")
    return array
