"""Commands of other packages: entry points of the group `chorus.commands`.

Each entry point names a function with typer's annotations, or a typer app of several commands. The extra with
the command's name, in the distribution that registers it, installs its dependencies.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
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
# Commands of the other distribution, for whoever installed the client alone.
_OTHER_COMMANDS: Final = dict.fromkeys(("calibrate", "engine", "eval"), "chorus-serving")
_ANY_ARGUMENTS: Final = {"allow_extra_args": True, "ignore_unknown_options": True}


def add_commands(app: typer.Typer) -> None:
    """Adds every registered command. A command that cannot be loaded prints the package to install."""
    entries = sorted(entry_points(group=GROUP), key=lambda entry: entry.name)
    for name in sorted(_OTHER_COMMANDS.keys() - {entry.name for entry in entries}):
        package = _OTHER_COMMANDS[name]
        missing = ImportError(f"it belongs to {package}, which is not installed")
        app.command(name, context_settings=_ANY_ARGUMENTS)(_placeholder(name, package, missing))
    for entry in entries:
        try:
            command = entry.load()
            if isinstance(command, typer.Typer):
                app.add_typer(command, name=entry.name)
            else:
                app.command(entry.name)(command)
        except ImportError as error:
            app.command(entry.name, context_settings=_ANY_ARGUMENTS)(
                _placeholder(entry.name, entry.dist.name if entry.dist else "chorus-serving", error)
            )


def format_install_command(package: str, extra: str) -> str:
    """Returns the command that installs an extra; those of this project are installed from a checkout."""
    return _CHECKOUT_COMMANDS.get(package, f"pip install '{package}[{{extra}}]'").format(extra=extra)


def not_installed(command: str, package: str, error: ImportError) -> ChorusError:
    """Returns the error of a command whose extra is not installed."""
    install = format_install_command(package, command)
    return invalid(command, f"{error}; install its dependencies: {install}")


def _placeholder(name: str, package: str, error: ImportError) -> Callable[[], Any]:
    fault = not_installed(name, package, error)

    def command() -> None:
        raise Output(as_json=False).stop(fault)

    command.__doc__ = f"Not installed: {format_install_command(package, name)}"
    return command
