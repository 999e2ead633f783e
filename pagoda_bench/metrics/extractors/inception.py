"""Inception-v3 as in the TensorFlow graph of 2015: what FID, sFID, KID, IS and ADM's precision and recall look through.

The blocks, with their padding and pooling of that graph, and the graph's way of resizing are torch-fidelity's (Obukhov et
al.); they are put together here so that the spatial features of sFID can be read on the way and that an image which is
resized otherwise (clean-fid's protocol) enters behind the resize.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pagoda_bench.metrics.extractors.base import Extractor, Precision, frozen, optional
from pagoda_bench.metrics.extractors.weights import Found, load_into, state_dict

SIZE = 299
CLASSES = 1008
SPATIAL = 7  # channels of the first convolution of `mixed_6` that sFID uses (Nash et al. 2021; ADM's evaluator)
DIMENSIONS = {"pool3": 2048, "spatial": 17 * 17 * SPATIAL, "logits_unbiased": CLASSES, "probabilities": CLASSES}


class Network(nn.Module):
    """float (N, 3, 299, 299) in [0, 255] to the features of `DIMENSIONS`. Parameter names are torch-fidelity's."""

    def __init__(self) -> None:
        super().__init__()
        parts: Any = optional("torch_fidelity.feature_extractor_inceptionv3")
        conv = parts.BasicConv2d
        self.Conv2d_1a_3x3 = conv(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = conv(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, kernel_size=3, padding=1)
        self.MaxPool_1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = conv(64, 80, kernel_size=1)
        self.Conv2d_4a_3x3 = conv(80, 192, kernel_size=3)
        self.MaxPool_2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = parts.InceptionA(192, pool_features=32)
        self.Mixed_5c = parts.InceptionA(256, pool_features=64)
        self.Mixed_5d = parts.InceptionA(288, pool_features=64)
        self.Mixed_6a = parts.InceptionB(288)
        self.Mixed_6b = parts.InceptionC(768, channels_7x7=128)
        self.Mixed_6c = parts.InceptionC(768, channels_7x7=160)
        self.Mixed_6d = parts.InceptionC(768, channels_7x7=160)  # the graph's `mixed_6`
        self.Mixed_6e = parts.InceptionC(768, channels_7x7=192)
        self.Mixed_7a = parts.InceptionD(768)
        self.Mixed_7b = parts.InceptionE_1(1280)
        self.Mixed_7c = parts.InceptionE_2(2048)
        self.AvgPool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, CLASSES)

    def forward(self, x: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        x = (x - 128) / 128
        x = self.MaxPool_1(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = self.MaxPool_2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        if "spatial" in wanted:
            # In the order of the graph, channels last, so that published statistics of these features fit.
            seen = self.Mixed_6d.branch1x1(x)[:, :SPATIAL]
            found["spatial"] = seen.permute(0, 2, 3, 1).flatten(1)
        if set(wanted) <= {"spatial"}:
            return found
        x = self.Mixed_6e(self.Mixed_6d(x))
        x = self.AvgPool(self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))).flatten(1)
        found["pool3"] = x
        if "logits_unbiased" in wanted or "probabilities" in wanted:
            found["logits_unbiased"] = x.mm(self.fc.weight.T)
            found["probabilities"] = (found["logits_unbiased"] + self.fc.bias).softmax(1)
        return found


class Inception(Extractor):
    """The 2015 graph with its own resize: bilinear to 299, neither half-pixel centres nor antialiasing."""

    original = "inception"

    def __init__(self, found: Found, device: str | torch.device = "cpu", precision: Precision = "float32") -> None:
        super().__init__(
            "inception-v3 2015", found.sha256, "TF1 bilinear to 299 on float, no antialias", DIMENSIONS, device, precision
        )
        self.network = network(found, device)
        self._resize: Any = optional("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x

    def extract(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        return self.network(self._resize(images.float(), size=(SIZE, SIZE), align_corners=False), wanted)


def network(found: Found, device: str | torch.device) -> nn.Module:
    """The network with the weights of a state dict in torch-fidelity's names.

    Every batch norm is folded into the convolution before it: a fifth less time, and a rounding like any other of float32.
    """
    built = Network()
    load_into(built, state_dict(found), found, "Inception-v3 of 2015 (torch-fidelity's names)")
    built.eval()
    for part in list(built.modules()):
        if isinstance(getattr(part, "bn", None), nn.BatchNorm2d):
            folded: Any = part
            folded.conv, folded.bn = fuse_conv_bn_eval(folded.conv, folded.bn), nn.Identity()
    return frozen(built, device)
