"""The kinds of public checkpoints, a file each."""
