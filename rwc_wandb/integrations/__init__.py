"""Callbacks for trainers that own the loop: `transformers.RWCCallback` and `lightning.RWCCallback`."""
