"""Rewrites of the graph, and what they need: one pass a file."""
