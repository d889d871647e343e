"""`chorus up`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from chorus_client import endpoints

from chorus_cli.following import run
from chorus_cli.options import Json
from chorus_cli.output import LastingOutput


def up(
    directory: Annotated[
        Path,
        typer.Option(
            "--dir",
            metavar="FOLDER",
            file_okay=False,
            help="Folder for stores, logs and endpoints.json.",
        ),
    ] = endpoints.DIRECTORY,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Model file to serve instead of the shipped one; repeatable. The first is the default.",
        ),
    ] = None,
    startup_seconds: Annotated[
        float,
        typer.Option(
            min=1,
            max=3_600,
            metavar="SECONDS",
            help="Upper bound on the time until every service is ready, in seconds.",
        ),
    ] = 300.0,
    as_json: Json = False,
) -> None:
    """Run all services on this machine until Ctrl-C.

    The services are not part of chorus-client: run it from a checkout. The scheduler listens at port 7400,
    the embedder, the cache and the denoiser at 7401 to 7403, and the gateway with the HTTP API at 7404; a
    port in use is replaced by a free one.

    The embedder loads the text encoders that the model files name. A CHORUS_<SERVICE>_<SETTING> variable that
    is set takes precedence over what this command chooses.
    """
    from chorus_cli.local.up import run_up  # POSIX only, and no other command needs it

    out = LastingOutput(as_json)
    status = run(run_up(directory.absolute(), model or (), startup_seconds, out), out)
    raise typer.Exit(status)
