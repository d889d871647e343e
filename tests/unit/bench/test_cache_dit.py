"""cache-dit's bench: the network it measures is the denoiser's, and what is counted is what ran."""

from __future__ import annotations

import sys

import pytest
import torch
import typer

from bench import cache_dit

PROMPT = "a large red circle moving right on a black background"
BLOCKS, STEPS = 6, 4


@pytest.fixture(scope="module")
def bench() -> cache_dit.Bench:
    return cache_dit.Bench({})


def test_diffusers_network_makes_the_denoisers_latents(bench: cache_dit.Bench) -> None:
    assert bench.difference(PROMPT, 1) < 1e-4


def test_a_table_has_a_row_for_each_way(bench: cache_dit.Bench) -> None:
    plain = cache_dit.Tried(0.2, 1.0, True, 0.0, 24, 0)
    other = cache_dit.Tried(0.1, 2.0, False, 0.25, 12, 2)
    figures = cache_dit.figures_of([{"plain": plain, "x 0.5": other}, {"plain": plain, "x 0.5": other}])
    assert figures["x 0.5.alignment_loss_points"].value == 100
    assert cache_dit.table(figures).splitlines()[-1] == (
        "| x 0.5 | 2.00 | 12.0 | 2.00× (2.00–2.00) | 0 % | 25.0 % |"
    )


def test_without_cache_dit_it_says_what_to_install(
    bench: cache_dit.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    with pytest.raises(typer.BadParameter, match=r"pip install -e '\.\[rivals\]'"):
        cache_dit.main(count=2)


def test_steps_are_reused_as_a_setting_says(bench: cache_dit.Bench) -> None:
    pytest.importorskip("cache_dit")
    encoded = bench.encoder.encode([PROMPT])[0]
    states, noise = torch.as_tensor(encoded.states)[None], bench.model.noise(1, bench.network.shape)
    sigmas = bench.model.spec.schedule.sigmas
    plain = bench.network.run(states, noise, sigmas)
    assert (plain.blocks, plain.cached_steps) == (BLOCKS * STEPS, ())
    for setting, cached in (
        (cache_dit.Setting(1e-6), ()),
        (cache_dit.Setting(1.0), (1, 2, 3)),
        (cache_dit.Setting(steps_computation_mask=(1, 0, 0, 1)), (1, 2)),
    ):
        network = cache_dit.Network(bench.model, setting)
        first, again = (network.run(states, noise, sigmas) for _ in range(2))
        assert first.cached_steps == cached
        assert first.blocks == BLOCKS * STEPS - (BLOCKS - 1) * len(cached)
        assert torch.equal(first.latents, plain.latents) == (not cached)
        assert torch.equal(first.latents, again.latents), "a request begins with nothing of the one before"
