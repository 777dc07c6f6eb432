"""Public PyTorch weights in, public PyTorch weights out."""
