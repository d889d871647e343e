"""The `chorus calibrate` command. Heavy dependencies are imported only when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from chorus_cli.output import Output
from chorus_cli.plugins import not_installed
from chorus_rpc.errors import Violations

from calibration import JUDGES


def calibrate(
    prompts: Annotated[
        Path,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="Prompts to make pairs from, one a line; or pairs (.jsonl, docs/calibration.md).",
        ),
    ],
    model: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, metavar="FILE", help="Model file to calibrate.")
    ],
    judge: Annotated[
        list[str] | None,
        typer.Option(
            metavar=JUDGES,
            help="Judge of the videos; repeatable, the worst counts. Default: reference.",
        ),
    ] = None,
    pairs: Annotated[
        int, typer.Option(min=1, max=100_000, help="Upper bound on the pairs of prompts to measure.")
    ] = 240,
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=1 << 62, help="Seed of the pairs, and of the first video; later ones count up."
        ),
    ] = 1,
    max_depths: Annotated[
        int, typer.Option(min=1, max=32, help="Upper bound on the numbers of reused steps to measure.")
    ] = 4,
    spreads: Annotated[
        int, typer.Option(min=0, max=10_000, help="Number of prompts for the spread over seeds.")
    ] = 12,
    out: Annotated[
        Path, typer.Option(file_okay=False, help="Output folder; an interrupted run continues in it.")
    ] = Path("out/calibration"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the path of the calibration as one JSON object on stdout.")
    ] = False,
) -> None:
    """Measure what reuse costs a model, on a temporary deployment, and write its calibration file."""
    output = Output(as_json)
    with output.faults():
        violations = Violations()
        chosen = tuple(dict.fromkeys(judge or ("reference",)))
        violations.require(len(chosen) <= 8, "judge", f"must be given at most 8 times, not {len(chosen)}")
        violations.raise_if_any()
        try:
            from calibration.judges import parse_judge
            from calibration.pairs import load_pairs
            from calibration.run import CalibrateOptions, run_calibration
        except ImportError as error:
            raise not_installed("calibrate", "chorus-serving", error) from None
        options = CalibrateOptions(
            model=model,
            groups=load_pairs(prompts, pairs, seed),
            judges=[parse_judge(text) for text in chosen],
            seed=seed,
            max_depths=max_depths,
            spreads=spreads,
        )
        run_calibration(options, out, output)
