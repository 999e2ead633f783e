"""What every feature extractor is: uint8 images in, named float32 features out, and a protocol that says exactly which."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.metrics.extractors.weights import ORIGINALS, Found, find

Precision = Literal["float32", "bfloat16"]
Origin = tuple[str, Path | None, str, Precision]  # the arguments of `load_extractor`
INSTALL = "install what evaluation needs with: pip install 'pagoda-bench[eval]'"


class Extractor(ABC):
    """A frozen network with its resize and normalisation. Calling it turns images into features.

    `name`, `weights` (SHA-256 of the file), `resize` and `precision` are its protocol: two extractors that agree in all four
    give the same features, up to the rounding of the arithmetic. `dimensions` names the features and their lengths.
    """

    name: str
    weights: str
    resize: str
    precision: Precision
    dimensions: Mapping[str, int]
    device: torch.device
    origin: Origin | None = None  # by which another process can load the same; None where it was made otherwise
    original: ClassVar[str] = ""  # whose published weights it takes when none are given

    def __init__(
        self,
        name: str,
        weights: str,
        resize: str,
        dimensions: Mapping[str, int],
        device: str | torch.device = "cpu",
        precision: Precision = "float32",
    ) -> None:
        self.name, self.weights, self.resize, self.dimensions = name, weights, resize, dict(dimensions)
        self.device, self.precision = torch.device(device), precision

    @classmethod
    def load(cls, weights: Path | None = None, device: str = "cpu", precision: Precision = "float32", **options: Any) -> Self:
        """With weights from a file, or the published ones. Raises `UserError` when they cannot be had or do not fit."""
        build: Any = cls
        found: Self = build(cls.found(weights, **options), device=device, precision=precision, **options)
        return found

    @classmethod
    def found(cls, weights: Path | None, **options: Any) -> Found:
        """The file of the weights."""
        return find(ORIGINALS[cls.original], weights)

    @property
    def protocol(self) -> dict[str, str]:
        """The fields of a score's protocol that this extractor determines."""
        return {
            "extractor": self.name,
            "weights": self.weights,
            "resize": self.resize,
            "precision": f"{self.precision} network, float64 statistics",
        }

    def __call__(self, images: Tensor, wanted: Collection[str] | None = None) -> dict[str, Tensor]:
        """uint8 (N, 3, H, W) to float32 (N, d) for each of `wanted` (default: all), on `self.device`.

        Raises `UserError` for an unknown feature and ValueError for another kind of tensor.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not len(images):
            raise ValueError(f"an extractor wants uint8 (N, 3, H, W), not {images.dtype} {tuple(images.shape)}")
        names = list(self.dimensions) if wanted is None else list(wanted)
        for name in names:
            if name not in self.dimensions:
                raise UserError(f"extractor '{self.name}' gives no feature '{name}'" + nearest(name, self.dimensions))
        with torch.inference_mode(), _arithmetic(self.device, self.precision):
            found = self.extract(images.to(self.device), names)
        out = {name: found[name].float() for name in names}
        for name, value in out.items():
            if value.shape != (len(images), self.dimensions[name]):
                expected = (len(images), self.dimensions[name])
                raise UserError(f"extractor '{self.name}': feature '{name}' has shape {tuple(value.shape)}, not {expected}")
        return out

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """float32 (N,), how unlike the images of each pair look; both uint8 (N, 3, H, W)."""
        with torch.inference_mode(), _arithmetic(self.device, self.precision):
            return self.unlikeness(a.to(self.device), b.to(self.device)).float()

    def unlikeness(self, a: Tensor, b: Tensor) -> Tensor:
        """(N,) of `distance`. Raises `UserError` where a network is not made to compare pairs."""
        raise UserError(f"extractor '{self.name}' compares no pairs of images: use lpips-vgg16 or embedded")

    def text(self, prompts: Sequence[str]) -> Tensor:
        """float32 (N, d) of N texts, among the embeddings of images. Raises `UserError` where a network reads no texts."""
        raise UserError(f"extractor '{self.name}' reads no texts: use one of the clip networks")

    @abstractmethod
    def extract(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """The features `wanted`, perhaps more, of uint8 (N, 3, H, W) images on `self.device`."""


@contextmanager
def _arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """TF32 off, because it moves features by more than the metrics' own tolerances; bf16 only where it is asked for."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        if device.type != "cuda":
            yield
            return
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(before)


def frozen(network: nn.Module, device: str | torch.device) -> nn.Module:
    """`network` in evaluation mode, without gradients, channels last, on `device`."""
    moved: nn.Module = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return moved.eval().requires_grad_(False)


def normalised(images: Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]) -> Tensor:
    """float (N, 3, H, W) in [0, 255] to (x / 255 - mean) / std, by channel."""
    shift = torch.tensor(mean, device=images.device)[:, None, None] * 255
    scale = torch.tensor(std, device=images.device)[:, None, None] * 255
    return (images - shift) / scale


def optional(module: str) -> ModuleType:
    """A module of the `eval` extra; a `UserError` that says how to install it when it is absent."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"this extractor needs the Python module '{error.name}', which is not there: {INSTALL}") from None
