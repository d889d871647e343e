"""One evaluation: from the choices of a command to files and tables."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, cast

from chorus_cli.output import Output
from chorus_client import AsyncCacheClient, ChorusClient, SpecOptions
from chorus_client.files import write_atomically
from chorus_rpc.errors import invalid
from chorus_rpc.tenancy import DEFAULT_TENANT
from rich.progress import Progress

from evaluation import results
from evaluation.deployment import local_deployment
from evaluation.figures import figures_of, kinds_of
from evaluation.figures import ways_of as ways_found
from evaluation.measure import SCENE_SHAPE, Case, Outcome, measure
from evaluation.methods import Method
from evaluation.plot import plot
from evaluation.prompts import Group, read_groups, write_groups
from evaluation.runs import WARM_UP_PROMPT, timed, warm_up
from evaluation.scenes import make_groups
from evaluation.tables import tables
from models.movingshapes.captions import Phrasing
from models.movingshapes.world import Split

FIGURES: Final = "eval.json"
PLOT: Final = "eval.png"
MEASUREMENTS: Final = "measurements.jsonl"
PROMPTS: Final = "prompts.jsonl"


@dataclass(frozen=True)
class Choice:
    """What to measure.

    Attributes:
        target: a scheduler; None for a deployment of its own.
        cache_target: the cache of `target`, to be emptied before each donor; None leaves it alone.
    """

    target: str | None
    cache_target: str | None
    tenant: str
    groups: Sequence[Group]
    ways: Sequence[Method]
    seed: int
    model: str | None
    token_pixels: int


def groups_of(path: Path | None, split: str, pairs: int, seed: int, phrasing: str) -> list[Group]:
    """The groups of a file, or made from a split. Raises ChorusError, or OSError for the file."""
    if path is not None:
        return read_groups(path)
    try:
        return make_groups(cast(Split, split), pairs, seed, cast(Phrasing, phrasing))
    except ValueError as error:
        raise invalid("split", str(error)) from None


def run(choice: Choice, folder: Path, out: Output) -> None:
    """Measures, writes the four files into `folder`, and shows the tables.

    Raises ChorusError when a generation fails or nobody answers, OSError when a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_groups(folder / PROMPTS, choice.groups)
    out.note("starting services of its own" if choice.target is None else f"measuring {choice.target}")
    with _deployment(choice, folder / "chorus") as (target, empty_cache), ChorusClient(target) as client:
        if empty_cache is None:
            out.note("its cache is left as it is: the donors stay in it, and what finds others is left out")
        _warm_up(client, choice, no_store=empty_cache is None)
        measuring = measure(
            client,
            choice.groups,
            choice.ways,
            choice.seed,
            choice.model,
            choice.token_pixels,
            empty_cache,
        )
        with Progress(console=out.notes, transient=True, disable=out.as_json) as progress:
            outcomes = list(progress.track(measuring, len(choice.groups), description="generating"))
    _report(outcomes, choice, folder, out)


def _warm_up(client: ChorusClient, choice: Choice, no_store: bool) -> None:
    """Every way once, for what only some of them run; most find the first one's latents."""
    warm_up(client, model=choice.model, no_store=no_store)
    for way in choice.ways:
        options: SpecOptions = {**way.options, "model": choice.model, "no_store": True}
        timed(client, WARM_UP_PROMPT, **options)


def _report(outcomes: Sequence[Outcome], choice: Choice, folder: Path, out: Output) -> None:
    lines = [json.dumps(asdict(outcome)) + "\n" for outcome in outcomes]
    write_atomically(folder / MEASUREMENTS, "".join(lines).encode())
    cases = [case for outcome in outcomes for case in outcome.cases]
    figures = figures_of(outcomes, [way.name for way in choice.ways if way.reuses])
    results.write(folder / FIGURES, f"chorus {shlex.join(sys.argv[1:])}", figures)
    kinds, ways = kinds_of(cases), ways_found(cases)
    plot(folder / PLOT, figures, ways, kinds)
    out.say(tables(figures, ways, kinds), eval=results.read(folder / FIGURES))
    for remark in remarks(choice.groups, cases):
        out.note(remark)
    out.note(f"{folder / FIGURES}, {folder / PLOT}, {folder / MEASUREMENTS} and {folder / PROMPTS}")


def remarks(groups: Sequence[Group], cases: Sequence[Case]) -> Iterator[str]:
    """What the figures leave out, and why."""
    served = [one for case in cases for one in case.ways.values()]
    if not any(one.verdict for one in served):
        why = "the prompts name no scenes"
        if any(ask.scene for group in groups for ask in (group.donor, *group.targets)):
            frames, height, width = SCENE_SHAPE
            why = f"scenes can be read from {frames} frames of {height} × {width} pixels alone"
        yield f"alignment and donor drift are left out: {why}"
    others = sum(one.source == "other" for one in served)
    if others:
        yield f"{others} requests found another donor than their own and are left out"


@contextmanager
def _deployment(choice: Choice, directory: Path) -> Iterator[tuple[str, Callable[[], None] | None]]:
    """The scheduler to measure, and what empties its cache, if that may be done."""
    if choice.target is not None:
        cache = choice.cache_target
        yield choice.target, None if cache is None else lambda: _empty(cache, choice.tenant)
        return
    with local_deployment(directory) as targets:
        yield targets["scheduler"], lambda: _empty(targets["cache"], DEFAULT_TENANT)


def _empty(target: str, tenant: str) -> None:
    async def purge() -> None:
        async with AsyncCacheClient(target, tenant) as client:
            await client.purge(everything=True)

    asyncio.run(purge())
