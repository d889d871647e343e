"""Verifies that the compiled backend compiles one block and uses it for all blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from services.denoiser.backends.base import StepInputs
from services.denoiser.backends.compiled import compiled_backend
from services.denoiser.backends.eager import EagerBackend
from services.denoiser.network.text import AmplifiedText, LayerAmplification
from services.denoiser.network.wan import WanConfig, WanTransformer, rope_table

CONFIG = WanConfig(heads=2, head_dim=12, ffn_dim=48, layers=4, text_dim=16, freq_dim=16)


@pytest.fixture
def compiled_graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Graphs captured by dynamo. They run uncompiled, because only the capture is tested."""
    graphs: list[Any] = []

    def keep(graph: Any, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        forward: Callable[..., Any] = graph.forward
        return forward

    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=keep))
    return graphs


@torch.inference_mode()
def test_blocks_are_compiled_once_for_each_number_of_texts(compiled_graphs: list[Any]) -> None:
    torch.manual_seed(0)
    network = WanTransformer(CONFIG).eval().requires_grad_(False)
    text, donor = (network.encode_text(torch.randn(1, length, 16)) for length in (7, 9))
    plain = AmplifiedText(text)
    contrast = AmplifiedText(text, tuple(LayerAmplification(other=kv, strength=0.5) for kv in donor))
    bias = AmplifiedText(text, (None, *3 * (LayerAmplification(bias=torch.rand(7)),)))
    cos, sin = rope_table(CONFIG, (3, 4, 5))
    eager, compiled = EagerBackend(network), compiled_backend(network)
    for count in (60, 21):
        at = torch.arange(count)
        for amplified in (plain, contrast, bias):
            inputs = StepInputs(torch.randn(1, count, 64), cos[at], sin[at], amplified, torch.tensor([900.0]))
            torch.testing.assert_close(compiled.predict(inputs), eager.predict(inputs))
    assert len(compiled_graphs) == 2
    seen: dict[str, list[Tensor]] = {"eager": [], "compiled": []}
    for backend, calls in zip((eager, compiled), seen.values(), strict=True):

        def on_attention(block: int, queries: Tensor, keys: Tensor, calls: list[Tensor] = calls) -> None:
            calls += [torch.tensor(block), queries, keys]

        backend.predict(replace(inputs, on_attention=on_attention))
    assert len(seen["eager"]) == 3 * len(CONFIG.watched_heads)
    torch.testing.assert_close(seen["compiled"], seen["eager"])
    assert type(network.blocks[0]).__name__ == "Block"  # the eager network is unchanged
