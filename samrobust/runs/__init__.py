"""Stored runs: what they are, how they are written by several processes, and read."""
