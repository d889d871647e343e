"""Tests of the figures of the repository's structure, on small examples."""

from pathlib import Path
from typing import Annotated

import grimp
import pytest
import typer

from bench.house import check_help, count_upward_imports, list_top_level_modules, parse_collected

LADDER = {"type": "layers", "containers": ["ladder_example"], "layers": ["door", "left | right", "floor"]}


@pytest.mark.parametrize(
    ("imports", "count"),
    [
        ({"door": "left", "left": "floor", "right": "floor"}, 0),
        ({"floor": "door"}, 1),
        ({"floor": "door", "right": "left"}, 2),
    ],
)
def test_upward_imports_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, imports: dict[str, str], count: int
) -> None:
    package = tmp_path / "ladder_example"
    package.mkdir()
    for name in ("__init__", "door", "left", "right", "floor"):
        source = f"from ladder_example import {imports[name]}\n" if name in imports else ""
        (package / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    graph = grimp.build_graph("ladder_example", cache_dir=None)
    assert count_upward_imports(graph, [LADDER, {"type": "forbidden"}]) == count


def test_top_level_modules_exclude_metadata() -> None:
    files = [
        "chorus_cli/main.py",
        "chorus_cli/py.typed",
        "single.py",
        "chorus/common/v1/plan_pb2.py",
        "chorus_client-0.1.0.dist-info/METADATA",
        "chorus_client-0.1.0.data/scripts/x",
    ]
    assert list_top_level_modules(files) == ["chorus", "chorus_cli", "single"]


def test_number_of_tests_is_read_from_pytest() -> None:
    assert parse_collected("tests/a.py::test_x\n\n1812 tests collected in 33.21s\n") == 1812
    assert parse_collected("1 test collected in 0.01s") == 1
    with pytest.raises(ValueError, match="no number of tests"):
        parse_collected("ERROR tests/a.py\n1812 tests collected, 1 error".replace("1812 tests", "no tests"))


def build_app(help_text: str | None) -> typer.Typer:
    app = typer.Typer(help="Example.")
    nested = typer.Typer(help="Nested commands.")
    app.add_typer(nested, name="nested")

    @app.command()
    def first(value: Annotated[int, typer.Option(help=help_text)] = 1) -> None:
        """Do the first thing."""

    @nested.command()
    def second(
        name: Annotated[str, typer.Argument(help="Name.")],
        secret: Annotated[bool, typer.Option("--secret", hidden=True)] = False,
    ) -> None:
        """Do the second thing."""

    @nested.command()
    def third() -> None:
        """Do the third thing."""

    return app


def test_complete_help_is_counted_by_page() -> None:
    pages, faults = check_help(build_app("Value."))
    assert faults == []
    assert pages == 5  # the command itself, `first`, `nested`, and its two commands


def test_missing_help_is_reported() -> None:
    _, faults = check_help(build_app(None))
    assert faults == ["first: no help for --value"]


def test_help_that_fails_is_reported() -> None:
    app = build_app("Value.")

    @app.callback(invoke_without_command=True)
    def fail(version: Annotated[bool, typer.Option(help="Version.")] = False) -> None:
        """Fail before any subcommand."""
        raise typer.Exit(3)

    _, faults = check_help(app)
    assert "first: --help ends with exit status 3" in faults
