"""Random projections of pretrained features: the eyes of the official L_rec (`cnn_vit`) and of its discriminator.

Two backbones, DeiT-base (distilled, 16/224) and EfficientNet-lite0 (TF variant), come from timm. Their maps at four scales
pass through convolutions that are drawn at random and never train: for the ViT those that make four maps of tokens, then
for both mixing across channels and across scales (Sauer et al. 2021; StyleGAN-XL). The official code draws them anew in
each process and stores none of L_rec's, so that a resumed run has another loss; here a seed draws them, and they are part
of the state dict, under the official names.

Images are (N, 3, R, R) in [-1, 1]; maps come finest first: 64, 64, 128 and 256 channels at 1/2, 1/4, 1/8 and 1/16 of the
size that the backbone sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagoda_bench.errors import UserError

Kind = Literal["vit", "cnn"]
BatchNorm = Literal["official", "cleanbn"]

TIMM: dict[Kind, str] = {"vit": "deit_base_distilled_patch16_224", "cnn": "tf_efficientnet_lite0"}
KINDS: tuple[Kind, ...] = ("vit", "cnn")
NORMALISATION: dict[Kind, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "vit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cnn": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
CHANNELS = (64, 64, 128, 256)  # of the maps, finest first
MIXED = (64, 128, 256, 512)  # after the mixing across channels
BACKBONE: dict[Kind, tuple[int, ...]] = {"vit": (96, 192, 384, 768), "cnn": (24, 40, 112, 320)}
VIT_BLOCKS = (2, 5, 8, 11)  # whose tokens are taken, counted from 0
TOKENS = 768
CNN_STAGES = ((0, 2), (2, 3), (3, 5), (5, 7))  # the stages between one taken map and the next
NATIVE = 256  # from this size on the backbone sees images as they are; smaller ones are resized to
INPUT = 224
PROBE = 256


def timm_backbone(kind: Kind, *, pretrained: bool = False, device: str | None = None) -> nn.Module:
    """The timm model. `pretrained` lets timm fetch its weights; without it they are random, and meant to be replaced."""
    try:
        import timm
    except ImportError:
        raise UserError(
            "the random-projection features need timm, which is not installed: pip install 'pagoda-bench[eval]'"
        ) from None
    with torch.device(device) if device else torch.device("cpu"):
        model: nn.Module = timm.create_model(TIMM[kind], pretrained=pretrained)
    return model


class RandomProjection(nn.Module):
    """The random part, with the official key names: maps of the backbone in, mixed maps out. It never trains.

    Its weights are PyTorch's default initialisation, drawn from `seed` alone; the global generator stays where it was.
    """

    def __init__(self, kind: Kind, seed: int) -> None:
        super().__init__()
        self.kind = kind
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if kind == "vit":
                self.pretrained = _container({f"layer{i + 1}": _reassemble(i, c) for i, c in enumerate(BACKBONE["vit"])})
            mixing: dict[str, nn.Module] = {}
            for i, (before, after, out) in enumerate(zip(BACKBONE[kind], MIXED, CHANNELS, strict=True)):
                mixing[f"layer{i}_ccm"] = nn.Conv2d(before, after, 1)
                mixing[f"layer{i}_csm"] = _container({"out_conv": nn.Conv2d(after, out, 1)})
            self.scratch = _container(mixing)
        self.requires_grad_(False)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Four maps of the backbone, finest first (of the ViT: token grids, (N, 768, H, W)), to four mixed ones."""
        if self.kind == "vit":
            reassemble = [self.pretrained.get_submodule(f"layer{i + 1}") for i in range(4)]
            maps = [layer(m) for layer, m in zip(reassemble, maps, strict=True)]
        mixed = [self.scratch.get_submodule(f"layer{i}_ccm")(m) for i, m in enumerate(maps)]
        out: list[Tensor] = []
        for i in reversed(range(4)):  # coarsest first
            x = mixed[i] + out[-1] if out else mixed[i]
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            out.append(self.scratch.get_submodule(f"layer{i}_csm.out_conv")(x))
        return out[::-1]


