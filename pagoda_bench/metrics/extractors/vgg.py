"""VGG16's second fully connected layer: what precision and recall were defined on (Kynkaanniemi et al. 2019).

The weights are torchvision's and the resize torch-fidelity's, so that its `prc` is met; the paper used a TensorFlow port.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagoda_bench.metrics.extractors.base import Extractor, Precision, frozen, normalised, optional
from pagoda_bench.metrics.extractors.weights import Found, load_into, state_dict

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 224


class VGG16(Extractor):
    """`fc2`: the layer's output; `fc2_relu`: rectified, which torch-fidelity uses."""

    original = "vgg16"

    def __init__(self, found: Found, device: str | torch.device = "cpu", precision: Precision = "float32") -> None:
        super().__init__(
            "vgg16",
            found.sha256,
            "TF1 bilinear to 224 on float, no antialias",
            {"fc2": 4096, "fc2_relu": 4096},
            device,
            precision,
        )
        network: nn.Module = optional("torchvision.models").vgg16(weights=None, init_weights=False)
        load_into(network, state_dict(found), found, "torchvision's VGG16")
        classifier: Any = network.classifier
        network.classifier = classifier[:4]  # as far as the second linear layer, before its ReLU
        self.network = frozen(network, device)
        self._resize: Any = optional("torch_fidelity.interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x

    def extract(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        x = self._resize(images.float(), size=(SIZE, SIZE), align_corners=False)
        fc2 = self.network(normalised(x, MEAN, STD))
        return {"fc2": fc2, "fc2_relu": F.relu(fc2)}
