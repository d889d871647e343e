"""Verifies the list of denoisers in the scheduler's settings."""

from __future__ import annotations

import pytest

from services.runtime.settings import load_settings
from services.scheduler.settings import SchedulerSettings

VARIABLE = "CHORUS_SCHEDULER_DENOISER_TARGET"


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("denoiser:7403", ("denoiser:7403",)),
        ("unix:/run/d.sock", ("unix:/run/d.sock",)),
        ("a:7403, [::1]:7403,dns:///gpus:7403", ("a:7403", "[::1]:7403", "dns:///gpus:7403")),
    ],
)
def test_denoisers_are_a_list(monkeypatch: pytest.MonkeyPatch, text: str, targets: tuple[str, ...]) -> None:
    monkeypatch.setenv(VARIABLE, text)
    assert load_settings(SchedulerSettings).denoiser_target == targets


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a:7403,b:7403,a:7403", "names 'a:7403' twice"),
        (" , ", "at least 1 item"),
        ("a:7403,http://b:7403", "must be host:port"),
        (",".join(f"host-{number}:7403" for number in range(65)), "at most 64 items"),
    ],
)
def test_wrong_list_is_rejected(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, fault: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(SystemExit):
        load_settings(SchedulerSettings)
    error = capsys.readouterr().err
    assert error.startswith(f"{VARIABLE}: ")
    assert fault in error
