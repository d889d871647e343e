"""Asks the model how risky reuse is: `python -m bench.risk` writes bench/results/risk.json.

At the donor's x_K1 the prompt is exchanged, donor's for target's, at a quarter of the tokens: how far does
the prediction move? From that, from the similarity of the prompts, or from the kind of edit, a model of risk
is fitted on the calibration split: the chance that a depth loses a target that full computation shows right.
All are compared on the split `test`, also on words that the lexicon does not know.
"""

from __future__ import annotations

import shlex
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeAlias

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.progress import track
from scipy.optimize import minimize

from bench import results
from bench.in_process import FULL, CustomVariant, Harness, Output, Pair, map_jobs
from bench.results import Figure
from evaluation.prompts import Group
from evaluation.scenes import UNRELATED, Phrasing, make_groups
from models.shapes.world import Split
from services.denoiser.reuse.donor import DonorTrajectory
from services.denoiser.reuse.region_masks import compare_predictions, select_probe_tokens
from services.scheduler.planning.calibration import Depth

Floats: TypeAlias = NDArray[np.float64]
# Predicts the risk of each sample, [n].
Risk: TypeAlias = Callable[[Sequence["Sample"]], Floats]

# Difference of predictions, in units of their variance, above which a token counts as differing.
DIFFERING: Final = 0.02
# Fields of a sample that the probe measures.
PROBED: Final = ("moved", "moved_most", "region")
# Weight of the squared coefficients of a fit: about one observation of each.
_RIDGE: Final = 1.0
# Observations of the common mean that are added to those of a kind of edit.
_PRIOR: Final = 4.0
# Limits on the predicted risk, at which the planners are compared.
LIMITS: Final = (0.02, 0.04, 0.06, 0.08, 0.12)


@dataclass(frozen=True)
class Sample:
    """One pair of prompts at one depth.

    Attributes:
        edit: Kind of edit.
        steps: K1.
        score: Similarity of the two prompts.
        moved: Mean square movement of the prediction at the probed tokens, in units of its variance.
        moved_most: 90th percentile of the same.
        region: Share of the probed tokens whose prediction moves visibly.
        lost: Whether full computation shows the prompt and this depth does not.
    """

    edit: str
    steps: int
    score: float
    moved: float
    moved_most: float
    region: float
    lost: bool


def probe(harness: Harness, pair: Pair, step: int) -> tuple[float, float, float]:
    """Returns the fields PROBED of a pair at the donor's x_step."""
    model, predictor = harness.model, harness.reusing
    assert pair.own.text is not None
    assert pair.donor.text is not None
    tokens = DonorTrajectory(model, pair.donor, harness.sigmas).tokens(step)
    probes, sigma = select_probe_tokens(harness.grid), harness.sigmas[step]
    own, theirs = (
        tokens[probes] - sigma * predictor.velocity(tokens, sigma, text, harness.shape, probes)
        for text in (pair.own.text, pair.donor.text)
    )
    differences = compare_predictions(own, theirs, theirs.var())
    return (
        float(differences.mean()),
        float(differences.quantile(0.9)),
        float((differences > DIFFERING).float().mean()),
    )


@dataclass(frozen=True)
class ProbedDepth(CustomVariant):
    """A depth without a draft, probed before its first step."""

    depth: Depth

    def generate(self, harness: Harness, pair: Pair) -> Output:
        plan = harness.build_plan(self.depth, pair.edit)
        assert plan is not None
        assert pair.own.text is not None
        noise = harness.model.noise(0, harness.shape)  # not used: the run starts from the donor's latents
        latents, computed = harness.run_plan(plan, pair.own.text, noise, pair.donor, pair.then)
        moved = probe(harness, pair, plan.reuse_steps)
        return Output(latents, computed, dict(zip(PROBED, moved, strict=True)))


def measure_pair(harness: Harness, job: tuple[Group, int]) -> list[Sample]:
    """Measures one pair at every depth."""
    group, seed = job
    depths = {step: ProbedDepth(Depth(sigma)) for step, sigma in enumerate(harness.sigmas[1:-1], start=1)}
    trial = harness.run_trial(group, seed, {str(step): depth for step, depth in depths.items()})
    donor, target = (
        harness.encoder.encode([case.prompt])[0].retrieval for case in (group.donor, group.targets[0])
    )
    full = trial.videos[FULL]
    return [
        Sample(
            trial.edit,
            step,
            float(donor @ target),
            **trial.videos[str(step)].measurements,
            lost=full.right and not trial.videos[str(step)].right,
        )
        for step in depths
    ]


def measure(split: Split, phrasing: Phrasing, pairs: int, seed: int, processes: int) -> list[Sample]:
    """Measures the pairs of a split, all kinds but unrelated ones."""
    groups = [group for group in make_groups(split, pairs, seed, phrasing) if group.kind != UNRELATED]
    jobs = [(group, seed + number) for number, group in enumerate(groups)]
    found = track(map_jobs(measure_pair, jobs, processes), f"{split}, {phrasing}", len(jobs))
    return [sample for samples in found for sample in samples]


def fit_table(samples: Sequence[Sample]) -> Risk:
    """Fits the planner's form: the mean of each kind of edit and depth, moved towards that of the depth."""
    by_depth, by_kind = defaultdict(list), defaultdict(list)
    for sample in samples:
        by_depth[sample.steps].append(sample.lost)
        by_kind[sample.edit, sample.steps].append(sample.lost)

    def predict(sample: Sample) -> float:
        common = float(np.mean(by_depth[sample.steps]))
        own = by_kind[sample.edit, sample.steps]
        return (sum(own) + _PRIOR * common) / (len(own) + _PRIOR)

    return lambda found: np.array([predict(sample) for sample in found])


