"""Floor 2: one command a file, each with a Config, a run(config) and its visible loop."""
