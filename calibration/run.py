"""Runs a calibration: from the options of the command to the calibration file and its pictures."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import grpc
from chorus.denoiser.v1 import denoiser_pb2, denoiser_pb2_grpc
from chorus.embedder.v1 import embedder_pb2_grpc
from chorus_cli.output import Output
from chorus_client import CacheClient, ChorusClient
from chorus_client.files import write_atomically
from chorus_rpc.errors import invalid
from rich.progress import Progress

from calibration.depths import depends_on_seed, list_depths
from calibration.journal import Journal
from calibration.judges import Judge
from calibration.measure import Bench, summarise_spreads
from calibration.pairs import describe_change
from calibration.picture import Example, draw_sheet, plot_rows
from calibration.rows import MIN_PAIRS, MeasuredPair, build_rows, count_pairs, describe_row
from evaluation import results
from evaluation.deployment import local_deployment
from evaluation.prompts import Group
from evaluation.timing import warm_up
from services.contract.identity import served_digest
from services.scheduler.planning.calibration import Row
from services.scheduler.planning.calibration_files import to_plain

CALIBRATION: Final = "calibration.json"
PLOT: Final = "calibration.png"
SHEET: Final = "sheet.png"
_EXAMPLES: Final = 8  # pairs on the sheet
_SPREAD_SEEDS: Final = 4
_CALL_SECONDS: Final = 60.0


@dataclass(frozen=True)
class CalibrateOptions:
    """Options of one calibration.

    Attributes:
        model: Model file.
        groups: Pairs of prompts, one target each.
        max_depths: Upper bound on the numbers of reused steps that are measured.
        spreads: Number of pairs whose target is generated with several seeds.
    """

    model: Path
    groups: Sequence[Group]
    judges: Sequence[Judge]
    seed: int
    max_depths: int
    spreads: int


def run_calibration(options: CalibrateOptions, folder: Path, out: Output) -> None:
    """Measures the pairs that the folder lacks, and writes the calibration file, a plot and a sheet.

    Raises ChorusError when a generation or a judge fails, OSError when a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    out.status(f"starting a temporary deployment of {options.model}")
    with open_bench(options, folder / "chorus", out) as bench:
        journal = Journal(folder, _describe_run(options, bench))
        if journal.pairs:
            out.status(f"continuing: {len(journal.pairs)} of {len(options.groups)} pairs are measured")
        _measure_missing(options, bench, journal, folder, out)
    pairs = [journal.pairs[number] for number in sorted(journal.pairs)]
    diversity = summarise_spreads([journal.spreads[number] for number in sorted(journal.spreads)])
    rows = build_rows(pairs, bench.depths, bench.sigmas, diversity)
    _write(options, bench, rows, pairs, folder)
    _draw(options, bench, pairs, diversity, folder)
    _report(bench, rows, pairs, folder, out)


@contextmanager
def open_bench(options: CalibrateOptions, directory: Path, out: Output) -> Iterator[Bench]:
    """Starts all services for the model, and stops them at the end."""
    with ExitStack() as resources:
        targets = resources.enter_context(local_deployment(directory, model=options.model))
        client = resources.enter_context(ChorusClient(targets["scheduler"]))
        cache = resources.enter_context(CacheClient(targets["cache"]))
        embedder, denoiser = (
            resources.enter_context(grpc.insecure_channel(targets[name])) for name in ("embedder", "denoiser")
        )
        describe = denoiser_pb2_grpc.DenoiserServiceStub(denoiser).DescribeModels
        reply = describe(denoiser_pb2.DescribeModelsRequest(), timeout=_CALL_SECONDS)
        model = reply.models[0]
        sigmas = tuple(model.default_schedule.sigmas)
        if len(sigmas) < 3:
            raise invalid("model", f"{model.model_id} has one step by default: there is nothing to reuse")
        warm_up(client, model=model.model_id, no_store=True)
        bench = Bench(
            client,
            embedder_pb2_grpc.EmbedderServiceStub(embedder),
            lambda: cache.purge(everything=True),
            model,
            options.judges,
            {},
        )
        longest = max((group.donor.prompt for group in options.groups), key=len)
        amplified = bench.holds_side_data(longest, options.seed)
        if not amplified:
            out.status("donors of this model hold no side data: amplified steps are not measured")
        yield replace(bench, depths=list_depths(sigmas, options.max_depths, amplified=amplified))


