"""The embedders, a file and one object each; `models/embed.py` registers them."""