def list_features(sample: Sample, *, probed: bool, table: Risk | None) -> list[float]:
    """Returns the features of a logistic model: one level for each depth, and what is asked."""
    features = [float(sample.steps == step) for step in (1, 2, 3)]
    features.append(1.0 - sample.score)
    if probed:
        moved = float(np.log(sample.moved + 1e-4))
        features += [moved, moved**2 / 10, float(np.log(sample.moved_most + 1e-4)), sample.region]
    if table is not None:
        [risk] = np.clip(table([sample]), 0.01, 0.99)
        features.append(float(np.log(risk / (1 - risk))))
    return features


def fit_logistic(samples: Sequence[Sample], *, probed: bool, table: Risk | None = None) -> Risk:
    """Fits a logistic model with a small ridge.

    Args:
        table: Risk of the kind of edit, as one more feature. None asks no kind.
    """
    rows = np.array([list_features(sample, probed=probed, table=table) for sample in samples])
    lost = np.array([sample.lost for sample in samples], dtype=float)
    mean, scale = rows.mean(0), np.maximum(rows.std(0), 1e-6)

    def predict(weights: Floats, found: Floats) -> Floats:
        chance: Floats = 1 / (1 + np.exp(-(weights[0] + ((found - mean) / scale) @ weights[1:])))
        return chance

    def cost(weights: Floats) -> float:
        chance = np.clip(predict(weights, rows), 1e-9, 1 - 1e-9)
        likelihood = (lost * np.log(chance) + (1 - lost) * np.log(1 - chance)).sum()
        return float(_RIDGE * np.square(weights[1:]).sum() / 2 - likelihood)

    weights = minimize(cost, np.zeros(rows.shape[1] + 1), method="L-BFGS-B").x
    return lambda found: predict(
        weights, np.array([list_features(sample, probed=probed, table=table) for sample in found])
    )


def rank_quality(risk: Floats, lost: NDArray[np.bool_]) -> float:
    """Returns the chance that a lost sample has a higher risk than another one; 0.5 says nothing."""
    bad, good = risk[lost], risk[~lost]
    if not len(bad) or not len(good):
        return 0.5
    return float((bad[:, None] > good).mean() + 0.5 * (bad[:, None] == good).mean())


def choose_depths(samples: Sequence[Sample], risk: Floats, limit: float) -> tuple[float, float]:
    """Returns what a planner does that takes the deepest reuse whose risk is at most `limit`.

    Returns:
        Mean number of reused steps, and the share of pairs that are lost.
    """
    depths = len({sample.steps for sample in samples})
    reused, lost = [], []
    for start in range(0, len(samples), depths):
        allowed = [i for i in range(start, start + depths) if risk[i] <= limit]
        deepest = max(allowed, key=lambda i: samples[i].steps, default=None)
        reused.append(0 if deepest is None else samples[deepest].steps)
        lost.append(deepest is not None and samples[deepest].lost)
    return float(np.mean(reused)), float(np.mean(lost))


def build_figures(name: str, samples: Sequence[Sample], risks: dict[str, Risk]) -> dict[str, Figure]:
    """Computes, for each model of risk, how well it ranks and what a planner would do with it."""
    lost = np.array([sample.lost for sample in samples])
    figures = {f"{name}_lost": results.share(int(lost.sum()), len(lost))}
    for model, predict in risks.items():
        risk = predict(samples)
        chance = np.clip(risk, 1e-3, 1 - 1e-3)
        losses = -np.where(lost, np.log(chance), np.log(1 - chance))
        figures[f"{name}_{model}_rank_quality"] = results.single(rank_quality(risk, lost), "1")
        figures[f"{name}_{model}_log_loss"] = results.mean(losses.tolist(), "nats")
        for limit in LIMITS:
            reused, share = choose_depths(samples, risk, limit)
            at = f"{name}_{model}_at_{round(100 * limit)}"
            figures[f"{at}_reused_steps"] = results.single(reused, "steps")
            figures[f"{at}_lost_points"] = results.single(100 * share, "percentage points")
    return figures


def main(
    pairs: Annotated[int, typer.Option(min=22, help="Number of prompt pairs of each set.")] = 165,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the prompts and of the first pair.")] = 6000,
    processes: Annotated[int, typer.Option(min=1, help="Number of processes, of one thread each.")] = 2,
    out: Annotated[Path, typer.Option(help="Result file.")] = results.RESULTS / "risk.json",
) -> None:
    """Fits models of risk on the calibration split, compares them on test, and writes the result file."""
    torch.set_num_threads(1)
    fitted = measure("calibration", "unseen", pairs, seed, processes)
    table = fit_table(fitted)
    risks: dict[str, Risk] = {
        "kind": table,
        "score": fit_logistic(fitted, probed=False),
        "probe": fit_logistic(fitted, probed=True),
        "kind_and_probe": fit_logistic(fitted, probed=True, table=table),
    }
    figures = build_figures("calibration", fitted, risks)
    phrasings: tuple[Phrasing, ...] = ("unseen", "unseen-words")
    for number, phrasing in enumerate(phrasings, start=1):
        samples = measure("test", phrasing, pairs, seed + 10_000 * number, processes)
        figures |= build_figures(f"test_{phrasing.replace('-', '_')}", samples, risks)
    results.write(out, f"python -m bench.risk {shlex.join(sys.argv[1:])}".strip(), figures)
    for name, figure in figures.items():
        print(f"{name}: {figure.value:.4g} {figure.unit}")


if __name__ == "__main__":
    typer.run(main)
