"""Networks, loading them, training and evaluating them."""
