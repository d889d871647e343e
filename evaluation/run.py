"""Runs one evaluation: from the options of the command to files and tables."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, cast

from chorus_cli.connect import connect_cache
from chorus_cli.output import Output
from chorus_client import ChorusClient, SpecOptions
from chorus_client.files import write_atomically
from chorus_rpc.errors import invalid
from chorus_rpc.tenancy import DEFAULT_TENANT
from rich.console import Group as RichGroup
from rich.progress import Progress
from rich.text import Text

from evaluation import results
from evaluation.deployment import local_deployment
from evaluation.figures import build_figures, list_kinds, list_methods
from evaluation.measure import GroupResult, TargetResult, measure
from evaluation.methods import Method, TargetSeed
from evaluation.plot import plot
from evaluation.prompts import Group, read_groups, write_groups
from evaluation.quality import SCENE_SHAPE
from evaluation.scenes import Phrasing, make_groups
from evaluation.tables import build_tables
from evaluation.timing import WARM_UP_PROMPT, generate_timed, warm_up
from evaluation.verdict import write_verdict
from models.shapes.world import Split

FIGURES: Final = "eval.json"
PLOT: Final = "eval.png"
MEASUREMENTS: Final = "measurements.jsonl"
PROMPTS: Final = "prompts.jsonl"


@dataclass(frozen=True)
class EvalOptions:
    """Options of one evaluation.

    Attributes:
        target: Scheduler to measure, "host:port". None starts a temporary deployment.
        cache_target: Cache of `target`, emptied before each donor. None never empties it.
        tenant: Tenant whose entries are deleted from `cache_target`.
        groups: Prompt set.
        methods: Methods to measure in addition to the full computation.
        seed: Seed of the first donor; each later one, and with `target_seed` "other" each target, has the
            next.
        model: Model id. None uses the server's default.
        token_pixels: Side of a token, in pixels of the model's output, for the seam score.
        target_seed: Seed of the targets.
        seeds_per_target: Number of seeds with which each target is generated; diversity requires at least 2,
            and `target_seed` "other".
        settings: Environment variables of the services of a temporary deployment.
    """

    target: str | None
    cache_target: str | None
    tenant: str
    groups: Sequence[Group]
    methods: Sequence[Method]
    seed: int
    model: str | None
    token_pixels: int
    target_seed: TargetSeed = "same"
    seeds_per_target: int = 1
    settings: Mapping[str, str] = field(default_factory=dict)


def load_groups(path: Path | None, split: str, pairs: int, seed: int, phrasing: str) -> list[Group]:
    """Reads the groups of a file, or builds them from a split if `path` is None.

    Raises ChorusError for invalid contents or an empty split, OSError when the file cannot be read.
    """
    if path is not None:
        return read_groups(path)
    try:
        return make_groups(cast(Split, split), pairs, seed, cast(Phrasing, phrasing))
    except ValueError as error:
        raise invalid("split", str(error)) from None


def run_evaluation(options: EvalOptions, folder: Path, out: Output) -> None:
    """Measures, writes the four files into `folder`, and prints the tables.

    Raises ChorusError when a generation fails or no server answers, OSError when a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_groups(folder / PROMPTS, options.groups)
    out.status("starting a temporary deployment" if options.target is None else f"measuring {options.target}")
    with _deployment(options, folder / "chorus") as (target, empty_cache), ChorusClient(target) as client:
        if empty_cache is None:
            out.status(
                "the cache is not emptied: donors stay in it; requests that reuse other entries are excluded"
            )
        _warm_up(client, options, no_store=empty_cache is None)
        measuring = measure(
            client,
            options.groups,
            options.methods,
            options.seed,
            options.model,
            options.token_pixels,
            empty_cache,
            options.target_seed,
            options.seeds_per_target,
        )
        with Progress(console=out.notes, transient=True, disable=out.as_json) as progress:
            group_results = list(progress.track(measuring, len(options.groups), description="generating"))
    _report(group_results, options, folder, out)


def _warm_up(client: ChorusClient, options: EvalOptions, no_store: bool) -> None:
    """Runs every method once, since each may run code that others skip; most hit the first one's latents."""
    warm_up(client, model=options.model, no_store=no_store)
    for method in options.methods:
        spec: SpecOptions = {"model": options.model, **method.options, "no_store": True}
        generate_timed(client, WARM_UP_PROMPT, **spec)


def _report(group_results: Sequence[GroupResult], options: EvalOptions, folder: Path, out: Output) -> None:
    lines = [json.dumps(asdict(result)) + "\n" for result in group_results]
    write_atomically(folder / MEASUREMENTS, "".join(lines).encode())
    targets = [target for result in group_results for target in result.targets]
    reusing = [method.name for method in options.methods if method.reuses]
    rivals = [method.name for method in options.methods if not method.reuses]
    figures = build_figures(group_results, reusing)
    verdict = write_verdict(figures, reusing, rivals)
    results.write(folder / FIGURES, f"chorus {shlex.join(sys.argv[1:])}", figures, verdict=verdict)
    kinds, methods = list_kinds(targets), list_methods(targets)
    plot(folder / PLOT, figures, methods, kinds)
    shown = RichGroup(build_tables(figures, methods, kinds), Text("\nverdict", "bold"), *map(Text, verdict))
    out.print(shown, eval=results.read(folder / FIGURES))
    for note in list_exclusions(options.groups, targets):
        out.status(note)
    out.status(f"wrote {folder / FIGURES}, {folder / PLOT}, {folder / MEASUREMENTS} and {folder / PROMPTS}")


def list_exclusions(groups: Sequence[Group], targets: Sequence[TargetResult]) -> Iterator[str]:
    """Yields one note for each kind of measurement that the figures exclude, with the reason."""
    measurements = [measurement for target in targets for measurement in target.measurements.values()]
    if not any(measurement.verdict for measurement in measurements):
        reason = "the prompts name no scenes"
        if any(case.scene for group in groups for case in (group.donor, *group.targets)):
            frames, height, width = SCENE_SHAPE
            reason = f"scenes can be read only from {frames} frames of {height} × {width} pixels"
        yield f"alignment and donor drift are excluded: {reason}"
    others = sum(measurement.source == "other" for measurement in measurements)
    if others:
        yield f"{others} requests reused another donor than their own and are excluded"


@contextmanager
def _deployment(options: EvalOptions, directory: Path) -> Iterator[tuple[str, Callable[[], None] | None]]:
    """Yields the scheduler to measure and a function that empties its cache, or None to keep its entries."""
    if options.target is not None:
        cache = options.cache_target
        yield options.target, None if cache is None else lambda: _empty(cache, options.tenant)
        return
    with local_deployment(directory, settings=options.settings) as targets:
        yield targets["scheduler"], lambda: _empty(targets["cache"], DEFAULT_TENANT)


def _empty(target: str, tenant: str) -> None:
    async def purge() -> None:
        async with connect_cache(target, tenant) as client:
            await client.purge(everything=True)

    asyncio.run(purge())
