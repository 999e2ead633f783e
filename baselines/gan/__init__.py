"""A style-based GAN that is grown with everything below frozen (StyleGAN-XL's family)."""
