"""Amplified attention in ONNX: a node of the domain `chorus`, and its definition in standard operators.

With `build_translation_table()`, `torch.onnx.export` writes `chorus::amplified_attention` as one node,
`AmplifiedAttention` of the domain `chorus`, with the attributes by which TensorRT's parser finds the plugin.
`add_function` adds the node's definition as a model-local function: any runtime can then run the model, and
TensorRT's parser uses the function instead of the plugin.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, parser
from onnx.defs import OpSchema
from onnxscript import values

from services.denoiser.backends.tensorrt.plugin import NAME, NAMESPACE, VERSION
from services.denoiser.kernels.op import NAME as OPERATOR
from services.denoiser.kernels.signature import TENSORS, VALUES

_ATTRIBUTES = {"plugin_namespace": NAMESPACE, "plugin_version": VERSION}
_DOMAIN_VERSION = 1
_OPSET = 18  # of the standard operators in the function

# An additional key with value 0 and logit -1e30 precedes the first key. It takes all the weight if every
# other key is masked; otherwise its weight is 0, because the logits of unmasked keys are larger.
_FUNCTION = """
<opset_import: ["": {opset}], domain: "{domain}">
{name} <{attributes}> ({inputs}) => (out)
{{
    zero = Constant<value_ints: ints = [0]>()
    one = Constant<value_ints: ints = [1]>()
    two = Constant<value_ints: ints = [2]>()
    three = Constant<value_ints: ints = [3]>()
    last = Constant<value_ints: ints = [9223372036854775807]>()
    one_two = Concat<axis: int = 0>(one, two)
    one_three = Concat<axis: int = 0>(one, three)
    q_rows = Shape<start: int = 0, end: int = 3>(q)
    hidden_shape = Concat<axis: int = 0>(q_rows, one)
    hidden = ConstantOfShape<value: tensor = float[1] {{-1e30}}>(hidden_shape)
    head_dim = Shape<start: int = 3, end: int = 4>(q)
    head_dim_float = Cast<to: int = {float}>(head_dim)
    root = Sqrt(head_dim_float)
    q_float = Cast<to: int = {float}>(q)
    query = Div(q_float, root)
    row_gate = Unsqueeze(gate, one_three)
    key_gain = Unsqueeze(gained, one_two)
    gain = Mul(row_gate, key_gain)
{attend}{attend_other}
    difference = Sub(a_out, b_out)
    row_strength = Unsqueeze(strength, one)
    weight = Mul(row_strength, gate)
    weights = Unsqueeze(weight, one_three)
    others = Shape<start: int = 2, end: int = 3>(other_k)
    any_other = Greater(others, zero)
    any_other_float = Cast<to: int = {float}>(any_other)
    by = Mul(weights, any_other_float)
    change = Mul(by, difference)
    changed = Add(a_out, change)
    out = CastLike(changed, q)
}}
"""

_ATTEND = """
    {of}_keys = Cast<to: int = {float}>({k})
    {of}_turned = Transpose<perm: ints = [0, 1, 3, 2]>({of}_keys)
    {of}_scores = MatMul(query, {of}_turned)
    {of}_bias = Unsqueeze({bias}, one_two)
    {of}_biased = Add({of}_scores, {of}_bias)
    {of}_logits = {logits}
    {of}_all = Concat<axis: int = 3>(hidden, {of}_logits)
    {of}_softmax = Softmax<axis: int = -1>({of}_all)
    {of}_weights = Slice({of}_softmax, one, last, three)
    {of}_values = Cast<to: int = {float}>({v})
    {of}_out = MatMul({of}_weights, {of}_values)
"""


def build_translation_table() -> dict[Any, Callable[..., Any]]:
    """Builds the `custom_translation_table` for `torch.onnx.export(..., dynamo=True)`."""
    node = values.Op(values.Opset(NAMESPACE, _DOMAIN_VERSION), NAME, _build_schema())

    def translate(*inputs: Any) -> Any:
        return node(*inputs, **_ATTRIBUTES)

    namespace, name = OPERATOR.split("::")
    return {getattr(getattr(torch.ops, namespace), name).default: translate}


def add_function(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of a model with the node's definition as a function, computed in float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.functions.append(build_function())
    return copy


def build_function() -> onnx.FunctionProto:
    """Builds the definition of the node in standard operators."""
    number = {"float": int(TensorProto.FLOAT)}
    attend = _ATTEND.format(of="a", k="k", v="v", bias="key_bias", logits="Add(a_biased, gain)", **number)
    attend_other = _ATTEND.format(
        of="b", k="other_k", v="other_v", bias="other_bias", logits="Identity(b_biased)", **number
    )
    function = parser.parse_function(
        _FUNCTION.format(
            opset=_OPSET,
            domain=NAMESPACE,
            name=NAME,
            attributes=", ".join(_ATTRIBUTES),
            inputs=", ".join(TENSORS),
            attend=attend,
            attend_other=attend_other,
            **number,
        )
    )
    assert isinstance(function, onnx.FunctionProto)
    return function


def _build_schema() -> OpSchema:
    parameters = [OpSchema.FormalParameter(n, "T" if n in VALUES else "tensor(float)") for n in TENSORS]
    return OpSchema(
        NAME,
        NAMESPACE,
        _DOMAIN_VERSION,
        inputs=parameters,
        outputs=[OpSchema.FormalParameter("out", "T")],
        type_constraints=[("T", ["tensor(float16)", "tensor(bfloat16)", "tensor(float)"], "type of q")],
        attributes=[
            OpSchema.Attribute(name, helper.make_attribute(name, value))
            for name, value in _ATTRIBUTES.items()
        ],
    )