class ProjectedFeatures(nn.Module):
    """One backbone and its projection; always in evaluation mode, never trained, differentiable in the image.

    `batch_norm`: the official code sends one black image through the backbone in training mode while it counts channels,
    which moves every running statistic of the batch norms by a tenth: "official" does so too, "cleanbn" leaves them. The
    ViT has none, and is the same under both readings.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, kind: Kind, backbone: nn.Module, *, seed: int = 0, batch_norm: BatchNorm = "official") -> None:
        super().__init__()
        self.kind, self.batch_norm, self.seed = kind, batch_norm, seed
        self.backbone = backbone
        self.projection = RandomProjection(kind, seed)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALISATION[kind])
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self._taken: Callable[[Tensor], list[Tensor]] = self._vit if kind == "vit" else self._cnn
        if batch_norm == "official" and kind == "cnn":
            backbone.train()
            with torch.no_grad():
                self._cnn(torch.zeros(1, 3, PROBE, PROBE))
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> ProjectedFeatures:
        """Stays in evaluation mode."""
        super().train(False)
        return self

    def maps(self, x: Tensor) -> list[Tensor]:
        """Four maps, finest first. Images below 256 px are enlarged (or reduced) to 224 px, larger ones seen as they are."""
        return self.projection(self._taken(resize((x + 1) / 2).sub(self.mean).div(self.std)))

    def _vit(self, x: Tensor) -> list[Tensor]:
        net: Any = self.backbone
        patches = net.patch_embed.proj(x)
        height, width = patches.shape[-2:]
        prefix = torch.cat([net.cls_token, net.dist_token], 1).expand(len(x), -1, -1)
        h = torch.cat([prefix, patches.flatten(2).transpose(1, 2)], 1) + _positions(net.pos_embed, height, width)
        taken = []
        for i, block in enumerate(net.blocks):
            h = block(h)
            if i in VIT_BLOCKS:
                taken.append(h[:, 2:].transpose(1, 2).unflatten(2, (height, width)))
        return taken

    def _cnn(self, x: Tensor) -> list[Tensor]:
        net: Any = self.backbone
        h, taken = net.bn1(net.conv_stem(x)), []
        for start, stop in CNN_STAGES:
            h = net.blocks[start:stop](h)
            taken.append(h)
        return taken


class Eyes(nn.Module):
    """Several backbones as one, with the interface of the embedded feature network: `maps` is the list of all their maps."""

    def __init__(self, parts: Mapping[Kind, ProjectedFeatures]) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({str(kind): part for kind, part in parts.items()})
        self.channels = CHANNELS * len(parts)

    @classmethod
    def build(cls, *, seed: int, batch_norm: BatchNorm = "official", pretrained: bool = True) -> Eyes:
        """Both backbones, as the official training uses them. Each projection has its own seed, made of `seed`."""
        made = {
            kind: ProjectedFeatures(
                kind, timm_backbone(kind, pretrained=pretrained), seed=len(KINDS) * seed + i, batch_norm=batch_norm
            )
            for i, kind in enumerate(KINDS)
        }
        return cls(made)

    def maps(self, x: Tensor) -> list[Tensor]:
        """The maps of one backbone after the other, each finest first."""
        return [m for part in self.each() for m in part.maps(x)]

    def each(self) -> list[ProjectedFeatures]:
        return [part for part in self.parts.values() if isinstance(part, ProjectedFeatures)]

    def projections(self) -> dict[str, Tensor]:
        """What a checkpoint must hold so that the loss is the same after a resume: "<kind>.<official key>" to weight."""
        return {
            f"{part.kind}.{key}": value for part in self.each() for key, value in sorted(part.projection.state_dict().items())
        }

    def load_projections(self, state: Mapping[str, Tensor]) -> None:
        """Restores what `projections` gave, all of it or nothing. `UserError` when names or shapes do not agree."""
        mine = self.projections()
        wrong = sorted(
            k for k in mine.keys() | state.keys() if k not in mine or k not in state or mine[k].shape != state[k].shape
        )
        if wrong:
            raise UserError(
                f"the stored projections do not fit ({len(wrong)} of {len(mine)} tensors, first '{wrong[0]}'): they belong "
                "to other backbones; load the checkpoint that this run wrote"
            )
        with torch.no_grad():
            for key, value in mine.items():
                value.copy_(state[key])


def resize(x: Tensor) -> Tensor:
    """To 224 px below 256 px, bilinear; unchanged from there on."""
    return F.interpolate(x, size=(INPUT, INPUT), mode="bilinear") if x.shape[-1] < NATIVE else x


def _positions(table: Tensor, height: int, width: int) -> Tensor:
    """The position table (1, 2 + n n, C) for another grid: that of the patches is resized bilinearly, the first two stay."""
    prefix, grid = table[:, :2], table[:, 2:]
    side = round(grid.shape[1] ** 0.5)
    if (side, side) == (height, width):
        return table
    grid = grid.transpose(1, 2).unflatten(2, (side, side))
    grid = F.interpolate(grid, size=(height, width), mode="bilinear")
    return torch.cat([prefix, grid.flatten(2).transpose(1, 2)], 1)


def _reassemble(scale: int, channels: int) -> nn.Module:
    """Tokens to a map of that scale (Ranftl et al. 2021), at 4, 2, 1 and 1/2 times the token grid."""
    layers: dict[str, nn.Module] = {"3": nn.Conv2d(TOKENS, channels, 1)}
    if scale < 2:
        factor = 4 >> scale
        layers["4"] = nn.ConvTranspose2d(channels, channels, factor, stride=factor)
    elif scale == 3:
        layers["4"] = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
    return _row(layers)


def _row(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    """A sequence whose layers have the official numbers."""
    sequence = nn.Sequential()
    for name, layer in layers.items():
        sequence.add_module(name, layer)
    return sequence


def _container(parts: Mapping[str, nn.Module]) -> nn.Module:
    holder = nn.Module()
    for name, part in parts.items():
        holder.add_module(name, part)
    return holder
