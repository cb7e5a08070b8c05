"""For loops of others: what learns in a step of a patched model, and losses for its embeddings."""
