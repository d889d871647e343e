"""Runs the tests that are marked with a kind of fault, and counts kinds and tests."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.results import ROOT
from tests.faults import FAULTS

_COMMAND: Final = ("-m", "pytest", "--quiet", "--numprocesses", "2", "--dist", "loadfile")


@dataclass
class Kind:
    """Tests of one kind of fault.

    Attributes:
        passed: Number of tests that passed.
        failed: Ids of the tests that failed.
        skipped: Number of tests that were skipped, for instance without a server.
    """

    passed: int = 0
    failed: list[str] = field(default_factory=list)
    skipped: int = 0

    @property
    def fixed(self) -> bool:
        """Whether at least one test of the kind ran, and none failed."""
        return self.passed > 0 and not self.failed


def run_marked_tests() -> Mapping[str, Kind]:
    """Runs the marked tests and returns the outcome of every kind. Raises SystemExit if pytest cannot run."""
    # The variables of the test servers are no settings; commands under test warn about them.
    env = {name: value for name, value in os.environ.items() if not name.startswith("CHORUS_TEST_")}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, *_COMMAND, "-m", "fault and not gpu and not servers"]
        # 0: all passed; 1: some failed.
        run = subprocess.run([*command, f"--junit-xml={report}"], cwd=ROOT, env=env)
        if run.returncode not in (0, 1):
            raise SystemExit(f"pytest ended with status {run.returncode}")
        return read_report(report)


def read_report(path: Path) -> Mapping[str, Kind]:
    """Reads the outcome of every kind from a JUnit report, whose tests carry their kinds as properties."""
    kinds: dict[str, Kind] = defaultdict(Kind, {name: Kind() for name in FAULTS})
    for case in ElementTree.parse(path).iter("testcase"):
        for property_ in case.iterfind("properties/property[@name='fault']"):
            kind = kinds[property_.attrib["value"]]
            if case.find("failure") is not None or case.find("error") is not None:
                kind.failed.append(f"{case.get('classname')}::{case.get('name')}")
            elif case.find("skipped") is not None:
                kind.skipped += 1
            else:
                kind.passed += 1
    return kinds
