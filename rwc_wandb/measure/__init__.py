"""Weights in, numbers out. This room imports torch, numpy and safetensors: never wandb, timm or accelerate."""
