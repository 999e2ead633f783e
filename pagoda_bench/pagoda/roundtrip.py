"""How well an encoder undoes itself: images carried to noise along the probability-flow ODE, and integrated back.

The cost of a solver is its number of network evaluations, so Heun and DDIM are compared at equal evaluations, not at equal
points. And a small error of the round trip does not prove a good latent: what an even-order method loses on the way up it
regains on the way down, to leading order (for a Gaussian and 40 points of Heun the image is off by 0.1 %, the latent by
0.9 %; DDIM has no such luck). Hence the distance of the latents from those of a fine grid is reported too, when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.diffusion import solvers
from pagoda_bench.diffusion.edm import SIGMA_MAX, karras_grid
from pagoda_bench.diffusion.solvers import DenoiseFn, Solver
from pagoda_bench.nets.features import to_network


@dataclass(frozen=True)
class RoundTrip:
    """One solver at one number of noise levels. Errors are of pixels in [-1, 1], over all images."""

    solver: Solver
    points: int
    evaluations: int  # of the network, an image: to noise and back
    rms: float  # root of the mean squared error
    worst: float  # the largest error of a pixel
    worst_image: float  # the root mean square of the image that fares worst
    psnr: float  # 20 log10(2 / rms), in dB
    latent_std: float  # of the latents, in units of their nominal 80
    latent_rms: float | None = None  # their distance from the reference latents, in the same units


def round_trip(
    denoise_fn: DenoiseFn,
    image: Tensor,
    *,
    solver: Solver = "heun",
    points: int = 40,
    clamp: bool = True,
    reference: Tensor | None = None,
) -> RoundTrip:
    """Inverts `image` (N, C, H, W), integrates back on the same grid, and measures what has changed. `reference` are the
    latents to which those are compared, e.g. of a finer grid.

    The image is the state at sigma 0.002, and the last step back goes to 0. With `clamp`, as in the official pair writer,
    denoised values are held in [-1, 1] both ways.
    """
    calls = 0

    def counted(x: Tensor, sigma: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return denoise_fn(x, sigma)

    grid = karras_grid(points)
    with torch.inference_mode():
        latent = solvers.invert(counted, image, grid, solver, clamp)
        sample = solvers.heun if solver == "heun" else solvers.ddim
        error = (sample(counted, latent, grid, clamp) - image).double()
    squares = error.square().flatten(1).mean(1)
    rms = float(squares.mean().sqrt())
    return RoundTrip(
        solver=solver,
        points=points,
        evaluations=calls,
        rms=rms,
        worst=float(error.abs().max()),
        worst_image=float(squares.max().sqrt()),
        psnr=float("inf") if rms == 0 else float(20 * torch.log10(torch.tensor(2 / rms, dtype=torch.float64))),
        latent_std=float(latent.double().std()) / SIGMA_MAX,
        latent_rms=None if reference is None else float((latent - reference).double().square().mean().sqrt()) / SIGMA_MAX,
    )


def report(
    denoise_fn: DenoiseFn,
    image: Tensor,
    *,
    points: Sequence[int] = (6, 12, 18, 40, 80),
    solvers_: Sequence[Solver] = ("heun", "ddim"),
    clamp: bool = True,
    reference_points: int | None = None,
) -> list[RoundTrip]:
    """`round_trip` for every solver and number of points, in that order; with `reference_points`, latents are compared to
    those of Heun on that many."""
    reference = None
    if reference_points is not None:
        with torch.inference_mode():
            reference = solvers.invert(denoise_fn, image, karras_grid(reference_points), "heun", clamp)
    return [
        round_trip(denoise_fn, image, solver=s, points=n, clamp=clamp, reference=reference) for s in solvers_ for n in points
    ]


def table(rows: Sequence[RoundTrip]) -> str:
    """The report as aligned text, one line a row."""
    lines = [f"{'solver':<8}{'points':>7}{'NFE':>6}{'rms':>12}{'worst':>12}{'PSNR dB':>10}{'latent std/80':>15}{'off by':>12}"]
    lines += [
        f"{r.solver:<8}{r.points:>7}{r.evaluations:>6}{r.rms:>12.3e}{r.worst:>12.3e}{r.psnr:>10.2f}{r.latent_std:>15.4f}"
        + (f"{'-':>12}" if r.latent_rms is None else f"{r.latent_rms:>12.3e}")
        for r in rows
    ]
    return "\n".join(lines)


def measured(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor],
    images: NDArray[np.uint8],
    labels: Sequence[int],
    device: str,
    points: Sequence[int],
    solvers_: Sequence[str],
    clamp: bool,
    reference_points: int | None,
) -> list[RoundTrip]:
    """The report of a network on uint8 images (N, R, R, 3); `denoise(x, sigma, labels)`."""
    y = torch.from_numpy(np.array(labels, np.int64)).to(device)
    x = to_network(images).to(device)
    chosen: list[Solver] = ["heun" if name == "heun" else "ddim" for name in solvers_]
    return report(
        lambda state, sigma: denoise(state, sigma, y),
        x,
        points=points,
        solvers_=chosen,
        clamp=clamp,
        reference_points=reference_points,
    )
