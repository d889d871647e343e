"""`chorus keys`: create, list and revoke the API keys of a file, which the scheduler reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer
from chorus_rpc.api_keys import ApiKey, InvalidKeys, create_key, format_time
from chorus_rpc.errors import invalid, not_found
from chorus_rpc.limits import MAX_API_KEY_NAME

from chorus_cli.key_file import edit_keys, read_keys
from chorus_cli.options import Json
from chorus_cli.output import Output
from chorus_cli.tables import align_columns

app = typer.Typer(
    help="Create, list and revoke the API keys of the file that the scheduler reads.",
    no_args_is_help=True,
)

_HEADER = ("id", "tenant", "state", "created", "expires", "name")
_MAX_DAYS = 36_500

KeyFile = Annotated[
    Path,
    typer.Option(
        envvar="CHORUS_SCHEDULER_API_KEYS",
        metavar="FILE",
        dir_okay=False,
        help="File of the keys; it contains their hashes only.",
    ),
]


@app.command()
def create(
    file: KeyFile,
    tenant: Annotated[str, typer.Option(metavar="NAME", help="Tenant whose generations the key concerns.")],
    name: Annotated[
        str, typer.Option(metavar="TEXT", help=f"What the key is for, at most {MAX_API_KEY_NAME} characters.")
    ] = "",
    expires_days: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS", help="Days after which the key is not accepted. Default: it does not expire."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Create a key and print it. It cannot be shown again: the file contains its hash only."""
    out = Output(as_json)
    with out.faults():
        now = datetime.now(UTC)
        if expires_days is not None and not 0 < expires_days <= _MAX_DAYS:
            raise invalid("expires-days", f"must be above 0, at most {_MAX_DAYS:,}, not {expires_days:g}")
        expires = None if expires_days is None else now + timedelta(days=expires_days)
        try:
            key, token = create_key(tenant, now, name=name, expires=expires)
        except InvalidKeys as error:
            field, _, rest = str(error).partition(" ")
            raise invalid(field, rest) from None
        edit_keys(file, lambda keys: {**keys, key.id: key}, create=True)
        out.print(token, created={**_describe(key, now), "key": token})
        out.status(f"key {key.id} of tenant {tenant}: keep it, since it cannot be shown again")


@app.command("list")
def list_keys(file: KeyFile, as_json: Json = False) -> None:
    """List the keys of the file, the oldest first."""
    out = Output(as_json)
    with out.faults():
        keys, now = list(read_keys(file).values()), datetime.now(UTC)
        for key in keys:
            out.json_line(key=_describe(key, now))
        if as_json:
            return
        if not keys:
            out.status("no keys")
            return
        out.print(align_columns([_HEADER, *(_row(key, now) for key in keys)]))


@app.command()
def revoke(
    key_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the key, as `chorus keys list` shows it.")
    ],
    file: KeyFile,
    as_json: Json = False,
) -> None:
    """Revoke a key: the scheduler refuses it as soon as it has read the file again.

    A key that is revoked already does not change.
    """
    out = Output(as_json)
    with out.faults():
        now = datetime.now(UTC).replace(microsecond=0)
        keys = edit_keys(file, _revoking(key_id, now))
        out.print(f"{key_id} revoked", revoked=_describe(keys[key_id], now))


def _revoking(key_id: str, now: datetime) -> Callable[[dict[str, ApiKey]], dict[str, ApiKey]]:
    """Returns the change that revokes a key. It raises NOT_FOUND for an unknown one."""

    def change(keys: dict[str, ApiKey]) -> dict[str, ApiKey]:
        if key_id not in keys:
            raise not_found("key", key_id[:64])
        key = keys[key_id]
        return keys if key.revoked is not None else {**keys, key_id: replace(key, revoked=now)}

    return change


def _describe(key: ApiKey, now: datetime) -> dict[str, Any]:
    return {
        "id": key.id,
        "tenant": key.tenant,
        "name": key.name,
        "state": key.state(now),
        "created": format_time(key.created),
        "expires": None if key.expires is None else format_time(key.expires),
        "revoked": None if key.revoked is None else format_time(key.revoked),
    }


def _row(key: ApiKey, now: datetime) -> tuple[str, ...]:
    expires = "never" if key.expires is None else format_time(key.expires)
    return (key.id, key.tenant, key.state(now), format_time(key.created), expires, key.name)
