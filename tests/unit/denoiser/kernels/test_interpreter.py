"""Verifies the Triton kernel against the reference in Triton's interpreter, in a separate process."""

import os
import subprocess
import sys

import pytest

from services.denoiser.kernels.check import measure_interpreter_errors
from tests.processes import ROOT

pytest.importorskip("triton", reason="Triton is not installed")


def test_kernel_properties_hold_in_the_interpreter() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernel_properties.py"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr


def test_kernel_errors_are_within_rounding() -> None:
    errors = measure_interpreter_errors()
    assert errors["kernel_fp32_rel"] <= 1e-5
    assert errors["kernel_fp16_rel"] <= 2e-3
