"""Amplified attention inside TensorRT engines: the PTX of `kernels/aot.py` as a plugin, in one of two forms.

- Quickly deployable, where there is `tensorrt.plugin`: TensorRT keeps PTX and launch parameters in the engine
  and launches without Python. Source: NVIDIA's documentation of `tensorrt.plugin.aot_impl`.
- A class, where there is not: an `IPluginV3` that keeps the PTX among its serialised fields and launches it
  through the CUDA driver. The process that runs such an engine has to call `register` first.

Both carry the name, namespace and version under which the ONNX parser looks up a node of
`onnx_domain.py`. Inputs are those of `kernels/reference.py`, in order, contiguous, float16 or bfloat16 with
float32 for the rest; at least one query, and a head size that is known when the engine is built.
"""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from services.denoiser.kernels.aot import TACTICS, Kernel, KernelError, load
from services.denoiser.kernels.driver import Driver
from services.denoiser.kernels.signature import TENSORS, VALUES, contiguous_sizes

NAME, NAMESPACE, VERSION = "AmplifiedAttention", "chorus", "1"
_FIELD = "kernels"  # of the class: JSON of its kernels, with their PTX
_ORDER = (*TENSORS, "out")
_keep: list[Any] = []  # TensorRT does not: a creator has to live as long as its registry


def register(trt: Any, manifest: Path | None = None, arch: int | None = None) -> str:
    """Make the plugin known to TensorRT; the form that was registered, "quick" or "class".

    Args:
        trt: the module: `tensorrt`, `tensorrt_rtx` or `tensorrt_lean`.
        manifest: of the compiled kernels. None is enough to run engines, not to build them.
        arch: that of the GPU the engine is built for, as `kernels.aot.arch_for` tells.

    Raises KernelError where one of the name is registered already, or the kernels cannot be read.
    """
    if trt.get_plugin_registry().get_creator(NAME, VERSION, NAMESPACE) is not None:
        raise KernelError(f"{NAMESPACE}::{NAME} is registered already")
    quick = quick_module(trt)
    if quick is not None and manifest is not None and arch is not None:
        register_quick(trt, quick, manifest, arch)
        return "quick"
    register_class(trt, manifest, arch)
    return "class"


def ensure_registered(trt: Any, manifest: Path | None = None, arch: int | None = None) -> None:
    """`register`, unless this process did before. Raises KernelError."""
    if trt.get_plugin_registry().get_creator(NAME, VERSION, NAMESPACE) is None:
        register(trt, manifest, arch)


def quick_module(trt: Any) -> Any | None:
    """TensorRT's module of quickly deployable plugins, where there is one that takes compiled kernels."""
    try:
        module = importlib.import_module(f"{trt.__name__}.plugin")
    except ImportError:
        return None
    return module if hasattr(module, "aot_impl") and hasattr(module, "KernelLaunchParams") else None


def register_quick(
    trt: Any, quick: Any, manifest: Path, arch: int, tactics: Sequence[str] = ("small",)
) -> None:
    """Register the quickly deployable form; `quick` is `tensorrt.plugin`.

    `tactics` are by default those that need no more shared memory than every kernel gets: nothing documented
    says that TensorRT asks the driver for more.
    """
    desc, identity = quick.TensorDesc, f"{NAMESPACE}::{NAME}"

    def describe(*inputs: Any) -> Any:
        return inputs[0].like()

    def autotune(*args: Any) -> Any:
        head_dim = args[0].shape[3]
        found = [dtype for dtype in ("fp16", "bf16") if _there(manifest, arch, dtype, head_dim, tactics)]
        if not found:
            raise KernelError(f"{manifest}: has no kernel for sm_{arch} and head size {head_dim}")
        types = {"values": "|".join(dtype.upper() for dtype in found), "others": "FP32"}
        io = ", ".join(types["values" if name in VALUES else "others"] for name in _ORDER)
        return [quick.AutoTuneCombination(io, "LINEAR", list(range(1, len(tactics) + 1)))]

    def compiled(*args: Any) -> Any:
        q, k, other_k, tactic = args[0], args[1], args[TENSORS.index("other_k")], args[-1]
        batch, heads, queries, head_dim = q.shape_expr
        if not head_dim.is_constant:
            raise KernelError("q: the head size has to be known when the engine is built")
        kernel = load(manifest, arch, _dtype(trt, q.dtype), head_dim.constant_value(), tactics[tactic - 1])
        launch = quick.KernelLaunchParams()
        launch.grid_x, launch.grid_y = quick.cdiv(queries, kernel.block_m), batch * heads
        launch.block_x, launch.shared_mem = 32 * kernel.num_warps, kernel.shared
        sizes = contiguous_sizes(heads, queries, k.shape_expr[2], other_k.shape_expr[2], head_dim)
        extra = quick.SymIntExprs.from_tuple([quick.SymInt32(size) for size in sizes])
        return kernel.name.encode(), kernel.ptx.encode(), launch, extra

    returned = tuple[str | bytes, str | bytes, quick.KernelLaunchParams, quick.SymIntExprs]
    quick.register(identity)(_signed(describe, dict.fromkeys(TENSORS, desc), desc))
    quick.autotune(identity)(_signed(autotune, dict.fromkeys((*TENSORS, "outputs"))))
    quick.aot_impl(identity)(_signed(compiled, dict.fromkeys((*TENSORS, "outputs", "tactic")), returned))


