"""Judge by a CLIP model: is a video nearer to its own prompt or to the donor's?"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from chorus_rpc.errors import invalid

from calibration.judges.base import Case, Judge, Shown
from calibration.rows import Score

# Frames of a video that are read, spread evenly.
FRAMES: Final = 8
_WEIGHTS: Final = "model.safetensors"


class ClipJudge(Judge):
    """Compares frames with both prompts by a CLIP model from a local folder, as transformers saves it.

    The alignment is the probability that CLIP gives to the target's prompt, of the two, averaged over the
    frames; 1 if the prompts are equal.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ChorusError (INVALID_FIELD) for a folder that holds no CLIP model."""
        from transformers import CLIPModel, CLIPProcessor

        if not (folder / _WEIGHTS).is_file():
            raise invalid("judge", f"clip:{folder} holds no {_WEIGHTS}: name the folder of a CLIP model")
        try:
            model: Any = CLIPModel.from_pretrained(folder, local_files_only=True, use_safetensors=True)
            self._processor: Any = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise invalid("judge", f"clip:{folder} cannot be loaded: {error}") from None
        self._model: Any = model.eval().requires_grad_(False)
        with (folder / _WEIGHTS).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        self.name = f"clip: {folder.name}, sha256 {digest[:16]}, {FRAMES} frames"

    @torch.inference_mode()
    def judge(self, case: Case) -> Score:
        if case.target.prompt == case.donor.prompt:
            return Score(1.0, 0.0)
        inputs = self._processor(
            text=[case.target.prompt, case.donor.prompt],
            images=_select_frames(case.shown),
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        chance = float(self._model(**inputs).logits_per_image.softmax(-1)[:, 0].mean())
        return Score(chance, 1.0 - chance)


def _select_frames(shown: Shown) -> list[np.ndarray]:
    frames = shown.frames.round().clip(0, 255).astype(np.uint8)
    chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
    return [frames[i] for i in chosen]
