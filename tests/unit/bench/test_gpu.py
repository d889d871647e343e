"""Verifies that the GPU benchmark runs on a CPU at tiny sizes; measured values are not checked."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu.report import NOTES, Budget, Report
from bench.gpu.sections import SECTIONS, run_all, run_one
from bench.gpu.shapes import SCALES, select_region, step_flops
from bench.results import read
from tests.processes import ROOT

# Restricts imports to the packages guaranteed on a GPU machine: torch with its dependencies, and these.
_SITECUSTOMIZE = """
import sys
from importlib.machinery import PathFinder
AVAILABLE = set(sys.stdlib_module_names) | set(
    "torch torchgen functorch numpy triton google grpc onnx typing_extensions sympy mpmath networkx jinja2 "
    "markupsafe filelock fsspec setuptools _distutils_hack "
    "bench evaluation services chorus chorus_rpc".split()
)
class Only(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        available = name.partition(".")[0] in AVAILABLE or name.startswith("_sysconfigdata")
        return PathFinder.find_spec(name, path, target) if available else None
sys.meta_path[:] = [Only if finder is PathFinder else finder for finder in sys.meta_path]
"""
_KERNELS = importlib.util.find_spec("services.denoiser.kernels") is not None


def _run(directory: Path, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Runs the script with restricted imports. Returns exit status, result file and output."""
    (directory / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    out = directory / "results" / "gpu.json"
    process = subprocess.run(
        [ROOT / "bench" / "gpu" / "run.sh", "--scale", "tiny", "--out", out, *arguments],
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(directory), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=150,
        check=False,
    )
    assert [path.name for path in out.parent.iterdir()] == ["gpu.json"]
    return process.returncode, read(out), process.stdout


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    return _run(tmp_path_factory.mktemp("gpu"), "--device", "cpu")


def test_every_section_runs_and_writes_its_figures(run: tuple[int, dict[str, Any], str]) -> None:
    status, report, printed = run
    assert set(report) == {"command", "commit", "hardware", "versions", "figures", "notes"}
    assert report["command"].startswith("bench/gpu/run.sh --scale tiny")
    for figure in report["figures"].values():
        assert set(figure) == {"value", "unit", "n", "ci95"}
        assert figure["n"] >= 1
    names = {"copy_tb_s", "matmul_tflops", "cross_flash_mask_h2_ms"}
    for network in ("wan1_3b", "wan14b"):
        derived = (
            "full_step_ms full_step_of_bound region10_ratio region30_ratio region50_ratio amplify_overhead "
            "full_plan_ms hit_plan_ms hit_plan_speedup eager_full_ms eager_amplified_ms"
        )
        names |= {f"{network}_{name}" for name in derived.split()}
        fact = report["notes"]["facts"][network]
        assert fact["tokens"] == 72
        assert report["figures"][f"{network}_hit_plan_speedup"]["value"] > 0
    if _KERNELS:
        names |= {f"amplified_attention_{dtype}_rel" for dtype in ("fp32", "fp16", "bf16")}
        assert report["figures"]["amplified_attention_fp32_rel"]["value"] < 1e-5
    assert names <= set(report["figures"])
    assert "wan14b_hit_plan_speedup" in printed
    assert status == (0 if _KERNELS else 1)


def test_omitted_parts_are_noted_with_reasons(run: tuple[int, dict[str, Any], str]) -> None:
    _, report, printed = run
    notes = report["notes"]
    assert set(notes) == set(NOTES)
    assert {key.partition(":")[0] for key in notes["failed"]} <= (set() if _KERNELS else {"kernels"})
    assert "diffusers" in notes["skipped"]["wan14b_diffusers"]
    assert "wan14b_compiled" in notes["skipped"]
    assert "No module named 'tensorrt'" in notes["refused"]["tensorrt"]
    assert any("viable backend" in words for words in notes["refused"]["cross_cudnn_h2_ms"])
    assert "skipped: wan14b_cuda_graph" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is available")
def test_failing_section_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    status, report, _ = _run(tmp_path, "--device", "cuda", "--sections", "ceilings", "tensorrt")
    assert status == 1
    assert set(report["notes"]["failed"]) == {"ceilings", "tensorrt"}
    assert "CUDA" in report["notes"]["failed"]["ceilings"]
    assert report["figures"] == {}


def test_figures_of_a_crashed_process_are_kept(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", "test")
    calls: list[tuple[str, float | None]] = []

    def command(name: str, path: Path, seconds: float, rate: float | None) -> list[str]:
        calls.append((name, rate))
        if name == "tensorrt":
            return [sys.executable, "-c", "raise SystemExit(3)"]
        figure = {"value": 7.0, "unit": "TFLOP/s", "n": 1, "ci95": None}
        part = {
            "hardware": {"gpu": "none"},
            "versions": {},
            "figures": {"matmul_tflops": figure},
            "notes": {},
        }
        write = f"open({str(path)!r}, 'w').write({json.dumps(part)!r})"
        return [sys.executable, "-c", f"{write}; import os; os.abort()"]

    run_all(["ceilings", "tensorrt"], report, Budget(60.0), command)
    assert calls == [("ceilings", None), ("tensorrt", 7.0)]
    saved = read(tmp_path / "gpu.json")
    assert saved["figures"]["matmul_tflops"]["value"] == 7.0
    assert saved["hardware"]["gpu"] == "none"
    assert saved["notes"]["failed"] == {
        "ceilings": "its process ended with status -6",
        "tensorrt": "its process ended with status 3",
    }


def test_sections_without_enough_time_are_skipped(tmp_path: Path) -> None:
    report = Report(tmp_path / "gpu.json", "test")
    run_all(list(SECTIONS), report, Budget(12.0), lambda *_: [])
    assert set(report.notes["skipped"]) == set(SECTIONS)
    assert report.notes["skipped"]["wan14b"] == "12 s left, needs at least 70 s"


def test_section_is_stopped_when_its_time_is_over() -> None:
    failure = run_one([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)
    assert failure is not None
    assert "stopped after" in failure


@pytest.mark.parametrize(("name", "pflop"), [("wan14b", 1.68), ("wan1_3b", 0.283)])
def test_step_flops_match_the_closed_formula(name: str, pflop: float) -> None:
    scale = SCALES["full"]
    config = scale.networks[name].config
    n, d, f, layers = 32_760, config.dim, config.ffn_dim, config.layers
    assert scale.tokens == n
    # Four matrices of self-attention, two of cross-attention, two of the feed-forward; both attentions.
    closed = layers * (12 * n * d * d + 4 * n * d * f + 4 * n * n * d + 4 * n * 512 * d)
    counted = step_flops(config, n, 512)
    assert counted == pytest.approx(closed, rel=1e-3)
    assert counted / 1e15 == pytest.approx(pflop, rel=0.01)
    assert step_flops(config, n, 512, 2) - counted == layers * 4 * n * 512 * d


def test_select_region_returns_its_share_of_the_tokens() -> None:
    at = select_region((21, 30, 52), 0.3, torch.device("cpu"))
    assert len(at) == round(0.3 * 32_760)
    assert bool((at[1:] > at[:-1]).all())
