"""The cache as it grows, and its transfers: `python -m bench.cache` writes bench/results/cache.json.

Ratios to a bare library, and to another number of entries, are measured within one run. Two parts need
servers and are left out without them:

    infra/testservers/run .venv/bin/python -m bench.cache
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from bench import results
from bench.cache_attacks import measure_attacks
from bench.cache_disk import GENERATIONS, measure_disk
from bench.cache_fetch import S3_ENDPOINT, measure_admit, measure_fetch, measure_fetch_s3
from bench.cache_hits import measure_hits
from bench.cache_lookup import measure_embedded
from bench.cache_milvus import URI, measure_milvus
from bench.eviction import measure_gains
from bench.results import Figure

OUT: Final = results.RESULTS / "cache.json"
# Variables that the parts need, and the server that each names.
NEEDED: Final[Mapping[str, tuple[str, str]]] = {
    "milvus": (URI, "a Milvus server"),
    "fetch_s3": (S3_ENDPOINT, "an S3 server"),
}
_FETCHES_PER_REQUEST: Final = 5  # requests for one fetch or admission over gRPC
_PROMPTS_PER_REQUEST: Final = 10


def parse_sizes(text: str) -> list[int]:
    """Parses ascending numbers of entries, separated by commas. Raises typer.BadParameter."""
    try:
        sizes = [int(each) for each in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"must be numbers separated by commas, not {text!r}") from None
    if sizes != sorted(set(sizes)) or sizes[0] < 1:
        raise typer.BadParameter(f"must be ascending numbers from 1 on, not {text!r}")
    return sizes


def select_parts(wanted: list[str], known: list[str]) -> list[str]:
    """Returns the parts to measure: those that are wanted, by default all whose server is known.

    Prints a line about each that is left out. Raises typer.BadParameter for unknown parts, and for wanted
    ones without their server.
    """
    if unknown := sorted(set(wanted) - set(known)):
        raise typer.BadParameter(f"unknown part {', '.join(unknown)}; known: {', '.join(known)}")
    selected = []
    for part in wanted or known:
        variable, server = NEEDED.get(part, ("", ""))
        if variable and not os.environ.get(variable):
            message = f"{part} needs {server}: {variable} is not set"
            if wanted:
                raise typer.BadParameter(message)
            print(f"not measured: {message}")
            continue
        selected.append(part)
    return selected


def main(
    out: Annotated[Path, typer.Option(help="Result file.")] = OUT,
    sizes: Annotated[
        str, typer.Option(help="Numbers of entries of the index, ascending, for lookups in process.")
    ] = "1000,10000,100000",
    stack: Annotated[
        str, typer.Option(help="Numbers of entries, ascending, for hits on the whole stack.")
    ] = "100,50000",
    requests: Annotated[
        int,
        typer.Option(
            min=10,
            help="Number of lookups of each figure; a fifth as many fetches and admissions over gRPC, and a"
            " tenth as many prompts.",
        ),
    ] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and of the first video.")] = 9100,
    disk: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            file_okay=False,
            help="Folder on a small disk for many generations, such as a tmpfs of 64 MB. Default: a"
            " temporary folder.",
        ),
    ] = None,
    generations: Annotated[int, typer.Option(min=2, help="Number of generations on it.")] = GENERATIONS,
    part: Annotated[list[str], typer.Option(help="Parts to measure; default: all.")] = [],  # noqa: B006
) -> None:
    """Measures the cache and writes the result file."""
    index_sizes, stack_sizes = parse_sizes(sizes), parse_sizes(stack)
    prompts = max(1, requests // _PROMPTS_PER_REQUEST)
    if stack_sizes[0] < prompts:
        raise typer.BadParameter(f"--stack: must be at least {prompts}, the number of prompts")
    fetches = max(1, requests // _FETCHES_PER_REQUEST)
    parts: dict[str, Callable[[Path], dict[str, Figure]]] = {
        "embedded": lambda folder: asyncio.run(measure_embedded(folder, index_sizes, requests)),
        "milvus": lambda _: asyncio.run(measure_milvus(index_sizes, requests)),
        "fetch": lambda folder: asyncio.run(measure_fetch(folder, fetches)),
        "fetch_s3": lambda folder: asyncio.run(measure_fetch_s3(folder, fetches)),
        "admit": lambda folder: asyncio.run(measure_admit(folder, fetches)),
        "hits": lambda folder: measure_hits(folder, stack_sizes, prompts, seed),
        "disk": lambda folder: measure_disk(disk or folder, generations, seed),
        "eviction": lambda _: measure_gains(),
        "attacks": measure_attacks,
    }
    selected = select_parts(part, list(parts))
    servers = "infra/testservers/run .venv/bin/" if NEEDED.keys() & set(selected) else ""
    command = f"{servers}python -m bench.cache {shlex.join(sys.argv[1:])}".strip()
    # Each part takes minutes: what is measured is written at once, and kept if only other parts are measured.
    written = results.read(out) if part and out.exists() else {}
    figures: dict[str, Any] = dict(written.get("figures", {}))
    commands: dict[str, str] = dict(written.get("parts", {}))
    for name in selected:
        with tempfile.TemporaryDirectory() as folder:
            measured = parts[name](Path(folder))
        for key, figure in measured.items():
            print(f"{key}: {figure.value:.4g} {figure.unit} {figure.ci95 or ''}, n = {figure.n}", flush=True)
        figures |= measured
        commands[name] = command
        results.write(out, command, figures, parts=commands)


if __name__ == "__main__":
    typer.run(main)
