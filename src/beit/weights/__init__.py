"""What lies on disk: run directories, checkpoints, weights, foreign formats, teachers."""
