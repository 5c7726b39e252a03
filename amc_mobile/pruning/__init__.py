"""Which channels to keep, and weights that make up for those that went."""
