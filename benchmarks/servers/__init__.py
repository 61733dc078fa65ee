"""Servers of the other sides, each run as a process of its own. Each says its address on the first line of stdout."""
