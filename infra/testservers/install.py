"""Installs what is missing: Debian packages, and Python packages in environments of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.testservers.processes import ServerError, tail

APT_SECONDS = 900
PIP_SECONDS = 1800


def debian_packages(packages: Mapping[str, Sequence[str]], log: Path) -> None:
    """Makes sure that the programs of every package are there: `{package: its programs}`.

    Needs root and apt-get only if one is missing; raises ServerError that names what is.
    """
    missing = {p: names for p, names in packages.items() if not all(map(shutil.which, names))}
    if not missing:
        return
    wanted = ", ".join(missing)
    if shutil.which("apt-get") is None:
        programs = ", ".join(name for names in missing.values() for name in names)
        raise ServerError(f"not installed: {programs}. This is not Debian: install them, then try again")
    if os.geteuid() != 0:
        raise ServerError(f"not installed: {wanted}. Run this once as root, or: apt-get install {wanted}")
    apt = ["apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=120", "-o", "Acquire::Retries=3"]
    install = [*apt, "install", "--no-install-recommends", *missing]
    # Package lists may be absent or too old for the mirror: only then are they fetched.
    if not _succeeds(install, log, APT_SECONDS):
        _run([*apt, "update"], log, APT_SECONDS)
        _run(install, log, APT_SECONDS)


def python_program(requirement: str, program: str, home: Path, log: Path) -> Path:
    """The path of `program` from the pinned `requirement`, installed under `home` unless it is there."""
    environment = home / requirement.replace("==", "-")
    whole = environment / "installed"
    if not whole.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(environment)], log, PIP_SECONDS)
        _run([str(environment / "bin" / "pip"), "install", "--quiet", requirement], log, PIP_SECONDS)
        whole.touch()
    return environment / "bin" / program


def _run(command: Sequence[str], log: Path, seconds: float) -> None:
    if not _succeeds(command, log, seconds):
        raise ServerError(f"failed: {' '.join(command)}{tail(log)}")


def _succeeds(command: Sequence[str], log: Path, seconds: float) -> bool:
    # Its own session: an interrupted installation of packages would have to be repaired by hand.
    with log.open("ab") as output:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
                timeout=seconds,
                start_new_session=True,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ServerError(f"not done within {seconds:g} s: {' '.join(command)}{tail(log)}") from error
    return done.returncode == 0
