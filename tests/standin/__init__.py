"""A stand-in for W&B on loopback: an HTTP server that answers the unmodified client."""

from standin.server import StandIn

__all__ = ["StandIn"]
