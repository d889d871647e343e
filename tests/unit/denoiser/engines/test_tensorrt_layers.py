"""What a build's log tells of the layers."""

from __future__ import annotations

from services.denoiser.engines.tensorrt_layers import Layers, merged, read_layers


def line(name: str, kind: str, *shapes: str) -> str:
    inputs = ", ".join(f"{{ Name: x{i}, Dimensions: [{s}], Strides: [1] }}" for i, s in enumerate(shapes))
    return f"Name: {name}, LayerType: {kind}, Inputs: [ {inputs} ], Constants: [], Outputs: [ {{ Name: y }} ]"


SELF = line("_gemm_mha_v2_myl0_12", "kgen", "4,-1,32", "4,32,-1", "4,-1,32")
CROSS = line("_gemm_mha_v2_myl0_20", "kgen", "-1,-1,32", "-1,32,-1", "-1,1,1,-1", "-1,-1,32")
WIDE = line("_gemm_mha_v2_myl0_20", "kgen", "-1,-1,32", "-1,32,-1", "-1,1,-1,-1", "-1,-1,32")
MATRIX = line("node_MatMul_248_myl0_23", "gemm", "1,-1,128")
SOFTMAX = line("__myl_ReshMaxrSubExpSumDiv_myl0_42", "kgen", "4,-1,-1")


def test_fused_attentions_and_their_masks_are_counted() -> None:
    found = read_layers(["Layers:", SELF, CROSS, MATRIX, "Engine Metadata:"], 2)
    assert found == Layers(2, 2, ((-1, 1, 1, -1),), {"kgen": 2, "gemm": 1})
    assert found.all_fused
    assert found.masks_expanded == 0


def test_an_attention_that_was_taken_apart_is_missed() -> None:
    assert not read_layers([SELF, MATRIX, SOFTMAX, MATRIX], 2).all_fused


def test_a_mask_with_a_value_for_every_query_is_told() -> None:
    assert read_layers([SELF, WIDE], 2).masks_expanded == 1


def test_a_log_without_layers_is_no_proof() -> None:
    found = read_layers(["nothing of the kind"], 2)
    assert found.fused is None
    assert not found.all_fused
    assert merged([found, read_layers([SELF, CROSS], 2)]).fused is None


def test_lines_without_constants_are_layers_too() -> None:
    assert read_layers([line.replace("Constants: [], ", "") for line in (SELF, CROSS)], 2).all_fused


def test_parts_are_added_up() -> None:
    parts = [read_layers([SELF, CROSS], 2), read_layers([SELF, SOFTMAX], 2)]
    assert merged(parts) == Layers(4, 3, ((-1, 1, 1, -1),), {"kgen": 4})
