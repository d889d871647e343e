"""Verifies properties of the Triton kernel in Triton's interpreter; run by test_interpreter.py.

They are not collected by default. Triton selects its interpreter at import, so these tests need a separate
process with TRITON_INTERPRET=1.
"""

import os

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import example as also
from hypothesis import strategies as st

from services.denoiser.kernels.amplified_attention import TACTICS, launch
from services.denoiser.kernels.check import example, measure_kernel_error

assert os.environ.get("TRITON_INTERPRET") == "1"

# A failure is reported without shrinking, which takes minutes in the interpreter.
PHASES = (Phase.explicit, Phase.generate)
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3}


@given(
    batch=st.integers(1, 2),
    heads=st.integers(1, 2),
    queries=st.integers(0, 135),
    keys=st.integers(0, 135),
    others=st.sampled_from([0, 0, 1, 31, 77, 130]),
    head_dim=st.sampled_from([32, 40, 64, 80, 96, 128]),
    dtype=st.sampled_from(sorted(LIMITS, key=str)),
    tactic=st.sampled_from(sorted(TACTICS)),
    hidden=st.sampled_from([0.0, 0.3, 1.0]),
    seed=st.integers(0, 1000),
)
@also(1, 1, 0, 4, 4, 64, torch.float16, "fast", 0.0, 0)
@also(2, 2, 65, 64, 0, 40, torch.float32, "small", 0.3, 0)
@also(1, 2, 3, 0, 5, 96, torch.float32, "small", 0.0, 0)
@also(1, 2, 3, 70, 65, 128, torch.float16, "fast", 1.0, 0)
@settings(max_examples=30, deadline=None, derandomize=True, phases=PHASES)
def test_kernel_computes_the_reference(
    batch: int,
    heads: int,
    queries: int,
    keys: int,
    others: int,
    head_dim: int,
    dtype: torch.dtype,
    tactic: str,
    hidden: float,
    seed: int,
) -> None:
    args = example(batch, heads, queries, keys, others, head_dim, dtype, seed=seed, hidden=hidden)
    assert measure_kernel_error(args, tactic) <= LIMITS[dtype]


@given(seed=st.integers(0, 1000), which=st.integers(0, 4))
@settings(max_examples=5, deadline=None, derandomize=True, phases=PHASES)
def test_kernel_accepts_any_memory_layout(seed: int, which: int) -> None:
    args = list(example(2, 2, 20, 33, 17, 40, torch.float32, seed=seed))
    at = (0, 1, 2, 6, 7)[which]
    args[at] = args[at].contiguous()  # the strides of k and v then differ
    args[5] = args[5].expand(3, 2, 20)[0]
    assert measure_kernel_error(tuple(args)) <= LIMITS[torch.float32]
    args[at] = args[at].mT.contiguous().mT  # channels are no longer contiguous
    assert measure_kernel_error(tuple(args)) <= LIMITS[torch.float32]


def test_gate_of_zero_disables_amplification_exactly() -> None:
    args = list(example(1, 2, 30, 33, 17, 64, torch.float32))
    args[5] = torch.zeros_like(args[5])
    amplified, plain = torch.empty(1, 2, 30, 64), torch.empty(1, 2, 30, 64)
    launch(args, amplified)
    args[6:9] = [t[..., :0, :] if t.ndim == 4 else t[:, :0] for t in args[6:9]]
    args[4] = torch.zeros_like(args[4])
    launch(args, plain)
    assert torch.equal(amplified, plain)


def test_kernel_does_not_overflow_on_large_logits() -> None:
    args = list(example(1, 1, 8, 40, 8, 32, torch.float32))
    args[0] = args[0] * 60
    args[3] = args[3] + 200
    assert measure_kernel_error(tuple(args)) <= 1e-4  # logits of hundreds have an ulp of 1e-5


def test_launch_rejects_unsupported_head_sizes() -> None:
    args = example(1, 1, 2, 2, 2, 144, torch.float32)
    with pytest.raises(ValueError, match="128 channels"):
        launch(args, torch.empty(1, 1, 2, 144))
