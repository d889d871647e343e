"""Builds the parts of the webhooks from the settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from services.runtime.resources import Resources
from services.scheduler.jobs.outbox import Outbox
from services.scheduler.settings import SchedulerSettings
from services.scheduler.webhook_addresses import parse_rules
from services.scheduler.webhooks.acceptance import WebhookAcceptance
from services.scheduler.webhooks.backoff import Backoff
from services.scheduler.webhooks.outcome import OutcomeKind
from services.scheduler.webhooks.poster import Poster, Resolver
from services.scheduler.webhooks.secret_file import SigningSecrets
from services.scheduler.webhooks.sender import WebhookSender

# Threads that resolve names, for each attempt at once: a name server may hold one for longer than an attempt.
_THREADS_PER_ATTEMPT: Final = 4
# Seconds that the lease of a claim lasts longer than two attempts, for the database.
_LEASE_MARGIN_SECONDS: Final = 2.0


def load_secrets(settings: SchedulerSettings) -> SigningSecrets:
    """Reads the signing secrets. Raises InvalidFile."""
    return SigningSecrets(Path(settings.webhook_secrets) if settings.webhook_secrets else None)


def make_acceptance(
    settings: SchedulerSettings, secrets: SigningSecrets, outbox: Outbox
) -> WebhookAcceptance:
    return WebhookAcceptance(
        secrets, parse_rules(settings.webhook_allowed), outbox, settings.webhook_pending_limit
    )


def make_sender(
    settings: SchedulerSettings,
    secrets: SigningSecrets,
    outbox: Outbox,
    resources: Resources,
    on_attempt: Callable[[OutcomeKind], None],
    on_end: Callable[[bool], None],
) -> WebhookSender:
    """Returns the sender, which the caller runs; `resources` close what it uses."""
    resolver = Resolver(_THREADS_PER_ATTEMPT * settings.webhook_concurrency)
    resources.callback(resolver.close)
    poster = Poster(
        parse_rules(settings.webhook_allowed),
        resolver.resolve,
        ca=settings.webhook_ca,
        seconds=settings.webhook_attempt_seconds,
    )
    return WebhookSender(
        outbox,
        secrets,
        poster.post,
        Backoff(
            settings.webhook_retry_seconds,
            settings.webhook_max_retry_seconds,
            settings.webhook_give_up_seconds,
        ),
        concurrency=settings.webhook_concurrency,
        lease_seconds=2 * settings.webhook_attempt_seconds + _LEASE_MARGIN_SECONDS,
        on_attempt=on_attempt,
        on_end=on_end,
    )
