"""Evidence: one command for each claim of the README, each recomputing its numbers."""
