"""Bodies of requests as plain values: JSON, and multipart forms as the SDKs send them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from chorus_rpc.limits import MAX_PROMPT_BYTES
from fastapi import Request
from starlette.datastructures import UploadFile

from services.gateway.errors import ApiError, Fault, invalid

JSON_TYPE: Final = "application/json"
FORM_TYPE: Final = "multipart/form-data"
_FILES: Final = 8
_FIELDS: Final = 128
_PART_BYTES: Final = 4 * MAX_PROMPT_BYTES
_DEPTH: Final = 16
# Values of a JSON body, those inside others among them.
_VALUES: Final = 4_096
# Fields of a form whose text is JSON if it is no list of brackets.
_OBJECTS: Final = frozenset({"chorus", "metadata", "video", "extra_body"})
# A field inside an object or a list: chorus[reuse]=fast, tags[]=one.
_NESTED: Final = re.compile(r"([^\[\]]{1,128})((?:\[[^\[\]]{0,128}\]){1,4})")


@dataclass(frozen=True)
class File:
    """File of a form; its content is not kept, because no field takes one."""

    name: str


async def read_body(request: Request) -> dict[str, Any]:
    """Returns the fields of a request, those of `extra_body` among them.

    Raises ApiError for another type than JSON and a multipart form (415), for a body that is not well formed,
    and for a field that is stated twice.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == JSON_TYPE:
        fields = parse_json_object(await request.body())
    elif kind == FORM_TYPE:
        fields = parse_form(await _read_form(request))
    else:
        raise ApiError(
            415,
            "unsupported_media_type",
            f"Content-Type must be {JSON_TYPE} or {FORM_TYPE}, not {kind[:64] or 'missing'}",
        )
    return merge_extra_body(fields)


async def _read_form(request: Request) -> list[tuple[str, str | File]]:
    try:
        async with request.form(max_files=_FILES, max_fields=_FIELDS, max_part_size=_PART_BYTES) as form:
            return [
                (name, File(value.filename or "") if isinstance(value, UploadFile) else value)
                for name, value in form.multi_items()
            ]
    except UnicodeError:  # some codecs raise no UnicodeDecodeError, for which the parser has an answer
        raise make_charset_error() from None


def make_charset_error() -> ApiError:
    """Returns the error of a form whose text is not of the charset that it states."""
    return ApiError(
        400, "invalid_form", "the text of the form is not of the charset that Content-Type names: use UTF-8"
    )


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Returns the object of a JSON text. Raises ApiError (400) for anything else, and for a repeated name."""
    try:
        value = json.loads(body, object_pairs_hook=_make_object, parse_constant=_reject_constant)
        _check_value(value, 0, _VALUES)
    except (ValueError, RecursionError) as error:
        cause = str(error)[:200] if isinstance(error, ValueError) else "it is nested too deeply"
        raise ApiError(400, "invalid_json", f"the body must be a JSON object: {cause}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "invalid_json", f"the body must be a JSON object, not {type(value).__name__}")
    return value


def parse_form(items: Iterable[tuple[str, str | File]]) -> dict[str, Any]:
    """Returns the fields of a form: brackets in names make objects and lists, and `chorus`, `metadata`,
    `video` and `extra_body` may be JSON texts. Raises ApiError (400) for contradictions, such as a repeated
    field."""
    fields: dict[str, Any] = {}
    faults: list[Fault] = []
    for name, value in items:
        nested = _NESTED.fullmatch(name)
        path = [name] if nested is None else [nested[1], *re.findall(r"\[([^\]]*)\]", nested[2])]
        if nested is None and name in _OBJECTS and isinstance(value, str):
            try:
                content: Any = parse_json_object(value.encode())
            except ApiError:
                faults.append(Fault(name, "must be the text of a JSON object"))
                continue
        else:
            content = value
        fault = _put(fields, path, content)
        if fault is not None:
            faults.append(Fault(name[:128], fault))
    if faults:
        raise invalid(faults)
    return fields


def merge_extra_body(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields with those of `extra_body` among them. Raises ApiError (400) for a field in both."""
    merged = dict(fields)
    extra = merged.pop("extra_body", None)
    if extra is None:
        return merged
    if not isinstance(extra, dict):
        raise invalid([Fault("extra_body", "must be an object of further fields")])
    repeated = [Fault(name, "must not be stated again in extra_body") for name in extra if name in merged]
    if repeated:
        raise invalid(repeated)
    return merged | extra


def _put(fields: dict[str, Any], path: list[str], value: Any) -> str | None:
    """Adds a value at a path of names; an empty name is the next place of a list. Returns the fault, if
    any.
    """
    place: Any = fields
    for position, name in enumerate(path[:-1]):
        following: Any = [] if path[position + 1] == "" else {}
        if isinstance(place, list):
            return "a list must not contain other lists or objects"
        place = place.setdefault(name, following)
        if type(place) is not type(following):
            return "must be one value, one list or one object"
    last = path[-1]
    if isinstance(place, list):
        place.append(value)
        return None
    if last in place:
        return "must not be repeated"
    place[last] = value
    return None


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Before names are compared: a body of a few megabytes could hold a million of them.
    if len(pairs) > _FIELDS:
        raise ValueError(f"an object in it has more than {_FIELDS} names")
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it states {next(name for name in names if names.count(name) > 1)[:64]!r} twice")
    return made


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _check_value(value: Any, depth: int, room: int) -> int:
    """Returns how many of `room` values are left after this one and those inside it.

    Raises ValueError for more of them, for text that UTF-8 cannot carry, and for a value that is nested too
    deeply.
    """
    if room <= 0:
        raise ValueError(f"it has more than {_VALUES:,} values")
    room -= 1
    if depth > _DEPTH:
        raise ValueError(f"it is nested more than {_DEPTH} deep")
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError("it contains half of a surrogate pair, which is not text") from None
    elif isinstance(value, dict):
        for name, inner in value.items():
            room = _check_value(name, depth + 1, room)
            room = _check_value(inner, depth + 1, room)
    elif isinstance(value, list):
        for inner in value:
            room = _check_value(inner, depth + 1, room)
    return room
