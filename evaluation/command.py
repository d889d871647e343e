"""The `chorus eval` command. Heavy dependencies are imported when it runs, so that `chorus` starts fast."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final, TypeVar, cast

import typer
from chorus_cli.output import Output
from chorus_cli.plugins import not_installed
from chorus_rpc.errors import Violations
from chorus_rpc.tenancy import DEFAULT_TENANT

from evaluation.baselines import BASELINES
from evaluation.methods import FULL, TARGET_SEEDS, TargetSeed, build_methods
from evaluation.plans import parse_named_plans, parse_rivals

T = TypeVar("T")

SPLITS: Final = ("train", "calibration", "test")
PHRASINGS: Final = ("seen", "unseen", "unseen-words")
POLICIES: Final = ("safe", "balanced", "fast")
NO_POLICY: Final = "none"
# Names that a plan must not have.
RESERVED_NAMES: Final = frozenset(
    {*POLICIES, NO_POLICY, *BASELINES, FULL, "miss", "off", "renders", "versus"}
)


def evaluate(
    target: Annotated[
        str | None,
        typer.Option(
            envvar="CHORUS_TARGET",
            help="Scheduler to measure, host:port. Default: a temporary deployment, started for this run.",
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            metavar="train|calibration|test",
            help="Split of the shipped model's scenes to build prompts from; test is for final reports only.",
        ),
    ] = "calibration",
    pairs: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of donor-target pairs to build.")
    ] = 60,
    phrasing: Annotated[
        str,
        typer.Option(
            metavar="seen|unseen|unseen-words",
            help="Sentence patterns of the built prompts: seen in training, or not; or also unseen words.",
        ),
    ] = "unseen",
    prompts: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="Prompt set (JSON Lines) to use instead of built prompts; see docs/eval.md."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the prompt set, and of the first video; later ones count up.")
    ] = 1,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="safe|balanced|fast|none",
            help="Policy to measure; repeatable. Default: all three. none measures no policy.",
        ),
    ] = None,
    plan: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SPEC",
            help="Also measure this plan, such as deep=reuse_steps:2 (docs/eval.md); repeatable.",
        ),
    ] = None,
    baseline: Annotated[
        list[str] | None,
        typer.Option(
            metavar="nirvana|threshold|modm", help="Also measure this baseline; repeatable. Default: none."
        ),
    ] = None,
    fewer: Annotated[
        list[int] | None,
        typer.Option(
            min=1, metavar="STEPS", help="Also measure this number of steps without reuse; repeatable."
        ),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=MODEL",
            help="Also measure this model without reuse, such as a student of fewer steps; repeatable.",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            help="Number of seeds per target; diversity requires at least 2, and --target-seed other.",
        ),
    ] = 1,
    target_seed: Annotated[
        str,
        typer.Option(
            metavar="same|none|other|mixed",
            help="Seed of the targets: the donor's, none (the server may take the donor's), another one, or"
            " each of these for a third of the groups.",
        ),
    ] = "same",
    model: Annotated[str | None, typer.Option(help="Model id. Default: the server's.")] = None,
    token_pixels: Annotated[
        int, typer.Option(min=1, help="Side of a token in pixels of the model's output, for the seam score.")
    ] = 4,
    empty_cache: Annotated[
        bool,
        typer.Option("--empty-cache", help="Delete EVERY cache entry of --tenant before each donor."),
    ] = False,
    cache_target: Annotated[
        str | None,
        typer.Option(
            envvar="CHORUS_CACHE_TARGET", help="Cache of --target, host:port; required by --empty-cache."
        ),
    ] = None,
    tenant: Annotated[
        str, typer.Option(envvar="CHORUS_TENANT", help="Tenant of --target; used by --empty-cache.")
    ] = DEFAULT_TENANT,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Output folder for figures, plot, measurements and prompts.")
    ] = Path("out/eval"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object on stdout.")
    ] = False,
) -> None:
    """Measure how reuse changes speed and quality, compared with rivals; ends with a verdict in words."""
    output = Output(as_json)
    policies = _unique(policy or POLICIES)
    baselines = _unique(baseline or ())
    with output.faults():
        violations = Violations()
        violations.require(split in SPLITS, "split", f"must be one of {', '.join(SPLITS)}, not {split!r}")
        violations.require(
            phrasing in PHRASINGS, "phrasing", f"must be one of {', '.join(PHRASINGS)}, not {phrasing!r}"
        )
        if policies == (NO_POLICY,):
            policies = ()
        violations.require(
            target_seed in TARGET_SEEDS,
            "target_seed",
            f"must be one of {', '.join(TARGET_SEEDS)}, not {target_seed!r}",
        )
        violations.require(
            seeds == 1 or target_seed == "other",
            "seeds",
            f"must be 1 unless target_seed is other, not {seeds}: the donor has one seed",
        )
        for name in policies:
            violations.require(
                name in POLICIES,
                "policy",
                f"must be one of {', '.join(POLICIES)}, or only none, not {name!r}",
            )
        for name in baselines:
            violations.require(
                name in BASELINES, "baseline", f"must be one of {', '.join(BASELINES)}, not {name!r}"
            )
        violations.require(
            not empty_cache or bool(target and cache_target),
            "empty_cache",
            "needs --target and --cache-target; the cache of a temporary deployment is always emptied",
        )
        violations.raise_if_any()
        plans = parse_named_plans(plan or (), reserved=RESERVED_NAMES)
        rivals = parse_rivals(rival or (), reserved={*RESERVED_NAMES, *plans})
        try:
            from evaluation.run import EvalOptions, load_groups, run_evaluation
        except ImportError as error:
            raise not_installed("eval", "chorus-serving", error) from None
        options = EvalOptions(
            target=target,
            cache_target=cache_target if empty_cache else None,
            tenant=tenant,
            groups=load_groups(prompts, split, pairs, seed, phrasing),
            methods=build_methods(policies, plans, baselines, _unique(fewer or ()), rivals),
            seed=seed,
            model=model,
            token_pixels=token_pixels,
            target_seed=cast(TargetSeed, target_seed),
            seeds_per_target=seeds,
        )
        run_evaluation(options, out, output)


def _unique(values: Iterable[T]) -> tuple[T, ...]:
    """Removes duplicates and keeps the order."""
    return tuple(dict.fromkeys(values))
