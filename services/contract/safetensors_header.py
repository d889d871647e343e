"""The header of a safetensors file, checked before any tensor is allocated."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field

from chorus_rpc.chunks import BlobFault

_MAX_HEADER_BYTES = 1 << 20


@dataclass(frozen=True)
class TensorHeader:
    """Description of one tensor of a safetensors file.

    Attributes:
        dtype: Type as safetensors names it: F32, F16, BF16.
        start, end: Offsets in the data that follows the header, in bytes; ignored by comparisons.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = field(default=0, compare=False, repr=False)
    end: int = field(default=0, compare=False, repr=False)


def safetensors_header(data: bytes) -> list[TensorHeader]:
    """Returns the tensors that a safetensors file declares, without allocating any of them.

    Raises BlobFault for a file that is truncated or not safetensors.
    """
    if len(data) < 8:
        raise BlobFault("not a safetensors file: shorter than its length field")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_MAX_HEADER_BYTES, len(data) - 8):
        raise BlobFault("not a safetensors file, or truncated within its header")
    tensors, _ = parse_header(data[8 : 8 + length])
    end = max((tensor.end for tensor in tensors), default=0)
    if 8 + length + end != len(data):
        raise BlobFault(f"{len(data)} bytes where the safetensors header declares {8 + length + end}")
    return tensors


def parse_header(raw: bytes) -> tuple[list[TensorHeader], dict[str, str]]:
    """Parses the JSON of a header: returns the tensors and the metadata of the writer.

    Raises BlobFault for anything that is not the header of a safetensors file.
    """
    try:
        header = json.loads(raw)
        metadata = {str(key): str(value) for key, value in header.pop("__metadata__", {}).items()}
        tensors = []
        for name, info in header.items():
            start, end = (int(offset) for offset in info["data_offsets"])
            shape = tuple(int(size) for size in info["shape"])
            tensors.append(TensorHeader(name, str(info["dtype"]), shape, start, end))
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
    return tensors, metadata
