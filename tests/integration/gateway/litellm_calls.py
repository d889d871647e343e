"""Calls of LiteLLM against a gateway, each checked: its SDK, and its proxy with the `openai` SDK in front.

python litellm_calls.py URL KEY sdk|proxy    prints {"versions": …, "green": […], "failed": {…}} as JSON
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, Final

PROMPT: Final = "a large red square moving left"
REMIX: Final = "a large blue square moving left"
MODEL: Final = "shapes-by-proxy"  # as the proxy calls it
_SECONDS: Final = 100.0


def check(condition: bool, fault: str) -> None:
    if not condition:
        raise AssertionError(fault)


def check_file(content: bytes) -> None:
    check(content[4:8] == b"ftyp", f"the file begins with {content[:12]!r}")


def wait(read: Callable[[], Any]) -> Any:
    """Returns the video once it has ended."""
    end = time.monotonic() + _SECONDS
    while (video := read()).status not in ("completed", "failed"):
        check(time.monotonic() < end, f"it is still {video.status}")
        time.sleep(0.2)
    check(video.status == "completed", f"status is {video.status}: {video.error}")
    return video


class SdkCalls:
    """`litellm.video_generation` and the calls around it."""

    def __init__(self, url: str, key: str, model: str) -> None:
        import litellm

        self.litellm: Any = litellm
        self.where = {"api_base": f"{url}/v1", "api_key": key}
        self.model, self.id = model, ""

    def video_generation(self) -> None:
        video = self.litellm.video_generation(
            model=f"openai/{self.model}", prompt=PROMPT, seconds="2", user="litellm", **self.where
        )
        check(video.object == "video", f"object is {video.object}")
        self.id = video.id

    def video_generation_with_extra_body(self) -> None:
        extra = {"seed": 7, "chorus": {"reuse": "off", "no_store": True}}
        video = self.litellm.video_generation(
            model=f"openai/{self.model}", prompt=PROMPT, extra_body=extra, **self.where
        )
        wait(lambda: self.litellm.video_status(video.id, **self.where))

    def video_status(self) -> None:
        video = wait(lambda: self.litellm.video_status(self.id, **self.where))
        check(video.progress == 100, f"progress is {video.progress}")

    def video_content(self) -> None:
        check_file(self.litellm.video_content(self.id, **self.where))

    def video_content_thumbnail(self) -> None:
        picture = self.litellm.video_content(self.id, variant="thumbnail", **self.where)
        check(picture[:2] == b"\xff\xd8", f"the thumbnail begins with {picture[:4]!r}")

    def video_list(self) -> None:
        found = self.litellm.video_list(custom_llm_provider="openai", limit=10, **self.where)
        videos = found["data"] if isinstance(found, dict) else found
        check(len(videos) >= 1, "the list is empty")

    def video_remix(self) -> None:
        video = self.litellm.video_remix(video_id=self.id, prompt=REMIX, **self.where)
        check(bool(video.remixed_from_video_id), "the source of the remix is missing")
        wait(lambda: self.litellm.video_status(video.id, **self.where))

    def refused_reference(self) -> None:
        try:
            self.litellm.video_generation(
                model=f"openai/{self.model}", prompt=PROMPT, input_reference=b"\x89PNG", **self.where
            )
        except self.litellm.BadRequestError as error:
            check("input_reference" in str(error), f"the error is {error}")
        else:
            raise AssertionError("the reference was accepted")

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self.video_generation,
            self.video_generation_with_extra_body,
            self.video_status,
            self.video_content,
            self.video_content_thumbnail,
            self.video_list,
            self.video_remix,
            self.refused_reference,
        )


class ProxyCalls:
    """The `openai` SDK in front of LiteLLM's proxy.

    The proxy has no list of another server than OpenAI's: the call names no model, and so no address.
    """

    def __init__(self, url: str, key: str) -> None:
        import openai

        self.client: Any = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
        self.id = ""

    def create(self) -> None:
        video = self.client.videos.create(model=MODEL, prompt=PROMPT, seconds="2")
        check(video.object == "video", f"object is {video.object}")
        self.id = video.id

    def create_and_poll(self) -> None:
        video = self.client.videos.create_and_poll(model=MODEL, prompt=PROMPT)
        check(video.status == "completed", f"status is {video.status}")

    def retrieve(self) -> None:
        wait(lambda: self.client.videos.retrieve(self.id))

    def download_content(self) -> None:
        check_file(self.client.videos.download_content(self.id).read())

    def remix(self) -> None:
        video = self.client.videos.remix(self.id, prompt=REMIX)
        wait(lambda: self.client.videos.retrieve(video.id))

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        return (
            self.create,
            self.create_and_poll,
            self.retrieve,
            self.download_content,
            self.remix,
        )


@contextmanager
def running_proxy(url: str, key: str, model: str) -> Iterator[tuple[str, str]]:
    """Runs LiteLLM's proxy in front of the gateway; yields its address and key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        parameters = {"model": f"openai/{model}", "api_base": f"{url}/v1", "api_key": key}
        models = [{"model_name": MODEL, "litellm_params": parameters}]
        config.write_text(json.dumps({"model_list": models}))  # JSON is YAML
        program = Path(sys.executable).with_name("litellm")
        token = f"sk-{secrets.token_hex(32)}"
        environment = {**os.environ, "LITELLM_MASTER_KEY": token}
        command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        with (
            (Path(folder) / "log").open("w+b") as log,
            subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder) as process,
        ):
            try:
                _wait_for_proxy(port, process)
                yield f"http://127.0.0.1:{port}", token
            except BaseException:
                log.seek(0)
                sys.stderr.buffer.write(log.read()[-20_000:])
                raise
            finally:
                process.terminate()


def _wait_for_proxy(port: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/liveliness", timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"the proxy is not serving; its status is {process.poll()}")


def run(steps: tuple[Callable[[], None], ...]) -> dict[str, object]:
    """Makes every call; returns which were as expected, and the fault of each other one."""
    green: list[str] = []
    failed: dict[str, str] = {}
    for step in steps:
        try:
            step()
        except Exception as error:  # noqa: BLE001 – the kinds of errors are LiteLLM's
            failed[step.__name__] = f"{type(error).__name__}: {error}"
        else:
            green.append(step.__name__)
    versions = {name: importlib.metadata.version(name) for name in ("litellm", "openai")}
    return {"versions": versions, "green": green, "failed": failed}


def main(url: str, key: str, form: str) -> None:
    request = urllib.request.Request(f"{url}/v1/models", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=_SECONDS) as response:
        model = json.load(response)["data"][0]["id"]
    with redirect_stdout(sys.stderr):  # LiteLLM prints advice
        if form == "sdk":
            result = run(SdkCalls(url, key, model).steps)
        else:
            with running_proxy(url, key, model) as (address, token):
                result = run(ProxyCalls(address, token).steps)
    print(json.dumps(result))


if __name__ == "__main__":
    # The SDK announces the end of OpenAI's own service.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    main(*sys.argv[1:4])
