"""Published weights that run through diffusers' classes: DiT, Stable Diffusion, latent consistency, DeepFloyd IF."""
