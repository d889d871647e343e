"""Names of the tensors of an adapter file: the parameter that each changes, or the reason why it has none.

A name consists of a tool's prefix, a module of the network and a part of its change. Modules are named as in
diffusers or in the original release; some tools write underscores for the dots of the whole name, which only
the names of the network itself can resolve:

    transformer.blocks.0.attn1.to_q.lora_A.weight, .lora_B.weight, .lora_B.bias   diffusers
    base_model.model.blocks.0.attn1.to_q.lora_A.weight, .base_layer.bias          PEFT
    diffusion_model.blocks.0.self_attn.q.lora_down.weight, .lora_up.weight        LightX2V, ComfyUI; .alpha
    diffusion_model.blocks.0.norm3.diff, .diff_b, blocks.0.diff_m                 weight, bias, modulation
    lora_unet_blocks_0_self_attn_q.lora_down.weight                               musubi-tuner, sd-scripts
    lora_unet__blocks_0_self_attn_q.lora_down.weight                              VideoX-Fun
    pipe.dit.blocks.0.self_attn.q.lora_A.default.weight                           DiffSynth; any name
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from services.denoiser.checkpoint.names import describe_foreign_network, strip_prefix, to_original_name

Part = Literal["down", "up", "alpha", "up_bias", "diff", "value"]
# An optional name of the adapter, as PEFT inserts it, and an optional ".weight".
_ADAPTER = r"(?:\.(?P<adapter>(?!(?:weight|bias)$)[^.]+))?"
_SUFFIXES: tuple[tuple[str, Part, str], ...] = (  # end of a name, part of the change, changed tensor
    (rf"\.lora(?:_A|_down|\.down|_linear_layer\.down){_ADAPTER}(?:\.weight)?$", "down", "weight"),
    (rf"\.lora(?:_B|_up|\.up|_linear_layer\.up){_ADAPTER}(?:\.weight)?$", "up", "weight"),
    (rf"\.lora_(?:B|up){_ADAPTER}\.bias$", "up_bias", "bias"),
    (rf"\.(?:lora_)?alpha{_ADAPTER}$", "alpha", "weight"),
    (r"\.(?:diff|w_norm)$", "diff", "weight"),
    (r"\.(?:diff_b|b_norm)$", "diff", "bias"),
    (r"\.diff_m$", "diff", "modulation"),
)
# Adapters of another kind, by the end of a name. Source: the tensors that PEFT and LyCORIS save.
_KINDS = tuple(
    (re.compile(pattern), kind)
    for pattern, kind in (
        (r"\.hada_[wt]\d", "LoHa, a Hadamard product"),
        (r"\.lokr_[wt]\d", "LoKr, a Kronecker product"),
        (r"\.(dora_scale|lora_magnitude_vector)\b", "DoRA, a LoRA with trained magnitudes"),
        (r"\.b?oft_|\.hra_", "OFT, an orthogonal rotation"),
        (r"\.ia3_l\b|\.on_input$", "(IA)3, a trained rescaling"),
        (r"\.(a1|a2|b1|b2|bm1|bm2)\.weight$", "GLoRA"),
        (r"\.lora_(mid\b|t\d)", "a Tucker decomposition of a convolution"),
        (r"\.lora_(E|ranknum)\b", "AdaLoRA"),
        (r"\.vera_lambda", "VeRA"),
        (r"\.scalar$", "LyCORIS with a trained factor"),
    )
)
_FLAT_PREFIX = re.compile(r"^(?:lora_unet|lora_transformer|lora_dit|lycoris|lora)_+")
_SHOWN = 3  # names in a message


@dataclass(frozen=True)
class Place:
    """Meaning of one tensor.

    Attributes:
        module: Module that the tensor belongs to, by its original name; "" for the network itself.
        written: Module as PEFT knows it, for its patterns.
        parameter: Changed parameter of the network.
        adapter: Name of the adapter, if the tool wrote one.
    """

    module: str
    written: str
    part: Part
    parameter: str
    adapter: str | None = None


class ModuleNames:
    """All spellings of the modules and parameters of one network."""

    def __init__(self, parameters: Iterable[str]) -> None:
        self._parameters: dict[str, tuple[str, str]] = {}  # spelling -> original module, parameter
        self._leaves: dict[tuple[str, str], str] = {}  # original module, leaf -> parameter
        self._modules: dict[str, str] = {}  # spelling -> original module
        flat: dict[str, set[str]] = {}
        for parameter in parameters:
            original = to_original_name(parameter)
            module, _, leaf = original.rpartition(".")
            self._leaves[module, leaf] = parameter
            for spelling in (parameter, original):
                name = spelling.rpartition(".")[0]
                self._parameters[spelling] = (module, parameter)
                if spelling == original or not parameter.endswith("scale_shift_table"):
                    self._modules[name] = module
                    flat.setdefault(name.replace(".", "_"), set()).add(module)
        # A flat name that stands for two modules is not resolved.
        self._flat = {name: found.pop() for name, found in flat.items() if len(found) == 1}

    def locate(self, name: str) -> Place | None:
        """Returns the meaning of a tensor; None if it changes no parameter of this network."""
        for pattern, part, leaf in _SUFFIXES:
            if match := re.search(pattern, name):
                written = name[: match.start()]
                module = self._find_module(written)
                if module is None or (parameter := self._leaves.get((module, leaf))) is None:
                    continue
                adapter = match.groupdict().get("adapter")
                return Place(module, _strip_wrappers(written), part, parameter, adapter)
        plain = strip_prefix(name).replace(".base_layer.", ".")
        if found := self._parameters.get(plain):
            return Place(found[0], _strip_wrappers(plain.rpartition(".")[0]), "value", found[1])
        return None

    def explain(self, unknown: Sequence[str]) -> str:
        """Describes why these tensors change no parameter: the kind, the network or the format."""
        first, more = unknown[0], f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        subject = f"tensor {first}{more}: changes no known parameter of this network"
        for pattern, kind in _KINDS:
            if found := next((name for name in unknown if pattern.search(name)), None):
                return (
                    f"tensor {found}{more}: the kind of adapter is not supported: {kind}. Convert it to a "
                    "LoRA or to whole differences, or merge it into the weights with the tool that made it"
                )
        if network := describe_foreign_network(unknown):
            return f"{subject}: the adapter is for another network, {network}"
        modules = [written for name in unknown if (written := _split(name)) is not None]
        if not modules:
            return f"{subject}: the format is unknown; names must end as lora_A, lora_down or diff"
        lines = [self._suggest(written) for written in dict.fromkeys(modules)]
        rest = f"; and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        return f"{subject}: the adapter is for another network: {'; '.join(lines[:_SHOWN])}{rest}"

    def _find_module(self, written: str) -> str | None:
        plain = strip_prefix(written).removesuffix(".base_layer")
        if (module := self._modules.get(plain)) is not None:
            return module
        # Without a prefix, a flat name has no mark: it is tried last.
        return self._flat.get(_FLAT_PREFIX.sub("", plain))

    def _suggest(self, written: str) -> str:
        """Compares an unknown module with the network's."""
        plain = strip_prefix(written)
        flat = _FLAT_PREFIX.match(plain)
        name = _FLAT_PREFIX.sub("", plain)
        known = self._flat if flat else self._modules
        blocks = {int(n) for known_name in self._modules if (n := _block(known_name)) is not None}
        block = _block(name)
        if block is not None and blocks and block not in blocks:
            return f"{name} is in block {block}, this network has the blocks {min(blocks)} to {max(blocks)}"
        nearest = difflib.get_close_matches(name, known, n=1)
        return f"{name}, nearest known {nearest[0]}" if nearest else f"{name} resembles no module"


def _split(name: str) -> str | None:
    """Returns the module of a tensor that is named as a part of an adapter."""
    return next((name[: m.start()] for pattern, *_ in _SUFFIXES if (m := re.search(pattern, name))), None)


def _strip_wrappers(written: str) -> str:
    """Returns a module as PEFT knows it; PEFT adds the first prefix on saving, diffusers the second."""
    return written.removeprefix("base_model.model.").removeprefix("transformer.").removesuffix(".base_layer")


def _block(module: str) -> int | None:
    match = re.match(r"blocks[._](\d+)", module)
    return int(match[1]) if match else None


def find_collision(places: Mapping[str, Place]) -> str | None:
    """Describes two tensors for the same part of one parameter, or several adapters in one file."""
    if len(adapters := {place.adapter for place in places.values() if place.adapter}) > 1:
        return f"holds several adapters, {', '.join(sorted(adapters))}: save each to a file of its own"
    seen: dict[tuple[str, Part], str] = {}
    for name, place in places.items():
        other = seen.setdefault((place.parameter, place.part), name)
        if other != name:
            return f"two of its tensors hold the same part of one parameter: {other}, {name}"
    return None
