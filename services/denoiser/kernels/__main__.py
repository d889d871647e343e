"""Compiles the kernel ahead of time. Needs Triton and no GPU.

python -m services.denoiser.kernels --out DIR
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from services.denoiser.kernels import aot


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.denoiser.kernels", description=__doc__)
    parser.add_argument(
        "--out", type=Path, required=True, help="output folder for manifest.json and kernels/"
    )
    parser.add_argument(
        "--arch",
        type=int,
        nargs="+",
        choices=aot.ARCHS,
        default=aot.ARCHS,
        help="target architectures, 10 times the compute capability (default: all)",
    )
    parser.add_argument(
        "--dtype",
        nargs="+",
        choices=aot.DTYPES,
        default=aot.DTYPES,
        help="types of queries, keys, values and output (default: all)",
    )
    parser.add_argument(
        "--head-dim",
        type=int,
        nargs="+",
        choices=aot.HEAD_DIMS,
        default=aot.HEAD_DIMS,
        help="channels of one attention head (default: all)",
    )
    args = parser.parse_args()
    begin = time.monotonic()
    manifest = aot.build(
        args.out,
        archs=args.arch,
        dtypes=args.dtype,
        head_dims=args.head_dim,
        progress=lambda line: print(line, flush=True),
    )
    print(f"{manifest} in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
