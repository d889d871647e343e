"""Factors with which the products of an adapter are merged, as every tool declares them.

A factor is alpha / rank, or alpha / sqrt(rank) if rank-stabilised (rsLoRA, arXiv 2312.03732). Places:

    adapter_config.json next to the weights                  PEFT, diffusion-pipe
    header note `lora_adapter_metadata`                      diffusers
    header note `lora_config`                                finetrainers
    header notes `ss_network_alpha`, `ss_network_dim`        sd-scripts, musubi-tuner
    header notes `lora_alpha`, `rank` and the like           scripts
    tensors `.alpha`, `.lora_alpha`                          sd-scripts, musubi-tuner, LightX2V

Places that contradict each other are refused, and so are unknown settings that may change the result. Without
any place, the factor is 1, as in every tool that saves none; PEFT always saves one.

The `ss_` notes describe the training; the alpha tensors are what tools apply. musubi-tuner's converter
multiplies both factors by the square root of alpha / rank, drops the tensors and keeps the notes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from chorus_rpc.suggestions import closest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, tensor

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
# Fields of PEFT's LoraConfig that leave the merged weights as they are. Any other field must be empty.
_IRRELEVANT = frozenset(
    {
        *(
            "auto_mapping",
            "base_model_name_or_path",
            "peft_version",
            "revision",
            "task_type",
            "inference_mode",
        ),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
        *("megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"),
        *("qalora_group_size", "runtime_config", "ensure_weight_tying"),
    }
)
# Initial values of the factors that leave the base weights as they are; prefixes of those that change them.
_PLAIN_STARTS = (True, False, "gaussian", "orthogonal", "eva")
_STARTS_CHANGING_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_NOTES_OF_ALPHA = ("lora_alpha", "network_alpha", "alpha")
_NOTES_OF_RANK = ("lora_rank", "network_dim", "rank", "r")
_STATE_ALPHA = (
    f"state r and lora_alpha in an {_CONFIG} next to it (the same number if the factors contain alpha), "
    "or convert the original file again, with its alpha tensors"
)
# Arguments of sd-scripts and LyCORIS that give modules an alpha of their own.
_OWN_ALPHA = re.compile(r"alpha|rs_lora|dims?$")


def _check_patterns(patterns: dict[str, Any]) -> dict[str, Any]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return patterns


T = TypeVar("T")
Rank = Annotated[int, Field(gt=0)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class Declaration(BaseModel):
    """Scaling as one place declares it, in the fields of PEFT's LoraConfig.

    Attributes:
        place: Name of the place, for messages.
        r: Rank; None if the place names none.
        lora_alpha: Alpha; None if the place names none, which PEFT's places always do.
        rank_pattern, alpha_pattern: Exceptions, keyed by a regular expression for the end of a module's name.
        bias: "none", or which biases the file holds in full.
        modules_to_save: Modules that the file holds in full.
        use_rslora: Whether factors are rank-stabilised; None if the place does not say.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    place: str
    r: Rank | None = None
    lora_alpha: Alpha | None = None
    use_rslora: bool | None = None
    rank_pattern: Annotated[dict[str, Rank], AfterValidator(_check_patterns)] | None = None
    alpha_pattern: Annotated[dict[str, Alpha], AfterValidator(_check_patterns)] | None = None
    bias: str = "none"
    modules_to_save: tuple[str, ...] | None = None
    lora_bias: bool | None = None
    init_lora_weights: bool | str = True
    peft_type: str | None = "LORA"

    def rank(self, module: str) -> int | None:
        """Returns the rank of a module."""
        return _look_up(self.rank_pattern, module, self.r)

    def alpha(self, module: str) -> float | None:
        """Returns the alpha of a module."""
        return _look_up(self.alpha_pattern, module, self.lora_alpha)

    def holds_in_full(self, module: str, parameter: str) -> bool:
        """Returns whether the file has the trained values of a parameter, not their change."""
        if self.bias != "none" and parameter.endswith(".bias"):
            return True
        ends = tuple(self.modules_to_save or ())
        parts = module.split(".")
        # PEFT compares the ends of names, also within a word, and saves every parameter below a match.
        return any(".".join(parts[: depth + 1]).endswith(ends) for depth in range(len(parts)))


