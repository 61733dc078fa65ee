"""Requests in, replies out."""
