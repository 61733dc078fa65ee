"""The aligned arrays on disk."""
