"""Verifies requests to real HTTPS servers: where they go, what they carry, and how each answer is judged."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from services.scheduler.webhook_addresses import IpAddress, parse_rules
from services.scheduler.webhooks.outcome import OutcomeKind
from services.scheduler.webhooks.poster import Poster, Resolver
from tests.processes import free_port
from tests.receiver import Receiver, running_receiver
from tests.tls import Certificates, make_certificates

BODY = b'{"id":"evt_1"}'
HEADERS = {"webhook-id": "evt_1", "webhook-timestamp": "1", "webhook-signature": "v1,abc"}
# Long for this machine, whatever else it does; short for tests in which no peer answers.
LONG, SHORT = 30.0, 0.2


class Names:
    """Answers of a name server, one after the other; the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    async def resolve(self, host: str, port: int) -> list[IpAddress]:
        self.asked.append(host)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if not answer:
            raise OSError("Name or service not known")
        return [ipaddress.ip_address(text) for text in answer]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def receiver(certificates: Certificates) -> Iterator[Receiver]:
    with running_receiver(certificates) as receiver:
        yield receiver


def make_poster(
    certificates: Certificates, names: Names | None = None, allowed: str = "127.0.0.1", seconds: float = LONG
) -> Poster:
    names = names or Names(["127.0.0.1"])
    return Poster(parse_rules(allowed.split(",")), names.resolve, ca=str(certificates.ca), seconds=seconds)


@pytest.mark.parametrize(("host", "name"), [("127.0.0.1", None), ("localhost", "localhost")])
async def test_request_carries_the_event(
    certificates: Certificates, receiver: Receiver, host: str, name: str | None
) -> None:
    url = receiver.url("/a/b?token=c", host)
    outcome = await make_poster(certificates).post(url, HEADERS, BODY)
    assert outcome.kind is OutcomeKind.DELIVERED
    [request] = receiver.received
    assert request.path == "/a/b?token=c"
    assert request.body == BODY
    assert request.headers.items() >= HEADERS.items()
    assert request.headers["host"] == f"{host}:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert request.server_name == name


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (200, OutcomeKind.DELIVERED),
        (204, OutcomeKind.DELIVERED),
        (301, OutcomeKind.REJECTED),
        (307, OutcomeKind.REJECTED),
        (400, OutcomeKind.REJECTED),
        (410, OutcomeKind.GONE),
        (500, OutcomeKind.REJECTED),
        (None, OutcomeKind.UNREACHABLE),
    ],
)
async def test_status_decides(
    certificates: Certificates, receiver: Receiver, status: int | None, kind: OutcomeKind
) -> None:
    receiver.answers.append(status)
    with running_receiver(certificates) as other:
        receiver.headers["Location"] = other.url()
        outcome = await make_poster(certificates).post(receiver.url(), HEADERS, BODY)
        assert outcome.kind is kind
        assert other.connections == 0, "redirects are not followed"
    assert len(receiver.received) == 1


async def test_certificate_must_be_of_the_name_and_of_the_authority(
    certificates: Certificates, receiver: Receiver, tmp_path: Path
) -> None:
    poster = make_poster(certificates, allowed="127.0.0.1,a.example")
    outcome = await poster.post(receiver.url(host="a.example"), HEADERS, BODY)
    assert outcome.kind is OutcomeKind.UNREACHABLE
    assert "certificate" in outcome.cause
    stranger = make_certificates(tmp_path, "stranger")
    outcome = await make_poster(stranger).post(receiver.url(), HEADERS, BODY)
    assert outcome.kind is OutcomeKind.UNREACHABLE
    assert "certificate" in outcome.cause
    assert receiver.connections == 2
    assert receiver.received == []


async def test_name_with_a_private_address_is_not_connected(
    certificates: Certificates, receiver: Receiver
) -> None:
    for allowed in ("10.0.0.0/8", "other.example"):
        poster = make_poster(certificates, allowed=allowed)
        outcome = await poster.post(receiver.url("/a?token=b", "localhost"), HEADERS, BODY)
        assert outcome.kind is OutcomeKind.ADDRESS_REFUSED
        assert "127.0.0.1" in outcome.cause
        assert "token" not in outcome.cause
    outcome = await make_poster(certificates, allowed="10.0.0.0/8").post(receiver.url(), HEADERS, BODY)
    assert outcome.kind is OutcomeKind.ADDRESS_REFUSED, "also if other settings had accepted the URL"
    assert receiver.connections == 0


async def test_address_is_checked_at_every_attempt(certificates: Certificates, receiver: Receiver) -> None:
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    poster = make_poster(certificates, names)
    url = receiver.url(host="localhost")
    assert (await poster.post(url, HEADERS, BODY)).kind is OutcomeKind.DELIVERED
    assert (await poster.post(url, HEADERS, BODY)).kind is OutcomeKind.ADDRESS_REFUSED
    assert names.asked == ["localhost", "localhost"], "once for each attempt"
    assert receiver.connections == 1


