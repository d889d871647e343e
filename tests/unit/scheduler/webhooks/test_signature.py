"""Verifies signatures with the library of Standard Webhooks, and the file of the secrets."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError
from structlog.testing import capture_logs

from services.runtime.watched_file import InvalidFile
from services.scheduler.jobs.outbox import Delivery
from services.scheduler.webhooks.event import make_body, make_event_id
from services.scheduler.webhooks.secret_file import SigningSecrets, parse_secrets
from services.scheduler.webhooks.signature import make_headers, parse_secret

SECRETS = st.binary(min_size=24, max_size=64)
KNOWN = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"  # of the specification's example


def write_secret(secret: bytes) -> str:
    return "whsec_" + base64.b64encode(secret).decode()


def now() -> int:
    return int(datetime.now(UTC).timestamp())


@given(SECRETS, st.text("abcdef0123456789", min_size=1, max_size=64), st.floats(0, 4e9))
def test_receiver_verifies_the_event(secret: bytes, job_id: str, created: float) -> None:
    delivery = Delivery(job_id, "acme", "https://a.example/", "video.completed", created, 0.0, 1)
    body, event_id = make_body(delivery), make_event_id(job_id)
    headers = make_headers([secret], event_id, now(), body)
    event = Webhook(write_secret(secret)).verify(body, headers)
    assert event == {
        "id": headers["webhook-id"],
        "object": "event",
        "created_at": int(created),
        "type": "video.completed",
        "data": {"id": f"video_{job_id}"},
    }
    assert parse_secret(write_secret(secret)) == secret


@given(SECRETS, SECRETS, st.text(st.characters(max_codepoint=127), min_size=1).map(str.encode))
def test_altered_message_is_rejected(secret: bytes, other: bytes, body: bytes) -> None:
    headers = make_headers([secret], "evt_1", now(), body)
    receiver = Webhook(write_secret(secret))
    altered = bytes([body[0] ^ 1]) + body[1:]
    late = str(int(headers["webhook-timestamp"]) + 1)
    for message, changed in (
        (altered, headers),
        (body, {**headers, "webhook-id": "evt_2"}),
        (body, {**headers, "webhook-timestamp": late}),
    ):
        with pytest.raises(WebhookVerificationError):
            receiver.verify(message, changed)
    if other != secret:
        with pytest.raises(WebhookVerificationError):
            Webhook(write_secret(other)).verify(body, headers)


def test_signature_is_that_of_the_specification() -> None:
    headers = make_headers(
        [parse_secret(KNOWN)], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}'
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_both_secrets_sign_during_a_rotation() -> None:
    secrets = parse_secrets(json.dumps({"acme": [write_secret(b"a" * 32), write_secret(b"b" * 32)]}).encode())
    headers = make_headers(secrets["acme"], "evt_1", now(), b"{}")
    for secret in (b"a" * 32, b"b" * 32):
        assert Webhook(write_secret(secret)).verify(b"{}", headers) == {}


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[]", "must be an object"),
        ("{", "must be JSON"),
        ('{"Acme": ["' + KNOWN + '"]}', "'Acme' is no tenant"),
        ('{"acme": []}', "acme: must be a list of 1 to 2 secrets"),
        ('{"acme": "' + KNOWN + '"}', "acme: must be a list of 1 to 2 secrets"),
        (json.dumps({"acme": [KNOWN] * 3}), "acme: must be a list of 1 to 2 secrets"),
        ('{"acme": ["MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]}', "acme: each secret must be "),
        ('{"acme": ["whsec_MfKQ9r8GKYq!TwjUPD8ILPZIo2LaLaSw"]}', "acme: each secret must be "),
        (json.dumps({"acme": [write_secret(b"x" * 23)]}), "not of 23"),
        (json.dumps({"acme": [write_secret(b"x" * 65)]}), "not of 65"),
        ('{"acme": [1]}', "acme: each secret must be "),
    ],
)
def test_invalid_file_is_refused_without_its_secrets(text: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(text)
    with pytest.raises(InvalidFile) as refused:
        SigningSecrets(path)
    assert fault in str(refused.value)
    assert "MfKQ9r8GKYq" not in str(refused.value)


def test_secrets_are_read_again_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps({"acme": [KNOWN]}))
    secrets = SigningSecrets(path)
    assert secrets._file is not None
    assert [len(secrets.find(tenant)) for tenant in ("acme", "beta")] == [1, 0]
    path.write_text(json.dumps({"acme": [KNOWN, write_secret(b"n" * 32)], "beta": [KNOWN]}))
    secrets._file.reload()
    assert [len(secrets.find(tenant)) for tenant in ("acme", "beta")] == [2, 1]
    with capture_logs() as logs:
        path.write_text("{" + KNOWN)
        secrets._file.reload()
    assert len(secrets.find("acme")) == 2, "the former ones stay in force"
    assert [line["variable"] for line in logs] == ["CHORUS_SCHEDULER_WEBHOOK_SECRETS"]
    assert KNOWN not in str(logs)
    assert SigningSecrets(None).find("acme") == ()
