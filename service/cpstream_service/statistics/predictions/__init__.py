"""Predictions that came back: read apart, joined to their samples, judged, and kept."""
