"""A run: directory, configuration, checkpoints, log, journal, device, optimiser, progress."""