class Scaling:
    """All declarations of an adapter. Its methods raise ValueError for what they cannot honour."""

    def __init__(self, declarations: Iterable[Declaration]) -> None:
        self._declarations = tuple(declarations)

    @classmethod
    def read(cls, file: Path, notes: Mapping[str, str], has_alphas: bool) -> Scaling:
        """Reads every place for the scaling of a safetensors file.

        Args:
            notes: Metadata of its header.
            has_alphas: Whether the file has tensors with the alpha of modules.
        """
        places = (
            _read_config(file),
            _read_json_note(notes, "lora_adapter_metadata"),
            _read_json_note(notes, "lora_config"),
            _read_plain_notes(notes, has_alphas),
        )
        declarations = [found for found in places if found is not None]
        # Without alpha tensors, the factors may already contain the alpha of these notes.
        if has_alphas or all(each.lora_alpha is None for each in declarations):
            kohya = _read_kohya_notes(notes, has_alphas)
            declarations += [kohya] if kohya is not None else []
        return cls(declarations)

    @property
    def is_declared(self) -> bool:
        return bool(self._declarations)

    def holds_in_full(self, module: str, parameter: str) -> bool:
        """Returns whether a tensor named as a parameter of the network is meant to replace it."""
        return any(each.holds_in_full(module, parameter) for each in self._declarations)

    def check_up_bias(self) -> None:
        """Refuses biases of the up factors that a place denies."""
        for each in self._declarations:
            if each.lora_bias is False:
                raise ValueError(f"{each.place}: lora_bias is false, but the file has such biases")

    def compute_factor(self, module: str, rank: int, stored: Tensor | None) -> float:
        """Returns the factor of a module.

        Args:
            module: Name of the module as the tool wrote it.
            rank: Rank of its stored factors.
            stored: Alpha stored as a tensor of the file.
        """
        for each in self._declarations:
            if (declared := each.rank(module)) not in (None, rank):
                raise ValueError(f"{each.place}: rank {declared}, but the stored factors have rank {rank}")
        alphas = {
            each.place: alpha for each in self._declarations if (alpha := each.alpha(module)) is not None
        }
        if stored is not None and not any(_rounds_to(alpha, stored) for alpha in alphas.values()):
            alphas["its alpha in the file"] = float(stored)
        for name, alpha in alphas.items():
            if not 0 < alpha < math.inf:
                raise ValueError(
                    f"{name}: alpha is {alpha:g}, but must be positive and finite; "
                    "a negative effect is stated as the `scale` of the adapter"
                )
        if len(set(alphas.values())) > 1:
            listed = ", ".join(f"{place}: {alpha:g}" for place, alpha in alphas.items())
            raise ValueError(f"places contradict each other about alpha ({listed}): correct the wrong one")
        stabilised = {each.use_rslora for each in self._declarations} - {None}
        if len(stabilised) > 1:
            raise ValueError("places contradict each other about use_rslora: correct the wrong one")
        if not alphas:
            if True in stabilised:
                raise ValueError("use_rslora is set, but no place declares alpha")
            return 1.0
        [alpha] = set(alphas.values())
        return alpha / (math.sqrt(rank) if True in stabilised else rank)


