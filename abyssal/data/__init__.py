"""From text on disk to batches: documents, shards, conversations, and how they are packed."""
