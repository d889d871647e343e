"""Credentials of the object store that are not a fixed pair of keys."""

from __future__ import annotations

import re
import threading
from typing import Final

import urllib3
from minio.credentials.credentials import Credentials
from minio.credentials.providers import EnvAWSProvider, IamAwsProvider, Provider

from services.object_store.validation import CredentialsSource

# Raised by the providers for answers that they cannot use: refusals, and texts that are no JSON or XML.
_FAULTS: Final = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    SyntaxError,
    OSError,
    urllib3.exceptions.HTTPError,
)
_QUERY: Final = re.compile(r"\?\S*")
# Answers to a request that the token service will not grant when it is repeated.
_REFUSED: Final = re.compile(r"HTTP status code 4(?!08|29)\d\d")


class CredentialsUnavailable(OSError):
    """The service that issues credentials does not answer, or not as expected."""


class CredentialsRefused(CredentialsUnavailable):
    """The service that issues credentials refuses them: a retry cannot succeed."""


class GuardedProvider(Provider):
    """Retrieves credentials once for all threads, and reports failures without secrets.

    Args:
        provider: provider that retrieves the credentials, and keeps them until they expire.
        variable: variable that selects the source of the credentials, for errors.
    """

    def __init__(self, provider: Provider, variable: str) -> None:
        self._provider = provider
        self._variable = variable
        self._lock = threading.Lock()

    def retrieve(self) -> Credentials:
        """Returns the credentials. Raises CredentialsUnavailable or CredentialsRefused."""
        with self._lock:
            try:
                return self._provider.retrieve()
            except _FAULTS as error:
                # The query of a request to the token service contains the web identity's token; neither the
                # message nor the cause may carry it into the log.
                reason = _QUERY.sub("", str(error))[:300]
                kind = CredentialsRefused if _REFUSED.search(reason) else CredentialsUnavailable
                raise kind(f"{self._variable}: no credentials: {type(error).__name__}: {reason}") from None


def open_provider(
    source: CredentialsSource, *, variable: str, endpoint: str, region: str, ca: str, seconds: float
) -> Provider | None:
    """Returns the provider of a source; None for keys. Arguments as of `open_role_provider`."""
    if source == "environment":
        # AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN.
        return GuardedProvider(EnvAWSProvider(), variable)
    if source == "role":
        return open_role_provider(variable=variable, endpoint=endpoint, region=region, ca=ca, seconds=seconds)
    return None


def open_role_provider(*, variable: str, endpoint: str, region: str, ca: str, seconds: float) -> Provider:
    """Returns the provider of temporary credentials, found as AWS's own clients do.

    A web identity has priority (AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN, as EKS sets them), then the
    credentials of a container (AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI), then the metadata of the
    machine.

    Args:
        variable: variable that selects the source of the credentials, for errors.
        endpoint: URL of the service that issues the credentials; "": AWS's own.
        region: region of AWS's token service, unless AWS_REGION is set; "": the global one.
        ca: PEM file with the authorities of an `endpoint`; "": the system's.
        seconds: upper bound on one attempt to connect and on one answer, in seconds.
    """
    client = urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=min(seconds, 5.0), read=seconds),
        # The caller retries. urllib3 would log the URL of every attempt, with the token in it.
        retries=False,
        ca_certs=(ca if endpoint else "") or None,
    )
    return GuardedProvider(
        IamAwsProvider(custom_endpoint=endpoint or None, region=region or None, http_client=client),
        variable,
    )
