"""The header of a safetensors file, checked before any tensor is allocated."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass

from chorus_rpc.chunks import BlobFault

_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class TensorHeader:
    """One tensor of a safetensors file. `dtype` is safetensors' own name: F32, F16, BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]


def safetensors_header(data: bytes) -> list[TensorHeader]:
    """The tensors that a safetensors file declares, without allocating any of them.

    Raises BlobFault for a file that is truncated or not safetensors.
    """
    if len(data) < 8:
        raise BlobFault("not a safetensors file: shorter than its length field")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise BlobFault("not a safetensors file, or truncated within its header")
    end = 0
    tensors = []
    try:
        header = json.loads(data[8 : 8 + length])
        for name, info in header.items():
            if name == "__metadata__":
                continue
            tensors.append(TensorHeader(name, str(info["dtype"]), tuple(int(n) for n in info["shape"])))
            end = max(end, int(info["data_offsets"][1]))
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        IndexError,
        OverflowError,
        RecursionError,
    ) as error:
        raise BlobFault("not a safetensors file: its header cannot be read") from error
    if 8 + length + end != len(data):
        raise BlobFault(f"{len(data)} bytes where the safetensors header declares {8 + length + end}")
    return tensors
