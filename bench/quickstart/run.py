"""Generates every prompt once in full and once with reuse, over gRPC, on services of its own.

`python -m bench.quickstart.run --out out/` writes the videos, a contact sheet and the figures.
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
from chorus_client.files import write_atomically
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from bench import results
from bench.quickstart.sheet import SheetRow, contact_sheet
from bench.results import Figure
from evaluation.deployment import local_deployment
from evaluation.runs import Run, timed, warm_up

PROMPTS: Final = Path(__file__).with_name("prompts.txt")
SHEET: Final = "contact_sheet.png"


@dataclass(frozen=True)
class Row:
    """One prompt, both ways."""

    prompt: str
    full: Run
    reused: Run

    @property
    def hit(self) -> bool:
        return self.reused.generation.HasField("donor")

    @property
    def ratio(self) -> float:
        return self.full.seconds / self.reused.seconds


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file: one a line; empty lines and those that begin with "#" are none."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def measure(client: ChorusClient, prompts: Sequence[str], seed: int, reuse: str | None) -> Iterator[Row]:
    """Both ways of each prompt, one after the other, so that both meet the same machine.

    The run in full reads and writes no cache, so only the runs with reuse leave donors (and the warm-up,
    which is similar to none). Prompt i has the seed `seed` + i, as different users would have.
    """
    warm_up(client, reuse=reuse)
    for number, prompt in enumerate(prompts):
        full = timed(client, prompt, seed=seed + number, reuse="off", no_store=True)
        reused = timed(client, prompt, seed=seed + number, reuse=reuse)
        yield Row(prompt, full, reused)


def figures_of(
    rows: Sequence[Row],
    install_seconds: float | None,
    run_seconds: float,
    test_seconds: float | None = None,
) -> dict[str, Figure]:
    """Medians of hits, misses and full runs; a kind that did not occur has none."""
    groups = {
        "miss_seconds_p50": [row.reused.seconds for row in rows if not row.hit],
        "hit_seconds_p50": [row.reused.seconds for row in rows if row.hit],
        "full_seconds_p50": [row.full.seconds for row in rows],
    }
    figures = {name: results.median(values, "s") for name, values in groups.items() if values}
    ratios = [row.ratio for row in rows if row.hit]
    if ratios:
        figures["hit_speedup_p50"] = results.median(ratios, "x")
    figures["run_total_seconds"] = results.single(run_seconds + (install_seconds or 0.0), "s")
    if install_seconds is not None:
        figures["install_seconds"] = results.single(install_seconds, "s")
    if test_seconds is not None:
        figures["test_seconds"] = results.single(test_seconds, "s")
    return figures


def table_of(rows: Sequence[Row]) -> Table:
    """One line a prompt; a donor is named by the number of its line, or its prompt where it has none."""
    numbers = {row.reused.generation.generation_id: f"no. {i}" for i, row in enumerate(rows, start=1)}
    table = Table(
        title="each prompt with and without reuse, same machine, same run",
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
        header_style="bold",
    )
    table.add_column("", justify="right")
    table.add_column("prompt")
    table.add_column("cache", no_wrap=True)
    table.add_column("donor", max_width=20)
    for heading in ("score", "steps", "seconds", "without", "faster"):
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
            f"{row.ratio:.2f}×",
        )
    return table


def sheet_row(row: Row) -> SheetRow:
    generation = row.reused.generation
    kind = f"hit {generation.donor.score:.3f}" if row.hit else "miss"
    steps = f"{generation.steps_run} of {generation.plan.total_steps} steps"
    return SheetRow(
        prompt=row.prompt,
        hit=row.hit,
        verdict=f"{kind}, {steps}, {row.reused.seconds:.2f} s (in full {row.full.seconds:.2f} s)",
        detail=f"donor: {generation.donor.prompt}" if row.hit else "",
        reused=row.reused.video,
        full=row.full.video,
    )


def slug(prompt: str) -> str:
    """A file name of a prompt's first words."""
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:48].rstrip("-")


@contextmanager
def _scheduler(target: str | None, directory: Path) -> Iterator[str]:
    if target is not None:
        yield target
        return
    with local_deployment(directory, forgetful=True) as targets:
        yield targets["scheduler"]


def main(
    out: Annotated[Path, typer.Option(help="Folder for videos, sheet and figures.")] = Path("out"),
    json: Annotated[Path | None, typer.Option(help="Where the figures go. Default: OUT/road.json.")] = None,
    prompts: Annotated[Path, typer.Option(help="One prompt a line.")] = PROMPTS,
    target: Annotated[
        str | None,
        typer.Option(help="Use this scheduler, and whatever its cache holds, instead of an own one."),
    ] = None,
    reuse: Annotated[str | None, typer.Option(help="safe, balanced or fast. Default: the server's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first prompt; the others count on.")] = 1000,
    install_seconds: Annotated[
        float | None, typer.Option(help="How long the installation took, for the figures.")
    ] = None,
    test_seconds: Annotated[
        float | None, typer.Option(help="How long `make test` took here, for the figures.")
    ] = None,
) -> None:
    begin = time.perf_counter()
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 120
    texts = read_prompts(prompts)
    if not texts:
        raise typer.BadParameter(f"{prompts} holds no prompt")
    out.mkdir(parents=True, exist_ok=True)
    console.print("starting the services" if target is None else f"using {target}")
    rows: list[Row] = []
    try:
        with _scheduler(target, out / "chorus") as address, ChorusClient(address) as client:
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
    title = f"Chorus: {sum(row.hit for row in rows)} of {len(rows)} prompts reused an earlier one's latents"
    contact_sheet([sheet_row(row) for row in rows], title).save(out / SHEET)

    total = time.perf_counter() - begin
    figures = figures_of(rows, install_seconds, total, test_seconds)
    path = json or out / "quickstart.json"
    results.write(path, f"python -m bench.quickstart.run {shlex.join(sys.argv[1:])}".strip(), figures)
    console.print(table_of(rows), soft_wrap=False)
    for name in ("hit_seconds_p50", "miss_seconds_p50", "full_seconds_p50"):
        if name in figures:
            console.print(f"{name}: {figures[name].value:.3f} s (n = {figures[name].n})")
    installed = f", {install_seconds:.0f} s of installation before it" if install_seconds is not None else ""
    console.print(f"{total:.0f} s in all, {started:.0f} s of it until the services were ready{installed}")
    console.print(f"{len(rows)} videos, {out / SHEET} and {path}")


if __name__ == "__main__":
    typer.run(main)
