"""Verifies amplified attention in ONNX: one node of the domain `chorus`, and the function that defines it."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from services.denoiser.kernels.check import example, relative_error
from services.denoiser.kernels.op import amplified_attention

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxscript", reason="onnxscript is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
onnx_domain = pytest.importorskip("services.denoiser.backends.tensorrt.onnx_domain")


class Doubled(nn.Module):
    def forward(self, *args: Tensor) -> Tensor:
        out: Tensor = 2 * amplified_attention(*args)
        return out


@pytest.fixture(scope="module", params=[torch.float32, torch.float16], ids=["fp32", "fp16"])
def model(request: pytest.FixtureRequest) -> Any:
    n, keys, others = (torch.export.Dim(name) for name in ("n", "l", "m"))
    sizes = (
        {2: n},
        {2: keys},
        {2: keys},
        {1: keys},
        {1: keys},
        {1: n},
        {2: others},
        {2: others},
        {1: others},
        None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Doubled().eval(),
            example(2, 2, 10, 7, 5, 32, request.param),
            dynamo=True,
            opset_version=18,
            dynamic_shapes=(sizes,),
            custom_translation_table=onnx_domain.build_translation_table(),
            verbose=False,
        )
    assert program is not None
    return request.param, program.model_proto


def test_operator_is_exported_as_one_node_with_plugin_attributes(model: Any) -> None:
    _, proto = model
    (node,) = [n for n in proto.graph.node if n.domain]
    assert (node.domain, node.op_type, len(node.input)) == ("chorus", "AmplifiedAttention", 10)
    assert {a.name: a.s for a in node.attribute} == {"plugin_namespace": b"chorus", "plugin_version": b"1"}
    assert not proto.functions


@pytest.mark.parametrize("hidden", [0.2, 1.0])
def test_function_computes_the_same_as_the_operator(model: Any, hidden: float) -> None:
    dtype, proto = model
    complete = onnx_domain.add_function(proto)
    onnx.checker.check_model(complete)
    session = onnxruntime.InferenceSession(complete.SerializeToString(), providers=["CPUExecutionProvider"])
    for sizes in ((10, 7, 5), (33, 64, 20), (3, 1, 0), (0, 3, 4), (5, 0, 4)):
        args = example(2, 2, *sizes, 32, dtype, seed=3, hidden=hidden)
        feed = {i.name: t.contiguous().numpy() for i, t in zip(session.get_inputs(), args, strict=True)}
        got = torch.from_numpy(session.run(None, feed)[0])
        want = 2 * amplified_attention(*args)
        assert got.shape == want.shape
        assert relative_error(got, want) <= (1e-5 if dtype == torch.float32 else 1e-3), sizes


def test_function_is_parsed_by_tensorrt(model: Any) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
    _, proto = model
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(onnx_domain.add_function(proto).SerializeToString()), parser.get_error(0)
    assert tuple(network.get_output(0).shape) == (2, 2, -1, 32)
