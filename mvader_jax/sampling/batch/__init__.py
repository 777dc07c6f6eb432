"""Batch sampling: a file of prompts becomes a directory of pictures that can be stopped and resumed."""
