"""TensorRT plugin for amplified attention, based on the PTX of `kernels/aot.py`, in one of two forms.

- Quickly deployable plugin, if `tensorrt.plugin` exists: TensorRT stores PTX and launch parameters in the
  engine and launches without Python. Source: NVIDIA's documentation of `tensorrt.plugin.aot_impl`.
- Class plugin otherwise: an `IPluginV3` that stores the PTX in its serialised fields and launches it through
  the CUDA driver. A process that runs such an engine must call `register` first.

Both have the name, namespace and version under which the ONNX parser looks up a node of `onnx_domain.py`.
Inputs are those of `kernels/reference.py` in order: contiguous, float16 or bfloat16 for queries, keys and
values, float32 otherwise. At least one query is required, and the head size must be known at build time.
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
from services.denoiser.kernels.signature import TENSORS, VALUES, compute_contiguous_sizes

NAME, NAMESPACE, VERSION = "AmplifiedAttention", "chorus", "1"
_FIELD = "kernels"  # serialised field of the class plugin: JSON of its kernels with their PTX
_ORDER = (*TENSORS, "out")
_creators: list[Any] = []  # TensorRT holds no reference, and a creator must live as long as its registry


def register(trt: Any, manifest: Path | None = None, arch: int | None = None) -> str:
    """Registers the plugin with TensorRT. Returns the registered form, "quick" or "class".

    Args:
        trt: TensorRT module: `tensorrt`, `tensorrt_rtx` or `tensorrt_lean`.
        manifest: Manifest of the compiled kernels. Required to build engines, not to run them.
        arch: Architecture to build for, from `kernels.aot.select_arch`.

    Raises:
        KernelError: A plugin with this name is already registered, or the kernels cannot be loaded.
    """
    if trt.get_plugin_registry().get_creator(NAME, VERSION, NAMESPACE) is not None:
        raise KernelError(f"{NAMESPACE}::{NAME} is registered already")
    quick = load_quick_module(trt)
    if quick is not None and manifest is not None and arch is not None:
        register_quick(trt, quick, manifest, arch)
        return "quick"
    register_class(trt, manifest, arch)
    return "class"


def ensure_registered(trt: Any, manifest: Path | None = None, arch: int | None = None) -> None:
    """Registers the plugin unless this process already did. Raises KernelError."""
    if trt.get_plugin_registry().get_creator(NAME, VERSION, NAMESPACE) is None:
        register(trt, manifest, arch)


def load_quick_module(trt: Any) -> Any | None:
    """Returns TensorRT's module for quickly deployable plugins, or None if it cannot use compiled kernels."""
    try:
        module = importlib.import_module(f"{trt.__name__}.plugin")
    except ImportError:
        return None
    return module if hasattr(module, "aot_impl") and hasattr(module, "KernelLaunchParams") else None


