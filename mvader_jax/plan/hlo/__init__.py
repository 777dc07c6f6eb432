"""Compiled programs read as text."""
