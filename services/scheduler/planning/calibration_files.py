"""Calibration files: one for each model, written by `chorus calibrate` or, for the shipped model, by
`python -m bench.calibrate`.

`{"model_id", "served_digest", "rows": […]}`, and how it was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Final, get_args

from chorus.common.v1 import plan_pb2
from chorus.denoiser.v1 import denoiser_pb2
from chorus_rpc.limits import MAX_ID_CHARACTERS, SHA256_PATTERN
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from services.contract.edits import EditKind
from services.contract.identity import served_digest
from services.runtime.logs import get_logger
from services.scheduler.planning.calibration import Calibration, Depth, Row

log = get_logger("calibrations")

# Upper bounds: a broken file must not occupy the planner.
_MAX_ROWS: Final = 1_000
_MAX_BYTES: Final = 4 << 20
_MEASURED: Final = (
    "computed_share",
    "drift_points",
    "alignment_loss_points",
    "error_points",
    "artefact_points",
    "artefact_error_points",
    "layout_kept",
    "diversity",
)


class Calibrations:
    """Calibrations of the served models, by model id. Later ones replace earlier ones of the same id."""

    def __init__(self, calibrations: Iterable[Calibration]) -> None:
        self._by_id = {calibration.model_id: calibration for calibration in calibrations}

    def find(self, model: denoiser_pb2.ModelInfo) -> Calibration | None:
        """Returns the calibration that was measured on a model; None without one."""
        found = self._by_id.get(model.model_id)
        return found if found is not None and self.find_fault(model) is None else None

    def find_fault(self, model: denoiser_pb2.ModelInfo) -> str | None:
        """Describes why the calibration of a model's id is not used; None if it is, or if there is none."""
        found = self._by_id.get(model.model_id)
        if found is None or found.served_digest == served_digest(model):
            return None
        return (
            f"the calibration of {model.model_id!r} was measured on other weights or settings and is not"
            " used: run chorus calibrate again, or give the model another id"
        )

    def warn_of_faults(self, models: Iterable[denoiser_pb2.ModelInfo]) -> None:
        """Logs a warning for each model whose calibration is not used."""
        for model in models:
            if (fault := self.find_fault(model)) is not None:
                log.warning("calibration not used", model_id=model.model_id, cause=fault)


def load_calibrations(paths: Sequence[Path]) -> Calibrations:
    """Reads calibration files, in addition to those that ship.

    Raises ValueError that names the file and the fault.
    """
    return Calibrations((*_load_shipped(), *map(read_calibration, paths)))


def read_calibration(path: Path) -> Calibration:
    """Reads one file. Raises ValueError that names the file, the invalid row and the field."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ValueError(f"has more than {_MAX_BYTES >> 20} MiB, so it is no calibration")
        return parse_calibration(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@cache
def _load_shipped() -> tuple[Calibration, ...]:
    folder = resources.files("services.scheduler.planning") / "calibrations"
    files = [file for file in folder.iterdir() if file.name.endswith(".json")]
    return tuple(parse_calibration(json.loads(file.read_text("utf-8"))) for file in files)


def load_shipped(model_id: str) -> Calibration | None:
    """Returns the calibration that ships for a model; None if none ships."""
    return next((each for each in _load_shipped() if each.model_id == model_id), None)


def parse_calibration(plain: Mapping[str, Any]) -> Calibration:
    """Returns the calibration of a JSON document. Raises ValueError that names the invalid row and field."""
    if not isinstance(plain, Mapping):
        raise ValueError("must hold one JSON object")
    model_id, digest, rows = (plain.get(name) for name in ("model_id", "served_digest", "rows"))
    if not isinstance(model_id, str) or not 1 <= len(model_id) <= MAX_ID_CHARACTERS:
        raise ValueError(f"model_id: must have 1 to {MAX_ID_CHARACTERS} characters")
    if not isinstance(digest, str) or re.fullmatch(SHA256_PATTERN, digest) is None:
        raise ValueError("served_digest: must be 64 lower-case hex digits")
    if not isinstance(rows, list) or len(rows) > _MAX_ROWS:
        raise ValueError(f"rows: must be a list of at most {_MAX_ROWS}")
    parsed = []
    for number, row in enumerate(rows):
        try:
            parsed.append(_parse_row(row))
        except (KeyError, TypeError, ValueError, ParseError) as error:
            raise ValueError(f"rows[{number}]: {error}") from None
    return Calibration(model_id, tuple(parsed), digest)


def _parse_row(plain: dict[str, Any]) -> Row:
    edit, sigma = plain["edit"], float(plain["sigma"])
    if edit not in get_args(EditKind):
        raise ValueError(f"edit: {edit!r} is not a kind of edit")
    if not 0 < sigma <= 1:
        raise ValueError(f"sigma: must be above 0 and at most 1, not {sigma:g}")
    region, amplification = plain.get("region"), plain.get("amplification")
    draft_sigma = plain.get("draft_sigma")
    if draft_sigma is not None and (region is not None or not 0 < float(draft_sigma) <= sigma):
        raise ValueError(
            f"draft_sigma: must be above 0 and at most sigma = {sigma:g}, without a region; not {draft_sigma}"
        )
    return Row(
        edit=edit,
        depth=Depth(
            sigma,
            None if region is None else ParseDict(region, plan_pb2.RegionPlan()),
            None if amplification is None else ParseDict(amplification, plan_pb2.Amplification()),
            None if draft_sigma is None else float(draft_sigma),
        ),
        **{name: float(plain[name]) for name in _MEASURED},
        n=int(plain["n"]),
    )


def to_plain(row: Row) -> dict[str, Any]:
    """Returns the JSON form of a row, which `parse_calibration` reads, with messages in protobuf's JSON."""
    messages = {"region": row.depth.region, "amplification": row.depth.amplification}
    return {
        "edit": row.edit,
        "sigma": row.depth.sigma,
        **({} if row.depth.draft_sigma is None else {"draft_sigma": row.depth.draft_sigma}),
        **{
            name: MessageToDict(message, preserving_proto_field_name=True)
            for name, message in messages.items()
            if message is not None
        },
        **{name: getattr(row, name) for name in _MEASURED},
        "n": row.n,
    }
