"""Layers that are spread over ranks, and what the ranks do together."""
