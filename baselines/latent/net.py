"""The autoencoder of latent diffusion (Rombach et al. 2022; Esser et al. 2021), under the key names of diffusers'
`AutoencoderKL` and `VQModel`, so that weights of that layout load as they are."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.latent.recipes import AutoencoderConfig

EPS = 1e-6


class Coded(NamedTuple):
    """What the encoder gives: the latents (B, C, h, w) that go on, and what regularises them, one value an image (B,)."""

    latents: Tensor
    penalty: Tensor


class Autoencoder(nn.Module):
    """Images (B, 3, R, R) in [-1, 1] to latents (B, latent, R / factor, R / factor) and back.

    `shift` and `scale` (latent,) bring latents to zero mean and the deviation that a diffusion model wants; they are measured
    after the training.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config, latent = config, config.latent
        out = latent if config.codes else 2 * latent
        self.encoder = Encoder(config, out)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(out, out, 1)
        self.post_quant_conv = nn.Conv2d(latent, latent, 1)
        if config.codes:
            self.quantize = Codebook(config.codes, latent)
        self.register_buffer("shift", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))

    def encode(self, image: Tensor, normal: Tensor | None = None, commitment: float = 0.25) -> Coded:
        """Latents and their penalty. KL: the posterior's mean, plus its deviation times `normal` where that is given, and
        KL(q || N(0, I)), a mean over latent values. VQ: the nearest codes (gradients go straight through) and the two terms."""
        h = self.quant_conv(self.encoder(image))
        if self.config.codes:
            found: Coded = self.quantize(h, commitment)
            return found
        mean, log_variance = h.chunk(2, 1)
        log_variance = log_variance.clamp(-30, 20)
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).mean(1)
        return Coded(mean if normal is None else mean + (0.5 * log_variance).exp() * normal, kl)

    def latents_of(self, image: Tensor, normal: Tensor | None = None) -> Tensor:
        """What the diffusion model learns: as `encode`, but before the codebook, which is consulted when an image is made."""
        if self.config.codes:
            h: Tensor = self.quant_conv(self.encoder(image))
            return h
        return self.encode(image, normal).latents

    def decode(self, latents: Tensor) -> Tensor:
        image: Tensor = self.decoder(self.post_quant_conv(latents))
        return image

    def normalised(self, latents: Tensor) -> Tensor:
        """Latents as the diffusion model sees them."""
        return (latents - self.shift.view(1, -1, 1, 1)) * self.scale.view(1, -1, 1, 1)

    def image_of(self, normalised: Tensor) -> Tensor:
        """The image of what the diffusion model gives; with a codebook, of the nearest codes, as published."""
        latents = normalised / self.scale.view(1, -1, 1, 1) + self.shift.view(1, -1, 1, 1)
        if self.config.codes:
            latents = self.quantize(latents, 0.0).latents
        return self.decode(latents)


class Codebook(nn.Module):
    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        nn.init.uniform_(self.embedding.weight, -1 / codes, 1 / codes)

    def forward(self, h: Tensor, commitment: float) -> Coded:
        """|sg(e) - h|^2 beta + |e - sg(h)|^2 (van den Oord et al. 2017, Eq. 3), means over latent values, per image."""
        flat = h.permute(0, 2, 3, 1)
        nearest = torch.cdist(flat.reshape(1, -1, flat.shape[-1]), self.embedding.weight[None])[0].argmin(1)
        code = self.embedding(nearest).view(flat.shape).permute(0, 3, 1, 2)
        towards = (code - h.detach()).square().flatten(1).mean(1)
        penalty = towards + commitment * (code.detach() - h).square().flatten(1).mean(1)
        return Coded(h + (code - h).detach(), penalty)


class Residual(nn.Module):
    def __init__(self, width: int, to: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, width, EPS), nn.Conv2d(width, to, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(groups, to, EPS), nn.Conv2d(to, to, 3, padding=1)
        if width != to:
            self.conv_shortcut = nn.Conv2d(width, to, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        out: Tensor = (self.conv_shortcut(x) if hasattr(self, "conv_shortcut") else x) + h
        return out


class Attention(nn.Module):
    """Self-attention over all pixels, one head."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q, self.to_k, self.to_v = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)
        h = self.to_out[0](F.scaled_dot_product_attention(self.to_q(h), self.to_k(h), self.to_v(h)))
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class Middle(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Residual(width, width, groups) for _ in range(2)])
        self.attentions = nn.ModuleList([Attention(width, groups)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[1](self.attentions[0](self.resnets[0](x)))
        return x


class Resample(nn.Module):
    """A convolution that halves (the image padded at the right and below), or one behind a doubling by repetition."""

    def __init__(self, width: int, up: bool) -> None:
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(width, width, 3, 1 if up else 2, 1 if up else 0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1))
        out: Tensor = self.conv(x)
        return out


class Level(nn.Module):
    """Residual blocks, perhaps with attention behind each, then perhaps a change of size, under the names that diffusers gives
    them."""

    def __init__(self, width: int, to: int, layers: int, groups: int, resample: str, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([Residual(width if i == 0 else to, to, groups) for i in range(layers)])
        if attention:
            self.attentions = nn.ModuleList([Attention(to, groups) for _ in range(layers)])
        if resample == "down":
            self.downsamplers = nn.ModuleList([Resample(to, up=False)])
        elif resample == "up":
            self.upsamplers = nn.ModuleList([Resample(to, up=True)])

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.resnets):
            x = block(x)
            if hasattr(self, "attentions"):
                x = self.attentions[i](x)
        for name in ("downsamplers", "upsamplers"):
            for resample in getattr(self, name, ()):
                x = resample(x)
        return x


class Encoder(nn.Module):
    def __init__(self, config: AutoencoderConfig, out: int) -> None:
        super().__init__()
        widths, groups, last = config.widths, config.groups, len(config.widths) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for i, w in enumerate(widths):
            resample = "down" if i < last else ""
            self.down_blocks.append(Level(widths[max(0, i - 1)], w, config.layers, groups, resample, i in config.attention))
        self.mid_block = Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down_blocks:
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(self.mid_block(h))))
        return out


class Decoder(nn.Module):
    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths, groups, last = config.widths[::-1], config.groups, len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.latent, widths[0], 3, padding=1)
        self.mid_block = Middle(widths[0], groups)
        self.up_blocks = nn.ModuleList()
        for i, w in enumerate(widths):
            resample, attends = "up" if i < last else "", last - i in config.attention
            self.up_blocks.append(Level(widths[max(0, i - 1)], w, config.layers + 1, groups, resample, attends))
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            h = level(h)
        out: Tensor = self.conv_out(F.silu(self.conv_norm_out(h)))
        return out
