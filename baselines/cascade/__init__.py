"""Cascaded diffusion: a base model, and super-resolution diffusion models on what it makes."""
