"""Eviction on a seeded trace: `python -m bench.eviction` writes bench/results/eviction.json.

Requests draw prompts by a Zipf law (exponent 1.0) whose ranks drift: topics become popular and are forgotten.
Prompts of one topic are edits of each other, so one's latents serve another's request in part. The cache
holds a tenth of what an unbounded one would. Every rule replays the same requests through the ledger of the
cache; the figure is the computation that its hits saved. Rules were chosen on the seeds of --tune.
"""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from bench import results
from bench.results import Figure
from services.cache.eviction.ledger import EntryKey, Ledger
from services.cache.eviction.priorities import PRIORITIES, Held

TOPICS: Final = 1_500
EDITS: Final = 6  # prompts of one topic
DRIFT_EVERY: Final = 200  # requests after which topics change their ranks
DRIFT_SHARE: Final = 0.02  # share of the topics that do
# Kinds of requests: share, seconds of the computation, bytes of the latents of four boundaries in 16 bits.
# As two models of 1.3 and 14 billion parameters at 480p, and the larger one at 720p, in four steps: the
# computation grows with parameters and tokens, the latents with tokens only.
SHAPES: Final = ((0.5, 8.0, 17_000_000), (0.3, 45.0, 17_000_000), (0.2, 150.0, 39_000_000))
ONE_MODEL: Final = ((1.0, 45.0, 17_000_000),)
# Share of the computation that a hit saves: of the same prompt and seed, of another prompt of the topic.
EXACT_SAVING: Final = 0.95
EDIT_SAVING: Final = 0.45
SIMILARITY: Final = 0.93  # of two prompts of a topic
REPEATED: Final = 0.3  # share of the requests that state the seed of an earlier one
LAST_STEP_SHARE: Final = 0.25  # of the latents' bytes, kept of a video that was made from a donor


@dataclass(frozen=True)
class Request:
    """One request of the trace.

    Attributes:
        topic, edit: the prompt.
        seed: seed of the video.
        cost_seconds, size_bytes: computation and latents of the video.
    """

    topic: int
    edit: int
    seed: int
    cost_seconds: float
    size_bytes: int


def draw_trace(length: int, seed: int, shapes: Sequence[tuple[float, float, int]]) -> list[Request]:
    """Draws requests in order."""
    rng = np.random.default_rng(seed)
    weights = 1.0 / np.arange(1, TOPICS + 1)
    weights /= weights.sum()
    topics = rng.permutation(TOPICS)
    kinds = rng.choice(len(shapes), TOPICS, p=[share for share, _, _ in shapes])
    edit_weights = 1.0 / np.arange(1, EDITS + 1)
    edit_weights /= edit_weights.sum()
    trace = []
    for number in range(length):
        if number % DRIFT_EVERY == 0:
            moved = rng.choice(TOPICS, max(2, round(DRIFT_SHARE * TOPICS)), replace=False)
            topics[moved] = topics[rng.permutation(moved)]
        topic = int(topics[rng.choice(TOPICS, p=weights)])
        seed_drawn = 0 if rng.random() < REPEATED else number + 1
        _, cost, size = shapes[kinds[topic]]
        trace.append(Request(topic, int(rng.choice(EDITS, p=edit_weights)), seed_drawn, cost, size))
    return trace


def replay(trace: Sequence[Request], rule: str, capacity: float) -> tuple[float, int]:
    """Replays a trace; returns the seconds that hits saved and the bytes that were admitted.

    Args:
        capacity: bytes that the cache may hold.
    """
    ledger = Ledger(PRIORITIES[rule])
    exact: dict[str, EntryKey] = {}
    donors: dict[int, dict[EntryKey, int]] = defaultdict(dict)  # topic -> entry -> edit
    saved, admitted = 0.0, 0
    for now, request in enumerate(trace):
        cost, size = request.cost_seconds, request.size_bytes
        name = f"{request.topic} {request.edit} {request.seed}"
        found = exact.get(name)
        from_hit = False
        if found is not None and found in ledger:
            saved += EXACT_SAVING * cost
            ledger.use(found, now, EXACT_SAVING * cost)
            continue
        near = [key for key in donors[request.topic] if key in ledger]
        donors[request.topic] = {key: donors[request.topic][key] for key in near}
        if near:
            # The nearest prompt, as the planner chooses: the same one, else the edit with the next number.
            edits = donors[request.topic]
            nearest = min(near, key=lambda key: abs(edits[key] - request.edit))
            saved += EDIT_SAVING * cost
            ledger.use(nearest, now, EDIT_SAVING * cost)
            from_hit, size = True, round(LAST_STEP_SHARE * size)
        key = EntryKey("trace", "tenant", name)
        if size > capacity:
            continue
        while ledger.total_bytes + size > capacity:
            ledger.evict("tenant")
        similarity = SIMILARITY if near else 0.0
        ledger.add(
            key,
            Held(
                size,
                cost,
                now,
                now,
                similarity=similarity,
                from_hit=from_hit,
                seed_drawn=request.seed > 0,
            ),
        )
        admitted += size
        exact[name] = key
        if not from_hit:
            donors[request.topic][key] = request.edit
    return saved, admitted


def compare(
    seed: int, length: int, share: float, shapes: Sequence[tuple[float, float, int]]
) -> dict[str, float]:
    """Returns the seconds saved by each rule on one trace.

    Args:
        share: capacity as a share of what an unbounded cache would hold at the end.
    """
    trace = draw_trace(length, seed, shapes)
    _, everything = replay(trace, "lru", float("inf"))
    return {rule: replay(trace, rule, share * everything)[0] for rule in PRIORITIES}


def measure_gains(
    length: int = 20_000, seeds: int = 5, share: float = 0.1, first: int = 500
) -> dict[str, Figure]:
    """Replays traces and returns the gains of our rule over the others, their mean and the worst.

    Args:
        length: requests of a trace.
        seeds: number of traces.
        share: capacity as a share of what an unbounded cache would hold at the end.
        first: seed of the first trace.
    """
    figures: dict[str, Figure] = {}
    for suffix, shapes in (("", SHAPES), ("_one_model", ONE_MODEL)):
        found = [compare(first + number, length, share, shapes) for number in range(seeds)]
        for rule in PRIORITIES:
            figures[f"saved_{rule}{suffix}"] = results.mean([each[rule] for each in found], "s")
            if rule != "worth":
                gains = [each["worth"] / each[rule] - 1 for each in found]
                name = f"eviction_gain_over_{rule}{suffix}"
                figures[name] = results.mean(gains, "of the seconds saved")
                figures[f"{name}_worst"] = results.single(min(gains), "of the seconds saved")
    return figures


def main(
    length: Annotated[int, typer.Option(min=1_000, help="Requests of a trace.")] = 20_000,
    seeds: Annotated[int, typer.Option(min=2, help="Number of traces.")] = 5,
    share: Annotated[float, typer.Option(min=0.01, max=1, help="Capacity, of an unbounded cache.")] = 0.1,
    tune: Annotated[bool, typer.Option("--tune", help="Use the seeds on which the rule was chosen.")] = False,
    out: Annotated[Path, typer.Option(help="Folder of the result.")] = results.RESULTS,
) -> None:
    """Replays the traces and writes the gains of our rule over the others."""
    figures = measure_gains(length, seeds, share, first=100 if tune else 500)
    for name, figure in figures.items():
        print(f"{name:32} {figure.value:12.3f} {figure.ci95}")
    if not tune:
        command = f"python -m bench.eviction {shlex.join(sys.argv[1:])}".strip()
        results.write(out / "eviction.json", command, figures)


if __name__ == "__main__":
    typer.run(main)
