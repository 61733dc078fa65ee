"""From a query to the bytes of its reply."""
