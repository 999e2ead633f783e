"""The ADM U-Net (Dhariwal and Nichol 2021), class-conditional, with PaGoDA's grown decoder levels.

The state dict has the key names under which ADM, consistency-model and PaGoDA checkpoints are published:
`time_embed`, `label_emb`, `input_blocks.N.M`, `middle_block`, `output_blocks.N.M`, `out`. Output blocks are numbered
through base and grown levels alike, and one split serves all: `trunk(..., stop=k)` runs everything below output block k,
`finish(hidden, start=k)` the rest. A frozen prefix so runs without a graph, and its result may be kept and batched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import training_format
from pagoda_bench.recipes.stages import UNetConfig

NO_LABEL = -1
"""The label of an image that has none: nothing is added to the embedding of time (as EDM's network drops labels)."""
LN_OFFSET = 9.80908925027372e-45  # the float32 nearest to 1e-44: makes ln(sigma) finite at sigma = 0 and changes nothing else


class Hidden(NamedTuple):
    """The state between two output blocks. Plain tensors, the batch first in each: may be kept, stacked and indexed."""

    h: Tensor  # (B, width, H, W)
    skips: tuple[Tensor, ...]  # what the remaining base blocks still take, the next one last
    emb: Tensor  # (B, 4 * channels), time plus label


class UNet(nn.Module):
    """F(x, sigma, label). Raises `UserError` on widths or attention resolutions that do not fit.

    x: (B, 3, resolution, resolution), already scaled by c_in; sigma: (B,), or one value for all; labels: (B,) int64, of
    which `NO_LABEL` is none. With `config.guidance` it also takes w: (B,), the guidance weight; None is 0 for all.
    Gives (B, 3, output_resolution, output_resolution), without any output scaling.

    The memory format of x is kept throughout, but for training on a CPU (`training_format`). A channels-last x samples up to a
    quarter faster; formats differ by rounding (1e-4 measured).

    With `checkpointing` (options of `torch.utils.checkpoint`) only what goes into each block is kept for the backward pass,
    where the block is computed once more (Chen et al. 2016): less memory, the same gradients.
    """

    checkpointing: dict[str, Any] | None = None

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        _check(config)
        self.config, self.format = config, training_format()  # kept, since torch.compile warns of a cached function
        widths, decoder = _widths(config)
        grown = len(decoder) - len(widths)
        size, emb, group = config.resolution // config.patch, 4 * config.channels, config.group_channels
        colours = 3 * config.patch**2

        def residual(wide: int, to: int, *, resample: Resample = None, scale_shift: bool = True) -> ResBlock:
            return ResBlock(wide, to, emb, resample=resample, scale_shift=scale_shift, group=group)

        def attention(width: int, level: int) -> list[nn.Module]:
            return [Attention(width, config.head_channels, group)] if size >> level in config.attention else []

        self.time_embed = nn.Sequential(nn.Linear(config.channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.label_emb = nn.Embedding(config.classes, emb)
        self.guidance_proj: nn.Linear | None = None
        if config.guidance:
            # Starts at zero, so that a student with its teacher's weights is the teacher, whatever w (Meng et al. 2022).
            self.guidance_proj = _zero(nn.Linear(config.guidance, config.channels, bias=False))

        width = widths[0]
        self.input_blocks = nn.ModuleList([Stack(nn.Conv2d(colours, width, 3, padding=1))])
        skips = [width]
        for level, w in enumerate(widths):
            for _ in range(config.blocks):
                self.input_blocks.append(Stack(residual(width, w), *attention(w, level)))
                skips.append(width := w)
            if level < len(widths) - 1:
                self.input_blocks.append(Stack(residual(width, width, resample="down")))
                skips.append(width)

        self.middle_block = Stack(residual(width, width), Attention(width, config.head_channels, group), residual(width, width))

        self.output_blocks = nn.ModuleList()
        for level, w in reversed(list(enumerate(decoder[grown:]))):
            for i in range(config.blocks + 1):
                up = [residual(w, w, resample="up")] if level > 0 and i == config.blocks else []
                self.output_blocks.append(Stack(residual(width + skips.pop(), w), *attention(w, level), *up))
                width = w
        self.base_blocks = len(self.output_blocks)  # output blocks below this index take a skip
        for w in reversed(decoder[:grown]):
            scale_shift = config.scale_shift_grown
            self.output_blocks.append(Stack(residual(width, w, resample="up", scale_shift=scale_shift)))
            for _ in range(config.grown_blocks):
                self.output_blocks.append(Stack(residual(w, w, scale_shift=scale_shift)))
            width = w

        self.out = nn.Sequential(_norm(width, group), nn.SiLU(), _zero(nn.Conv2d(width, colours, 3, padding=1)))

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor, w: Tensor | None = None) -> Tensor:
        return self.head(self.decode(self.encode(x, sigma, labels, w)).h)

    def start_from(self, teacher: Mapping[str, Tensor]) -> None:
        """Takes every weight of a network that differs at most in being told no w. A layer of w keeps its zeros."""
        own = {key: value for key, value in self.state_dict().items() if key.startswith("guidance_proj.")}
        self.load_state_dict({**own, **teacher})

    def trunk(self, x: Tensor, sigma: Tensor | float, labels: Tensor, stop: int, w: Tensor | None = None) -> Hidden:
        """Encoder, middle and the output blocks below index `stop`."""
        return self.decode(self.encode(x, sigma, labels, w), 0, stop)

    def finish(self, hidden: Hidden, start: int) -> Tensor:
        """The output blocks from index `start` on, and the head. `finish(trunk(..., stop=k), start=k)` is `forward`."""
        return self.head(self.decode(hidden, start).h)

    def encode(self, x: Tensor, sigma: Tensor | float, labels: Tensor, w: Tensor | None = None) -> Hidden:
        """Embeddings, input blocks and middle block: the state before output block 0."""
        return self.encode_from(x, self.embed(sigma, labels, w))

    def encode_from(self, x: Tensor, emb: Tensor) -> Hidden:
        """`encode` with an embedding that the caller has made, for networks that are conditioned on more."""
        h = F.pixel_unshuffle(x, self.config.patch) if self.config.patch > 1 else x
        h = h.to(emb.dtype)
        if self.training and h.device.type == "cpu":
            h = h.contiguous(memory_format=self.format)
        skips = []
        for block in self.input_blocks:
            h = self._through(block, h, emb)
            skips.append(h)
        return Hidden(self._through(self.middle_block, h, emb), tuple(skips), emb)

    def decode(self, hidden: Hidden, start: int = 0, stop: int | None = None) -> Hidden:
        """Output blocks start ... stop - 1 (by default to the last). ValueError when `hidden` is not the state at `start`."""
        stop = len(self.output_blocks) if stop is None else stop
        if not 0 <= start <= stop <= len(self.output_blocks):
            raise ValueError(f"output blocks {start} to {stop} of {len(self.output_blocks)}")
        if len(hidden.skips) != max(0, self.base_blocks - start):
            raise ValueError(f"a hidden state with {len(hidden.skips)} skips is not the state before output block {start}")
        h, skips, emb = hidden
        for index in range(start, stop):
            if index < self.base_blocks:
                h, skips = torch.cat([h, skips[-1]], dim=1), skips[:-1]
            h = self._through(self.output_blocks[index], h, emb)
        return Hidden(h, skips, emb)

    def _through(self, block: nn.Module, h: Tensor, emb: Tensor) -> Tensor:
        if self.checkpointing is not None and torch.is_grad_enabled():
            # Nothing in a block is random.
            return checkpoint(block, h, emb, use_reentrant=False, preserve_rng_state=False, **self.checkpointing)
        return block(h, emb)

    def head(self, h: Tensor) -> Tensor:
        """The image from the features of the last output block."""
        image = self.out(h)
        return F.pixel_shuffle(image, self.config.patch) if self.config.patch > 1 else image

    def embed(self, sigma: Tensor | float, labels: Tensor, w: Tensor | None = None) -> Tensor:
        """(B, 4 * channels): the embedding of t = 250 ln(sigma) plus that of the label. At sigma = 0, t is -25333. The waves of
        w join those of t. ValueError when w is given to a network that is not told it."""
        waves = self.time_waves(sigma, len(labels))
        if self.guidance_proj is not None:
            w = torch.zeros(len(labels), device=labels.device) if w is None else w
            waves = waves + self.guidance_proj(guidance_waves(w, self.config.guidance).to(waves.dtype))
        elif w is not None:
            raise ValueError("this network takes no guidance weight: its config says guidance 0")
        label = self.label_emb(labels.clamp(min=0))
        return self.time_embed(waves) + label * (labels >= 0).to(label.dtype)[:, None]

    def time_waves(self, sigma: Tensor | float, batch: int) -> Tensor:
        """(batch, channels): `time_waves` of this network, one row an image."""
        weight = self.label_emb.weight
        sigma = torch.as_tensor(sigma, device=weight.device).expand(batch)
        return time_waves(sigma, self.config.channels, weight.dtype)


def time_waves(sigma: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """(N, channels): cosines, then sines of t = 250 ln(sigma) at geometric frequencies, before any layer. `sigma` (N,)."""
    # As in the field, t is a float32 number, and frequencies and angles are rounded as the weights are (to float32
    # at the coarsest): at sigma = 0, where t is large, the output depends on that rounding by 1e-4.
    t = 250.0 * (sigma.double() + LN_OFFSET).log().float()
    half = channels // 2
    steps = torch.arange(half, dtype=torch.promote_types(dtype, torch.float32), device=sigma.device)
    angles = t[:, None].to(steps.dtype) * torch.exp(-math.log(10000.0) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1).to(dtype)


def guidance_waves(w: Tensor, width: int) -> Tensor:
    """(N, width) float32: sines, then cosines of 1000 w at geometric frequencies from 1 to 1/10000 (latent consistency models'
    script: Luo et al. 2023, arXiv 2310.04378, after Vaswani et al. 2017)."""
    half = width // 2
    falling = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float64, device=w.device) / (half - 1))
    angles = 1000.0 * w.double()[:, None] * falling
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


Resample = Literal["up", "down"] | None


class ResBlock(nn.Module):
    """ADM's residual block: (B, width, H, W) to (B, to, H', W'), where H' is H, 2 H ("up") or H / 2 ("down")."""

    def __init__(self, width: int, to: int, emb: int, *, resample: Resample, scale_shift: bool, group: int) -> None:
        super().__init__()
        self.resample, self.scale_shift = resample, scale_shift
        self.in_layers = nn.Sequential(_norm(width, group), nn.SiLU(), nn.Conv2d(width, to, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * to if scale_shift else to))
        # The identity stands where ADM has dropout, so that the convolution keeps its published name.
        conv = _zero(nn.Conv2d(to, to, 3, padding=1))
        self.out_layers = nn.Sequential(_norm(to, group), nn.SiLU(), nn.Identity(), conv)
        self.skip_connection = nn.Identity() if width == to else nn.Conv2d(width, to, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h = silu(norm(x))
        if self.resample == "up":
            # The 1x1 convolution of the skip acts on single pixels, so it commutes with the enlargement, at a quarter
            # of the cost before it.
            h, x = _up(h), _up(self.skip_connection(x))
        elif self.resample == "down":
            h, x = F.avg_pool2d(h, 2), self.skip_connection(F.avg_pool2d(x, 2))
        else:
            x = self.skip_connection(x)
        h = conv(h)
        e = self.emb_layers(emb)[:, :, None, None]
        norm, *rest = self.out_layers
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = torch.addcmul(shift, norm(h), 1 + scale)
        else:
            h = norm(h + e)
        for layer in rest:
            h = layer(h)
        return x + h


class Attention(nn.Module):
    """Self-attention over the pixels of (B, width, H, W), residual, with heads of `head_channels` channels."""

    def __init__(self, width: int, head_channels: int, group: int) -> None:
        super().__init__()
        self.heads = width // head_channels
        self.norm = _norm(width, group)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj_out = _zero(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, wide = x.shape
        # The channels of qkv are (query | key | value), each (head, channel). All these are views of a channels-last tensor.
        qkv = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unflatten(2, (3, self.heads, c // self.heads))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v)  # (B, heads, H W, C / heads)
        h = h.transpose(1, 2).reshape(b, height, wide, c).permute(0, 3, 1, 2)
        return x + self.proj_out(h)


class Stack(nn.Sequential):
    """Layers in a row, of which the residual blocks also take the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]  # one input more than nn.Sequential
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


def _norm(width: int, group: int) -> nn.GroupNorm:
    """32 groups, as published, or the largest power of two below it that leaves at least `group` channels in each."""
    groups = math.gcd(32, width)
    while groups > 1 and width // groups < group:
        groups //= 2
    return nn.GroupNorm(groups, width, eps=1e-5)


def _up(x: Tensor) -> Tensor:
    """Every pixel as 2x2. PyTorch takes a dozen times as long for a contiguous tensor on a CPU; the values are the same."""
    if x.device.type == "cpu" and x.is_contiguous():
        return _Up.apply(x)
    return F.interpolate(x, scale_factor=2, mode="nearest")


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        b, c, h, w = ctx.before = x.shape
        y = x.new_empty(b, c, h, 2, w, 2)
        y[:, :, :, 0, :, 0] = x
        y[:, :, :, 0, :, 1] = x
        y[:, :, :, 1] = y[:, :, :, 0]
        return y.view(b, c, 2 * h, 2 * w)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.ops.aten.upsample_nearest2d_backward(gradient, gradient.shape[-2:], ctx.before)


Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def _zero(layer: Layer) -> Layer:
    """Starts a residual branch, or the head, at zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _widths(config: UNetConfig) -> tuple[list[int], list[int]]:
    """Channels of the encoder's levels and of the decoder's, both from the highest resolution to the lowest."""
    decoder = config.decoder or config.encoder
    return [int(m * config.channels) for m in config.encoder], [int(m * config.channels) for m in decoder]


def _check(config: UNetConfig) -> None:
    """A `UserError` for a config from which no network can be built, or whose attention would silently be left out."""
    encoder, decoder = _widths(config)
    levels = len(encoder)
    if levels == 0 or len(decoder) < levels:
        raise UserError(f"net: the decoder has {len(decoder)} levels, the encoder {levels}: give the decoder as many or more")
    if config.patch < 1 or config.resolution < 1 or config.resolution % (config.patch * 2 ** (levels - 1)):
        raise UserError(
            f"net: resolution {config.resolution} is not a multiple of {config.patch * 2 ** (levels - 1)} "
            f"(patch {config.patch}, halved {levels - 1} times): change resolution, patch or the number of encoder levels"
        )
    if config.channels % 2 or min(config.channels, *encoder, *decoder) < 1:
        raise UserError(f"net: {config.channels} channels with widths {encoder}, {decoder}: need even channels and widths >= 1")
    sizes = [config.resolution // config.patch >> level for level in range(levels)]
    if unknown := [a for a in config.attention if a not in sizes]:
        raise UserError(f"net: attention at {unknown[0]} px, but the levels of the base have {sizes} px: name some of these")
    base = decoder[len(decoder) - levels :]
    attended = [w for widths in (encoder, base) for w, s in zip(widths, sizes, strict=True) if s in config.attention]
    if odd := [w for w in (*attended, encoder[-1]) if w % config.head_channels]:
        raise UserError(f"net: attention over {odd[0]} channels, not a multiple of head_channels {config.head_channels}")
