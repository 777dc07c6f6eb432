"""The synthetic world: drawn, described, asked about and read back by analysis."""