def register_quick(
    trt: Any, quick: Any, manifest: Path, arch: int, tactics: Sequence[str] = ("small",)
) -> None:
    """Registers the quickly deployable form.

    Args:
        quick: The module `tensorrt.plugin`.
        tactics: Launch configurations to offer. By default only those that need no more shared memory than
            every kernel gets, because TensorRT does not document whether it requests more from the driver.
    """
    desc, identity = quick.TensorDesc, f"{NAMESPACE}::{NAME}"

    def describe(*inputs: Any) -> Any:
        return inputs[0].like()

    def autotune(*args: Any) -> Any:
        head_dim = args[0].shape[3]
        dtypes = [dtype for dtype in ("fp16", "bf16") if _exists(manifest, arch, dtype, head_dim, tactics)]
        if not dtypes:
            raise KernelError(f"{manifest}: has no kernel for sm_{arch} and head size {head_dim}")
        types = {"values": "|".join(dtype.upper() for dtype in dtypes), "others": "FP32"}
        io = ", ".join(types["values" if name in VALUES else "others"] for name in _ORDER)
        return [quick.AutoTuneCombination(io, "LINEAR", list(range(1, len(tactics) + 1)))]

    def compiled(*args: Any) -> Any:
        q, k, other_k, tactic = args[0], args[1], args[TENSORS.index("other_k")], args[-1]
        batch, heads, queries, head_dim = q.shape_expr
        if not head_dim.is_constant:
            raise KernelError("q: the head size must be known at build time")
        dtype = _get_dtype_name(trt, q.dtype)
        kernel = load(manifest, arch, dtype, head_dim.constant_value(), tactics[tactic - 1])
        launch = quick.KernelLaunchParams()
        launch.grid_x, launch.grid_y = quick.cdiv(queries, kernel.block_m), batch * heads
        launch.block_x, launch.shared_mem = 32 * kernel.num_warps, kernel.shared
        sizes = compute_contiguous_sizes(heads, queries, k.shape_expr[2], other_k.shape_expr[2], head_dim)
        extra = quick.SymIntExprs.from_tuple([quick.SymInt32(size) for size in sizes])
        return kernel.name.encode(), kernel.ptx.encode(), launch, extra

    returned = tuple[str | bytes, str | bytes, quick.KernelLaunchParams, quick.SymIntExprs]
    quick.register(identity)(_set_signature(describe, dict.fromkeys(TENSORS, desc), desc))
    quick.autotune(identity)(_set_signature(autotune, dict.fromkeys((*TENSORS, "outputs"))))
    parameters = dict.fromkeys((*TENSORS, "outputs", "tactic"))
    quick.aot_impl(identity)(_set_signature(compiled, parameters, returned))


def register_class(trt: Any, manifest: Path | None = None, arch: int | None = None) -> Any:
    """Registers the class form and returns its creator. Raises KernelError if TensorRT rejects it."""
    creator = build_creator_class(trt)(manifest, arch)
    if not trt.get_plugin_registry().register_creator(creator, NAMESPACE):
        raise KernelError(f"{trt.__name__} rejects the registration of {NAMESPACE}::{NAME}")
    _creators.append(creator)
    return creator


