"""Verifies the cache-dit benchmark: its network equals the denoiser's, and its counts match the runs."""

from __future__ import annotations

import sys

import pytest
import torch
import typer

from bench import cache_dit

PROMPT = "a large red circle moving right on a black background"
BLOCKS, STEPS = 7, 4


@pytest.fixture(scope="module")
def harness() -> cache_dit.Harness:
    return cache_dit.Harness({})


def test_diffusers_network_produces_the_denoisers_latents(harness: cache_dit.Harness) -> None:
    assert harness.measure_difference(PROMPT, 1) < 1e-4


def test_table_has_a_row_for_each_method() -> None:
    plain = cache_dit.Outcome(0.2, 1.0, True, 0.0, 24, 0)
    other = cache_dit.Outcome(0.1, 2.0, False, 0.25, 12, 2)
    figures = cache_dit.build_figures([{"plain": plain, "x 0.5": other}, {"plain": plain, "x 0.5": other}])
    assert figures["x 0.5.alignment_loss_points"].value == 100
    assert cache_dit.format_table(figures).splitlines()[-1] == (
        "| x 0.5 | 2.00 | 12.0 | 2.00× (2.00–2.00) | 0 % | 25.0 % |"
    )


def test_missing_cache_dit_is_reported_with_the_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    with pytest.raises(typer.BadParameter, match=r"pip install -e \./client -e '\.\[rivals\]'"):
        cache_dit.main(count=20)


def test_steps_are_reused_as_configured(harness: cache_dit.Harness) -> None:
    pytest.importorskip("cache_dit")
    encoded = harness.encoder.encode([PROMPT])[0]
    states, noise = torch.as_tensor(encoded.states)[None], harness.model.noise(1, harness.network.shape)
    sigmas = harness.model.spec.schedule.sigmas
    plain = harness.network.run(states, noise, sigmas)
    assert (plain.blocks, plain.cached_steps) == (BLOCKS * STEPS, ())
    for setting, cached in (
        (cache_dit.Setting(1e-6), ()),
        (cache_dit.Setting(1.0), (1, 2, 3)),
        (cache_dit.Setting(steps_computation_mask=(1, 0, 0, 1)), (1, 2)),
    ):
        network = cache_dit.Network(harness.model, setting)
        first, again = (network.run(states, noise, sigmas) for _ in range(2))
        assert first.cached_steps == cached
        assert first.blocks == BLOCKS * STEPS - (BLOCKS - 1) * len(cached)
        assert torch.equal(first.latents, plain.latents) == (not cached)
        assert torch.equal(first.latents, again.latents), "a request must not reuse state of an earlier one"
