"""Verifies registration, properties, serialisation and launches of the TensorRT plugin, with a fake driver.

The bindings come from TensorRT-RTX, which has plugin classes and a registry but no engines with plugins.
"""

import ctypes
import dataclasses
import inspect
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from services.denoiser.backends.tensorrt import plugin
from services.denoiser.kernels import aot
from services.denoiser.kernels.aot import Kernel, KernelError
from services.denoiser.kernels.driver import Driver, DriverError
from services.denoiser.kernels.signature import ARGUMENTS, SIZES, TENSORS, get_parameter_type

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed")
_alive: list[Any] = []
SHAPES = [
    (2, 3, 100, 128),
    *[(2, 3, 7, 128)] * 2,
    (2, 7),
    (2, 7),
    (2, 100),
    *[(2, 3, 0, 128)] * 2,
    (2, 0),
    (2,),
]
SIZES_OF_SHAPES = [3, 100, 7, 0, 38400, 12800, 128, 2688, 896, 128, 0, 0, 128, 38400, 12800, 128]


class FakeCuda:
    """Fake CUDA driver that records launches."""

    def __init__(self, fails: str = "", context: int = 1) -> None:
        self.fails, self.context = fails, context
        self.loaded: list[bytes] = []
        self.attributes: list[tuple[int, int]] = []
        self.launched: list[tuple[list[int], list[int]]] = []

    def __getattr__(self, name: str) -> Any:
        handler = getattr(type(self), f"do_{name}", None)

        def call(*args: Any) -> int:
            if name == self.fails:
                return 700
            if handler is not None:
                handler(self, *args)
            return 0

        return call

    def cuGetErrorName(self, status: int, text: Any) -> None:
        text._obj.value = b"CUDA_ERROR_ILLEGAL_ADDRESS"

    def do_cuCtxGetCurrent(self, context: Any) -> None:
        context._obj.value = self.context

    def do_cuModuleLoadDataEx(self, module: Any, ptx: bytes, *options: Any) -> None:
        self.loaded.append(ptx)

    def do_cuFuncSetAttribute(self, function: Any, attribute: int, value: int) -> None:
        self.attributes.append((attribute, value))

    def do_cuLaunchKernel(self, function: Any, *rest: Any) -> None:
        *numbers, _stream, pointers, _extra = rest
        types = [ctypes.c_int32 if name in SIZES else ctypes.c_uint64 for name in ARGUMENTS]
        values = [t.from_address(p).value for t, p in zip(types, pointers, strict=True)]
        self.launched.append(([n.value for n in numbers], values))


