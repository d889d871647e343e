"""Numbers of crashes and hostile inputs that the cache's tests try: one part of `bench.cache`.

The tests count them, in the properties of pytest's report; a test that fails ends the measurement.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

from bench import results
from bench.results import Figure

_TESTS: Final = ("tests/integration/cache/test_crash.py", "tests/integration/cache/test_hostile.py")
# Property of a test in pytest's report: name of the figure, and its unit.
_FIGURES: Final = {
    "crash_points": ("crash_points_tried", "points"),
    "hostile_inputs": ("hostile_inputs_tried", "inputs"),
}


def count_properties(report: Path) -> Counter[str]:
    """Adds up the properties of a report in the format of JUnit, by name."""
    found: Counter[str] = Counter()
    # Written by this process's own tests.
    for each in ElementTree.parse(report).iter("property"):
        found[each.attrib["name"]] += int(each.attrib["value"])
    return found


def measure_attacks(folder: Path) -> dict[str, Figure]:
    """Runs the tests. Raises CalledProcessError if one fails."""
    report = folder / "report.xml"
    subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", f"--junitxml={report}", *_TESTS],
        cwd=results.ROOT,
        check=True,
    )
    found = count_properties(report)
    return {name: results.single(found[key], unit) for key, (name, unit) in _FIGURES.items()}
