"""Trains the host adapter: `python -m models.shapes.host --out build/shapes/host --student WEIGHTS`.

A distilled model follows the latents that it continues from, and has never seen latents that contradict the
prompt. So it keeps the donor's colours and motions. The adapter is a LoRA on the frozen student, switched on
for reused steps only, that resolves such conflicts: from a donor's latents at level K1 it predicts the video
of the new prompt in the donor's layout.

Most rows are such edit rows (`edit_rows.py`); the others are plain rows, which keep the adapter near the
student. Half of the edit rows start from donors that the student itself computed (`donors.py`); the target is
a render of the new scene in the layout that was read from the donor's video. The other half start from noised
renders, so that few donors suffice. Where the edit opens something that the donor does not show, the target
is drawn by the same noise: the student's own steps from the donor's first level, with the new prompt. A
render would teach the mean of all possible layouts. `--targets reruns` does so for all edits, which with
`--rendered 0` needs no renderer.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from models.shapes.distill import noised_renders
from models.shapes.donors import Donors, load_donors
from models.shapes.edit_rows import DonorRows, RenderedRows, Rows, draw_level, join_rows
from models.shapes.network import FEW_STEPS, SCALE, Network, to_tokens
from models.shapes.pairs import Pairs, load_training_pairs
from models.shapes.prompts import MAX_TOKENS, Prompts, blur_text, load_training_prompts
from models.shapes.training import Batch, Trainer, add_arguments, prepare, start_from


class AdaptedLinear(nn.Module):
    """Linear layer with a product of low rank added to its weight matrix."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        rows, columns = base.weight.shape
        self.lora_down = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))
        self.lora_up = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.lora_up @ self.lora_down, self.bias)


def adapted_layers(network: Network) -> Iterator[tuple[str, nn.Linear]]:
    """Yields the layers that the adapter changes: all attention and feed-forward matrices of the blocks."""
    for name, module in network.transformer.named_modules():
        if name.startswith("blocks.") and isinstance(module, nn.Linear):
            yield name, module


def add_adapter(network: Network, rank: int) -> list[str]:
    """Adds an adapter without effect to a network. Returns the names of its parameters."""
    for name, layer in list(adapted_layers(network)):
        network.transformer.set_submodule(name, AdaptedLinear(layer, rank))
    return [name for name, _ in network.transformer.named_parameters() if "lora_" in name]


def adapter_tensors(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames an adapter's parameters as diffusers saves them."""
    ends = {"lora_down": "lora_A", "lora_up": "lora_B"}
    renamed = {}
    for name, tensor in parameters.items():
        layer, _, end = name.rpartition(".")
        renamed[f"transformer.{layer}.{ends[end]}.weight"] = tensor.cpu().contiguous()
    return renamed


class Host(Trainer):
    """Trainer of an adapter, or of all weights."""

    def __init__(
        self,
        args: argparse.Namespace,
        network: Network,
        student: Network,
        prompts: Prompts,
        pairs: Pairs,
        donors: Donors,
        trained: list[str] | None,
    ) -> None:
        super().__init__(args, network, trained)
        self.student = student.to(self.device)
        self.prompts, self.scale = prompts, SCALE
        self.rendered = RenderedRows(pairs)
        self.from_donors = DonorRows(self.student, pairs, donors, args.targets, bf16=args.bf16)
        if args.compile:
            self.student.compile_blocks()

    def batch(self) -> Batch:
        """Returns plain rows and both kinds of edit rows, in the shares that the options name."""
        g, rng = self.generator, random.Random(f"{self.args.seed} {self.update}")
        edits = round(self.args.edit_share * self.args.batch)
        rendered = round(self.args.rendered * edits)
        parts = [self.plain_rows(self.args.batch - edits)]
        parts.append(self.from_donors.draw(edits - rendered, draw_level(rng), g))
        if rendered:
            parts.append(self.rendered.draw(rendered, draw_level(rng), g))
        x, sigma, text, bias, target = join_rows(parts)
        return Batch(x, sigma, blur_text(text, bias, self.args.blur, g), bias, target)

    def plain_rows(self, n: int) -> Rows:
        """Returns rows in which the student itself is the target, from the levels of its schedule."""
        g = self.generator
        level = int(torch.randint(4, (1,), generator=g))
        pick = torch.randint(len(self.prompts), (n,), generator=g)
        text, bias = self.prompts.text(pick, MAX_TOKENS)
        x = noised_renders(self.prompts.table[pick], FEW_STEPS[level], g)
        target = self.predict(x, text, bias, level)
        return to_tokens(x), torch.full((n,), FEW_STEPS[level]), text, bias, to_tokens(target)

    def predict(self, x: Tensor, text: Tensor, bias: Tensor, level: int) -> Tensor:
        """Returns the data that the student predicts at a level."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.args.bf16):
            *_, after = self.student.trajectory(x, text, bias, FEW_STEPS, level, level + 1)
        start, end = FEW_STEPS[level : level + 2]
        return x - start * (after - x) / (end - start)

    def save(self, out: Path) -> None:
        """Writes the checkpoint, the averaged weights and, for an adapter, its file in diffusers' names."""
        super().save(out)
        if self.args.rank:
            metadata = {"format": "pt"}
            save_file(adapter_tensors(self.averaged_weights()), out / "adapter.safetensors", metadata)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    parser.set_defaults(updates=2000, batch=32, lr=2e-3, muon_lr=1e-3, warm_up=20, decay=0.5, ema=0.98)
    parser.add_argument("--student", type=Path, required=True, help="averaged weights of the student")
    parser.add_argument("--rank", type=int, default=32, help="rank of the adapter; 0 trains all weights")
    parser.add_argument("--edit-share", type=float, default=0.85, help="share of edit rows")
    parser.add_argument("--rendered", type=float, default=0.5, help="share of them that are renders")
    parser.add_argument("--donors", type=Path, default=Path("build/shapes/donors"), help="donors' folder")
    parser.add_argument("--pair-count", type=int, default=6000, help="number of pairs of prompts")
    parser.add_argument("--targets", choices=("renders", "reruns"), default="renders",
                        help="targets of edits that open nothing")  # fmt: skip
    args = parser.parse_args()
    prompts = load_training_prompts(args.prompts, args.prompt_count, args.seed).to(args.device)
    pairs = load_training_pairs(args.prompts, args.pair_count, args.seed).to(args.device)
    donors = load_donors(args.donors, args.device)
    prepare(args)
    student, network = Network(), Network()
    start_from(student, args.student)
    start_from(network, args.student)
    trained = add_adapter(network, args.rank) if args.rank else None
    host = Host(args, network, student, prompts, pairs, donors, trained)
    if args.resume:
        host.load(args.out)
    host.run(args.out, host.batch)


if __name__ == "__main__":
    main()
