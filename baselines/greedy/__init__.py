"""Greedy growing of a pixel diffusion model around a frozen core (Vasconcelos et al. 2024, arXiv 2405.16759)."""
