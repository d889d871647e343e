"""`chorus eval`: the command. What it needs is imported when it runs, so that `chorus` itself stays light."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, TypeVar

import typer
from chorus_cli.output import Output
from chorus_cli.plugins import not_installed
from chorus_rpc.errors import Violations
from chorus_rpc.tenancy import DEFAULT_TENANT

from evaluation.baselines import BASELINES
from evaluation.methods import FULL, ways_of
from evaluation.plans import named_plans

T = TypeVar("T")

SPLITS: Final = ("train", "calibration", "test")
PHRASINGS: Final = ("seen", "unseen")
POLICIES: Final = ("safe", "balanced", "fast")
NO_POLICY: Final = "none"
TAKEN: Final = frozenset({*POLICIES, NO_POLICY, *BASELINES, FULL, "miss", "off"})  # no names of plans


def evaluate(
    target: Annotated[
        str | None,
        typer.Option(
            envvar="CHORUS_TARGET",
            help="Measure this scheduler, host:port. Default: a deployment of its own, gone at the end.",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Make the prompts from this part of the shipped model's world: train, "
            "calibration or test (for final reports alone)."
        ),
    ] = "calibration",
    pairs: Annotated[int, typer.Option(min=1, max=10_000, help="How many donors and targets to make.")] = 60,
    phrasing: Annotated[
        str, typer.Option(help="Of the prompts made: seen or unseen in training.")
    ] = "unseen",
    prompts: Annotated[
        Path | None, typer.Option(dir_okay=False, help="A prompt set (JSON Lines) instead; see docs/eval.md.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts, and the first of the videos.")] = 1,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="safe, balanced, fast, or none; may be repeated. Default: all three."),
    ] = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SPEC",
            help="Also a plan of your own, such as deep=reuse_steps:2 (docs/eval.md); repeatable.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="Also reuse as others do: nirvana, threshold or modm; may be repeated."),
    ] = None,
    fewer: Annotated[
        list[int] | None,
        typer.Option(
            min=1, metavar="STEPS", help="Also measure so many steps without reuse; may be repeated."
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model id. Default: the server's.")] = None,
    token_pixels: Annotated[
        int, typer.Option(min=1, help="Side of a token in the model's pixels, for the seams.")
    ] = 4,
    empty_cache: Annotated[
        bool,
        typer.Option("--empty-cache", help="Drop EVERY entry of the tenant of --target before each donor."),
    ] = False,
    cache_target: Annotated[
        str | None,
        typer.Option(envvar="CHORUS_CACHE_TARGET", help="The cache of --target, for --empty-cache."),
    ] = None,
    tenant: Annotated[
        str, typer.Option(envvar="CHORUS_TENANT", help="The tenant of --target, for --empty-cache.")
    ] = DEFAULT_TENANT,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Folder for figures, plot, measurements and prompts.")
    ] = Path("out/eval"),
    as_json: Annotated[
        bool, typer.Option("--json", help="The figures as one JSON object on stdout.")
    ] = False,
) -> None:
    """Measure what reuse does to quality and speed: alignment, donor drift, fidelity, seams, seconds."""
    said = Output(as_json)
    policies = _chosen(policy or POLICIES)
    baselines = _chosen(baseline or ())
    with said.faults():
        found = Violations()
        found.require(split in SPLITS, "split", f"must be one of {', '.join(SPLITS)}, not {split!r}")
        found.require(phrasing in PHRASINGS, "phrasing", f"must be seen or unseen, not {phrasing!r}")
        if policies == (NO_POLICY,):
            policies = ()
        for one in policies:
            found.require(
                one in POLICIES, "policy", f"must be one of {', '.join(POLICIES)}, or none alone, not {one!r}"
            )
        for one in baselines:
            found.require(one in BASELINES, "baseline", f"must be one of {', '.join(BASELINES)}, not {one!r}")
        found.require(
            not empty_cache or bool(target and cache_target),
            "empty_cache",
            "needs --target and --cache-target; a deployment of its own is emptied anyway",
        )
        found.raise_if_any()
        plans = named_plans(plan or (), taken=TAKEN)
        try:
            from evaluation.evaluation import Choice, groups_of, run
        except ImportError as error:
            raise not_installed("eval", "chorus-serving", error) from None
        chosen = Choice(
            target=target,
            cache_target=cache_target if empty_cache else None,
            tenant=tenant,
            groups=groups_of(prompts, split, pairs, seed, phrasing),
            ways=ways_of(policies, plans, baselines, _chosen(fewer or ())),
            seed=seed,
            model=model,
            token_pixels=token_pixels,
        )
        run(chosen, out, said)


def _chosen(said: Iterable[T]) -> tuple[T, ...]:
    """Each once, in order."""
    return tuple(dict.fromkeys(said))
