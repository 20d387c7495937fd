"""Measure what happens to the masks of promptable segmenters when their prompts get worse."""

__version__ = "0.1.0"
