"""Channel groups, pruning plans and surgery."""
