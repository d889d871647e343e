"""The OpenAPI document: that of the framework, with the bodies, errors and keys that it does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

_REFERENCE: Final = "#/components/schemas/{model}"
_REASONS: Final = {
    "400": "A field cannot be honoured; `violations` names each.",
    "401": "The API key is missing or not in force.",
    "403": "The API key does not permit this.",
    "404": "There is no such video or model.",
    "405": "The URL does not support this method.",
    "408": "The body did not arrive in time.",
    "409": "The state of the video, or a key that was used before, does not permit this.",
    "410": "The file is no longer available.",
    "413": "The body is too large.",
    "415": "The body is neither JSON nor a form.",
    "416": "The range is not within the file.",
    "422": "The video failed.",
    "429": "A limit is reached; `Retry-After` says when to try again.",
    "500": "Internal error.",
    "503": "The server cannot answer now; `Retry-After` says when to try again.",
}
_READ: Final = ("400", "401", "403", "404", "405", "429", "500", "503")
_WRITE: Final = ("408", "409", "413", "415")
_FILE: Final = ("409", "410", "416", "422")


class Violation(BaseModel):
    """A field at fault."""

    param: str
    message: str
    code: str


class ErrorDetails(BaseModel):
    """Why a request failed."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    message: str
    type: str
    """Class of the error, such as `invalid_request_error`."""
    param: str | None
    """Field at fault."""
    code: str
    """Cause, such as `unsupported_parameter`."""
    violations: list[Violation] | None = None
    """Every field at fault."""


class Error(BaseModel):
    """Body of every failed request."""

    error: ErrorDetails


def install_document(app: FastAPI, bodies: Iterable[type[BaseModel]]) -> None:
    """Makes the document of an application complete.

    Args:
        bodies: models of bodies that routes read themselves.
    """
    models: list[type[BaseModel]] = [Error, *bodies]

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _complete(
                get_openapi(
                    title=app.title, version=app.version, description=app.description, routes=app.routes
                ),
                models,
            )
        return app.openapi_schema

    replaced: Callable[[], dict[str, Any]] = build
    app.openapi = replaced  # type: ignore[method-assign]  # as FastAPI documents it


def _complete(document: dict[str, Any], models: Iterable[type[BaseModel]]) -> dict[str, Any]:
    _, definitions = models_json_schema(
        [(model, "validation") for model in models], ref_template=_REFERENCE, title=None
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas.update(definitions["$defs"])
    components["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "API key of the scheduler, if it has keys.",
        }
    }
    document["security"] = [{"key": []}, {}]
    content = {"application/json": {"schema": {"$ref": _REFERENCE.format(model="Error")}}}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            responses = operation["responses"]
            responses.pop("422", None)
            for code in _list_errors(path, method):
                responses.setdefault(code, {"description": _REASONS[code], "content": content})
            operation["responses"] = dict(sorted(responses.items()))
    return document


def _list_errors(path: str, method: str) -> tuple[str, ...]:
    codes = [*_READ]
    if method == "post":
        codes += _WRITE
    if path.endswith(("/content", "/sync")):
        codes += _FILE
    if method == "delete":
        codes.append("409")
    return tuple(sorted(set(codes)))
