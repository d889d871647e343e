"""Structure of the repository in figures: `python -m bench.house` writes bench/results/house.json.

Counts imports against the ladders of pyproject.toml, the top-level modules that the client's distribution
installs, the tests, and the help pages of the `chorus` command. Needs the extra `dev`, and a package index to
build the client's wheel.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import grimp
import typer
from chorus_cli.main import app as chorus_app
from importlinter.api import read_configuration
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from bench import results
from bench.results import single

OUT: Final = results.RESULTS / "house.json"
_COLLECTED: Final = re.compile(r"^(\d+) tests? collected", re.MULTILINE)
_NO_MODULE: Final = (".dist-info", ".data")


def count_upward_imports(graph: grimp.ImportGraph, contracts: Iterable[Mapping[str, Any]]) -> int:
    """Counts the import chains that lead from a lower layer to a higher one.

    Args:
        graph: Imports of all packages that the contracts name.
        contracts: Contracts in import-linter's configuration; only those of type `layers` are counted.
    """
    dependencies = [
        dependency
        for contract in contracts
        if contract["type"] == "layers"
        for dependency in graph.find_illegal_dependencies_for_layers(
            layers=[{name.strip() for name in layer.split("|")} for layer in contract["layers"]],
            containers=set(contract["containers"]) if "containers" in contract else None,
        )
    ]
    return sum(len(dependency.routes) for dependency in dependencies)


def measure_upward_imports() -> int:
    """Counts the upward imports of this repository."""
    configuration = read_configuration(str(results.ROOT / "pyproject.toml"))
    packages = configuration["session_options"]["root_packages"]
    graph = grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)
    return count_upward_imports(graph, configuration["contracts_options"])


def list_top_level_modules(files: Iterable[str]) -> list[str]:
    """Returns the top-level modules among the files of a wheel."""
    names = {file.partition("/")[0] for file in files}
    return sorted(name.removesuffix(".py") for name in names if not name.endswith(_NO_MODULE))


def build_client_wheel() -> list[str]:
    """Builds the client's wheel and returns the names of its files."""
    with tempfile.TemporaryDirectory() as folder:
        command = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder)
        subprocess.run([*command, str(results.ROOT / "client")], check=True)
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            return archive.namelist()


def parse_collected(output: str) -> int:
    """Reads the number of tests from the output of `pytest --collect-only --quiet`.

    Raises ValueError if the output does not contain it, for instance after errors.
    """
    match = _COLLECTED.search(output)
    if match is None:
        raise ValueError(f"pytest reported no number of tests: {output[-500:]}")
    return int(match[1])


def collect_tests() -> int:
    """Counts the tests of this repository."""
    command = (sys.executable, "-m", "pytest", "--collect-only", "--quiet")
    done = subprocess.run(command, cwd=results.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return parse_collected(done.stdout)


def list_commands(command: object, path: Sequence[str] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yields a command and all its subcommands, each with the words that call it."""
    yield tuple(path), command
    if isinstance(command, TyperGroup):
        for name, subcommand in command.commands.items():
            yield from list_commands(subcommand, (*path, name))


def check_help(app: typer.Typer) -> tuple[int, list[str]]:
    """Checks that every help page is printed and that every parameter has a help text.

    Returns the number of pages and a description of each fault.
    """
    pages, faults = 0, []
    for path, command in list_commands(get_command(app)):
        name = " ".join(path) or "the command itself"
        result = CliRunner().invoke(app, [*path, "--help"])
        if result.exit_code != 0:
            faults.append(f"{name}: --help ends with exit status {result.exit_code}")
        if not command.help:
            faults.append(f"{name}: no description")
        faults += [
            f"{name}: no help for {max(parameter.opts, key=len)}"
            for parameter in command.params
            if not (getattr(parameter, "hidden", False) or getattr(parameter, "help", None))
        ]
        pages += 1
    return pages, faults


def main(
    tests_before: Annotated[
        int, typer.Option(min=1, help="Number of tests before the restructuring, to compare with.")
    ],
    out: Annotated[Path, typer.Option(help="Result file.")] = OUT,
) -> None:
    """Counts imports, modules, tests and help pages, and writes the result file.

    Exits with status 1, without a file, if a help page is incomplete.
    """
    pages, faults = check_help(chorus_app)
    if faults:
        print("\n".join(faults), file=sys.stderr)
        raise typer.Exit(1)
    modules = list_top_level_modules(build_client_wheel())
    figures = {
        "upward_imports": single(measure_upward_imports(), "imports"),
        "top_level_modules_of_client": single(len(modules), "modules"),
        "tests_before": single(tests_before, "tests"),
        "tests_after": single(collect_tests(), "tests"),
        "help_commands_checked": single(pages, "pages"),
    }
    command = f"python -m bench.house {shlex.join(sys.argv[1:])}".strip()
    results.write(out, command, figures, client_modules=modules)
    for name, figure in figures.items():
        print(f"{name}: {figure.value} {figure.unit}")


if __name__ == "__main__":
    typer.run(main)
