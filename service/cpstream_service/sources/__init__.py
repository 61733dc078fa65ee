"""Where embeddings and CPS values come from: one module per source."""
