"""Verifies the encoding of tensors in control messages."""

from __future__ import annotations

import numpy as np
import pytest
from chorus.common.v1 import latents_pb2
from chorus_rpc.errors import ChorusError

from services.contract import tensors


def test_tensors_survive_encoding() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    for dtype in (np.float32, np.float16):
        message = tensors.encode_tensor(array.astype(dtype))
        assert np.array_equal(tensors.decode_tensor(message, "t", rank=2, max_elements=6), array)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dtype": latents_pb2.D_TYPE_BFLOAT16}, "t.dtype"),
        ({"shape": [2, 3, 1]}, "t.shape"),
        ({"shape": [0, 3]}, "t.shape"),
        ({"shape": [2**31, 2**31]}, "t.shape"),
        ({"data": b"123"}, "t.data"),
        ({"data": np.full(6, np.nan, np.float32).tobytes()}, "t.data"),
    ],
)
def test_invalid_tensor_names_the_field(change: dict[str, object], field: str) -> None:
    message = tensors.encode_tensor(np.zeros((2, 3), np.float32))
    for name in change:
        message.ClearField(name)  # type: ignore[arg-type]
    message.MergeFrom(latents_pb2.Tensor(**change))  # type: ignore[arg-type]
    with pytest.raises(ChorusError) as caught:
        tensors.decode_tensor(message, "t", rank=2, max_elements=100)
    assert [v.field for v in caught.value.violations] == [field]
