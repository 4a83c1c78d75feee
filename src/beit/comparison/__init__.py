"""Compare runs: reports of several runs, and ablation plans with their tables."""
