"""Options that several commands share, and the choices of those that take a word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer

PriorityChoice: TypeAlias = Literal["low", "normal", "high"]
ReuseChoice: TypeAlias = Literal["off", "safe", "balanced", "fast"]
RegionChoice: TypeAlias = Literal["probe", "full-step", "attention"]
EntryOrderChoice: TypeAlias = Literal["newest", "used", "saved", "size", "hits"]
DecisionChoice: TypeAlias = Literal["hit", "miss", "exact"]
ProblemChoice: TypeAlias = Literal[
    "donor-visible", "prompt-not-followed", "broken-picture", "broken-motion", "other"
]
StateChoice: TypeAlias = Literal["queued", "waiting", "running", "succeeded", "failed", "cancelled"]

Target = Annotated[
    str | None,
    typer.Option(
        envvar="CHORUS_TARGET",
        metavar="HOST:PORT",
        help="Address of the scheduler; chorus+tls://HOST:PORT with TLS. Default: the `chorus up` of this"
        " directory, else localhost:7400.",
    ),
]
CacheTarget = Annotated[
    str | None,
    typer.Option(
        "--target",
        envvar="CHORUS_CACHE_TARGET",
        metavar="HOST:PORT",
        help="Address of the cache. Default: the `chorus up` of this directory, else localhost:7402.",
    ),
]
Tenant = Annotated[
    str, typer.Option(envvar="CHORUS_TENANT", metavar="NAME", help="Tenant that owns the entries.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Write one JSON object a line to stdout, and nothing else.")
]
GenerationId = Annotated[
    str,
    typer.Argument(metavar="ID", help="Id of the generation, or its beginning (4 characters or more)."),
]
EntryId = Annotated[
    str,
    typer.Argument(metavar="ID", help="Id of the entry, or its beginning (4 characters or more)."),
]
Labels = Annotated[
    list[str] | None,
    typer.Option("--label", metavar="KEY=VALUE", help="Label of the generation; may be given several times."),
]
OutFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        dir_okay=False,
        help="File that receives the mp4; an existing file is replaced. Default: ID.mp4.",
    ),
]
