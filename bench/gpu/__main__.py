"""Measures one GPU: `bench/gpu/run.sh`, or `python -m bench.gpu`. docs/gpu.md explains the figures."""

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
from bench.gpu.sections import SECTIONS, load_section, run_all

# Share of a section's time that its process needs to start and to stop, in seconds.
_PROCESS_SECONDS = 5.0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark. Returns 0 if no section failed."""
    arguments = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(arguments)
    report = Report(args.out, shlex.join(["bench/gpu/run.sh", *arguments]), args.commit)
    if args.section:
        return _run_section(args, report)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the section's process is terminated too

    def command(name: str, path: Path, seconds: float, rate: float | None) -> list[str]:
        options = ["--section", name, "--out", str(path), "--seconds", f"{seconds - _PROCESS_SECONDS:.1f}"]
        options += ["--device", args.device, "--scale", args.scale]
        options += ["--matmul-tflops", str(rate)] if rate else []
        options += ["--commit", args.commit] if args.commit else []
        options += ["--compile"] if args.compile else []
        return [sys.executable, "-m", "bench.gpu", *options]

    report.save()
    run_all(args.sections, report, Budget(args.seconds), command)
    print(*_table(report), sep="\n")
    return 1 if report.notes["failed"] else 0


def _run_section(args: argparse.Namespace, report: Report) -> int:
    """Runs one section in this process and records any exception. Returns the exit status."""
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
        load_section(name)(Bench(report, device, SCALES[args.scale], budget, args.matmul_tflops, compiling))
    except Exception as error:  # noqa: BLE001 -- any error is a result of the benchmark
        traceback.print_exc()
        report.note("failed", name, f"{type(error).__name__}: {error}")
        return 1
    report.save()
    return 0


def _describe(report: Report, torch: Any) -> None:
    torch.cuda.init()  # raises an error with the reason if no device is available
    properties = torch.cuda.get_device_properties(0)
    report.hardware |= {
        "gpu": properties.name,
        "gpu_memory_gib": round(properties.total_memory / (1 << 30), 1),
        "compute_capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
    }
    report.versions |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}


def _table(report: Report) -> list[str]:
    lines = []
    for name, figure in report.figures.items():
        assert isinstance(figure, Mapping)
        lines.append(f"{name:48} {figure['value']:>10.4g} {figure['unit']}, n = {figure['n']}")
    for kind in NOTES[:2]:
        lines += [f"{kind}: {name}: {str(detail)[:300]}" for name, detail in report.notes[kind].items()]
    if refused := report.notes["refused"]:
        lines.append(f"refused, reasons in {report.path}: {', '.join(refused)}")
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/gpu/run.sh", description=__doc__)
    parser.add_argument("--out", type=Path, default=results.RESULTS / "gpu.json", help="JSON file to write")
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="SECTION",
        help=f"sections to run, from {', '.join(SECTIONS)} (default: all)",
    )
    parser.add_argument("--seconds", type=float, default=540.0, help="upper bound on the total run time")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="device to measure")
    parser.add_argument(
        "--scale", default="full", choices=("full", "tiny"), help="sizes of networks and inputs"
    )
    parser.add_argument("--compile", action="store_true", help="measure torch.compile on a CPU as well")
    parser.add_argument("--commit", help="commit to record, if this is not a git checkout")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    parser.add_argument("--matmul-tflops", type=float, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
