"""Verifies the location of videos in an object store, and the settings that depend on it."""

from __future__ import annotations

import pytest

from services.runtime.settings import load_settings
from services.scheduler.settings import SchedulerSettings
from services.scheduler.video_location import BucketLocation, check_location, parse_location

S3 = {"VIDEO_STORE": "s3://videos/a", "S3_ENDPOINT": "s3.example"}
KEYS = {"S3_ACCESS_KEY": "0123456", "S3_SECRET_KEY": "1e3"}


@pytest.mark.parametrize(
    ("location", "bucket", "folder"),
    [
        ("s3://chorus", "chorus", "videos"),
        ("s3://chorus/", "chorus", "videos"),
        ("s3://my.bucket-1/team_a/Finished.v2", "my.bucket-1", "team_a/Finished.v2"),
        ("s3://chorus/a/", "chorus", "a"),
        ("s3://chorus/v10", "chorus", "v10"),
    ],
)
def test_location_names_bucket_and_folder(location: str, bucket: str, folder: str) -> None:
    assert parse_location(check_location(location)) == BucketLocation(bucket, folder)


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("/var/lib/videos", "must be s3://"),
        ("s3://", "must be s3://"),
        ("s3://UPPER/a", "must be s3://"),
        ("s3://key:secret@bucket/a", "must be s3://"),
        ("https://s3.example/bucket", "must be s3://"),
        ("s3://bucket/a//b", "must have a folder"),
        ("s3://bucket/../b", "must have a folder"),
        ("s3://bucket/a b", "must have a folder"),
        ("s3://bucket/a?x=1", "must have a folder"),
        ("s3://bucket/v1", "where the cache keeps latents"),
        ("s3://bucket/v1/videos", "where the cache keeps latents"),
    ],
)
def test_other_location_is_rejected(location: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_location(location)


@pytest.mark.parametrize(
    ("values", "variable", "reason"),
    [
        ({"VIDEO_STORE": "videos"}, "VIDEO_STORE: ", "must be s3://"),
        ({**S3, "S3_ENDPOINT": ""}, "S3_ENDPOINT: ", "must be set when CHORUS_SCHEDULER_VIDEO_STORE is"),
        ({**S3, **KEYS, "S3_ENDPOINT": "http://s3"}, "S3_ENDPOINT: ", "CHORUS_SCHEDULER_S3_SECURE selects"),
        ({**S3}, "S3_ACCESS_KEY: ", "must be set"),
        ({**S3, **KEYS, "S3_CREDENTIALS": "role"}, "S3_SECRET_KEY: ", "must be empty"),
        ({**S3, "S3_CREDENTIALS": "environment"}, "S3_CREDENTIALS: ", "AWS_ACCESS_KEY_ID and AWS_SECRET"),
        ({**S3, **KEYS, "S3_SECURE": "false", "S3_CA": __file__}, "S3_CA: ", "must be empty"),
        ({**S3, **KEYS, "S3_CA": __file__}, "S3_CA: ", "must be a PEM file"),
        ({**S3, **KEYS, "VIDEO_DIR": "/v"}, "VIDEO_STORE and ", "exclude each other"),
        ({"VIDEO_URL_SECONDS": "604801"}, "VIDEO_URL_SECONDS: ", "less than or equal to 604800"),
    ],
)
def test_contradiction_is_named(
    values: dict[str, str],
    variable: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY", "AWS_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(f"CHORUS_SCHEDULER_{name}", value)
    with pytest.raises(SystemExit) as caught:
        load_settings(SchedulerSettings)
    assert caught.value.code == 2
    lines = capsys.readouterr().err
    assert f"CHORUS_SCHEDULER_{variable}" in lines
    assert reason in lines
    assert "1e3" not in lines, "a secret is not printed"


def test_settings_of_a_bucket_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**S3, **KEYS}.items():
        monkeypatch.setenv(f"CHORUS_SCHEDULER_{name}", value)
    settings = load_settings(SchedulerSettings)
    assert settings.video_store == "s3://videos/a"
    assert "1e3" not in repr(settings)
