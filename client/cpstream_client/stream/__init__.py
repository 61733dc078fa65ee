"""A query as verified record batches."""