def kernel(tactic: str = "small", **changes: Any) -> Kernel:
    ptx = f"// {tactic}"
    parameters = tuple((name, get_parameter_type(name, "bf16")) for name in ARGUMENTS)
    shared = {"small": 32768, "fast": 132096}[tactic]
    base = Kernel(
        "k", 90, "bf16", 128, tactic, 64, 64, 8, 1, shared, parameters, aot._digest(ptx.encode()), ptx
    )
    return dataclasses.replace(base, **changes)


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Manifest of kernels with a comment as PTX, because no test parses it."""
    monkeypatch.setattr(aot, "_compile", lambda arch, dtype, head_dim, tactic: kernel(tactic, dtype=dtype))
    monkeypatch.setattr("importlib.metadata.version", lambda name: "3")
    return aot.build(tmp_path, archs=[90], head_dims=[128], progress=lambda line: None)


@pytest.fixture
def registered(manifest: Path) -> Iterator[Any]:
    assert plugin.register(trt, manifest, 90) == "class"
    registry = trt.get_plugin_registry()
    creator = registry.get_creator(plugin.NAME, plugin.VERSION, plugin.NAMESPACE)
    yield creator
    assert registry.deregister_creator(creator)


def desc(shape: tuple[int, ...], dtype: Any, layout: Any = trt.TensorFormat.LINEAR) -> Any:
    tensor = trt.PluginTensorDesc()
    tensor.dims, tensor.type, tensor.format = trt.Dims(shape), dtype, layout
    return tensor


def dynamic(tensor: Any) -> Any:
    wrapper = trt.DynamicPluginTensorDesc()
    wrapper.desc = tensor
    return wrapper


def descs(half: Any = trt.DataType.BF16, shapes: list[tuple[int, ...]] = SHAPES) -> list[Any]:
    short = {"q", "k", "v", "other_k", "other_v"}
    return [
        desc(shape, half if name in short else trt.DataType.FLOAT)
        for name, shape in zip(TENSORS, shapes, strict=True)
    ]


def fields(kernels: list[Kernel]) -> Any:
    content = np.frombuffer(json.dumps([k.to_json(ptx=True) for k in kernels]).encode(), dtype=np.int8)
    _alive.append(content)  # a field does not own its data
    return trt.PluginFieldCollection([trt.PluginField("kernels", content, trt.PluginFieldType.CHAR)])


def create_runtime_plugin(cuda: Any, *, tactic: int = 1) -> Any:
    creator = plugin.build_creator_class(trt)(None, None, Driver(cuda))
    node = creator.create_plugin(
        plugin.NAME, fields([kernel("small"), kernel("fast")]), trt.TensorRTPhase.RUNTIME
    )
    node.set_tactic(tactic)
    return node.attach_to_context(None)


def test_register_uses_the_name_that_the_parser_looks_up(registered: Any, manifest: Path) -> None:
    assert (registered.name, registered.plugin_namespace) == ("AmplifiedAttention", "chorus")
    with pytest.raises(KernelError, match="registered already"):
        plugin.register(trt, manifest, 90)


def test_build_with_a_module_without_plugin_support_is_rejected(registered: Any) -> None:
    with pytest.raises(KernelError, match="add_function"):
        registered.create_plugin(plugin.NAME, trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD)


def test_plugin_passes_through_all_build_calls(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trt.INetworkDefinition, "add_plugin_v3", None, raising=False)
    node = plugin.build_creator_class(trt)(manifest, 90).create_plugin(
        plugin.NAME, trt.PluginFieldCollection([]), trt.TensorRTPhase.BUILD
    )
    node = node.clone()
    assert (node.plugin_name, node.plugin_version, node.num_outputs) == (plugin.NAME, "1", 1)
    assert node.get_capability_interface(trt.PluginCapabilityType.CORE) is node
    assert node.get_output_data_types([trt.DataType.BF16] * 10) == [trt.DataType.BF16]
    out = desc(SHAPES[0], trt.DataType.BF16)
    node.configure_plugin([dynamic(d) for d in descs()], [dynamic(out)])
    assert node.get_valid_tactics() == [1, 2]
    written = node.get_fields_to_serialize()
    assert [field.name for field in written] == ["kernels"]
    read = plugin.build_creator_class(trt)(None, None).create_plugin(
        plugin.NAME, written, trt.TensorRTPhase.RUNTIME
    )
    assert read.get_valid_tactics() == [1, 2]


def test_plugin_accepts_only_types_and_layouts_of_the_kernel() -> None:
    node = create_runtime_plugin(FakeCuda())
    for half in (trt.DataType.BF16, trt.DataType.HALF):
        io = [dynamic(d) for d in (*descs(half), desc(SHAPES[0], half))]
        assert all(node.supports_format_combination(i, io, 10) for i in range(11))
    for at, name in enumerate((*TENSORS, "out")):
        io = [dynamic(d) for d in (*descs(), desc(SHAPES[0], trt.DataType.BF16))]
        io[at] = dynamic(desc(SHAPES[0], trt.DataType.INT32))
        assert not node.supports_format_combination(at, io, 10), name
        io[at] = dynamic(desc(SHAPES[0], trt.DataType.BF16, trt.TensorFormat.HWC))
        assert not node.supports_format_combination(at, io, 10), name


@pytest.mark.parametrize(("tactic", "shared", "attributes"), [(1, 32768, []), (2, 132096, [(8, 132096)])])
def test_enqueue_launches_the_selected_kernel(tactic: int, shared: int, attributes: list[Any]) -> None:
    cuda = FakeCuda()
    node = create_runtime_plugin(cuda, tactic=tactic)
    inputs, out = [16 * (i + 1) for i in range(10)], desc(SHAPES[0], trt.DataType.BF16)
    node.on_shape_change(descs(), [out])
    for _ in range(2):
        node.enqueue(descs(), [out], inputs, [4096], 0, 5)
    assert cuda.loaded == [kernel(["small", "fast"][tactic - 1]).ptx.encode()]
    assert cuda.attributes == attributes
    numbers, values = cuda.launched[0]
    assert numbers == [2, 6, 1, 256, 1, 1, shared]
    assert values == [*inputs, *SIZES_OF_SHAPES, 4096]


def test_enqueue_without_queries_launches_no_kernel() -> None:
    cuda = FakeCuda()
    shapes = [(2, 3, 0, 128), *SHAPES[1:5], (2, 0), *SHAPES[6:]]
    create_runtime_plugin(cuda).enqueue(descs(shapes=shapes), [], [0] * 10, [0], 0, 0)
    assert not cuda.launched


@pytest.mark.parametrize(
    ("at", "shape", "message"),
    [(1, (2, 3, 8, 128), "k|v"), (5, (2, 99), "gate"), (9, (1,), "strength"), (0, (2, 3, 100), "four axes")],
)
def test_shape_change_rejects_shapes_that_do_not_match(at: int, shape: tuple[int, ...], message: str) -> None:
    shapes = [*SHAPES[:at], shape, *SHAPES[at + 1 :]]
    with pytest.raises(KernelError, match=message):
        create_runtime_plugin(FakeCuda()).on_shape_change(descs(shapes=shapes), [])


def test_creator_rejects_altered_fields() -> None:
    creator = plugin.build_creator_class(trt)(None, None)
    for bad, message in (
        (fields([kernel(ptx="// other")]), "SHA-256"),
        (fields([]), "no kernels"),
        (trt.PluginFieldCollection([]), "no field 'kernels'"),
    ):
        with pytest.raises(KernelError, match=message):
            creator.create_plugin(plugin.NAME, bad, trt.TensorRTPhase.RUNTIME)


@pytest.mark.parametrize(
    "call",
    ["cuCtxGetCurrent", "cuModuleLoadDataEx", "cuModuleGetFunction", "cuFuncSetAttribute", "cuLaunchKernel"],
)
def test_driver_checks_the_status_of_every_call(call: str) -> None:
    driver = Driver(FakeCuda(fails=call))
    with pytest.raises(DriverError, match=f"{call}: CUDA_ERROR_ILLEGAL_ADDRESS"):
        driver.launch(kernel("fast"), (1, 1, 1), [0] * len(ARGUMENTS))


def test_driver_rejects_invalid_state_and_arguments() -> None:
    with pytest.raises(DriverError, match="cuInit"):
        Driver(FakeCuda(fails="cuInit"))
    with pytest.raises(DriverError, match="no CUDA context"):
        Driver(FakeCuda(context=0)).launch(kernel(), (1, 1, 1), [0] * len(ARGUMENTS))
    driver = Driver(FakeCuda())
    with pytest.raises(ValueError, match="q: the address"):
        driver.launch(kernel(), (1, 1, 1), [8] + [0] * (len(ARGUMENTS) - 1))
    with pytest.raises(ValueError, match="heads: "):
        driver.launch(kernel(), (1, 1, 1), [0] * 10 + [2**31] * 16 + [0])
    with pytest.raises(ValueError, match="argument 2 is longer"):
        driver.launch(kernel(), (1, 1, 1), [0])


class Symbol(int):
    is_constant = True

    def constant_value(self) -> int:
        return int(self)


class Quick(SimpleNamespace):
    """Fake of the used part of `tensorrt.plugin`, with numbers as symbols."""

    def __init__(self) -> None:
        registered: dict[str, Any] = {}
        super().__init__(
            registered=registered,
            **{
                name: lambda identity, name=name: lambda f: registered.__setitem__(name, (identity, f))
                for name in ("register", "autotune", "aot_impl")
            },
            TensorDesc=type("TensorDesc", (), {}),
            KernelLaunchParams=type("KernelLaunchParams", (), {}),
            SymIntExprs=type("SymIntExprs", (), {"from_tuple": list}),
            SymInt32=int,
            cdiv=lambda a, b: -(-a // b),
            AutoTuneCombination=lambda *args: args,
        )


def test_quick_form_returns_kernel_and_launch_parameters(manifest: Path) -> None:
    quick = Quick()
    plugin.register_quick(trt, quick, manifest, 90)
    assert {identity for identity, _ in quick.registered.values()} == {"chorus::AmplifiedAttention"}
    inputs = [
        SimpleNamespace(shape_expr=[Symbol(n) for n in shape], shape=shape, dtype=trt.DataType.BF16)
        for shape in SHAPES
    ]
    ((types, layout, tactics),) = quick.registered["autotune"][1](*inputs, ())
    each = types.split(", ")
    assert [each[i] for i in (0, 3, 10)] == ["FP16|BF16", "FP32", "FP16|BF16"]
    assert (len(each), layout, tactics) == (11, "LINEAR", [1])
    name, ptx, launch, extra = quick.registered["aot_impl"][1](*inputs, (), 1)
    assert (name, ptx) == (b"k", b"// small")
    assert vars(launch) == {"grid_x": 2, "grid_y": 6, "block_x": 256, "shared_mem": 32768}
    assert extra == SIZES_OF_SHAPES
    inputs[0].shape = (2, 3, 100, 96)
    with pytest.raises(KernelError, match="head size 96"):
        quick.registered["autotune"][1](*inputs, ())


def test_quick_form_has_the_signatures_that_tensorrt_inspects(manifest: Path) -> None:
    quick = Quick()
    plugin.register_quick(trt, quick, manifest, 90)
    signatures = {name: inspect.signature(f) for name, (_, f) in quick.registered.items()}
    assert [*signatures["register"].parameters] == [*TENSORS]
    assert {p.annotation for p in signatures["register"].parameters.values()} == {quick.TensorDesc}
    assert [*signatures["autotune"].parameters] == [*TENSORS, "outputs"]
    assert [*signatures["aot_impl"].parameters] == [*TENSORS, "outputs", "tactic"]
