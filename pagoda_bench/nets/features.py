"""The embedded feature network: the judge of images at the embedded scales, and the eyes of the losses.

A plain convolutional classifier over four scales. Its 128 penultimate features give the Frechet distance "FD-embedded"
(never called FID), precision and recall; its class probabilities the Inception-Score analogue; its maps the perceptual
distance and the inputs of the discriminator.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from pagoda_bench.recipes.stages import FeatureNet

FEATURES = 128


class FeatureModel(nn.Module):
    """Images (N, 3, R, R) in [-1, 1], R a power of two up to `resolution`, to maps, features (N, 128) and class logits."""

    def __init__(self, classes: int, width: int = 32, resolution: int = 64, *, folded: bool = False) -> None:
        super().__init__()
        self.resolution = resolution
        channels = (width, width * 3 // 2, width * 3, width * 4)
        self.channels = channels  # of the maps, finest first; map i has resolution / 2^(i + 1) pixels
        # The first convolution reads 2x2 pixels as 12 channels: all of the finest octave, at a quarter of the places.
        self.stages = nn.ModuleList([_conv(12, channels[0], 1, folded)])
        for i, (before, after) in enumerate(pairwise(channels)):
            layers = [_conv(before, after, 2, folded)]
            if i < 2:
                layers.append(_conv(after, after, 1, folded))
            self.stages.append(nn.Sequential(*layers))
        pixels = (resolution // 16) ** 2
        # Beside the coarsest map, the mean of every finer one: fine texture must reach the features.
        self.features_layer = nn.Linear(channels[-1] * pixels + sum(channels[:-1]), FEATURES)
        self.classifier = nn.Linear(FEATURES, classes)

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps, finest first. Smaller images are enlarged by pixel repetition, as all images of that size are."""
        if x.shape[-1] < self.resolution:
            x = F.interpolate(x, size=self.resolution, mode="nearest")
        x = F.pixel_unshuffle(x, 2).contiguous(memory_format=torch.channels_last)
        out = []
        for stage in self.stages:
            x = stage(x)
            out.append(x)
        return out

    def penultimate(self, maps: list[Tensor]) -> Tensor:
        """(N, 128), not rectified: a Gaussian fits such features better."""
        means = [m.mean((2, 3)) for m in maps[:-1]]
        return self.features_layer(torch.cat([maps[-1].flatten(1), *means], 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.penultimate(self.maps(x))
        return features, self.classifier(F.relu(features))

    @torch.inference_mode()
    def features(self, images: NDArray[np.uint8], batch: int = 256) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """uint8 (N, R, R, 3) to float32 features (N, 128) and logits (N, classes)."""
        found = [self(to_network(images[i : i + batch])) for i in range(0, len(images), batch)]
        return torch.cat([f for f, _ in found]).numpy(), torch.cat([g for _, g in found]).numpy()

    @classmethod
    def load(cls, path: Path, classes: int, width: int = 32, resolution: int = 64) -> FeatureModel:
        """From `features.safetensors` (float16 on disk, float32 in memory); frozen, in evaluation mode."""
        model = cls(classes, width, resolution, folded=True)
        model.load_state_dict(load_half(path))
        model = model.to(memory_format=torch.channels_last)
        return model.eval().requires_grad_(False)


def load_features(recipe: FeatureNet, ctx: Any) -> FeatureModel:
    """The network that `recipe` made, through a stage's context."""
    folder: Path = ctx.input(recipe)
    state = load_file(folder / "features.safetensors")
    classes = state["classifier.weight"].shape[0]
    return FeatureModel.load(folder / "features.safetensors", classes, recipe.width, recipe.resolution)


def to_network(images: NDArray[np.uint8]) -> Tensor:
    """uint8 NHWC in [0, 255] to float32 NCHW in [-1, 1], contiguous."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().contiguous().div_(127.5).sub_(1)


def from_network(x: Tensor) -> NDArray[np.uint8]:
    """float NCHW in [-1, 1] to uint8 NHWC by rounding to nearest; values outside are clipped."""
    scaled = ((x.float() + 1) * 127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def save_half(state: dict[str, Tensor], path: Path) -> None:
    """A state dict as safetensors, floating-point tensors as float16: what a released artifact holds."""
    from safetensors.torch import save_file

    save_file({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in sorted(state.items())}, path)


def load_half(path: Path) -> dict[str, Tensor]:
    """What `save_half` wrote, floating-point tensors as float32. The file's own tensors are not kept beside them."""
    with safe_open(path, framework="pt") as file:
        found = ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
        return {name: value.float() if value.is_floating_point() else value for name, value in found}


def fold(model: FeatureModel) -> dict[str, Tensor]:
    """The state dict of a trained network with every batch norm folded into the convolution before it: what is released."""
    state: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            state |= {f"{name}.weight": module.weight.detach(), f"{name}.bias": module.bias.detach()}
        elif isinstance(module, nn.Conv2d):
            norm = model.get_submodule(name.removesuffix("0") + "1")
            assert isinstance(norm, nn.BatchNorm2d)
            assert norm.running_var is not None
            assert norm.running_mean is not None
            gain = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
            state[f"{name}.weight"] = module.weight.detach() * gain[:, None, None, None]
            state[f"{name}.bias"] = norm.bias.detach() - norm.running_mean * gain
    return state


def _conv(before: int, after: int, stride: int, folded: bool) -> nn.Sequential:
    conv = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=folded)
    norm = [] if folded else [nn.BatchNorm2d(after)]
    return nn.Sequential(conv, *norm, nn.ReLU(inplace=True))
