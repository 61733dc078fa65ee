"""The resources: one module a kind."""
