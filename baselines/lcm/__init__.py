"""Latent consistency models: a guided latent diffusion model distilled to one to eight evaluations (arXiv 2310.04378)."""
