"""Submits several prompts at once with the asyncio client and saves each video when it is ready.

    python examples/async_client.py out/ "a large red circle moving left" "a large blue circle moving left"

Uses the scheduler that `chorus up` started in this directory, or CHORUS_TARGET.
"""

import asyncio
import sys
from pathlib import Path

from chorus_client import AsyncChorusClient


async def generate(chorus: AsyncChorusClient, prompt: str, path: Path) -> None:
    """Generates one video and prints its progress."""
    handle = await chorus.submit(prompt)
    async for event in handle.events():
        if event.step is not None:
            print(f"{path.name}: step {event.step.number} of {event.step.total_steps}")
    result = await handle.result()
    result.save(path)
    source = f"reused {result.donor.prompt!r}" if result.donor else "no donor"
    print(f"{path.name}: {source}, {result.generation.steps_run} steps computed")


async def main(folder: Path, prompts: list[str]) -> None:
    async with AsyncChorusClient() as chorus, asyncio.TaskGroup() as tasks:
        for number, prompt in enumerate(prompts, start=1):
            tasks.create_task(generate(chorus, prompt, folder / f"{number}.mp4"))


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python examples/async_client.py FOLDER PROMPT…")
    output = Path(sys.argv[1])
    output.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(output, sys.argv[2:]))
