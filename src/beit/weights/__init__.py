"""Files of weights: ours, published ones, those of other libraries, and teachers."""
