"""Scores of pictures in the units that papers report: FID, KID, CMMD, CLIP scores."""
