"""A bundle, prompts and a seed become pictures."""
