"""Graphs of older versions of transformers, and what wrote them."""
