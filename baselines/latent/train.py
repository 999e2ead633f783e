"""The two trainings: autoencoder with its discriminator, then diffusion of its latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from baselines.batches import images_of_step, mine, stratified_sigma
from baselines.latent.net import Autoencoder as Net
from baselines.latent.recipes import Autoencoder, LatentDiffusion
from baselines.training import descend, fit, together
from pagoda_bench.data import Dataset, open_dataset
from pagoda_bench.diffusion.edm import SIGMA_DATA, training_loss
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.discriminator import ProjectedDiscriminator, hinge_discriminator
from pagoda_bench.nets.features import load_features, save_half, to_network
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.pagoda.losses import adaptive_weight, feature_distance
from pagoda_bench.training import parallel
from pagoda_bench.training.alarm import PINS
from pagoda_bench.training.loop import EMA, Task
from pagoda_bench.training.updates import optimizer

WEIGHTS = "model.safetensors"
MEASURED = 512  # images from which the latents' mean and deviation are taken
EPS = 0.1  # in the normalisation of the embedded network's maps, as PaGoDA's embedded presets have it


@together
def autoencoder(recipe: Autoencoder, ctx: Any) -> None:
    """Payload: `model.safetensors`, averaged weights as float16, with the latents' `shift` and `scale`."""
    torch.manual_seed(recipe.seed)
    device, config, loss = compute_device(), recipe.train, recipe.loss
    data, features = open_dataset(recipe.data, ctx.data_path), load_features(recipe.features, ctx).to(device)
    net = Net(recipe.net).to(device).train()
    judge = parallel.synced(ProjectedDiscriminator(features.channels, len(data.classes), seed=recipe.seed)).to(device)
    theirs = [p for p in judge.parameters() if p.requires_grad]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "autoencoder": optimizer(list(net.parameters()), config),
        "discriminator": optimizer(theirs, config, loss.lr_discriminator, betas=(0.5, 0.99)),
    }
    ema = EMA(net, config.ema)
    side = recipe.resolution // recipe.net.factor
    weight = 1.0 if recipe.net.codes else loss.kl
    moved = True

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        nonlocal moved
        (image,), labels = images_of_step(data, [recipe.resolution], config.batch, index, recipe.seed)
        (noise,) = mine(torch.randn(config.batch, recipe.net.latent, side, side))
        image, labels, noise = (t.to(device) for t in (image, labels, noise))
        coded = net.encode(image, noise, loss.commitment)
        rebuilt = net.decode(coded.latents)
        with torch.no_grad():
            target = features.maps(image)
        made = features.maps(rebuilt)
        rec = (rebuilt - image).abs().mean() + loss.perceptual * feature_distance(made, target, EPS).mean()
        total = rec + weight * coded.penalty.mean()
        shown = {"rec": float(rec.detach()), "penalty": float(coded.penalty.detach().mean())}
        playing = loss.adversarial > 0 and index >= loss.adversarial_from
        if playing:
            adversarial = -judge(made, labels).mean()
            at = net.decoder.conv_out.weight
            norms = [parallel.mean(torch.autograd.grad(part, at, retain_graph=True)[0]) for part in (rec, adversarial)]
            total = total + loss.adversarial * float(adaptive_weight(norms[0], norms[1])) * adversarial
            shown["adv"] = float(adversarial.detach())
        found = shown | descend(optimizers["autoencoder"], total, config)
        moved = "norm" not in found
        if playing and moved:
            hinge = hinge_discriminator(judge(target, labels), judge([m.detach() for m in made], labels))
            theirs_found = descend(optimizers["discriminator"], hinge, config)
            found |= {"d" if name == "loss" else "norm_d": value for name, value in theirs_found.items()}
        return found

    task = Task(step, {"autoencoder": net, "discriminator": judge}, optimizers, {"autoencoder": ema})
    task.moved, task.watched = lambda: moved, {"d": PINS["hinge"]}
    fit(recipe, task, ctx, dearer_from=loss.adversarial_from if loss.adversarial else 0)
    net.load_state_dict(ema.state(net))
    measure(net.eval(), data, recipe.resolution)
    save_half(net.state_dict(), ctx.out / WEIGHTS)
    ctx.record(parameters=sum(p.numel() for p in net.parameters()), device=str(device))


@torch.no_grad()
def measure(net: Net, data: Dataset, resolution: int) -> None:
    """Sets `shift` and `scale` from the first training images: mean 0 and EDM's deviation in each channel."""
    size = data.size("train")
    numbers = np.arange(MEASURED if size is None else min(MEASURED, size), dtype=np.int64)
    device = net.shift.device
    found = [
        net.latents_of(to_network(data.images(part, resolution, "train")).to(device)) for part in np.array_split(numbers, 16)
    ]
    latents = torch.cat([part.transpose(0, 1).flatten(1) for part in found], 1)
    net.shift.copy_(latents.mean(1))
    net.scale.copy_(SIGMA_DATA / latents.std(1).clamp(min=1e-4))


@together
def diffusion(recipe: LatentDiffusion, ctx: Any) -> None:
    """Payload: `model.safetensors` of the diffusion network."""
    torch.manual_seed(recipe.seed)
    data = open_dataset(recipe.data, ctx.data_path)
    device = compute_device()
    coder = load_coder(recipe.autoencoder, ctx).to(device)
    net = UNet(recipe.unet).to(device).train()
    adam = optimizer(list(net.parameters()), recipe.train)
    ema, size = EMA(net, recipe.train.ema), recipe.autoencoder.resolution
    batch, side = recipe.train.batch, recipe.net.resolution

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        (image,), labels = images_of_step(data, [size], batch, index, recipe.seed)
        coding = torch.randn(batch, 3, side, side)
        sigma = stratified_sigma(batch, recipe.p_mean, recipe.p_std, shuffled=True)
        left_out = torch.rand(batch) < recipe.drop if recipe.drop else torch.zeros(batch, dtype=torch.bool)
        drawn = mine(coding, sigma, left_out, torch.randn(batch, 3, side, side))
        image, labels, coding, sigma, left_out, noise = (t.to(device) for t in (image, labels, *drawn))
        with torch.no_grad():
            z = coder.normalised(coder.latents_of(image, coding))
        loss = training_loss(net, z, torch.where(left_out, recipe.net.classes, labels), noise, sigma).mean()
        return descend(adam, loss, recipe.train)

    fit(recipe, Task(step, {"net": net}, {"adam": adam}, {"net": ema}), ctx)
    save_half(ema.state(net), ctx.out / WEIGHTS)
    ctx.record(parameters=sum(p.numel() for p in net.parameters()), device=str(device))


def load_coder(recipe: Autoencoder, ctx: Any) -> Net:
    """The averaged autoencoder of an artifact, whole or not at all, in evaluation mode."""
    net = Net(recipe.net)
    folder: Path = ctx.input(recipe)
    load_file_whole(net, folder / WEIGHTS)
    return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