async def test_connection_is_to_the_address_that_was_checked(
    certificates: Certificates, receiver: Receiver
) -> None:
    """The system resolves localhost to 127.0.0.1, where the receiver listens."""
    poster = make_poster(certificates, Names(["127.0.0.2"]), allowed="127.0.0.2")
    outcome = await poster.post(receiver.url(host="localhost"), HEADERS, BODY)
    assert outcome.kind is OutcomeKind.UNREACHABLE
    assert receiver.connections == 0


@pytest.mark.parametrize("answer", [["10.9.9.9", "127.0.0.1"], ["127.0.0.3", "127.0.0.1"]])
async def test_other_addresses_of_the_host_are_tried(
    certificates: Certificates, receiver: Receiver, answer: list[str]
) -> None:
    """The first one is refused by the rules, or by the machine."""
    poster = make_poster(certificates, Names(answer), allowed="127.0.0.0/8")
    outcome = await poster.post(receiver.url(host="localhost"), HEADERS, BODY)
    assert outcome.kind is OutcomeKind.DELIVERED


async def test_host_without_an_address_is_unreachable(certificates: Certificates) -> None:
    outcome = await make_poster(certificates, Names([])).post("https://a.example/", HEADERS, BODY)
    assert outcome.kind is OutcomeKind.UNREACHABLE
    assert "no address" in outcome.cause


async def test_proxies_of_the_environment_are_not_used(
    certificates: Certificates, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    outcome = await make_poster(certificates).post(receiver.url(), HEADERS, BODY)
    assert outcome.kind is OutcomeKind.DELIVERED


async def test_receiver_that_does_not_answer_ends_the_attempt(
    certificates: Certificates, receiver: Receiver
) -> None:
    receiver.hold.clear()
    poster = make_poster(certificates, seconds=SHORT)
    assert (await poster.post(receiver.url(), HEADERS, BODY)).kind is OutcomeKind.TIMEOUT
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"https://127.0.0.1:{silent.getsockname()[1]}/"
        assert (await poster.post(url, HEADERS, BODY)).kind is OutcomeKind.TIMEOUT


async def test_closed_port_is_unreachable(certificates: Certificates) -> None:
    url = f"https://127.0.0.1:{free_port()}/"
    outcome = await make_poster(certificates).post(url, HEADERS, BODY)
    assert outcome.kind is OutcomeKind.UNREACHABLE


@contextmanager
def answering(certificates: Certificates, answer: bytes, repeat: bool) -> Iterator[int]:
    """Serves one TLS connection; yields the port.

    Args:
        repeat: whether to send the last kilobyte of the answer again until the client ends the connection.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)

    def serve() -> None:
        with contextlib.suppress(OSError), listener.accept()[0] as plain:
            plain.settimeout(LONG)
            with context.wrap_socket(plain, server_side=True) as connection:
                connection.recv(1 << 16)
                connection.sendall(answer)
                while repeat:
                    connection.sendall(answer[-1_024:])

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(LONG)
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
    thread.join(LONG)
    assert not thread.is_alive(), "the client keeps the connection"


@pytest.mark.parametrize(
    ("answer", "repeat", "kind"),
    [
        (b"HTTP/1.1 200 OK\r\nA: " + b"a" * 2_048, True, OutcomeKind.UNREACHABLE),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * 2_048, True, OutcomeKind.DELIVERED),
        (b"no HTTP at all\r\n\r\n", False, OutcomeKind.UNREACHABLE),
        (b"", False, OutcomeKind.UNREACHABLE),
    ],
    ids=["endless headers", "endless body", "other protocol", "nothing"],
)
async def test_answer_is_read_to_a_bound(
    certificates: Certificates, answer: bytes, repeat: bool, kind: OutcomeKind
) -> None:
    with answering(certificates, answer, repeat) as port:
        outcome = await make_poster(certificates).post(f"https://127.0.0.1:{port}/", HEADERS, BODY)
        assert outcome.kind is kind
        assert len(outcome.cause) <= 200


async def test_names_are_resolved_by_the_system() -> None:
    resolver = Resolver(1)
    try:
        found = await resolver.resolve("localhost", 443)
        assert found
        assert all(address.is_loopback for address in found)
        with pytest.raises(OSError, match=r".+"):
            await resolver.resolve("no-such-host.invalid", 443)
    finally:
        resolver.close()


@pytest.mark.parametrize(("status", "seconds"), [(429, 120.0), (503, 120.0), (500, 0.0), (200, 0.0)])
async def test_pause_that_a_busy_receiver_asks_for_is_in_the_outcome(
    certificates: Certificates, receiver: Receiver, status: int, seconds: float
) -> None:
    receiver.answers.append(status)
    receiver.headers["Retry-After"] = "120"
    outcome = await make_poster(certificates).post(receiver.url(), HEADERS, BODY)
    assert outcome.retry_after == seconds
