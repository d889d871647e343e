"""Verifies the files that GitHub and citation tools read: they parse, and they name what exists."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from tests.infra.manifests import ROOT, pinned

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
FORMS = [path for path in sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")) if path.stem != "config"]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def load_yaml(path: Any) -> dict[str, Any]:
    loaded = yaml.safe_load(path.read_text())
    assert isinstance(loaded, dict)
    return loaded


def list_steps() -> list[dict[str, Any]]:
    jobs = [job for path in WORKFLOWS for job in load_yaml(path)["jobs"].values()]
    assert all(job["runs-on"] and job["timeout-minutes"] for job in jobs)
    return [step for job in jobs for step in job["steps"]]


def test_workflow_calls_only_make_targets_that_exist() -> None:
    commands = [step["run"] for step in list_steps() if "run" in step]
    called = set()
    for command in commands:
        assert command.startswith("make "), command
        called |= set(command.split()[1:])
    assert called <= TARGETS
    assert {"run", "test", "test-servers"} <= called


def test_workflow_pins_its_actions() -> None:
    used = [step["uses"] for step in list_steps() if "uses" in step]
    assert used
    assert all(re.fullmatch(r"[\w-]+/[\w-]+@v\d+", action) for action in used)


def test_workflow_has_read_access_only() -> None:
    assert all(load_yaml(path)["permissions"] == {"contents": "read"} for path in WORKFLOWS)


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_issue_forms_have_the_fields_that_github_requires(form: Any) -> None:
    loaded = load_yaml(form)
    assert loaded["name"]
    assert loaded["description"]
    ids = [field["id"] for field in loaded["body"]]
    assert len(ids) == len(set(ids)) > 0
    assert all(field["attributes"]["label"] for field in loaded["body"])


def test_citation_has_the_required_keys() -> None:
    citation = load_yaml(ROOT / "CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["cff-version"] == "1.2.0"
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{citation["version"]}"' in project
    assert f'license = "{citation["license"]}"' in project
    (paper,) = citation["references"]
    assert {"type", "title", "authors", "url"} <= set(paper)
    assert all({"family-names", "given-names"} <= set(author) for author in paper["authors"])


def test_changelog_lists_the_current_version_first() -> None:
    version = load_yaml(ROOT / "CITATION.cff")["version"]
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] in {version, "Unreleased"}


def test_make_help_describes_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    (declared,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    described = set(re.findall(r"^([a-z-]+):.*## ", text, re.MULTILINE))
    assert set(declared.split()) - {"help"} == described


def test_devcontainer_parses_and_calls_make() -> None:
    container = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert pinned(container["image"].replace(":1-", ":"))
    first, *targets = container["postCreateCommand"].split()
    assert first == "make"
    assert set(targets) <= TARGETS | {".venv/.ready"}


def test_pre_commit_runs_commands_of_the_environment() -> None:
    (repository,) = load_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    assert all(hook["entry"].startswith(".venv/bin/") for hook in repository["hooks"])