def _look_up(patterns: Mapping[str, T] | None, module: str, default: T | None) -> T | None:
    """Returns the first value whose pattern matches the end of a module's name, as PEFT does."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _rounds_to(declared: float, stored: Tensor) -> bool:
    """Returns whether a number is the stored one but for the rounding to its type."""
    if not stored.is_floating_point():  # nothing is rounded to an integer
        return declared == float(stored)
    return bool(tensor(declared, dtype=stored.dtype) == stored.reshape(()))


def _parse(place: str, settings: Mapping[str, Any]) -> Declaration:
    """Validates settings. Raises ValueError naming place and setting for one that may change the result."""
    try:
        found = Declaration.model_validate({**settings, "place": place})
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"{place}: {faults}") from error
    if (found.peft_type or "LORA").upper() != "LORA":
        raise ValueError(f"{place}: the kind of adapter is not supported: {found.peft_type}, expected LORA")
    if found.bias not in ("none", "all", "lora_only"):
        raise ValueError(f"{place}: bias: must be none, all or lora_only, not {found.bias!r}")
    if (start := found.init_lora_weights) not in _PLAIN_STARTS:
        changes_base = str(start).lower().startswith(_STARTS_CHANGING_BASE)
        effect = "changes" if changes_base else "is not known here and may change"
        raise ValueError(
            f"{place}: init_lora_weights is {start!r}, which {effect} the base weights as well; "
            "save it as a plain LoRA with PEFT's path_initial_model_for_weight_conversion"
        )
    known = (*Declaration.model_fields, *_IRRELEVANT)
    for key, value in (found.model_extra or {}).items():
        if value and key not in _IRRELEVANT:
            nearest = closest(key, known)
            hint = f" (did you mean {nearest}?)" if nearest else ""
            raise ValueError(f"{place}: {key} = {str(value)[:60]!r} is not supported{hint}")
    return found


def _require_alpha(found: Declaration) -> Declaration:
    if found.lora_alpha is None or found.r is None:
        raise ValueError(f"{found.place}: lacks {'lora_alpha' if found.lora_alpha is None else 'r'}")
    return found


def _read_config(file: Path) -> Declaration | None:
    """Reads PEFT's settings, which belong to PEFT's name of a weights file, or else to any in the folder."""
    path = file.with_name(_CONFIG)
    if not path.is_file() or (file.name != _WEIGHTS and file.with_name(_WEIGHTS).exists()):
        return None
    try:
        settings = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"{_CONFIG}: cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{_CONFIG}: must hold a JSON object")
    return _require_alpha(_parse(_CONFIG, settings))


def _read_json_note(notes: Mapping[str, str], key: str) -> Declaration | None:
    """Reads PEFT's settings from a header; diffusers prefixes them with the name of the component."""
    if key not in notes:
        return None
    place = f"header note {key}"
    try:
        settings = json.loads(notes[key])
        own = {name.removeprefix("transformer."): value for name, value in settings.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{place}: cannot be read: {error}") from error
    own = {name: value for name, value in own.items() if "." not in name}
    return _require_alpha(_parse(place, own)) if own else None


def _read_kohya_notes(notes: Mapping[str, str], has_alphas: bool) -> Declaration | None:
    """Reads the notes of sd-scripts, unless its arguments give modules an alpha of their own.

    Raises ValueError if only alpha tensors could show whether the factors already contain alpha.
    """
    try:
        arguments = json.loads(notes.get("ss_network_args") or "{}") or {}
        own = [name for name in arguments if _OWN_ALPHA.search(name)]
    except (ValueError, TypeError) as error:
        raise ValueError(f"header note ss_network_args: cannot be read: {error}") from error
    if own and not has_alphas:
        raise ValueError(
            f"header note ss_network_args: {own[0]} gives modules an alpha of their own, "
            f"but the file has no alpha tensors; {_STATE_ALPHA}"
        )
    if own:
        return None
    numbers = _parse_numbers(notes, ("ss_network_alpha",), ("ss_network_dim",))
    if not numbers:
        return None
    found = _parse("header note ss_network_alpha", numbers)
    if not has_alphas and found.lora_alpha != found.r:
        raise ValueError(
            f"{found.place}: the notes state alpha {found.lora_alpha:g} and "
            f"{'no dim' if found.r is None else f'dim {found.r}'}, but the file has no alpha tensors, "
            f"so its factors may already contain alpha; {_STATE_ALPHA}"
        )
    return found


def _read_plain_notes(notes: Mapping[str, str], has_alphas: bool) -> Declaration | None:
    for key in notes:
        if (
            not has_alphas
            and key not in _NOTES_OF_ALPHA
            and re.fullmatch(r"(lora_|network_)?scal(e|ing)", key)
        ):
            raise ValueError(f"header note {key}: is not supported; state lora_alpha and r in {_CONFIG}")
    settings = _parse_numbers(notes, _NOTES_OF_ALPHA, _NOTES_OF_RANK)
    if "use_rslora" in notes:
        settings["use_rslora"] = notes["use_rslora"]
    return _parse("header note lora_alpha", settings) if settings else None


def _parse_numbers(notes: Mapping[str, str], alphas: Iterable[str], ranks: Iterable[str]) -> dict[str, Any]:
    """Parses an alpha and its rank; text such as sd-scripts' "Dynamic" declares nothing."""
    alpha = next((notes[key] for key in alphas if key in notes), "")
    rank = next((notes[key] for key in ranks if key in notes), "")
    numbers = {"lora_alpha": alpha, "r": rank} if _is_number(alpha) else {}
    return {key: float(text) for key, text in numbers.items() if _is_number(text)}


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
