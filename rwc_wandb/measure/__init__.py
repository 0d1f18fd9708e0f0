"""Weights in, numbers out. This room imports torch only: never wandb, timm or accelerate."""
