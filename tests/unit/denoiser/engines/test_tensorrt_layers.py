"""Verifies how the layers of an engine are parsed from a build log."""

from __future__ import annotations

from services.denoiser.engines.tensorrt_layers import Layers, merge_layers, parse_layers


def line(name: str, kind: str, *shapes: str) -> str:
    inputs = ", ".join(f"{{ Name: x{i}, Dimensions: [{s}], Strides: [1] }}" for i, s in enumerate(shapes))
    return f"Name: {name}, LayerType: {kind}, Inputs: [ {inputs} ], Constants: [], Outputs: [ {{ Name: y }} ]"


SELF = line("_gemm_mha_v2_myl0_12", "kgen", "4,-1,32", "4,32,-1", "4,-1,32")
CROSS = line("_gemm_mha_v2_myl0_20", "kgen", "-1,-1,32", "-1,32,-1", "-1,1,1,-1", "-1,-1,32")
WIDE = line("_gemm_mha_v2_myl0_20", "kgen", "-1,-1,32", "-1,32,-1", "-1,1,-1,-1", "-1,-1,32")
MATRIX = line("node_MatMul_248_myl0_23", "gemm", "1,-1,128")
SOFTMAX = line("__myl_ReshMaxrSubExpSumDiv_myl0_42", "kgen", "4,-1,-1")


def test_fused_attentions_and_their_masks_are_counted() -> None:
    layers = parse_layers(["Layers:", SELF, CROSS, MATRIX, "Engine Metadata:"], 2)
    assert layers == Layers(2, 2, ((-1, 1, 1, -1),), {"kgen": 2, "gemm": 1})
    assert layers.all_fused
    assert layers.masks_expanded == 0


def test_unfused_attention_is_detected() -> None:
    assert not parse_layers([SELF, MATRIX, SOFTMAX, MATRIX], 2).all_fused


def test_mask_with_a_value_per_query_counts_as_expanded() -> None:
    assert parse_layers([SELF, WIDE], 2).masks_expanded == 1


def test_log_without_layers_leaves_fusion_unknown() -> None:
    layers = parse_layers(["nothing of the kind"], 2)
    assert layers.fused is None
    assert not layers.all_fused
    assert merge_layers([layers, parse_layers([SELF, CROSS], 2)]).fused is None


def test_lines_without_constants_are_parsed_as_layers() -> None:
    assert parse_layers([line.replace("Constants: [], ", "") for line in (SELF, CROSS)], 2).all_fused


def test_merge_layers_adds_up_parts() -> None:
    parts = [parse_layers([SELF, CROSS], 2), parse_layers([SELF, SOFTMAX], 2)]
    assert merge_layers(parts) == Layers(4, 3, ((-1, 1, 1, -1),), {"kgen": 4})
