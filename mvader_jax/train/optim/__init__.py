"""The optimizer of a stage."""