def register_class(trt: Any, manifest: Path | None = None, arch: int | None = None) -> Any:
    """Register the class form; its creator. Raises KernelError where TensorRT refuses it."""
    creator = creator_class(trt)(manifest, arch)
    if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
        raise KernelError(f"{trt.__name__} refuses to register {NAMESPACE}::{NAME}")
    _keep.append(creator)
    return creator


def creator_class(trt: Any) -> Any:
    """The creator's class, whose bases come from the module `trt`."""

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[misc]
        """One node. `kernels` are those of its type and head size, in the order of their tactics, from 1."""

        def __init__(
            self,
            find: Callable[[str, int], list[Kernel]],
            kernels: list[Kernel],
            tactic: int = 1,
            driver: Driver | None = None,
        ) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.plugin_name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.num_outputs = 1
            self._find, self._kernels, self._tactic, self._driver = find, kernels, tactic, driver

        def get_capability_interface(self, type: Any) -> Plugin:
            return self

        def clone(self) -> Plugin:
            return Plugin(self._find, self._kernels, self._tactic, self._driver)

        def attach_to_context(self, context: Any) -> Plugin:
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            content = json.dumps([kernel.to_json(ptx=True) for kernel in self._kernels]).encode()
            self._serialised = np.frombuffer(content, dtype=np.int8)  # a field only points at its data
            field = trt.PluginField(_FIELD, self._serialised, trt.PluginFieldType.CHAR)
            return trt.PluginFieldCollection([field])

        def get_output_data_types(self, input_types: Sequence[Any]) -> list[Any]:
            return [input_types[0]]

        def get_output_shapes(self, inputs: Sequence[Any], shape_inputs: Any, expr_builder: Any) -> list[Any]:
            return [trt.DimsExprs(list(inputs[0]))]

        def supports_format_combination(self, pos: int, in_out: Sequence[Any], num_inputs: int) -> bool:
            this, q = in_out[pos].desc, in_out[0].desc
            if num_inputs != len(TENSORS) or this.format != trt.TensorFormat.LINEAR:
                return False
            if pos == 0:
                return q.type in (trt.DataType.HALF, trt.DataType.BF16)
            return bool(this.type == (q.type if _ORDER[pos] in VALUES else trt.DataType.FLOAT))

        def configure_plugin(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            q = inputs[0].desc
            head_dim = tuple(q.dims)[3]
            if head_dim < 1:
                raise KernelError("q: the head size has to be known when the engine is built")
            self._kernels = self._find(_dtype(trt, q.type), head_dim)

        def get_valid_tactics(self) -> list[int]:
            return list(range(1, len(self._kernels) + 1))

        def set_tactic(self, tactic: int) -> None:
            # 0 is what TensorRT passes where it has tried none.
            self._tactic = max(1, tactic)

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            _sizes([tuple(desc.dims) for desc in inputs])

        def enqueue(
            self,
            input_desc: Sequence[Any],
            output_desc: Sequence[Any],
            inputs: Sequence[int],
            outputs: Sequence[int],
            workspace: int,
            stream: int,
        ) -> None:
            shapes = [tuple(desc.dims) for desc in input_desc]
            sizes = _sizes(shapes)
            kernel = self._kernels[self._tactic - 1]
            if shapes[0][3] != kernel.head_dim:
                raise KernelError(
                    f"q: the kernel takes heads of {kernel.head_dim} channels, not {shapes[0][3]}"
                )
            if 0 in shapes[0]:
                return
            self._driver = self._driver or Driver()
            self._driver.launch(kernel, kernel.grid(*shapes[0][:3]), (*inputs, *sizes, *outputs), stream)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Makes plugins: from the disk where an engine is built, from fields where one is read."""

        def __init__(self, manifest: Path | None, arch: int | None, driver: Driver | None = None) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.field_names = trt.PluginFieldCollection([])
            self._manifest, self._arch, self._driver = manifest, arch, driver

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Plugin:
            if phase == trt.TensorRTPhase.BUILD:
                if not hasattr(getattr(trt, "INetworkDefinition", None), "add_plugin_v3"):
                    # TensorRT for RTX would end the process after this.
                    raise KernelError(
                        f"{trt.__name__} builds no plugins: export with onnx_domain.with_function"
                    )
                if self._manifest is None or self._arch is None:
                    raise KernelError("to build engines, register the plugin with a manifest and an arch")
                return Plugin(self._on_disk, [], driver=self._driver)
            content = next((field.data.tobytes() for field in fields if field.name == _FIELD), None)
            if content is None:
                raise KernelError(f"the engine's {NAME} has no field {_FIELD!r}")
            kernels = [Kernel.from_json(value).checked() for value in json.loads(content)]
            if not kernels:
                raise KernelError(f"the engine's {NAME} has no kernels")
            return Plugin(self._on_disk, kernels, driver=self._driver)

        def _on_disk(self, dtype: str, head_dim: int) -> list[Kernel]:
            assert self._manifest is not None
            assert self._arch is not None
            return [load(self._manifest, self._arch, dtype, head_dim, tactic) for tactic in TACTICS]

    return Creator


def _sizes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The kernel's sizes for shapes of its inputs. Raises KernelError where they do not fit together."""
    of = dict(zip(TENSORS, shapes, strict=True))
    if any(len(of[name]) != 4 for name in ("q", "k", "other_k")):
        raise KernelError("q, k, other_k: must have four axes, [B, H, rows, d]")
    (batch, heads, queries, head_dim), keys, others = of["q"], of["k"][2], of["other_k"][2]
    wanted = {
        **dict.fromkeys(("k", "v"), (batch, heads, keys, head_dim)),
        **dict.fromkeys(("other_k", "other_v"), (batch, heads, others, head_dim)),
        **dict.fromkeys(("key_bias", "gained"), (batch, keys)),
        "gate": (batch, queries),
        "other_bias": (batch, others),
        "strength": (batch,),
    }
    for name, shape in wanted.items():
        if of[name] != shape:
            raise KernelError(f"{name}: must be {list(shape)}, not {list(of[name])}")
    sizes: tuple[int, ...] = contiguous_sizes(heads, queries, keys, others, head_dim)
    return sizes


def _dtype(trt: Any, dtype: Any) -> str:
    names = {trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}
    if dtype not in names:
        raise KernelError(f"q: the plugin takes float16 or bfloat16, not {dtype}")
    return names[dtype]


def _there(manifest: Path, arch: int, dtype: str, head_dim: int, tactics: Sequence[str]) -> bool:
    try:
        return all(load(manifest, arch, dtype, head_dim, tactic) for tactic in tactics)
    except KernelError:
        return False


def _signed(function: Any, parameters: dict[str, Any], returns: Any = inspect.Signature.empty) -> Any:
    """A function of any arguments under the signature that TensorRT reads; None is no annotation."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [
        inspect.Parameter(name, kind, annotation=inspect.Parameter.empty if of is None else of)
        for name, of in parameters.items()
    ]
    function.__signature__ = inspect.Signature(named, return_annotation=returns)
    return function
