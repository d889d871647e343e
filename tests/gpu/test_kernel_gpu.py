"""Verifies the kernel on a GPU: against the reference in float64, and its PTX against Triton's launch."""

from pathlib import Path

import pytest
import torch

from services.denoiser.kernels import aot
from services.denoiser.kernels.check import example, measure_kernel_error, relative_error
from services.denoiser.kernels.driver import Driver
from services.denoiser.kernels.op import amplified_attention
from services.denoiser.kernels.reference import reference
from services.denoiser.kernels.signature import compute_contiguous_sizes

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is available"),
]
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
SHORT = {torch.float16: "fp16", torch.bfloat16: "bf16"}


@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [
        (1, 12, 4096, 512, 512, 128),
        (2, 3, 130, 77, 0, 64),
        (1, 2, 65, 300, 31, 40),
        (2, 2, 33, 1, 7, 96),
        (1, 2, 0, 4, 4, 32),
    ],
    ids=str,
)
@pytest.mark.parametrize("hidden", [0.3, 1.0])
def test_operator_computes_the_reference(
    dtype: torch.dtype, sizes: tuple[int, int, int, int, int, int], hidden: float
) -> None:
    args = [t.cuda() for t in example(*sizes, dtype, hidden=hidden)]
    want = reference(*(t.double() for t in args))
    got = amplified_attention(*args)
    assert (got.dtype, got.device) == (dtype, args[0].device)
    assert relative_error(got, want) <= LIMITS[dtype]


@pytest.mark.parametrize("tactic", ["small", "fast"])
@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_every_tactic_computes_the_reference(dtype: torch.dtype, tactic: str) -> None:
    args = tuple(t.cuda() for t in example(2, 3, 700, 512, 77, 128, dtype))
    assert measure_kernel_error(args, tactic) <= LIMITS[dtype]


def test_operator_passes_opcheck() -> None:
    torch.library.opcheck(
        amplified_attention, tuple(t.cuda() for t in example(2, 3, 70, 7, 4, 64, torch.bfloat16))
    )


@pytest.mark.parametrize("tactic", aot.TACTICS)
@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("others", [0, 77])
def test_compiled_kernel_equals_the_launched_one_bit_for_bit(
    dtype: torch.dtype, tactic: str, others: int, tmp_path: Path
) -> None:
    from services.denoiser.kernels.amplified_attention import launch

    arch = aot.select_arch(*torch.cuda.get_device_capability())
    manifest = aot.build(tmp_path, archs=[arch], dtypes=[SHORT[dtype]], head_dims=[128], tactics=[tactic])
    kernel = aot.load(manifest, arch, SHORT[dtype], 128, tactic)
    args = [t.cuda().contiguous() for t in example(2, 3, 700, 512, others, 128, dtype)]
    want, got = (torch.full_like(args[0], torch.nan) for _ in range(2))
    launch(args, want, tactic)
    Driver().launch(
        kernel,
        kernel.grid(2, 3, 700),
        [*(t.data_ptr() for t in args), *compute_contiguous_sizes(3, 700, 512, others, 128), got.data_ptr()],
        torch.cuda.current_stream().cuda_stream,
    )
    torch.cuda.synchronize()
    assert torch.equal(got, want)
