"""API keys of callers. They are the scheduler's, which checks them: the gateway only passes them on."""

from __future__ import annotations

import re
from typing import Annotated, Final

from chorus_client import AsyncChorusClient
from chorus_rpc.errors import UNAUTHENTICATED, ChorusError
from fastapi import Depends, Request

from services.gateway.security.origins import refuse_foreign_pages
from services.gateway.settings import GatewaySettings

_BEARER: Final = re.compile(r"(?i:bearer) +([!-~]{1,4096})")


def read_token(authorization: str | None, required: bool) -> str | None:
    """Returns the API key of the header `Authorization`; None without the header.

    Args:
        required: whether a request must carry one.

    Raises ChorusError (UNAUTHENTICATED) for a header of another form, and for a missing one if it is
    required. No error contains the header.
    """
    if authorization is None:
        if required:
            raise ChorusError(
                UNAUTHENTICATED, 'the request carries no API key: send "Authorization: Bearer KEY"'
            )
        return None
    match = _BEARER.fullmatch(authorization.strip())
    if match is None:
        raise ChorusError(UNAUTHENTICATED, 'the header Authorization must be "Bearer KEY"')
    return match[1]


def get_settings(request: Request) -> GatewaySettings:
    settings: GatewaySettings = request.app.state.settings
    return settings


def get_client(request: Request) -> AsyncChorusClient:
    """Returns the client of the scheduler with the caller's API key.

    Raises ChorusError (UNAUTHENTICATED), and ApiError (403) for a page of another site unless requests need
    keys, which such a page does not have.
    """
    client: AsyncChorusClient = request.app.state.client
    settings = get_settings(request)
    if not settings.require_keys:
        # Whether the caller has a key or not: a scheduler without keys accepts any.
        refuse_foreign_pages(request.headers, settings.cors_origins, local=not settings.trusted_network)
    return client.with_token(read_token(request.headers.get("authorization"), settings.require_keys))


Settings = Annotated[GatewaySettings, Depends(get_settings)]
Caller = Annotated[AsyncChorusClient, Depends(get_client)]
