"""Reads the metrics port of a process, as Prometheus does."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

SECONDS = 30.0


@dataclass(frozen=True)
class Sample:
    """One value of one series."""

    name: str
    labels: dict[str, str]
    value: float


class Scrape:
    """Samples of one answer. Raises AssertionError if a series occurs twice."""

    def __init__(self, text: str) -> None:
        self.samples = [
            Sample(sample.name, dict(sample.labels), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
        series = [(sample.name, *sorted(sample.labels.items())) for sample in self.samples]
        assert len(series) == len(set(series))

    def value(self, name: str, **labels: str) -> float:
        """Adds up the series of this name that have these labels, and perhaps others; 0 without any."""
        return sum(
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def labels(self, name: str) -> set[str]:
        """Returns the names of the labels of a series."""
        return {label for sample in self.samples if sample.name == name for label in sample.labels}


def request(port: int, method: str = "GET", path: str = "/metrics") -> tuple[int, str]:
    """Returns status and body of the answer of a metrics port on this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def scrape(port: int) -> Scrape:
    status, text = request(port)
    assert status == 200, text
    return Scrape(text)


def scrape_until(port: int, expected: Callable[[Scrape], bool]) -> Scrape:
    """Scrapes until the samples are as expected; the end of a call is measured after its answer."""
    end = time.monotonic() + SECONDS
    while not expected(found := scrape(port)):
        assert time.monotonic() < end, found.samples
        time.sleep(0.02)
    return found