def _describe_run(options: CalibrateOptions, bench: Bench) -> dict[str, Any]:
    """Returns everything on which the measurement of a pair depends."""
    prompts = json.dumps([asdict(group) for group in options.groups])
    return {
        "model_id": bench.model.model_id,
        "served_digest": served_digest(bench.model),
        "sigmas": bench.sigmas,
        "depths": list(bench.depths),
        "judges": [judge.name for judge in options.judges],
        "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
        "seed": options.seed,
    }


def _measure_missing(
    options: CalibrateOptions, bench: Bench, journal: Journal, folder: Path, out: Output
) -> None:
    """Measures the pairs and spreads that the journal lacks."""
    pairs = [number for number in range(len(options.groups)) if number not in journal.pairs]
    seeded = {n: d for n, d in bench.depths.items() if depends_on_seed(d, bench.model.sampler)}
    with Progress(console=out.notes, transient=True, disable=out.as_json) as progress:
        for number in progress.track(pairs, description="measuring pairs"):
            measured, videos = bench.measure_pair(options.groups[number], options.seed + number)
            if measured.depths and sum(bool(pair.depths) for pair in journal.pairs.values()) < _EXAMPLES:
                examples = _examples_folder(folder, number)
                examples.mkdir(parents=True, exist_ok=True)
                for name, shown in videos.items():
                    write_atomically(examples / f"{name}.mp4", shown.mp4)
            journal.add_pair(number, measured)
        reused = [number for number in sorted(journal.pairs) if journal.pairs[number].depths]
        chosen = reused[: options.spreads] if seeded else []
        spreads = [number for number in chosen if number not in journal.spreads]
        for number in progress.track(spreads, description="varying the seed"):
            seed = options.seed + number
            spread = bench.measure_spread(options.groups[number], seed, _SPREAD_SEEDS, seeded)
            journal.add_spread(number, spread)


def _examples_folder(folder: Path, number: int) -> Path:
    return folder / "examples" / f"{number:02}"


def _write(
    options: CalibrateOptions, bench: Bench, rows: Sequence[Row], pairs: Sequence[MeasuredPair], folder: Path
) -> None:
    report = {
        "model_id": bench.model.model_id,
        "served_digest": served_digest(bench.model),
        "command": f"chorus {shlex.join(sys.argv[1:])}",
        "judges": [judge.name for judge in options.judges],
        "pairs": dict(count_pairs(pairs)),
        "versions": results.versions(),
        "rows": [to_plain(row) for row in rows],
    }
    write_atomically(folder / CALIBRATION, (json.dumps(report, indent=1) + "\n").encode())


def _draw(
    options: CalibrateOptions,
    bench: Bench,
    pairs: Sequence[MeasuredPair],
    diversity: dict[str, float],
    folder: Path,
) -> None:
    every = build_rows(pairs, bench.depths, bench.sigmas, diversity, every=True)
    by_depth = {name: [row for row in every if row.depth == depth] for name, depth in bench.depths.items()}
    plot_rows(folder / PLOT, by_depth)
    examples = [
        Example(f"{pairs[number].edit}: {describe_change(group)}", place)
        for number, group in enumerate(options.groups)
        if (place := _examples_folder(folder, number)).is_dir()
    ]
    draw_sheet(folder / SHEET, examples, list(bench.depths))


def _report(
    bench: Bench, rows: Sequence[Row], pairs: Sequence[MeasuredPair], folder: Path, out: Output
) -> None:
    lines = [
        describe_row(row, next(name for name, depth in bench.depths.items() if depth == row.depth))
        for row in rows
    ]
    few = {edit: count for edit, count in count_pairs(pairs).items() if count < MIN_PAIRS}
    out.print(
        "\n".join(lines) or "no depth stays within what any policy allows",
        calibration=str(folder / CALIBRATION),
    )
    for edit, count in few.items():
        out.status(f"{edit}: {count} pairs, at least {MIN_PAIRS} are needed: such edits are not reused")
    out.status(f"wrote {folder / CALIBRATION}, {folder / PLOT} and {folder / SHEET}")
    out.status(
        f'to use it: calibration = "{CALIBRATION}" in the model file, or CHORUS_SCHEDULER_CALIBRATIONS'
    )
