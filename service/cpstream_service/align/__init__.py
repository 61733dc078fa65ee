"""Which embedding belongs to which rate."""
