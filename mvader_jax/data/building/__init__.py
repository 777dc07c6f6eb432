"""Data sets made of people's pictures and captions."""
