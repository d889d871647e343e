"""Section "kernels": accuracy and speed of the amplified attention kernel, and equality of its PTX form."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.section import Bench
from bench.gpu.timing import measure_milliseconds, relative_error
from bench.results import Figure, median, ratio, single
from services.denoiser.backends.eager import fast_attention
from services.denoiser.network.text import LayerAmplification

# Upper bound on the relative norm of the error by type; inputs are equal, so only rounding contributes.
TOLERANCES: Final = {torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
_NAMES: Final = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
# Batch, heads, queries, keys, keys of the other text, channels per head; share of keys that are padding.
_CASES: Final = (
    ((1, 2, 257, 77, 0, 32), 0.2),
    ((2, 3, 130, 65, 130, 64), 0.2),
    ((1, 2, 300, 512, 77, 96), 0.2),
    ((1, 4, 1000, 512, 512, 128), 0.2),
    ((2, 2, 65, 33, 40, 128), 1.0),  # all keys masked
    ((1, 2, 0, 77, 77, 64), 0.2),
    ((1, 1, 1, 1, 1, 40), 0.0),
)
_REPEATS: Final = 20
_AOT_WIDTH: Final = 128  # channels per head
_SDPA: Final = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


@torch.inference_mode()
def run(bench: Bench) -> None:
    """Runs all parts and records failures. Raises RuntimeError at the end if a part failed."""
    parts: dict[str, Callable[[], None]] = {"numerics": partial(_measure_errors, bench)}
    for heads, width in bench.scale.cross:
        parts[f"attentions of torch, {heads} heads"] = partial(_measure_sdpa, bench, heads, width)
        parts[f"speed, {heads} heads"] = partial(_measure_speed, bench, heads, width)
    parts["compiled form"] = partial(_compare_compiled_form, bench)
    failed = []
    for name, part in parts.items():
        try:
            part()
        except Exception as error:  # noqa: BLE001 -- any error is a result of the benchmark
            bench.report.note("failed", f"kernels: {name}", f"{type(error).__name__}: {error}")
            failed.append(name)
    if failed:
        raise RuntimeError(f"failed: {', '.join(failed)}")


def _measure_errors(bench: Bench) -> None:
    """Measures `amplified_attention_*_rel`, the largest over the cases.

    Raises ValueError if one exceeds its tolerance.
    """
    from services.denoiser.kernels.check import example
    from services.denoiser.kernels.op import amplified_attention
    from services.denoiser.kernels.reference import reference

    failures = []
    for dtype, tolerance in TOLERANCES.items():
        errors = []
        for seed, (case, hidden) in enumerate(_CASES):
            args = example(*case, dtype, seed=seed, hidden=hidden)
            want = reference(*(arg.double() for arg in args))
            batch, heads, queries, _, _, width = case
            # The output reuses this memory, so that values the operator does not write remain NaN.
            torch.full((batch, queries, heads, width), torch.nan, dtype=dtype, device=bench.device)
            got = amplified_attention(*(arg.to(bench.device) for arg in args))
            errors.append(relative_error(got.cpu(), want))
            if not errors[-1] <= tolerance:
                failures.append(
                    f"{_NAMES[dtype]}, {case}: relative error {errors[-1]:.2g}, more than {tolerance:g}"
                )
        bench.report.figure(
            f"amplified_attention_{_NAMES[dtype]}_rel", Figure(max(errors), "relative", len(errors))
        )
    if failures:
        raise ValueError("; ".join(failures))


def _random_tensors(bench: Bench, heads: int, width: int) -> tuple[Tensor, ...]:
    """Returns q and the keys and values of two texts.

    They have the network's memory layout: views of [1, rows, heads, width].
    """
    rows = (bench.scale.tokens, *4 * (bench.scale.keys,))
    return tuple(
        torch.randn(1, n, heads, width, device=bench.device).to(bench.dtype).transpose(1, 2) for n in rows
    )


def _measure_sdpa(bench: Bench, heads: int, width: int) -> None:
    """Times torch's attentions without a mask, with a mask per key, and with a mask per query and key."""
    q, k, v, _, _ = _random_tensors(bench, heads, width)
    row = torch.randn(1, 1, 1, bench.scale.keys, device=bench.device, dtype=bench.dtype)
    gate = torch.rand(1, 1, bench.scale.tokens, 1, device=bench.device, dtype=bench.dtype)
    masks: dict[str, Callable[[], Tensor | None]] = {
        "": lambda: None,
        "_mask": lambda: row,
        "_gated_mask": lambda: gate * row,  # computed in every step, as for amplification by region
    }
    for backend, kind in _SDPA.items():
        for suffix, mask in masks.items():
            name = f"cross_{backend}{suffix}_h{heads}_ms"

            def step(kind: SDPBackend = kind, mask: Callable[[], Tensor | None] = mask) -> Tensor:
                with sdpa_kernel(kind):
                    return F.scaled_dot_product_attention(q, k, v, mask())

            with warnings.catch_warnings(record=True) as caught:  # warnings contain the reason of a rejection
                warnings.simplefilter("always")
                try:
                    times = measure_milliseconds(step, _REPEATS, bench.device, warmups=2)
                except RuntimeError as error:
                    reasons = [str(error), *dict.fromkeys(str(w.message).strip() for w in caught)]
                    bench.report.note("refused", name, reasons)
                    continue
            bench.report.figure(name, median(times, "ms"))


