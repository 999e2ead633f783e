"""Backbones, projections and discriminator of the official fixtures, filled by the formula."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from pagoda_bench.nets.multiscale_discriminator import MultiscaleDiscriminator
from pagoda_bench.nets.projection import BatchNorm, Eyes, Kind, ProjectedFeatures, timm_backbone
from tests.official import fill_rule, rows, shape_text


def rule(key: str, shape: tuple[int, ...]) -> str:
    return "unit" if key.endswith(("weight_u", "weight_v")) else fill_rule(key, shape)


def fill_all(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `fill`, with the rule for spectral norms; integers (and booleans) keep their values, but count in the list."""
    filled = {}
    for i, key in enumerate(sorted(state)):
        shape, count = tuple(state[key].shape), state[key].numel()
        if not state[key].is_floating_point():
            filled[key] = torch.zeros(shape, dtype=state[key].dtype)
            continue
        s = np.sin(i + np.arange(count, dtype=np.float64) ** 2)
        kind = rule(key, shape)
        if kind == "unit":
            s /= np.sqrt((s**2).sum())
        elif kind == "fan":
            s *= np.sqrt(2 * shape[0] / count)
        elif kind != "plain":
            s = {"half": 0.5 * s, "gain": 1 + 0.25 * s, "bias": 0.25 * s}[kind]
        filled[key] = torch.from_numpy(s.astype(np.float32).reshape(shape))
    return filled


def check_fill(name: str, filled: Mapping[str, Tensor]) -> None:
    """The formula weights are those of the fixture: keys, shapes, rules, first and last values and sums of squares."""
    header, *stated = rows(f"{name}.fill")
    assert header[:4] == ["i", "key", "shape", "rule"]
    floats = {key: value for key, value in filled.items() if value.is_floating_point()}
    assert [row[1] for row in stated] == sorted(floats)
    places = sorted(filled)
    for i, key, shape, rule_, first, last, squares in stated:
        values = filled[key].flatten().double()
        assert (places[int(i)], shape_text(filled[key]), rule(key, tuple(filled[key].shape))) == (key, shape, rule_)
        np.testing.assert_allclose([values[0], values[-1]], [float(first), float(last)], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(float((values**2).sum()), float(squares), rtol=1e-6)


@cache
def backbone_weights(kind: Kind) -> dict[str, Tensor]:
    return fill_all(timm_backbone(kind, device="meta").state_dict())


def backbone(kind: Kind) -> nn.Module:
    model = timm_backbone(kind, device="meta")
    model.load_state_dict({key: value.clone() for key, value in backbone_weights(kind).items()}, assign=True)
    return model


def projected(kind: Kind, batch_norm: BatchNorm) -> ProjectedFeatures:
    part = ProjectedFeatures(kind, backbone(kind), batch_norm=batch_norm)
    part.projection.load_state_dict(fill_all(part.projection.state_dict()))
    return part


def filled_eyes(batch_norm: BatchNorm) -> Eyes:
    return Eyes({"vit": projected("vit", batch_norm), "cnn": projected("cnn", batch_norm)})


def filled_discriminator() -> MultiscaleDiscriminator:
    with torch.device("meta"):
        judge = MultiscaleDiscriminator()
    judge.load_state_dict(fill_all(judge.state_dict()), assign=True)
    return judge.train()
