"""Verifies the reference against its formula, and the PyTorch operator against the reference."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from services.denoiser.kernels.check import example, relative_error
from services.denoiser.kernels.op import amplified_attention
from services.denoiser.kernels.reference import reference
from services.denoiser.kernels.signature import TENSORS
from tests.processes import ROOT

INF = float("inf")


def compute_formula(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
    """Computes the formula query by query and key by key, in float64."""
    key_bias, gained, gate, other_k, other_v, other_bias, strength = rest

    def attention(at: tuple[int, int, int], k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        b, h, i = at
        out, total = torch.zeros(q.shape[-1], dtype=torch.float64), 0.0
        for j in range(k.shape[2]):
            weight = (q[b, h, i] @ k[b, h, j] / q.shape[-1] ** 0.5 + bias[j]).exp()
            out, total = out + weight * v[b, h, j], total + weight
        return out / total if total else out

    out = torch.empty_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for i in range(q.shape[2]):
                at = (b, h, i)
                out[at] = attention(at, k, v, key_bias[b] + gate[b, i] * gained[b])
                if other_k.shape[2]:
                    other = attention(at, other_k, other_v, other_bias[b])
                    out[at] += strength[b] * gate[b, i] * (out[at] - other)
    return out


def to_double(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.double() for t in args)


@given(
    sizes=st.tuples(
        st.integers(1, 2), st.integers(1, 2), st.integers(0, 4), st.integers(0, 5), st.integers(0, 4)
    ),
    hidden=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_reference_equals_its_formula(
    sizes: tuple[int, int, int, int, int], hidden: float, seed: int
) -> None:
    args = to_double(example(*sizes, 8, torch.float32, seed=seed, hidden=hidden))
    assert relative_error(reference(*args), compute_formula(*args)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_reference_without_amplification_equals_plain_attention(dtype: torch.dtype) -> None:
    q, k, v, bias, gained, *rest = example(2, 3, 9, 7, 0, 32, dtype)
    work = torch.promote_types(dtype, torch.float32)
    plain = F.scaled_dot_product_attention(q.to(work), k.to(work), v.to(work), bias[:, None, None].to(work))
    out = reference(q, k, v, bias, torch.zeros_like(gained), *rest)
    assert out.dtype == dtype
    torch.testing.assert_close(out, plain.to(dtype))


def test_contrast_adds_the_difference_from_the_other_text() -> None:
    args = to_double(example(1, 2, 6, 5, 4, 16, torch.float32))
    q, k, v, bias, gained, gate, other_k, other_v, other_bias, strength = args
    mask = bias[:, None, None] + gate[:, None, :, None] * gained[:, None, None]
    own = F.scaled_dot_product_attention(q, k, v, mask)
    other = F.scaled_dot_product_attention(q, other_k, other_v, other_bias[:, None, None])
    weight = (strength[:, None] * gate)[:, None, :, None]
    torch.testing.assert_close(reference(*args), own + weight * (own - other))


def test_gate_of_zero_disables_amplification() -> None:
    args = list(example(1, 2, 6, 5, 4, 16, torch.float32))
    args[5] = torch.zeros_like(args[5])
    q, k, v, bias = args[:4]
    plain = F.scaled_dot_product_attention(q, k, v, bias[:, None, None])
    torch.testing.assert_close(reference(*args), plain)


@pytest.mark.parametrize("others", [0, 3])
@pytest.mark.parametrize("keys", [0, 4])
def test_query_with_all_keys_masked_returns_zero(keys: int, others: int) -> None:
    args = example(1, 2, 6, keys, others, 16, torch.float16, hidden=1.0)
    assert torch.equal(amplified_attention(*args), torch.zeros(1, 2, 6, 16, dtype=torch.float16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("queries", [0, 10])
def test_operator_passes_opcheck_and_equals_the_reference(dtype: torch.dtype, queries: int) -> None:
    args = example(2, 3, queries, 7, 4, 32, dtype)
    torch.library.opcheck(amplified_attention, args)
    assert torch.equal(amplified_attention(*args), reference(*args))


def test_fake_output_has_the_shape_and_layout_of_the_real_one() -> None:
    args = example(2, 3, 10, 7, 4, 32, torch.bfloat16)
    fake = amplified_attention(*(t.to("meta") for t in args))
    real = amplified_attention(*args)
    assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)
    assert real.transpose(1, 2).is_contiguous()


def test_operator_has_no_gradient() -> None:
    args = example(1, 1, 2, 2, 2, 32, torch.float32)
    out = amplified_attention(args[0].requires_grad_(), *args[1:])
    with pytest.raises(RuntimeError, match="autograd"):
        out.sum().backward()


@pytest.mark.parametrize("name", TENSORS[1:])
def test_operator_names_the_argument_that_does_not_match(name: str) -> None:
    args = list(example(2, 3, 10, 7, 4, 32, torch.float32))
    at = TENSORS.index(name)
    for wrong in (torch.cat([args[at], args[at]], dim=0), args[at].half()):
        with pytest.raises(ValueError, match=name):
            amplified_attention(*args[:at], wrong, *args[at + 1 :])


def test_only_the_kernel_module_imports_triton() -> None:
    modules = [f"services.denoiser.kernels.{m}" for m in ("op", "aot", "check", "driver", "signature")]
    code = f"import sys, importlib; sys.modules['triton'] = None; [*map(importlib.import_module, {modules})]"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
