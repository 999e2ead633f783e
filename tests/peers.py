"""What a benchmark of the baselines consists of: our side, the nearest public class of the same shapes, and a line that says
how many times as fast ours is, with parameters, counted operations and memory of both."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from baselines.latent.recipes import AutoencoderConfig
from baselines.training import descend
from pagoda_bench import resources
from pagoda_bench.nets.device import keep_freed_memory
from pagoda_bench.recipes.stages import Generator, TrainConfig, UNetConfig
from pagoda_bench.tables import methods, spec
from pagoda_bench.training.updates import optimizer
from tests.ratios import ratio

INSTALL = "pip install 'pagoda-bench[diffusers,peers]'"
TRAIN = TrainConfig(steps=1)
CLASSES = 10


@dataclass(frozen=True)
class Side:
    """One training step, or one batch of samples, and the number of parameters that it needs."""

    run: Callable[[], Any]
    parameters: int


@dataclass(frozen=True)
class Case:
    ours: Side
    theirs: Side
    images: int  # that a run is over


def compare(name: str, case: Case) -> float:
    """Prints a row of the table in docs/baselines.md; how many times as fast ours is. The process keeps freed memory, as it
    does where this repository trains: that serves both sides."""
    keep_freed_memory()
    found = ratio(case.theirs.run, case.ours.run)
    (flops, most), (flops_theirs, most_theirs) = (counted(side.run) for side in (case.ours, case.theirs))
    cells = (
        f"{case.ours.parameters / 1e6:.2f} M / {case.theirs.parameters / 1e6:.2f} M",
        f"{flops / case.images / 1e6:,.0f} M / {flops_theirs / case.images / 1e6:,.0f} M",
        f"{most / 1e6:.0f} MB / {most_theirs / 1e6:.0f} MB",
    )
    print("\n| " + " | ".join((name, f"{found:.2f}", *cells)) + " |", flush=True)
    return found


def parameters(*nets: nn.Module) -> int:
    return sum(p.numel() for net in nets for p in net.parameters())


def counted(run: Callable[[], Any]) -> tuple[int, int]:
    """Operations, and the most bytes at a time in tensors that `run` makes: neither weights nor an optimiser's moments, which
    are there before."""
    with Live() as live, FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops(), live.most


class Live(TorchDispatchMode):
    """Counts the bytes of tensors that appear within it, each storage once, for as long as it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._note((args, kwargs), new=False)
        out = func(*args, **(kwargs or {}))
        self._note(out, new=True)
        return out

    def _note(self, tree: Any, *, new: bool) -> None:
        for tensor in tree_leaves(tree):
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            mark = storage._cdata
            if mark not in self.sizes:
                self.sizes[mark] = storage.nbytes() if new else 0
                self.now += self.sizes[mark]
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, mark)

    def _gone(self, mark: int) -> None:
        self.now -= self.sizes.pop(mark)


def step(net: nn.Module, loss: Callable[[], Tensor], kind: str = "adam") -> Callable[[], None]:
    """As the runners of the baselines do it."""
    adam = optimizer(list(net.parameters()), TRAIN.model_copy(update={"optimizer": kind}))

    def run() -> None:
        descend(adam, loss(), TRAIN)

    return run


def plain_step(net: nn.Module, loss: Callable[[], Tensor], kind: str = "adam") -> Callable[[], None]:
    """Nothing but the update, by the fastest optimiser of the kind."""
    chosen: dict[str, Any] = {"adam": (torch.optim.Adam, {"fused": True}), "radam": (torch.optim.RAdam, {"foreach": True})}
    made, how = chosen[kind]
    adam = made(net.parameters(), **how)

    def run() -> None:
        adam.zero_grad()
        loss().backward()
        adam.step()

    return run


def generator(method: str, resolution: int, **options: Any) -> Generator:
    """A row of the embedded scale, with these options."""
    table = spec.read(resources.folder("experiments") / "baselines.yaml")
    scale = spec.load_scale(table, "embedded")
    return methods.find(method)(scale.model_copy(update={"methods": {method: options}}), resolution)


class DiffusersUNet(nn.Module):
    """diffusers' `UNet2DModel` of the same layers as a config's, called as ours are: residual blocks halve and double. What it
    has no input for (an augmentation level, a guidance weight) it is not told; an image to be enlarged goes in beside the noisy
    one."""

    def __init__(self, config: UNetConfig, beside: int = 0) -> None:
        super().__init__()
        diffusers = pytest.importorskip("diffusers", reason=INSTALL)
        widths = tuple(int(m * config.channels) for m in config.encoder)
        size, self.patch = config.resolution // config.patch, config.patch
        attended = [size >> level in config.attention for level in range(len(widths))]
        self.net = diffusers.UNet2DModel(
            sample_size=size,
            in_channels=(3 + beside) * config.patch**2,
            out_channels=3 * config.patch**2,
            layers_per_block=config.blocks,
            block_out_channels=widths,
            down_block_types=tuple("AttnDownBlock2D" if a else "ResnetDownsampleBlock2D" for a in attended),
            up_block_types=tuple("AttnUpBlock2D" if a else "ResnetUpsampleBlock2D" for a in reversed(attended)),
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=config.head_channels,
            norm_num_groups=8,
            resnet_time_scale_shift="scale_shift",
            num_class_embeds=config.classes,
        )

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor, *more: Tensor) -> Tensor:
        x = torch.cat([x, *(image for image in more if image.dim() == 4)], 1)
        if self.patch == 1:
            return self.net(x, sigma, class_labels=labels).sample
        return F.pixel_shuffle(self.net(F.pixel_unshuffle(x, self.patch), sigma, class_labels=labels).sample, self.patch)


def diffusers_coder(config: AutoencoderConfig) -> Any:
    """diffusers' `AutoencoderKL` of the same layers: the weights of ours fit."""
    diffusers = pytest.importorskip("diffusers", reason=INSTALL)
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(config.widths),
        up_block_types=("UpDecoderBlock2D",) * len(config.widths),
        block_out_channels=tuple(config.widths),
        layers_per_block=config.layers,
        latent_channels=config.latent,
        norm_num_groups=config.groups,
    )


def lucidrains_uvit() -> Any:
    """The U-ViT of simple diffusion with the levels, core and heads of greedy growing's embedded preset; without classes."""
    module = pytest.importorskip("denoising_diffusion_pytorch.simple_diffusion", reason=INSTALL)
    model: Any = generator("greedy", 64).of  # type: ignore[attr-defined]
    core, outer = model.core, model.outer
    head = core.width // core.heads
    first, *widths = (*outer.widths, core.width)
    return module.UViT(
        dim=head,  # what the multiples are of
        init_dim=first,
        dim_mults=[width // head for width in widths],
        vit_depth=core.depth,
        vit_dropout=0.0,
        attn_dim_head=head,
        attn_heads=core.heads,
        patch_size=outer.patch,
    )


@contextmanager
def said_to_have_a_gpu() -> Iterator[None]:
    """lightweight-gan refuses to be imported without a GPU; its networks need none."""
    with patch.object(torch.cuda, "is_available", return_value=True):
        yield


def lightweight_gan() -> Any:
    with said_to_have_a_gpu():
        return pytest.importorskip("lightweight_gan.lightweight_gan", reason=INSTALL)


SHAPES = {"image_size": 64, "fmap_max": 96, "fmap_inverse_coef": 10}
"""Of lightweight-gan's networks: 96, 96, 64 and 32 channels at 8, 16, 32 and 64 px, where the embedded preset has 96, 64, 48
and 32."""
