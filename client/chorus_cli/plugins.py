"""Commands of other packages: entry points of the group `chorus.commands`.

Each entry point names a function with typer's annotations, or a typer app of several commands. The extra with
the command's name, in the distribution that registers it, installs its dependencies.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

import typer
from chorus_rpc.errors import ChorusError, invalid

from chorus_cli.output import Output

GROUP: Final = "chorus.commands"
# Neither distribution is published on a package index.
_CHECKOUT_COMMANDS: Final = {
    "chorus-client": "pip install './client[{extra}]'",
    "chorus-serving": "pip install -e ./client -e '.[{extra}]'",
}
_ANY_ARGUMENTS: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


def add_commands(app: typer.Typer) -> None:
    """Adds every registered command. A command that cannot be loaded prints the package to install."""
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            command = entry.load()
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=entry.name)
            else:
                app.command(entry.name)(command)
        except ImportError as error:
            app.command(entry.name, context_settings=_ANY_ARGUMENTS)(_placeholder(entry, error))


def format_install_command(package: str, extra: str) -> str:
    """Returns the command that installs an extra; those of this project are installed from a checkout."""
    return _CHECKOUT_COMMANDS.get(package, f"pip install '{package}[{{extra}}]'").format(extra=extra)


def not_installed(command: str, package: str, error: ImportError) -> ChorusError:
    """Returns the error of a command whose extra is not installed."""
    install = format_install_command(package, command)
    return invalid(command, f"{error}; install its dependencies: {install}")


def _placeholder(entry: EntryPoint, error: ImportError) -> Callable[[], Any]:
    package = entry.dist.name if entry.dist else "chorus-serving"
    fault = not_installed(entry.name, package, error)

    def command() -> None:
        raise Output(as_json=False).stop(fault)

    command.__doc__ = f"Not installed: {format_install_command(package, entry.name)}"
    return command
