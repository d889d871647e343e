"""Verifies the warnings of the command line about misspelt environment variables."""

from __future__ import annotations

import pytest
from chorus_cli.variables import KNOWN, check_variables

from services.cache.settings import CacheSettings
from services.denoiser.settings import DenoiserSettings
from services.embedder.settings import EmbedderSettings
from services.runtime.settings import ServerSettings, describe_settings
from services.scheduler.settings import SchedulerSettings


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("CHORUS_TARGTE", "CHORUS_TARGET"),
        ("CHORUS_CACHE_TAGET", "CHORUS_CACHE_TARGET"),
        ("CHORUS_CACHE_TARGETS", "CHORUS_CACHE_TARGET"),
        ("CHORUS_SHEDULER_PORT", "CHORUS_SCHEDULER_PORT"),
    ],
)
def test_misspelt_variable_is_reported_with_the_nearest_name(name: str, nearest: str) -> None:
    assert check_variables([name]) == [f"{name} is set, but no such variable exists; did you mean {nearest}?"]


@pytest.mark.parametrize("kind", [SchedulerSettings, EmbedderSettings, CacheSettings, DenoiserSettings])
def test_settings_of_the_services_are_not_reported(kind: type[ServerSettings]) -> None:
    settings = [row.variable for row in describe_settings(kind)]
    assert check_variables([*settings, *KNOWN, "PATH"]) == []
