"""Installs missing Debian packages, and Python packages in separate environments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.testservers.processes import ServerError, format_tail

APT_SECONDS = 900
PIP_SECONDS = 1800


def install_debian_packages(packages: Mapping[str, Sequence[str]], log: Path) -> None:
    """Installs the packages of which a program is missing.

    Needs root and apt-get only if one is missing. Raises ServerError that names the missing packages.

    Args:
        packages: the programs of each package.
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
    # Fetches the package lists only if they are absent or too old for the mirror.
    if not _succeeds(install, log, APT_SECONDS):
        _run([*apt, "update"], log, APT_SECONDS)
        _run(install, log, APT_SECONDS)


def install_python_program(requirement: str, program: str, home: Path, log: Path) -> Path:
    """Installs the pinned `requirement` under `home` if needed. Returns the path of its `program`."""
    environment = home / requirement.replace("==", "-")
    complete = environment / "installed"
    if not complete.exists():
        _run([sys.executable, "-m", "venv", "--clear", str(environment)], log, PIP_SECONDS)
        _run([str(environment / "bin" / "pip"), "install", "--quiet", requirement], log, PIP_SECONDS)
        complete.touch()
    return environment / "bin" / program


def _run(command: Sequence[str], log: Path, seconds: float) -> None:
    if not _succeeds(command, log, seconds):
        raise ServerError(f"failed: {' '.join(command)}{format_tail(log)}")


def _succeeds(command: Sequence[str], log: Path, seconds: float) -> bool:
    # A separate session, because an interrupted package installation would have to be repaired by hand.
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
            raise ServerError(
                f"not finished within {seconds:g} s: {' '.join(command)}{format_tail(log)}"
            ) from error
    return done.returncode == 0
