"""Measured speed and memory, each beside what a careful researcher would write."""
