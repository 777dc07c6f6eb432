"""Low-rank changes of a model's weights (LoRA, Hu et al. 2021), beside the networks, which know nothing of them."""