def build_creator_class(trt: Any) -> Any:
    """Builds the creator class with base classes from the module `trt`."""

    class Plugin(trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):  # type: ignore[misc]
        """One node of a network.

        Args:
            load_kernels: Loads the kernels for a type and a head size.
            kernels: Kernels for the node's type and head size, in the order of their tactics.
            tactic: Number of the selected kernel, from 1.
        """

        def __init__(
            self,
            load_kernels: Callable[[str, int], list[Kernel]],
            kernels: list[Kernel],
            tactic: int = 1,
            driver: Driver | None = None,
        ) -> None:
            for base in (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime):
                base.__init__(self)
            self.plugin_name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.num_outputs = 1
            self._load_kernels, self._kernels, self._tactic = load_kernels, kernels, tactic
            self._driver = driver

        def get_capability_interface(self, type: Any) -> Plugin:
            return self

        def clone(self) -> Plugin:
            return Plugin(self._load_kernels, self._kernels, self._tactic, self._driver)

        def attach_to_context(self, context: Any) -> Plugin:
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            content = json.dumps([kernel.to_json(ptx=True) for kernel in self._kernels]).encode()
            self._serialised = np.frombuffer(content, dtype=np.int8)  # a field does not own its data
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
                raise KernelError("q: the head size must be known at build time")
            self._kernels = self._load_kernels(_get_dtype_name(trt, q.type), head_dim)

        def get_valid_tactics(self) -> list[int]:
            return list(range(1, len(self._kernels) + 1))

        def set_tactic(self, tactic: int) -> None:
            # TensorRT passes 0 if it has timed no tactic.
            self._tactic = max(1, tactic)

        def on_shape_change(self, inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
            _compute_sizes([tuple(desc.dims) for desc in inputs])

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
            sizes = _compute_sizes(shapes)
            kernel = self._kernels[self._tactic - 1]
            if shapes[0][3] != kernel.head_dim:
                raise KernelError(
                    f"q: the kernel supports {kernel.head_dim} channels per head, not {shapes[0][3]}"
                )
            if 0 in shapes[0]:
                return
            self._driver = self._driver or Driver()
            self._driver.launch(kernel, kernel.grid(*shapes[0][:3]), (*inputs, *sizes, *outputs), stream)

    class Creator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        """Creates plugins: from kernels on disk at build time, from serialised fields at run time."""

        def __init__(self, manifest: Path | None, arch: int | None, driver: Driver | None = None) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.field_names = trt.PluginFieldCollection([])
            self._manifest, self._arch, self._driver = manifest, arch, driver

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Plugin:
            if phase == trt.TensorRTPhase.BUILD:
                if not hasattr(getattr(trt, "INetworkDefinition", None), "add_plugin_v3"):
                    # TensorRT-RTX would terminate the process when the plugin is added.
                    raise KernelError(
                        f"{trt.__name__} does not support plugins: export with onnx_domain.add_function"
                    )
                if self._manifest is None or self._arch is None:
                    raise KernelError("to build engines, register the plugin with a manifest and an arch")
                return Plugin(self._load_kernels, [], driver=self._driver)
            content = next((field.data.tobytes() for field in fields if field.name == _FIELD), None)
            if content is None:
                raise KernelError(f"the engine's {NAME} has no field {_FIELD!r}")
            kernels = [Kernel.from_json(value).checked() for value in json.loads(content)]
            if not kernels:
                raise KernelError(f"the engine's {NAME} has no kernels")
            return Plugin(self._load_kernels, kernels, driver=self._driver)

        def _load_kernels(self, dtype: str, head_dim: int) -> list[Kernel]:
            assert self._manifest is not None
            assert self._arch is not None
            return [load(self._manifest, self._arch, dtype, head_dim, tactic) for tactic in TACTICS]

    return Creator


def _compute_sizes(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Computes the kernel's size arguments. Raises KernelError if the input shapes do not match."""
    given = dict(zip(TENSORS, shapes, strict=True))
    if any(len(given[name]) != 4 for name in ("q", "k", "other_k")):
        raise KernelError("q, k, other_k: must have four axes, [B, H, rows, d]")
    (batch, heads, queries, head_dim), keys, others = given["q"], given["k"][2], given["other_k"][2]
    expected = {
        **dict.fromkeys(("k", "v"), (batch, heads, keys, head_dim)),
        **dict.fromkeys(("other_k", "other_v"), (batch, heads, others, head_dim)),
        **dict.fromkeys(("key_bias", "gained"), (batch, keys)),
        "gate": (batch, queries),
        "other_bias": (batch, others),
        "strength": (batch,),
    }
    for name, shape in expected.items():
        if given[name] != shape:
            raise KernelError(f"{name}: must be {list(shape)}, not {list(given[name])}")
    sizes: tuple[int, ...] = compute_contiguous_sizes(heads, queries, keys, others, head_dim)
    return sizes


def _get_dtype_name(trt: Any, dtype: Any) -> str:
    names = {trt.DataType.HALF: "fp16", trt.DataType.BF16: "bf16"}
    if dtype not in names:
        raise KernelError(f"q: the plugin supports float16 and bfloat16, not {dtype}")
    return names[dtype]


def _exists(manifest: Path, arch: int, dtype: str, head_dim: int, tactics: Sequence[str]) -> bool:
    try:
        return all(load(manifest, arch, dtype, head_dim, tactic) for tactic in tactics)
    except KernelError:
        return False


def _set_signature(function: Any, parameters: dict[str, Any], returns: Any = inspect.Signature.empty) -> Any:
    """Sets the signature that TensorRT inspects on a function with variable arguments.

    Args:
        parameters: Annotation of each parameter by name; None for no annotation.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [
        inspect.Parameter(name, kind, annotation=inspect.Parameter.empty if type_ is None else type_)
        for name, type_ in parameters.items()
    ]
    function.__signature__ = inspect.Signature(named, return_annotation=returns)
    return function
