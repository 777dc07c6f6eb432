"""M-VADER in JAX: image diffusion conditioned on any sequence of texts and images."""
