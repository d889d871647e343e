"""The `chorus` command: its global options, and the commands of chorus_cli/commands and of plugins."""

from __future__ import annotations

import logging
import os
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any

import typer
from chorus_rpc import telemetry
from typer.core import TyperGroup

from chorus_cli import plugins
from chorus_cli.commands import cache, keys
from chorus_cli.commands.generate import generate, retry
from chorus_cli.commands.generations import cancel, get, jobs, priority, report, rm, url, watch
from chorus_cli.commands.models import models
from chorus_cli.commands.up import up
from chorus_cli.explain.command import explain
from chorus_cli.output import EXIT_STATUSES, Output, ending_at_closed_pipe, one_line
from chorus_cli.server_command import ServerCommand
from chorus_cli.variables import check_variables

DISTRIBUTION = "chorus-client"
_EPILOG = "\n".join(
    ["\b", "Exit status:", *(f"{status}: {meaning}" for status, meaning in EXIT_STATUSES.items())]
)


class _Commands(TyperGroup):
    """Group that ends with PIPE_CLOSED, not with typer's status 1, if the reader of its help has gone."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        with ending_at_closed_pipe():
            return super().make_context(info_name, args, parent, **extra)

    def invoke(self, ctx: Any) -> Any:
        with ending_at_closed_pipe():
            return super().invoke(ctx)


app = typer.Typer(
    cls=_Commands,
    help="Text-to-video by few-step diffusion, faster by reusing what similar requests computed.",
    epilog=_EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Help and usage errors as plain text: panels cut choices, and markup takes the brackets of an extra.
    rich_markup_mode=None,
)
app.command(cls=ServerCommand)(generate)
app.command(cls=ServerCommand)(jobs)
app.command(cls=ServerCommand)(get)
app.command(cls=ServerCommand)(url)
app.command(cls=ServerCommand)(watch)
app.command(cls=ServerCommand)(report)
app.command(cls=ServerCommand)(priority)
app.command(cls=ServerCommand)(cancel)
app.command(cls=ServerCommand)(rm)
app.command(cls=ServerCommand)(models)
app.command(cls=ServerCommand)(retry)
app.command(cls=ServerCommand)(explain)
app.add_typer(cache.app, name="cache")
app.add_typer(keys.app, name="keys")
app.command()(up)
plugins.add_commands(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"chorus {version(DISTRIBUTION)}")
        except PackageNotFoundError:
            typer.echo(f"chorus: {DISTRIBUTION} is not installed")
        raise typer.Exit


@app.callback()
def configure(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    for warning in check_variables(os.environ):
        Output(as_json=False).status(f"warning: {warning}")
    # One warning at the end replaces the log lines of a command whose traces cannot be exported.
    logging.getLogger("chorus_rpc.telemetry").disabled = True
    try:
        telemetry.configure("client")
    except (ImportError, ValueError) as error:
        raise typer.BadParameter(str(error)) from None
    context.call_on_close(_export_spans)


def _export_spans() -> None:
    if fault := telemetry.shutdown():
        Output(as_json=False).status(f"warning: {one_line(fault)}")
