"""What lies on disk: bundles, checkpoints, traced programs."""
