"""PaGoDA's losses: L = L_rec + lambda L_adv.

L_rec compares G(E(x)) with the *real* image x: the teacher's errors enter through the latent E(x) alone, never as a target.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

EPS = 1e-10  # as in the official code
TINY = 1e-20  # keeps the square root differentiable where rectified maps are all zero


def feature_distance(estimate: Sequence[Tensor], target: Sequence[Tensor], eps: float = EPS) -> Tensor:
    """One value an image, (N,): maps are normalised to unit length over channels at every place, squared differences are
    averaged over places and summed over channels and maps (LPIPS without its learnt weights; the official `cnn_vit`)."""
    total = estimate[0].new_zeros(len(estimate[0]))
    for a, b in zip(estimate, target, strict=True):
        a, b = a.float(), b.float()  # autocast hands over 8 bits of mantissa, too few for the differences
        a = a / ((a.square().sum(1, keepdim=True) + TINY).sqrt() + eps)
        b = b / ((b.square().sum(1, keepdim=True) + TINY).sqrt() + eps)
        total = total + (a - b).square().sum(1).mean((1, 2))
    return total


def adaptive_weight(rec: Tensor, adv: Tensor) -> Tensor:
    """lambda: the ratio of the gradient norms of L_rec and L_adv at the last decoder convolution (Esser et al. 2021), with the
    clamps of the official code: to [0, 1e4], then to [0.01, 10]."""
    return (rec.norm() / (adv.norm() + 1e-4)).clamp(0, 1e4).clamp(0.01, 10)


def last_layer(net: nn.Module) -> nn.Parameter:
    """The weight at which the official code compares gradients: the second convolution of the first residual block in the last
    output block."""
    block = net.output_blocks[-1][0]  # type: ignore[index]
    weight = block.out_layers[3].weight  # type: ignore[union-attr]
    assert isinstance(weight, nn.Parameter)
    return weight


def accumulate(
    outputs: Sequence[Tensor], losses: Sequence[Tensor], at: nn.Parameter, weight: float, adaptive: bool
) -> tuple[float, list[Tensor]]:
    """Gradients of `losses[0] + lambda * losses[1]` into the generator's parameters, where `outputs[i]` is the image that
    `losses[i]` judges. The judges are walked through once: what follows needs their gradient at the images only.

    Returns lambda (`weight` times the adaptive factor, if asked for) and the two gradients at the images.
    """
    at_images = [torch.autograd.grad(loss, image)[0] for image, loss in zip(outputs, losses, strict=True)]
    factor = weight
    if adaptive:
        norms = [torch.autograd.grad(image, at, g, retain_graph=True)[0] for image, g in zip(outputs, at_images, strict=True)]
        factor = weight * float(adaptive_weight(norms[0], norms[1]))
    torch.autograd.backward(list(outputs), [at_images[0], factor * at_images[1]])
    return factor, at_images
