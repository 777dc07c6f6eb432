"""Prompts of two coloured objects, as words, as pictures or mixed: does a picture of them hold both?"""
