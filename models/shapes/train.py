"""Trains the teacher: `python -m models.shapes.train --out build/shapes/teacher-32 --side 32`.

Flow matching on videos rendered on the fly, conditioned on MiniLM token states that are computed once per
caption. The network predicts the clean data, and the loss is on the velocity that follows, (x - data) /
sigma, so that the network need not carry the noise through its few channels (arXiv 2511.13720). Training
starts on videos of a quarter of the pixels, whose latents have twice the scale so that a noise level hides as
much of the layout as at full size, and continues at full size: `--start-from` the first run's weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from models.shapes.contents import ContentsHead, describe_tokens
from models.shapes.layout import draw_layout
from models.shapes.network import SCALE, SHIFT, Network, encode, to_tokens
from models.shapes.prompts import MAX_TOKENS, Prompts, blur_text, drop_text, load_training_prompts
from models.shapes.render import render
from models.shapes.training import Batch, Trainer, add_arguments, prepare, start_from
from models.shapes.world import SIDE


def draw_sigmas(n: int, generator: torch.Generator, pure_noise: float) -> torch.Tensor:
    """Draws noise levels [n]: a share `pure_noise` at sigma = 1, where a run starts, the rest from the
    shifted continuum."""
    t, chance = torch.rand(2, n, generator=generator, device=generator.device)
    continuum = SHIFT * t / (1 + (SHIFT - 1) * t)
    return torch.where(chance < pure_noise, 1.0, continuum)


class Teacher(Trainer):
    """Trainer of flow matching at all noise levels."""

    def __init__(self, args: argparse.Namespace, network: Network, prompts: Prompts) -> None:
        head = ContentsHead(network.transformer.config.dim)
        super().__init__(args, network, head=head, head_weight=args.contents)
        self.prompts = prompts
        self.detail = SIDE / network.side  # factor on latents of smaller videos
        self.scale = SCALE * self.detail

    def batch(self) -> Batch:
        """Renders new videos and returns them noised, with their captions."""
        g, n, side = self.generator, self.args.batch, self.network.side
        pick = torch.randint(len(self.prompts), (n,), generator=g)
        table = self.prompts.table[pick]
        layout = draw_layout(table, g)
        data = self.detail * to_tokens(encode(render(table, layout, side)))
        contents = describe_tokens(table, layout, side)
        sigma = draw_sigmas(n, g, self.args.pure_noise)
        text, bias = self.prompts.text(pick, MAX_TOKENS)
        text, bias = drop_text(blur_text(text, bias, self.args.blur, g), bias, self.args.no_text, g)
        index = None
        if self.args.parts > 1:
            tokens = data.shape[1]
            index = torch.rand(n, tokens, generator=g).argsort(1)[:, : tokens // self.args.parts]
            data = data.gather(1, index[..., None].expand(-1, -1, data.shape[2]))
            contents = contents.select(index)
        s = sigma.view(-1, 1, 1)
        x = (1 - s) * data + s * torch.randn(data.shape, generator=g)
        return Batch(x, sigma, text, bias, data, index, contents)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    parser.add_argument(
        "--side", type=int, choices=(16, 32, 64), default=64, help="pixels per row of a video"
    )
    parser.add_argument("--parts", type=int, default=1, help="use a random one in this number of a "
                        "video's tokens, of more videos for the same time")  # fmt: skip
    parser.add_argument("--no-text", type=float, default=0.1, help="share of samples without a prompt, which "
                        "guidance in the distillation needs")  # fmt: skip
    parser.add_argument("--pure-noise", type=float, default=0.15, help="share of samples of noise alone")
    parser.add_argument("--contents", type=float, default=0.1, help="weight of the head that reads what each "
                        "token shows")  # fmt: skip
    parser.add_argument("--start-from", type=Path, help="weights to begin with instead of random ones")
    parser.add_argument("--start-side", type=int, default=64, help="size of the videos of these weights")
    args = parser.parse_args()
    prompts = load_training_prompts(args.prompts, args.prompt_count, args.seed).to(args.device)
    prepare(args)
    network = Network(args.side, parts=args.parts)
    if args.start_from:
        start_from(network, args.start_from, args.start_side / args.side)
    teacher = Teacher(args, network, prompts)
    if args.resume:
        teacher.load(args.out)
    parameters = sum(p.numel() for p in network.parameters())
    print(f"{parameters:,} parameters, {len(prompts):,} captions", flush=True)
    teacher.run(args.out, teacher.batch)


if __name__ == "__main__":
    main()
