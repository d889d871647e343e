"""Submits prompts and reports what reuse saved for each of them.

    python examples/reuse_report.py "a large red circle moving left" "a large blue circle moving left"

Uses CHORUS_TARGET, or the scheduler that `chorus up` started in this directory.
"""

import sys

from chorus_client import ChorusClient, GenerationFailed


def main(prompts: list[str]) -> None:
    """Prints a line for each prompt, and the time saved in total."""
    saved = 0.0
    with ChorusClient() as chorus:
        # Submitted at once, so that the scheduler can order them; a handle is waited for when it is needed.
        # No seed: an edited prompt may then take its donor's.
        handles = [chorus.submit(prompt) for prompt in prompts]
        for prompt, handle in zip(prompts, handles, strict=True):
            try:
                result = handle.result()
            except GenerationFailed as failed:
                print(f"{prompt}: {failed}")
                continue
            saved += result.seconds_saved
            generation = result.generation
            source = f"from {result.donor.prompt!r}" if result.donor else "computed in full"
            print(
                f"{prompt}: {source}, {generation.steps_run} steps, {generation.timings.total_seconds:.2f} s"
            )
            for warning in result.warnings:
                print(f"  warning: {warning.message}")
    print(f"{saved:.2f} s saved")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python examples/reuse_report.py PROMPT…")
    main(sys.argv[1:])
