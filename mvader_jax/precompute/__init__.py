"""Latents and image features computed once, before training."""
