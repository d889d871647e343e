"""Calls of the `openai` SDK against a gateway, each checked. Runs with any version that has `client.videos`.

python sdk_calls.py URL KEY    prints {"versions": …, "green": […], "failed": {…}} as JSON
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable

import openai

PROMPTS = ("a large red square moving left", "a large blue square moving left", "a small green circle")


def check(condition: bool, fault: str) -> None:
    if not condition:
        raise AssertionError(fault)


class Calls:
    """The calls, in order; later ones use the videos of earlier ones.

    Args:
        extra: further fields of every creation.
    """

    def __init__(self, url: str, key: str) -> None:
        self.client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)
        self.ids: list[str] = []

    def create(self) -> None:
        video = self.client.videos.create(prompt=PROMPTS[0], seconds="4")
        check(video.object == "video", f"object is {video.object}")
        check(video.status in ("queued", "in_progress", "completed"), f"status is {video.status}")
        check(video.prompt == PROMPTS[0], f"prompt is {video.prompt}")
        self.ids.append(video.id)

    def create_with_extra_body(self) -> None:
        chorus = {"reuse": "off", "no_store": True}
        video = self.client.videos.create(
            prompt=PROMPTS[1], extra_body={"seed": 7, "chorus": chorus, "metadata": {"project": "sdk"}}
        )
        details = video.model_extra["chorus"] if video.model_extra else {}
        check(details["seed"] == 7, f"seed is {details['seed']}")
        check(details["metadata"] == {"project": "sdk"}, f"metadata is {details['metadata']}")
        self.ids.append(video.id)

    def create_and_poll(self) -> None:
        video = self.client.videos.create_and_poll(prompt=PROMPTS[2])
        check((video.status, video.progress) == ("completed", 100), f"{video.status}, {video.progress} %")
        self.ids.append(video.id)

    def retrieve(self) -> None:
        video = self.client.videos.retrieve(self.ids[-1])
        check(video.id == self.ids[-1], f"id is {video.id}")
        check(video.completed_at is not None, "completed_at is missing")

    def poll(self) -> None:
        for identifier in self.ids:
            check(self.client.videos.poll(identifier).status == "completed", f"{identifier} is not complete")

    def list_pages(self) -> None:
        for order in ("desc", "asc"):
            pages = self.client.videos.list(limit=2, order=order)
            found = [video.id for video in pages if video.id in self.ids]
            check(found == (self.ids[::-1] if order == "desc" else self.ids), f"{order}: {found}")

    def download_content(self) -> None:
        content = self.client.videos.download_content(self.ids[-1]).read()
        check(content[4:8] == b"ftyp", f"the file begins with {content[:12]!r}")
        picture = self.client.videos.download_content(self.ids[-1], variant="thumbnail").read()
        check(picture[:2] == b"\xff\xd8", f"the thumbnail begins with {picture[:4]!r}")

    def remix(self) -> None:
        video = self.client.videos.remix(self.ids[-1], prompt=PROMPTS[2].replace("green", "yellow"))
        check(video.remixed_from_video_id == self.ids[-1], f"remixed from {video.remixed_from_video_id}")
        check(self.client.videos.poll(video.id).status == "completed", "the remix is not complete")
        self.ids.append(video.id)

    def models(self) -> None:
        models = list(self.client.models.list())
        check(len(models) > 0, "no model")
        check(self.client.models.retrieve(models[0].id).id == models[0].id, "another model")

    def errors(self) -> None:
        try:
            self.client.videos.create(prompt="a", input_reference=("a.png", b"\x89PNG"))
        except openai.BadRequestError as error:
            check(error.code == "unsupported_parameter", f"code is {error.code}")
            check(error.param == "input_reference", f"param is {error.param}")
        else:
            raise AssertionError("the reference was accepted")
        try:
            # An id, which the server accepts, is refused by the SDK itself: it takes every video for a file.
            self.client.videos.edit(prompt="a", video=("a.mp4", b"\0\0\0\x18ftyp"))
        except openai.BadRequestError as error:
            check(error.param == "video", f"param is {error.param}")
        else:
            raise AssertionError("the file was accepted")
        try:
            self.client.videos.retrieve("video_unknown")
        except openai.NotFoundError as error:
            check(error.code == "not_found", f"code is {error.code}")
        else:
            raise AssertionError("an unknown video was found")

    def delete(self) -> None:
        for identifier in self.ids:
            check(self.client.videos.delete(identifier).deleted, f"{identifier} is not deleted")
            try:
                self.client.videos.retrieve(identifier)
            except openai.NotFoundError:
                continue
            raise AssertionError(f"{identifier} is still there")

    def run(self) -> dict[str, object]:
        """Makes every call; returns which were as expected, and the fault of each other one."""
        green: list[str] = []
        failed: dict[str, str] = {}
        steps: tuple[Callable[[], None], ...] = (
            self.create,
            self.create_with_extra_body,
            self.create_and_poll,
            self.retrieve,
            self.poll,
            self.list_pages,
            self.download_content,
            self.remix,
            self.models,
            self.errors,
            self.delete,
        )
        for step in steps:
            try:
                step()
            except (AssertionError, openai.OpenAIError, IndexError, KeyError) as error:
                failed[step.__name__] = f"{type(error).__name__}: {error}"
            else:
                green.append(step.__name__)
        return {"versions": {"openai": openai.__version__}, "green": green, "failed": failed}


if __name__ == "__main__":
    # The SDK announces the end of OpenAI's own service.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    print(json.dumps(Calls(*sys.argv[1:3]).run()))
