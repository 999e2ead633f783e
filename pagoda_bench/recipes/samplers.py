"""The ways to sample a diffusion model in EDM's variables, as generators: order, noise, grid."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from pagoda_bench.recipes.base import Config
from pagoda_bench.recipes.stages import EDM, Generator


class SamplerConfig(Config):
    """heun: two evaluations a step; euler: one, on the same grid; ddim: one, on DDPM's timesteps. `churn` (S_churn) makes
    heun and euler stochastic (Karras et al. 2022, Algorithm 2), `eta` does so for ddim (Song et al. 2021, Eq. 16)."""

    solver: Literal["heun", "euler", "ddim"] = "heun"
    points: int = Field(18, ge=2)
    sigma_min: float = Field(0.002, gt=0)
    sigma_max: float = Field(80.0, gt=0)  # also of the first noise; ddim takes the timesteps below it
    rho: float = Field(7.0, gt=0)
    churn: float = Field(0.0, ge=0)
    churn_min: float = 0.05  # the published values for ImageNet at 64 px: 40, 0.05, 50, 1.003 (Table 5 of the paper)
    churn_max: float = 50.0
    churn_noise: float = 1.003
    eta: float = Field(0.0, ge=0, le=1)
    clamp: bool = True  # denoised images to [-1, 1]; EDM's own sampler does not

    @model_validator(mode="after")
    def _fitting(self) -> SamplerConfig:
        if self.sigma_min >= self.sigma_max:
            raise ValueError(f"sigma_min {self.sigma_min:g} must be below sigma_max {self.sigma_max:g}")
        if self.churn and self.solver == "ddim":
            raise ValueError("solver 'ddim' adds noise by eta, not by churn")
        if self.eta and self.solver != "ddim":
            raise ValueError(f"solver '{self.solver}' adds noise by churn, not by eta")
        return self


class Sampled(Generator, kind="sampled"):
    """Samples of a diffusion model by any of the samplers. `heun` without options is the generator of kind "heun"."""

    loader: ClassVar[str] = "pagoda_bench.sampling.diffusion:sampled"
    of: EDM
    sampler: SamplerConfig = SamplerConfig()

    @property
    def resolution(self) -> int:
        return self.of.net.output_resolution
