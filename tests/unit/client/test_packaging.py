"""Verifies the distributions: the modules, metadata and dependencies of their wheels."""

from __future__ import annotations

import re
import tomllib
import zipfile
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests.processes import ROOT

CLIENT_MODULES = {"chorus", "chorus_cli", "chorus_client", "chorus_rpc"}
CLIENT_DEPENDENCIES = {
    "fasteners", "grpcio", "grpcio-health-checking", "grpcio-status", "protobuf", "rich", "typer"
}  # fmt: skip


def build(folder: Path, out: Path, version: str = "standard") -> zipfile.ZipFile:
    """Builds a wheel as pip does, without an environment or a network."""
    [path] = WheelBuilder(str(folder)).build(directory=str(out), versions=[version])
    return zipfile.ZipFile(path)


def read_metadata(wheel: zipfile.ZipFile) -> Message:
    """Reads the METADATA file of a wheel."""
    [name] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    return message_from_bytes(wheel.read(name))


def top_levels(wheel: zipfile.ZipFile) -> set[str]:
    """Returns the top-level modules that a wheel installs."""
    return {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" not in name}


def requirements(metadata: Message) -> dict[str, str]:
    """Returns each requirement by name, with its extra or ""."""
    extras = {}
    for line in metadata.get_all("Requires-Dist", ()):
        extra = re.search(r"extra == '([^']+)'", line)
        extras[re.split(r"[^\w-]", line)[0]] = extra[1] if extra else ""
    return extras


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Wheel of the client."""
    return build(ROOT / "client", tmp_path_factory.mktemp("wheel"))


def test_client_wheel_installs_only_its_four_packages(wheel: zipfile.ZipFile) -> None:
    assert top_levels(wheel) == CLIENT_MODULES
    names = set(wheel.namelist())
    for package in CLIENT_MODULES:
        assert f"{package}/py.typed" in names
    for folder, package in (("client", "chorus_client"), ("client", "chorus_cli"), ("rpc", "chorus_rpc")):
        sources = {str(p.relative_to(ROOT / folder)) for p in (ROOT / folder / package).rglob("*.py")}
        assert sources <= names
    assert "chorus/scheduler/v1/scheduler_pb2.py" in names
    assert "chorus/scheduler/v1/scheduler_pb2.pyi" in names
    assert not [name for name in names if "__pycache__" in name]


def test_client_wheel_needs_neither_models_nor_stores(wheel: zipfile.ZipFile) -> None:
    metadata = read_metadata(wheel)
    extras = requirements(metadata)
    assert {name for name, extra in extras.items() if not extra} == CLIENT_DEPENDENCIES
    assert {name for name, extra in extras.items() if extra == "explain"} == {"av", "numpy", "pillow"}
    assert set(extras.values()) == {"", "explain", "telemetry"}
    assert metadata["Name"] == "chorus-client"
    [entry_points] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert wheel.read(entry_points).decode().split() == [
        "[console_scripts]", "chorus", "=", "chorus_cli.__main__:main"
    ]  # fmt: skip
    [license_file] = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    assert wheel.read(license_file) == (ROOT / "LICENSE").read_bytes()


def test_editable_client_copies_no_module(tmp_path: Path) -> None:
    """Copies would shadow the checkout."""
    wheel = build(ROOT / "client", tmp_path, "editable")
    assert top_levels(wheel) == {"_chorus_client.pth"}
    folders = wheel.read("_chorus_client.pth").decode().split("\n")
    assert {Path(folder).relative_to(ROOT).as_posix() for folder in folders} == {"client", "rpc", "proto/gen"}


def test_services_are_not_packaged(tmp_path: Path) -> None:
    wheel = build(ROOT, tmp_path)
    assert top_levels(wheel) == set()
    assert "chorus-client" in read_metadata(wheel).get_all("Requires-Dist", ())
    editable = build(ROOT, tmp_path, "editable")
    assert editable.read("_chorus_serving.pth").decode() == str(ROOT)


def test_both_projects_agree() -> None:
    root, client = (
        tomllib.loads((ROOT / path).read_text()) for path in ("pyproject.toml", "client/pyproject.toml")
    )
    assert root["project"]["version"] == client["project"]["version"]
    assert root["project"]["requires-python"] == client["project"]["requires-python"]
    assert root["tool"]["uv"]["workspace"]["members"] == ["client"]


def test_each_dependency_has_one_floor() -> None:
    floors: dict[str, set[str]] = {}
    for path in ("pyproject.toml", "client/pyproject.toml"):
        project = tomllib.loads((ROOT / path).read_text())["project"]
        groups = [project["dependencies"], *project["optional-dependencies"].values()]
        for requirement in (line for group in groups for line in group):
            name, floor = re.split(r"(?=[><=;]|$)", requirement.split(";")[0].strip(), maxsplit=1)
            if floor:
                floors.setdefault(name, set()).add(floor)
    assert {name: values for name, values in floors.items() if len(values) > 1} == {}
