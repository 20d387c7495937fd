"""Encode once, prompt many times, score: the evaluation of segmenters under a protocol."""
