"""The kernel's arguments, in the order in which a TensorRT plugin passes them: inputs, sizes, output."""

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
VALUES = ("q", "k", "v", "other_k", "other_v", "out")  # of one type, float32 or shorter; the rest is float32
COUNTS = ("heads", "queries", "keys", "others")
# In elements; k and v share theirs, and so do other_k and other_v. A head's channels lie side by side.
STRIDES = tuple(f"{of}_{axis}" for of in ("q", "k", "o", "out") for axis in ("batch", "head", "row"))
SIZES = (*COUNTS, *STRIDES)
ARGUMENTS = (*TENSORS, *SIZES, "out")


def contiguous_sizes(heads: Any, queries: Any, keys: Any, others: Any, head_dim: Any) -> tuple[Any, ...]:
    """`SIZES` of contiguous [B, heads, rows, head_dim] tensors; of numbers, or of TensorRT's symbols."""
    strides = (
        stride
        for rows in (queries, keys, others, queries)
        for stride in (heads * rows * head_dim, rows * head_dim, head_dim)
    )
    return heads, queries, keys, others, *strides


def parameter_type(name: str, dtype: str) -> str:
    """An argument's type as Triton writes it, where `dtype` is that of q."""
    if name in SIZES:
        return "i32"
    return f"*{dtype}" if name in VALUES else "*fp32"
