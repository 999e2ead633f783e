"""The shallow UViT and the U-Net that grows around its core.

`GreedyNet` is an outer part (encoder and decoder) and a `Core`. With no levels the outer part is the shallow one: the entry
convolution reaches the core's grid at once, one residual block stands before the core and one behind it. Names in the state
dict: `core.*` is what phase 2 takes over; the levels `down.k`, `up.k` are numbered from the core outwards, so that a level
keeps its name when another one is put around it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.greedy.recipes import CoreConfig, OuterConfig
from baselines.greedy.text import TokenLayers
from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import training_format
from pagoda_bench.nets.unet import ResBlock

GROUP = 4  # least channels in a group of the norms


class Conditions(NamedTuple):
    emb: Tensor  # (B, width): time plus class, or plus the mean of the tokens
    tokens: Tensor | None  # (B, L, width)
    padding: Tensor | None  # (B, L) bool, True where there is a token


class Core(nn.Module):
    """Conditioning layers, time layers, and transformer blocks over `grid` x `grid` tokens of `width` channels."""

    def __init__(self, config: CoreConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        if config.text is None:
            self.classes = nn.Embedding(config.classes + 1, width)  # the last one stands for no class
        else:
            self.text = TokenLayers(config.text, width)
        self.place = nn.Parameter(0.02 * torch.randn(1, config.grid**2, width))
        cross = config.text is not None
        self.blocks = nn.ModuleList([Block(width, config.heads, config.mlp, cross) for _ in range(config.depth)])

    def conditions(self, logsnr: Tensor, condition: Tensor) -> Conditions:
        """logsnr (B,); condition: class labels (B,) int64, or of the text encoder: words (B, L) int64 or states (B, L, W)."""
        half = self.config.width // 2
        steps = torch.arange(half, dtype=torch.float32, device=logsnr.device)
        # logSNR lies in about [-20, 20]: wavelengths from a quarter to some ten thousand.
        angles = 25.0 * logsnr.float()[:, None] * torch.exp(-math.log(10000.0) * steps / half)
        emb = self.time(torch.cat([angles.cos(), angles.sin()], 1).to(self.place.dtype))
        if self.config.text is None:
            return Conditions(emb + self.classes(condition), None, None)
        tokens, there = self.text(condition)
        mean = (tokens * there[:, :, None]).sum(1) / there.sum(1, keepdim=True)
        return Conditions(emb + mean, tokens, there)

    def forward(self, h: Tensor, given: Conditions) -> Tensor:
        """(B, width, grid, grid) to the same."""
        x = h.flatten(2).transpose(1, 2) + self.place
        for block in self.blocks:
            x = block(x, given)
        return x.transpose(1, 2).unflatten(2, (self.config.grid, self.config.grid))  # channels last, as the tokens lie


class Block(nn.Module):
    """Self-attention, attention to the caption's tokens, MLP; shift, scale and gate from the embedding, gates zero at first
    (Peebles and Xie 2023, adaLN-Zero)."""

    def __init__(self, width: int, heads: int, mlp: float, cross: bool) -> None:
        super().__init__()
        self.heads = heads
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.cross = CrossAttention(width, heads) if cross else None
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, int(mlp * width)), nn.GELU(), nn.Linear(int(mlp * width), width))

    def forward(self, x: Tensor, given: Conditions) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(F.silu(given.emb))[:, None].chunk(6, 2)
        q, k, v = (
            self.qkv(self.norm_attention(x) * (1 + scale) + shift).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        x = x + gate * self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        if self.cross is not None and given.tokens is not None:
            x = x + self.cross(x, given)
        return x + gate_mlp * self.mlp(self.norm_mlp(x) * (1 + scale_mlp) + shift_mlp)


class CrossAttention(nn.Module):
    """From the places of the grid to the tokens of the caption; zero at first."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.norm_tokens = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, given: Conditions) -> Tensor:
        assert given.tokens is not None
        assert given.padding is not None
        q = self.query(self.norm(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.key_value(self.norm_tokens(given.tokens)).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=given.padding[:, None, None, :])
        out: Tensor = self.out(h.transpose(1, 2).flatten(2))
        return out


class Down(nn.ModuleList):
    """The residual blocks of one level on the way to the core; the last one halves."""

    def forward(self, h: Tensor, emb: Tensor) -> tuple[Tensor, Tensor]:
        """(B, width, H, W) to the next level's state, and to what the way back takes."""
        *same, half = self
        for block in same:
            h = block(h, emb)
        return half(h, emb), h


class Up(nn.ModuleList):
    """The residual blocks of one level on the way back: the first doubles, the second joins what the way down kept."""

    def forward(self, h: Tensor, kept: Tensor, emb: Tensor) -> Tensor:
        double, *rest = self
        h = torch.cat([double(h, emb), kept], 1)
        for block in rest:
            h = block(h, emb)
        return h


class GreedyNet(nn.Module):
    """v(z, logsnr, condition): z (B, 3, R, R), logsnr (B,), condition as for `Core.conditions`; gives (B, 3, R, R).

    The conditioning layers are told the logSNR that is left when the image is averaged over the pixels of a token, so that a
    noise level means to the core of a grown model what it meant where the core was trained.

    Raises `UserError` where the resolution, the patch and the levels do not lead to the core's grid.
    """

    def __init__(self, core: CoreConfig, outer: OuterConfig) -> None:
        super().__init__()
        _check(core, outer)
        self.outer, width, emb = outer, core.width, core.width
        self.core = Core(core)
        self.averaging = 2 * math.log(outer.resolution / core.grid)  # of (R / grid)^2 pixels, in logSNR
        inwards = (*outer.widths, width)  # from the highest resolution to the core
        colours = 3 * outer.patch**2

        def block(of: int, to: int, resample: str | None = None) -> ResBlock:
            return ResBlock(of, to, emb, resample=resample, scale_shift=True, group=GROUP)  # type: ignore[arg-type]

        self.entry = nn.Conv2d(3, inwards[0], outer.patch if outer.patch > 1 else 3, outer.patch, 0 if outer.patch > 1 else 1)
        self.shallow_in, self.shallow_out = block(width, width), block(2 * width, width)
        down, up = [], []
        for k in range(len(outer.widths)):  # from the core outwards
            wide, below = inwards[-2 - k], inwards[-1 - k]
            down.append(Down([*(block(wide, wide) for _ in range(outer.blocks)), block(wide, below, "down")]))
            up.append(
                Up([block(below, wide, "up"), block(2 * wide, wide), *(block(wide, wide) for _ in range(outer.blocks - 1))])
            )
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(up)
        self.norm = nn.GroupNorm(_groups(inwards[0]), inwards[0])
        self.exit = nn.Conv2d(inwards[0], colours, 3, padding=1)
        nn.init.zeros_(self.exit.weight)
        if self.exit.bias is not None:
            nn.init.zeros_(self.exit.bias)

    def forward(self, z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
        given = self.core.conditions(logsnr + self.averaging, condition)
        emb = given.emb
        if self.training and z.device.type == "cpu":
            z = z.contiguous(memory_format=training_format())
        h, skips = self.entry(z), []
        for down in reversed(self.down):
            h, kept = down(h, emb)
            skips.append(kept)
        h = self.shallow_in(h, emb)
        h = self.shallow_out(torch.cat([self.core(h, given), h], 1), emb)
        for up in self.up:
            h = up(h, skips.pop(), emb)
        image: Tensor = self.exit(F.silu(self.norm(h)))
        return F.pixel_shuffle(image, self.outer.patch) if self.outer.patch > 1 else image


def _groups(width: int) -> int:
    """The largest power of two up to 32 that divides the width and leaves `GROUP` channels in each group."""
    groups = math.gcd(32, width)
    while groups > 1 and width // groups < GROUP:
        groups //= 2
    return groups


def _check(core: CoreConfig, outer: OuterConfig) -> None:
    reached = core.grid * 2 ** len(outer.widths) * outer.patch
    if reached != outer.resolution:
        raise UserError(
            f"net: patch {outer.patch} and {len(outer.widths)} levels around a grid of {core.grid} make {reached} px, not "
            f"{outer.resolution}: change patch, widths or grid"
        )


def shard(net: GreedyNet, mesh: object | None = None) -> GreedyNet:
    """Shards the parameters over the processes by FSDP2, each block of the core and of the levels a unit of its own, so that
    a device never holds more than one of them whole. A network in the memory of the host, where every process builds it
    whole, goes to the device unit by unit. Needs an initialised process group."""
    from torch.distributed.fsdp import fully_shard

    # Nothing stays whole after a forward pass: of a frozen part no backward pass comes to divide it again.
    options: dict[str, Any] = {"reshard_after_forward": True, **({"mesh": mesh} if mesh is not None else {})}
    for unit in [module for module in net.modules() if isinstance(module, Block | ResBlock)]:
        fully_shard(unit, **options)
    fully_shard(net, **options)
    return net
