"""What is learned from: collections, token shards, negatives, batches."""
