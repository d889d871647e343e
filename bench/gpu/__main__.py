"""Measure one GPU: `bench/gpu/run.sh`, or `python -m bench.gpu`. docs/gpu.md says what the figures mean."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import results
from bench.gpu.report import NOTES, Budget, Report
from bench.gpu.sections import SECTIONS, function, run_all

# Of a section's seconds, what its process takes to begin and to end.
_AROUND = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 where no section failed."""
    given = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(given)
    report = Report(args.out, shlex.join(["bench/gpu/run.sh", *given]), args.commit)
    if args.section:
        return _run_section(args, report)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the section's process is ended too

    def command(name: str, path: Path, seconds: float, rate: float | None) -> list[str]:
        asked = ["--section", name, "--out", str(path), "--seconds", f"{seconds - _AROUND:.1f}"]
        asked += ["--device", args.device, "--scale", args.scale]
        asked += ["--matmul-tflops", str(rate)] if rate else []
        asked += ["--commit", args.commit] if args.commit else []
        asked += ["--compile"] if args.compile else []
        return [sys.executable, "-m", "bench.gpu", *asked]

    report.save()
    run_all(args.sections, report, Budget(args.seconds), command)
    print(*_table(report), sep="\n")
    return 1 if report.notes["failed"] else 0


def _run_section(args: argparse.Namespace, report: Report) -> int:
    """One section, in this process. What it raises is noted."""
    name = args.section
    try:
        import torch

        from bench.gpu.section import Bench
        from bench.gpu.shapes import SCALES

        device = torch.device(args.device)
        if device.type == "cuda":
            _describe(report, torch)
        compiling = args.compile or device.type == "cuda"
        budget = Budget(args.seconds)
        function(name)(Bench(report, device, SCALES[args.scale], budget, args.matmul_tflops, compiling))
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is the finding
        traceback.print_exc()
        report.note("failed", name, f"{type(error).__name__}: {error}")
        return 1
    report.save()
    return 0


def _describe(report: Report, torch: Any) -> None:
    torch.cuda.init()  # says in words why there is none
    about = torch.cuda.get_device_properties(0)
    report.hardware |= {
        "gpu": about.name,
        "gpu_memory_gib": round(about.total_memory / (1 << 30), 1),
        "compute_capability": f"{about.major}.{about.minor}",
        "multiprocessors": about.multi_processor_count,
    }
    report.versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def _table(report: Report) -> list[str]:
    lines = []
    for name, figure in report.figures.items():
        assert isinstance(figure, Mapping)
        lines.append(f"{name:48} {figure['value']:>10.4g} {figure['unit']}, n = {figure['n']}")
    for kind in NOTES[:2]:
        lines += [f"{kind}: {what}: {str(words)[:300]}" for what, words in report.notes[kind].items()]
    if refused := report.notes["refused"]:
        lines.append(f"refused, in words in {report.path}: {', '.join(refused)}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/gpu/run.sh", description=__doc__)
    parser.add_argument("--out", type=Path, default=results.RESULTS / "gpu.json", help="JSON file to write")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS), metavar="SECTION")
    parser.add_argument("--seconds", type=float, default=540.0, help="that all of it may take")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--scale", default="full", choices=("full", "tiny"), help="sizes of everything")
    parser.add_argument("--compile", action="store_true", help="torch.compile on a CPU too")
    parser.add_argument("--commit", help="what is measured, where this is no git checkout")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--matmul-tflops", type=float, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