def _measure_speed(bench: Bench, heads: int, width: int) -> None:
    """Times the kernel and torch's operations for the same amplification."""
    from services.denoiser.kernels.op import amplified_attention

    q, k, v, other_k, other_v = _random_tensors(bench, heads, width)
    tokens, keys, device = bench.scale.tokens, bench.scale.keys, bench.device
    row, zeros = torch.randn(keys, device=device), torch.zeros(1, keys, device=device)
    gate = torch.rand(tokens, device=device)
    strength = torch.full((1,), 0.5, device=device)
    none = k[:, :, :0], v[:, :, :0], zeros[:, :0]
    contrast = LayerAmplification(other=(other_k, other_v), strength=0.5, gate=gate)
    bias = LayerAmplification(bias=row, gate=gate)

    def eager(rule: LayerAmplification) -> Tensor:
        with fast_attention(device):
            return rule(q, k, v, None)

    def kernel(gained: Tensor, other: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        out: Tensor = amplified_attention(q, k, v, zeros, gained, gate[None], *other, strength)
        return out

    forms: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "bias": (lambda: kernel(row[None], none), lambda: eager(bias)),
        "contrast": (lambda: kernel(zeros, (other_k, other_v, zeros)), lambda: eager(contrast)),
    }
    for form, (with_kernel, with_torch) in forms.items():
        error = relative_error(with_kernel(), with_torch())
        bench.report.figure(f"cross_{form}_h{heads}_kernel_to_torch_rel", single(error, "relative"))
        kernel_ms = measure_milliseconds(with_kernel, _REPEATS, device, warmups=2)
        torch_ms = measure_milliseconds(with_torch, _REPEATS, device, warmups=2)
        bench.report.figure(f"cross_{form}_kernel_h{heads}_ms", median(kernel_ms, "ms"))
        bench.report.figure(f"cross_{form}_torch_h{heads}_ms", median(torch_ms, "ms"))
        bench.report.figure(f"cross_{form}_speedup_h{heads}", ratio(torch_ms, kernel_ms))


def _compare_compiled_form(bench: Bench) -> None:
    """Measures `amplified_attention_aot_differing`.

    It counts the values that differ between the kernel launched by Triton and its PTX, compiled ahead of time
    and launched through the driver.
    """
    if bench.device.type != "cuda":
        bench.skip("amplified_attention_aot", "needs a CUDA device")
        return
    from services.denoiser.kernels import aot
    from services.denoiser.kernels.amplified_attention import launch
    from services.denoiser.kernels.check import example
    from services.denoiser.kernels.driver import Driver
    from services.denoiser.kernels.signature import compute_contiguous_sizes

    device, width = bench.device, _AOT_WIDTH
    arch, driver = aot.select_arch(*torch.cuda.get_device_capability(device)), Driver()
    differing, total = 0, 0
    case = (2, 3, 1000, 77, 130, width)
    with tempfile.TemporaryDirectory() as folder:
        manifest = aot.build(Path(folder), archs=[arch], head_dims=[width], progress=lambda _: None)
        for (dtype, name), tactic in product(
            ((torch.float16, "fp16"), (torch.bfloat16, "bf16")), aot.TACTICS
        ):
            args = [arg.to(device).contiguous() for arg in example(*case, dtype)]
            want, got = torch.full_like(args[0], torch.nan), torch.full_like(args[0], torch.nan)
            launch(args, want, tactic)
            kernel = aot.load(manifest, arch, name, width, tactic)
            values = [*(arg.data_ptr() for arg in args), *compute_contiguous_sizes(*case[1:]), got.data_ptr()]
            stream = torch.cuda.current_stream(device).cuda_stream
            driver.launch(kernel, kernel.grid(*case[:3]), values, stream)
            torch.cuda.synchronize(device)
            if got.isnan().any():
                raise ValueError(f"{kernel.file}: launched by the driver, it does not write all values")
            unequal = int((got.view(torch.int16) != want.view(torch.int16)).sum())
            if unequal:
                detail = f"{unequal} values differ; relative error {relative_error(got, want):.2g}"
                bench.report.note("facts", kernel.file, detail)
            differing, total = differing + unequal, total + got.numel()
    bench.report.figure("amplified_attention_aot_differing", Figure(differing, "values", total))
