"""Measures whether steps of several runs are cheaper together: `python -m bench.batching`.

A batch of 1, 2, 4 and 8 steps of the shipped network, or of one with random weights and other sizes, runs
in one call, in eager mode and compiled by torch, for full steps and for region steps at 30 % of the tokens.
Every video has its own text and timestep, so that runs at different steps count as well. Batches take turns;
a figure is the seconds per video relative to those of a batch of one in the same round: 1 means that a batch
gains nothing. Also measured: the largest difference of a prediction from the one that is computed alone.
Writes bench/results/batching.json.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import torch
import typer
from torch import Tensor

from bench import results
from bench.cpu_backend import Network, build_inputs
from bench.results import Figure
from services.denoiser.backends.base import StepInputs
from services.denoiser.model.loaded import LoadedModel
from services.denoiser.network.text import AmplifiedText
from services.denoiser.network.wan import WanConfig, WanTransformer
from services.denoiser.settings import SHIPPED_MODEL

BATCHES: Final = (1, 2, 4, 8)
KINDS: Final = ("full", "region")


def join(steps: Sequence[StepInputs]) -> StepInputs:
    """Returns the inputs of several steps, of the same number of tokens and of words, as one batch."""
    kv = tuple(
        (torch.cat([key for key, _ in block]), torch.cat([value for _, value in block]))
        for block in zip(*(step.text.kv for step in steps), strict=True)
    )
    return StepInputs(
        torch.cat([step.tokens for step in steps]),
        torch.stack([step.rope_cos for step in steps]),
        torch.stack([step.rope_sin for step in steps]),
        AmplifiedText(kv),
        torch.cat([step.timestep for step in steps]),
    )


def draw_steps(network: Network, transformer: WanTransformer, kind: str) -> list[StepInputs]:
    """Returns one step of each of the largest batch's videos."""
    step = build_inputs(network, transformer)[kind]
    drawn = []
    for number in range(max(BATCHES)):
        generator = torch.Generator().manual_seed(number)
        words = torch.randn(1, network.text_tokens, transformer.config.text_dim, generator=generator)
        drawn.append(
            StepInputs(
                torch.randn(step.tokens.shape, generator=generator),
                step.rope_cos,
                step.rope_sin,
                AmplifiedText(transformer.encode_text(words)),
                torch.tensor([1000.0 * (number + 1) / max(BATCHES)]),
            )
        )
    return drawn


def predict(network: Callable[..., Tensor], batch: StepInputs) -> Tensor:
    """Returns the predictions of a batch, [B, n, out_channels*P]."""
    return network(batch.tokens, batch.rope_cos, batch.rope_sin, batch.text.kv, None, batch.timestep)


def measure_difference(network: Callable[..., Tensor], steps: Sequence[StepInputs]) -> float:
    """Returns the largest difference of a batched prediction, relative to the largest value."""
    alone = torch.cat([predict(network, join([step])) for step in steps])
    together = predict(network, join(steps))
    return float((together - alone).abs().max() / alone.abs().max())


@torch.inference_mode()
def measure(network: Network, rounds: int) -> dict[str, Figure]:
    transformer = network.load()
    figures: dict[str, Figure] = {}
    torch.compiler.reset()  # its limit is eight variants of one function
    compiled = torch.compile(transformer, dynamic=False)
    for name, each in (("torch", transformer), ("compiled", compiled)):
        for kind in KINDS:
            steps = draw_steps(network, transformer, kind)
            batches = {size: join(steps[:size]) for size in BATCHES}
            for batch in batches.values():  # the warm-up
                predict(each, batch)
            seconds: dict[int, list[float]] = {size: [] for size in BATCHES}
            for number in range(rounds):
                for size in BATCHES if number % 2 else BATCHES[::-1]:
                    begin = time.perf_counter()
                    predict(each, batches[size])
                    seconds[size].append((time.perf_counter() - begin) / size)
            prefix = f"{name}_{kind}_threads_{network.threads}"
            figures[f"{prefix}_alone_seconds_p50"] = results.median(seconds[1], "s")
            for size in BATCHES[1:]:
                ratios = [own / alone for own, alone in zip(seconds[size], seconds[1], strict=True)]
                figures[f"{prefix}_batch_{size}_ratio_p50"] = results.median(ratios, "x")
            difference = measure_difference(each, steps)
            figures[f"{prefix}_difference_max"] = Figure(difference, "relative", len(steps))
    return figures


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "batching.json",
    rounds: Annotated[int, typer.Option(min=2, help="Number of measured batches of each size.")] = 20,
    layers: Annotated[int, typer.Option(min=0, help="Blocks; 0: the shipped model.")] = 0,
    grid: Annotated[tuple[int, int, int], typer.Option(help="Tokens along time, rows, columns.")] = (0, 0, 0),
    text_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 32,
) -> None:
    model = LoadedModel.load(SHIPPED_MODEL)
    video = model.spec.video
    size = (
        grid if all(grid) else model.token_grid(model.latent_shape(video.frames, video.height, video.width))
    )
    config = WanConfig(**{**asdict(model.transformer.config), "layers": layers}) if layers else None
    figures: dict[str, Figure] = {}
    for threads in (1, 2):
        figures |= measure(Network(config, size, text_tokens, threads), rounds)
    results.write(
        out,
        f"python -m bench.batching {shlex.join(sys.argv[1:])}".strip(),
        figures,
        network={**asdict(config or model.transformer.config), "grid": size, "text_tokens": text_tokens},
    )
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.4g} {figure.unit} {figure.ci95 or ''}")


if __name__ == "__main__":
    typer.run(main)
