"""Quickstart demo: generates every prompt once in full and once with reuse, over gRPC.

`python -m bench.quickstart.run --out out/` starts the services and writes the videos, a contact sheet and the
figures.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from chorus_client import ChorusClient, ChorusError
from chorus_client.endpoints import DEFAULT_TARGETS
from chorus_client.files import write_atomically
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from bench import results
from bench.quickstart.sheet import SheetRow, contact_sheet
from bench.results import Figure
from evaluation.deployment import local_deployment
from evaluation.timing import TimedGeneration, generate_timed, warm_up

PROMPTS: Final = Path(__file__).with_name("prompts.txt")
SHEET: Final = "contact_sheet.png"
DIRECTORY: Final = "chorus"  # state of the services, which `chorus up --dir` continues


@dataclass(frozen=True)
class Row:
    """A prompt, generated in full and with reuse."""

    prompt: str
    full: TimedGeneration
    reused: TimedGeneration

    @property
    def hit(self) -> bool:
        """Returns whether the request with reuse found a donor."""
        return self.reused.generation.HasField("donor")

    @property
    def speedup(self) -> float:
        """Returns the seconds in full divided by the seconds with reuse."""
        return self.full.seconds / self.reused.seconds


def read_prompts(path: Path) -> list[str]:
    """Reads the prompts of a file, one per line. Empty lines and lines that begin with "#" are ignored."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def measure(client: ChorusClient, prompts: Sequence[str], seed: int, reuse: str | None) -> Iterator[Row]:
    """Generates each prompt in full and with reuse in direct succession, so that both see the same machine
    load.

    The full run neither reads nor writes the cache, so only runs with reuse store donors (and the warm-up,
    which resembles no prompt). All have the same seed, as requests of a user who edits a prompt do.
    """
    warm_up(client, reuse=reuse)
    for prompt in prompts:
        full = generate_timed(client, prompt, seed=seed, reuse="off", no_store=True)
        reused = generate_timed(client, prompt, seed=seed, reuse=reuse)
        yield Row(prompt, full, reused)


def build_figures(
    rows: Sequence[Row],
    install_seconds: float | None,
    run_seconds: float,
    test_seconds: float | None = None,
) -> dict[str, Figure]:
    """Computes the medians of hits, misses and full runs; a kind that did not occur has no figure."""
    groups = {
        "miss_seconds_p50": [row.reused.seconds for row in rows if not row.hit],
        "hit_seconds_p50": [row.reused.seconds for row in rows if row.hit],
        "full_seconds_p50": [row.full.seconds for row in rows],
    }
    figures = {name: results.median(values, "s") for name, values in groups.items() if values}
    speedups = [row.speedup for row in rows if row.hit]
    if speedups:
        figures["hit_speedup_p50"] = results.median(speedups, "x")
    figures["run_total_seconds"] = results.single(run_seconds + (install_seconds or 0.0), "s")
    if install_seconds is not None:
        figures["install_seconds"] = results.single(install_seconds, "s")
    if test_seconds is not None:
        figures["test_seconds"] = results.single(test_seconds, "s")
    return figures


