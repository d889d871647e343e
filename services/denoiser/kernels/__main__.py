"""Compile the kernel ahead of time: `python -m services.denoiser.kernels --out DIR`. Needs Triton, no GPU."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from services.denoiser.kernels import aot


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m services.denoiser.kernels", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of manifest.json and kernels/")
    parser.add_argument("--arch", type=int, nargs="+", choices=aot.ARCHS, default=aot.ARCHS)
    parser.add_argument("--dtype", nargs="+", choices=aot.DTYPES, default=aot.DTYPES)
    parser.add_argument("--head-dim", type=int, nargs="+", choices=aot.HEAD_DIMS, default=aot.HEAD_DIMS)
    chosen = parser.parse_args()
    begin = time.monotonic()
    manifest = aot.build(
        chosen.out,
        archs=chosen.arch,
        dtypes=chosen.dtype,
        head_dims=chosen.head_dim,
        progress=lambda line: print(line, flush=True),
    )
    print(f"{manifest} in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
