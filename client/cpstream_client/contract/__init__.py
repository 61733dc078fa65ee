"""What service and client agree on."""
