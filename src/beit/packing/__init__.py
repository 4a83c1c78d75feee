"""Images of any source packed into shards: `beit pack`."""
