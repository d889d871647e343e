"""Target's side of a run: velocities of its tokens, and their share of computation."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from services.denoiser.model.loaded import LatentShape
from services.denoiser.model.predictor import Predictor
from services.denoiser.network.wan import AttentionObserver, Grid
from services.denoiser.reuse.amplification import StepText


class Target:
    """Predicts velocities for one run, and counts the tokens that go through the network.

    A step that was computed in full, by a region finder for instance, is not computed again.

    Args:
        text: Text that cross-attention reads in each step.
    """

    def __init__(
        self, predictor: Predictor, shape: LatentShape, sigmas: Sequence[float], text: StepText
    ) -> None:
        self.grid: Grid = predictor.model.token_grid(shape)
        self._predictor, self._shape, self._sigmas, self._text = predictor, shape, sigmas, text
        self._computed_share = 0.0
        self._full: tuple[int, Tensor, Tensor] | None = None  # the last full step: number, tokens, velocity

    def velocity(
        self,
        step: int,
        tokens: Tensor,
        positions: Tensor | None = None,
        on_attention: AttentionObserver | None = None,
    ) -> Tensor:
        """Returns the velocity [n, C*P] of the tokens at `positions` [n] of x_step = `tokens` [N, C*P].

        Args:
            positions: int64, ascending; None means all tokens.
            on_attention: Called with cross-attention if the step is computed in this call.
        """
        if self._full is not None and self._full[0] == step and self._full[1] is tokens:
            return self._full[2] if positions is None else self._full[2][positions]
        velocity = self._predictor.velocity(
            tokens, self._sigmas[step], self._text(step, positions), self._shape, positions, on_attention
        )
        self._computed_share += len(velocity) / len(tokens)
        if positions is None:
            self._full = step, tokens, velocity
        return velocity

    def take_computed_share(self) -> float:
        """Returns the tokens that went through the network since the last call, divided by all tokens."""
        share, self._computed_share = self._computed_share, 0.0
        return share
