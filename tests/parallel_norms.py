"""One process of two with a synced batch norm, and a discriminator, over half of a batch each; run by test_data_parallel.py
under RANK and WORLD_SIZE. What is asserted here shows up there."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pagoda_bench.nets import device
from pagoda_bench.nets.discriminator import ProjectedDiscriminator, hinge_discriminator
from pagoda_bench.training import parallel
from pagoda_bench.training.distributed import group
from pagoda_bench.training.loop import autocast
from pagoda_bench.training.updates import apply


def exact(norm: nn.BatchNorm2d, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, nn.BatchNorm2d]:
    """Output, gradient and the norm, in float64 and with the whole batch in one process."""
    whole = nn.BatchNorm2d(norm.num_features).double()
    whole.load_state_dict(norm.state_dict())
    given = x.double().requires_grad_()
    out = nn.functional.batch_norm(
        given, whole.running_mean, whole.running_var, whole.weight, whole.bias, True, whole.momentum or 0.1, whole.eps
    )
    (weights * out).sum().backward()
    assert given.grad is not None
    return out.detach(), given.grad, whole


def norm_of(x: Tensor, weights: Tensor, tolerance: float) -> None:
    """Over two processes as over one, in the type that it was given, whatever the mean."""
    norm = nn.BatchNorm2d(x.shape[1])
    nn.init.normal_(norm.weight)
    out, gradient, whole = exact(norm, x, weights)
    parallel.synced(norm)
    (part,) = parallel.parts(len(x))
    mine = x[part].clone().requires_grad_()
    found = norm(mine)
    assert found.dtype == x.dtype
    (weights[part].to(x.dtype) * found).sum().backward()
    assert mine.grad is not None
    for a, b in ((found, out[part]), (mine.grad, gradient[part])):
        torch.testing.assert_close(a.double(), b, rtol=tolerance, atol=tolerance * float(b.abs().max()))
    for name in ("running_mean", "running_var"):
        a, b = norm.get_buffer(name), whole.get_buffer(name)
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3)


def discriminator() -> None:
    """Two updates under autocast, as in a bf16 training."""
    judge = parallel.synced(ProjectedDiscriminator([4, 4], 3, width=8))
    adam = torch.optim.Adam([p for p in judge.parameters() if p.requires_grad])
    (part,) = parallel.parts(8)
    maps = [torch.randn(8, 4, size, size)[part] for size in (8, 4)]
    labels = (torch.arange(8) % 3)[part]
    for _ in range(2):
        adam.zero_grad()
        with autocast("bf16"):
            loss = hinge_discriminator(judge(maps, labels), judge([-m for m in maps], labels))
        loss.backward()
        assert apply(adam, [float(loss.detach())]) > 0


def main() -> None:
    device.fast_bfloat16 = lambda: True  # type: ignore[assignment]  # slow or not, this processor can
    torch.manual_seed(0)
    with group():
        x, weights = torch.randn(8, 3, 4, 4) * torch.arange(1, 9)[:, None, None, None], torch.randn(8, 3, 4, 4)
        norm_of(x, weights, 1e-4)
        norm_of(x.bfloat16(), weights, 0.02)
        norm_of(torch.randn(8, 3, 4, 4) + 1e4, weights, 2e-3)  # float32 has a thousandth left beside such a mean
        discriminator()


if __name__ == "__main__":
    main()
