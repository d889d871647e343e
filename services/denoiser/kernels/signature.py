"""Kernel arguments in the order in which a TensorRT plugin passes them: inputs, sizes, output."""

from __future__ import annotations

from typing import Any

TENSORS = (
    "q",
    "k",
    "v",
    "key_bias",
    "gained",
    "gate",
    "other_k",
    "other_v",
    "other_bias",
    "strength",
)
# Arguments of one common type, float32 or 16-bit; all other tensors are float32.
VALUES = ("q", "k", "v", "other_k", "other_v", "out")
COUNTS = ("heads", "queries", "keys", "others")
# In elements. k and v have the same strides, and so have other_k and other_v. Channels are contiguous.
STRIDES = tuple(f"{tensor}_{axis}" for tensor in ("q", "k", "o", "out") for axis in ("batch", "head", "row"))
SIZES = (*COUNTS, *STRIDES)
ARGUMENTS = (*TENSORS, *SIZES, "out")


def compute_contiguous_sizes(
    heads: Any, queries: Any, keys: Any, others: Any, head_dim: Any
) -> tuple[Any, ...]:
    """Computes `SIZES` of contiguous [B, heads, rows, head_dim] tensors, for numbers or TensorRT symbols."""
    strides = (
        stride
        for rows in (queries, keys, others, queries)
        for stride in (heads * rows * head_dim, rows * head_dim, head_dim)
    )
    return heads, queries, keys, others, *strides


def get_parameter_type(name: str, dtype: str) -> str:
    """Returns the type of an argument in Triton's notation; `dtype` is the type of q."""
    if name in SIZES:
        return "i32"
    return f"*{dtype}" if name in VALUES else "*fp32"
