"""Latent diffusion (Rombach et al. 2022, arXiv 2112.10752): an autoencoder, and a diffusion model of its latents."""
