"""Commands that call the scheduler, and the options that protect their connection."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from chorus_client import Tls
from chorus_client.security import TOKEN_VARIABLE
from typer.core import TyperCommand, TyperOption


@dataclass(frozen=True)
class Protection:
    """Values of the options.

    Attributes:
        tls: whether to use TLS, with its files if any is named.
        token: API key; None for that of CHORUS_TOKEN, if it is set.
        allow_plaintext_token: whether the token may be sent to another machine without TLS.
    """

    tls: bool | Tls = False
    token: str | None = field(default=None, repr=False)
    allow_plaintext_token: bool = False


_PROTECTION: Final[ContextVar[Protection]] = ContextVar("protection")
_NO_OPTION: Final = Protection()
_OPTIONS: Final[dict[str, dict[str, Any]]] = {
    "tls": {"is_flag": True, "default": False, "help": "Connect with TLS, as with chorus+tls://HOST:PORT."},
    "ca": {
        "metavar": "FILE",
        "help": "PEM file with the authorities of the server's certificate; implies --tls."
        " Default: the public ones.",
    },
    "cert": {
        "metavar": "FILE",
        "help": "PEM file with the certificate of this client, if the server requires one; needs --key.",
    },
    "key": {"metavar": "FILE", "help": "PEM file with the private key of --cert."},
    "token": {
        "metavar": "KEY",
        "envvar": TOKEN_VARIABLE,
        "show_envvar": True,
        "help": "API key. Other users of this machine can see options: prefer the variable.",
    },
    "allow_plaintext_token": {
        "is_flag": True,
        "default": False,
        "help": "Send the API key to another machine without TLS, on a network that you trust.",
    },
}


class ServerCommand(TyperCommand):
    """Adds the options to a command; `get_protection` returns their values while the command runs."""

    def __init__(self, *args: Any, params: list[Any] | None = None, **kwargs: Any) -> None:
        added = [
            TyperOption(param_decls=[name, f"--{name.replace('_', '-')}"], **settings)
            for name, settings in _OPTIONS.items()
        ]
        super().__init__(*args, params=[*(params or ()), *added], **kwargs)

    def invoke(self, ctx: Any) -> Any:
        values = {name: ctx.params.pop(name) for name in _OPTIONS}
        ca, cert, key = (Path(values[name]) if values[name] else None for name in ("ca", "cert", "key"))
        tls = Tls(ca, cert, key) if ca or cert or key else bool(values["tls"])
        protection = Protection(tls, values["token"] or None, bool(values["allow_plaintext_token"]))
        reset = _PROTECTION.set(protection)
        try:
            return super().invoke(ctx)
        finally:
            _PROTECTION.reset(reset)


def get_protection() -> Protection:
    """Returns the values of the running command's options."""
    return _PROTECTION.get(_NO_OPTION)
