"""Verifies tokens and TLS of the SDK and the command line: what is sent, and what is refused before it is."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from chorus_cli.main import app
from chorus_client import AsyncChorusClient, ChorusClient, ChorusError, Tls
from chorus_rpc import errors
from typer.testing import CliRunner

from tests.integration.client.fakes import FakeDeployment, deployment_in_thread
from tests.tls import Certificates, make_certificates

TOKEN = "chorus_0123456789ab_" + "s" * 43
REMOTE = [
    "scheduler:7400",
    "10.0.0.1:7400",
    "[fd00::7]:7400",
    "dns:///localhost.example:7400",
    "xds:///chorus",
]
LOCAL = ["localhost:7400", "127.0.0.1:7400", "[::1]:7400", "unix:/run/chorus.sock"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("CHORUS_TARGET", "CHORUS_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def deployment() -> Iterator[FakeDeployment]:
    with deployment_in_thread(FakeDeployment) as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def secure(certificates: Certificates) -> Iterator[FakeDeployment]:
    pair = certificates.key.read_bytes(), certificates.certificate.read_bytes()
    credentials = grpc.ssl_server_credentials([pair])
    with deployment_in_thread(lambda: FakeDeployment(credentials)) as running:
        yield running


def chorus(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, list(arguments), env=environment)


def received(deployment: FakeDeployment) -> list[str | None]:
    """Returns the authorization of each submission."""
    return [metadata.get("authorization") for metadata in deployment.scheduler.metadata]


def test_token_of_the_argument_and_of_the_variable_is_sent(
    deployment: FakeDeployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ChorusClient(deployment.target) as client:
        client.submit("x")
    with ChorusClient(deployment.target, token=TOKEN) as client:
        client.submit("x")
    monkeypatch.setenv("CHORUS_TOKEN", "chorus_of_the_variable")
    with ChorusClient(deployment.target) as client:
        client.submit("x")
    with ChorusClient(deployment.target, token=TOKEN) as client:
        client.submit("x")
    # Metadata that the program states itself is not overridden by the environment.
    with ChorusClient(deployment.target, metadata=[("authorization", "Basic x")]) as client:
        client.submit("x")
    argument, variable = f"Bearer {TOKEN}", "Bearer chorus_of_the_variable"
    assert received(deployment) == [None, argument, variable, argument, "Basic x"]


@pytest.mark.parametrize("target", REMOTE)
@pytest.mark.parametrize("from_variable", [False, True])
async def test_token_is_not_sent_in_clear_to_another_machine(
    target: str, from_variable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if from_variable:
        monkeypatch.setenv("CHORUS_TOKEN", TOKEN)
    token = None if from_variable else TOKEN
    for kind in (ChorusClient, AsyncChorusClient):
        with pytest.raises(ChorusError, match=r"token: would be sent to .* without encryption") as refused:
            kind(target, token=token)
        assert refused.value.reason == errors.INVALID_FIELD
        assert f"chorus+tls://{target}" in refused.value.message
        assert "allow_plaintext_token=" in refused.value.message
        # Nothing that is printed of the error contains the token.
        shown = "".join(traceback.format_exception(refused.value)) + repr(refused.value.__dict__)
        assert TOKEN not in shown
    async with AsyncChorusClient(target, token=token, allow_plaintext_token=True):
        pass
    async with AsyncChorusClient(target, token=token, tls=True) as client:
        assert TOKEN not in repr(client) + repr(client._connection)


@pytest.mark.parametrize("target", LOCAL)
async def test_token_is_sent_on_this_machine_without_tls(target: str) -> None:
    async with AsyncChorusClient(target, token=TOKEN):
        pass


def test_tls_is_chosen_by_the_scheme_or_the_argument(
    secure: FakeDeployment, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    authorities = certificates.ca.read_bytes()
    for target, options in (
        (f"chorus+tls://{secure.target}", {"tls": Tls(certificates.ca)}),
        (secure.target, {"tls": Tls(str(certificates.ca))}),
        (f"chorus+tls://{secure.target}", {"credentials": grpc.ssl_channel_credentials(authorities)}),
    ):
        with ChorusClient(target, token=TOKEN, **options) as client:
            client.submit("x")
            assert client.target == secure.target
    monkeypatch.setenv("CHORUS_TARGET", f"chorus+tls://{secure.target}")
    with ChorusClient() as client, pytest.raises(ChorusError, match=r"over TLS: .*certificate"):
        client.submit("x")
    assert received(secure) == [f"Bearer {TOKEN}"] * 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tls": True, "credentials": grpc.ssl_channel_credentials()}, "give tls= or credentials="),
        ({"tls": Tls(ca="/no/such/file")}, "tls.ca: /no/such/file cannot be read: No such file"),
        ({"tls": Tls(certificate="a.pem")}, "tls: needs the certificate and the key of the client"),
        ({"token": "two words"}, "token: must be 1 to 4,096 printable ASCII characters"),
        ({"token": ""}, "token: must be 1 to 4,096 printable ASCII characters"),
        ({"token": b"bytes"}, "token: must be 1 to 4,096 printable ASCII characters"),
        ({"token": "x", "metadata": [("authorization", "Basic y")]}, "give token=, or authorization"),
    ],
)
def test_arguments_that_contradict_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ChorusError) as refused:
        ChorusClient("127.0.0.1:1", **options)
    assert message in refused.value.message
    assert "two words" not in refused.value.message


def test_commands_send_the_token_of_the_option_and_of_the_variable(deployment: FakeDeployment) -> None:
    base = ("generate", "x", "--detach", "--target", deployment.target)
    for done in (chorus(*base), chorus(*base, "--token", TOKEN), chorus(*base, CHORUS_TOKEN=TOKEN)):
        assert done.exit_code == 0, done.output
        assert TOKEN not in done.output
    # The options of one command do not reach the next one.
    assert chorus(*base).exit_code == 0
    assert received(deployment) == [None, f"Bearer {TOKEN}", f"Bearer {TOKEN}", None]


@pytest.mark.parametrize(
    "command",
    ["generate x", "jobs", "get abcd", "watch abcd", "cancel abcd", "rm abcd", "models", "explain a"],
)
def test_command_refuses_to_send_the_token_in_clear(command: str) -> None:
    done = chorus(*command.split(), "--target", "scheduler.example:7400", CHORUS_TOKEN=TOKEN)
    assert done.exit_code == 2
    assert "error: token: would be sent to scheduler.example:7400 without encryption" in done.stderr
    assert "--allow-plaintext-token" in done.stderr
    assert TOKEN not in done.output


def test_commands_connect_with_tls(secure: FakeDeployment, certificates: Certificates) -> None:
    ca = ("--ca", str(certificates.ca))
    for arguments in (
        ("--target", secure.target, *ca),
        ("--target", secure.target, "--tls", *ca),
        ("--target", f"chorus+tls://{secure.target}", *ca),
    ):
        done = chorus("generate", "x", "--detach", *arguments, CHORUS_TOKEN=TOKEN)
        assert done.exit_code == 0, done.output
    assert received(secure) == [f"Bearer {TOKEN}"] * 3
    untrusted = chorus("jobs", "--target", secure.target, "--tls")
    assert untrusted.exit_code == 3
    assert "over TLS" in untrusted.stderr
    assert "certificate" in untrusted.stderr.lower()
    incomplete = chorus("jobs", "--target", secure.target, "--cert", str(certificates.certificate))
    assert incomplete.exit_code == 2
    assert "needs the certificate and the key of the client" in incomplete.stderr


def test_unreachable_remote_server_may_need_tls() -> None:
    done = chorus("jobs", "--target", "192.0.2.1.invalid:7400")
    assert done.exit_code == 3
    assert "a server with TLS needs chorus+tls:// in front of its address" in done.stderr
