"""Images from disk to the device: sources, decoding, views, the sample order, batches, prefetch."""
