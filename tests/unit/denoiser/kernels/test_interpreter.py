"""The Triton kernel against the reference, in Triton's interpreter: in a process of its own."""

import os
import subprocess
import sys

import pytest

from services.denoiser.kernels.check import interpreter_errors
from tests.processes import ROOT

pytest.importorskip("triton", reason="Triton is not installed")


def test_the_kernel_has_its_properties() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernel_properties.py"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_errors_are_those_of_rounding() -> None:
    errors = interpreter_errors()
    assert errors["kernel_fp32_rel"] <= 1e-5
    assert errors["kernel_fp16_rel"] <= 2e-3