def build_table(rows: Sequence[Row]) -> Table:
    """Builds a table with one line per prompt. A donor is shown by its line number, or else by its prompt."""
    numbers = {row.reused.generation.generation_id: f"no. {i}" for i, row in enumerate(rows, start=1)}
    table = Table(
        title="each prompt with reuse and in full, same machine, same run",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    table.add_column("", justify="right")
    table.add_column("prompt")
    table.add_column("cache", no_wrap=True)
    table.add_column("donor", max_width=20)
    for heading in ("score", "steps", "seconds", "full", "speed-up"):
        table.add_column(heading, justify="right", no_wrap=True)
    for number, row in enumerate(rows, start=1):
        generation = row.reused.generation
        donor = generation.donor
        table.add_row(
            str(number),
            Text(row.prompt),
            Text("hit", "green") if row.hit else "miss",
            Text(numbers.get(donor.generation_id, donor.prompt)) if row.hit else "–",
            f"{donor.score:.3f}" if row.hit else "–",
            f"{generation.steps_run}/{generation.plan.total_steps}",
            f"{row.reused.seconds:.2f}",
            f"{row.full.seconds:.2f}",
            f"{row.speedup:.2f}×",
        )
    return table


def build_sheet_row(row: Row) -> SheetRow:
    """Builds the prompt's row of the contact sheet."""
    generation = row.reused.generation
    kind = f"hit {generation.donor.score:.3f}" if row.hit else "miss"
    steps = f"{generation.steps_run} of {generation.plan.total_steps} steps"
    return SheetRow(
        prompt=row.prompt,
        hit=row.hit,
        verdict=f"{kind}, {steps}, {row.reused.seconds:.2f} s (full: {row.full.seconds:.2f} s)",
        detail=f"donor: {generation.donor.prompt}" if row.hit else "",
        reused=row.reused.video,
        full=row.full.video,
    )


def slug(prompt: str) -> str:
    """Converts a prompt to a file name made of its first words."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-")


@contextmanager
def _scheduler(target: str | None, directory: Path) -> Iterator[str]:
    if target is not None:
        yield target
        return
    with local_deployment(directory, cache_embeddings=False) as targets:
        yield targets["scheduler"]


def main(
    out: Annotated[Path, typer.Option(help="Output folder for videos, sheet and figures.")] = Path("out"),
    json: Annotated[
        Path | None, typer.Option(help="Result file for the figures. Default: OUT/quickstart.json.")
    ] = None,
    prompts: Annotated[Path, typer.Option(help="File with one prompt per line.")] = PROMPTS,
    target: Annotated[
        str | None,
        typer.Option(
            help="Scheduler to use, host:port, with the contents of its cache. Default: start the services."
        ),
    ] = None,
    reuse: Annotated[
        str | None, typer.Option(help="Reuse policy: safe, balanced or fast. Default: the server's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of every prompt.")] = 1000,
    install_seconds: Annotated[
        float | None, typer.Option(help="Duration of the installation in seconds, to include in the figures.")
    ] = None,
    test_seconds: Annotated[
        float | None, typer.Option(help="Duration of `make test` in seconds, to include in the figures.")
    ] = None,
) -> None:
    """Runs the demo and writes videos, contact sheet and figures."""
    begin = time.perf_counter()
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    texts = read_prompts(prompts)
    if not texts:
        raise typer.BadParameter(f"{prompts} contains no prompt")
    out.mkdir(parents=True, exist_ok=True)
    console.print("starting the services" if target is None else f"using {target}")
    rows: list[Row] = []
    try:
        with _scheduler(target, out / DIRECTORY) as address, ChorusClient(address) as client:
            started = time.perf_counter() - begin
            with Progress(console=console, transient=True) as progress:
                for row in progress.track(
                    measure(client, texts, seed, reuse), len(texts), description="generating"
                ):
                    rows.append(row)
                    name = f"{len(rows):02d}-{slug(row.prompt)}.mp4"
                    write_atomically(out / name, row.reused.video)
    except ChorusError as error:
        console.print(f"error: {error.message}", markup=False)
        raise typer.Exit(1) from None
    title = (
        f"Chorus: {sum(row.hit for row in rows)} of {len(rows)} prompts reused latents of an earlier prompt"
    )
    contact_sheet([build_sheet_row(row) for row in rows], title).save(out / SHEET)

    total = time.perf_counter() - begin
    figures = build_figures(rows, install_seconds, total, test_seconds)
    path = json or out / "quickstart.json"
    results.write(path, f"python -m bench.quickstart.run {shlex.join(sys.argv[1:])}".strip(), figures)
    console.print(build_table(rows), soft_wrap=False)
    for name in ("hit_seconds_p50", "miss_seconds_p50", "full_seconds_p50"):
        if name in figures:
            console.print(f"{name}: {figures[name].value:.3f} s (n = {figures[name].n})")
    installed = f"; installation before: {install_seconds:.0f} s" if install_seconds is not None else ""
    console.print(f"total: {total:.0f} s, of which start of the services: {started:.0f} s{installed}")
    console.print(f"wrote {len(rows)} videos, {out / SHEET} and {path}")
    gateway = f"http://{DEFAULT_TARGETS['gateway']}"
    if target is None:
        console.print(
            f"to see these videos in a browser, and to make others: `.venv/bin/chorus up --dir"
            f" {out / DIRECTORY}`, then open {gateway}/console/ (docs/console.md)",
            markup=False,
        )
    console.print(
        "`make up` starts the services without them, with an HTTP API for the openai SDK and curl at"
        f" {gateway}/v1 (docs/videos_api.md)"
    )


if __name__ == "__main__":
    typer.run(main)
