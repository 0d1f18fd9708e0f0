"""What an epoch adds up batch by batch, on the device: sum of losses, correct answers, images.

A tensor float64 [3]; on a device without float64 (Apple's mps), float32 [2, 3]: the sums, and what rounding took from
them (Knuth's two-sum), which together are as exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rwc_wandb.measure.kernels.single_precision import has_float64


def new_totals(device: torch.device, start: Tensor | None = None) -> Tensor:
    """Totals on `device` that begin at 0, or at `start` (float64 [3])."""
    start = torch.zeros(3, dtype=torch.float64) if start is None else start
    if has_float64(device):
        return start.to(device)
    sums = start.float()
    return torch.stack([sums, (start - sums).float()]).to(device)


def add_batch(totals: Tensor, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
    """Add a batch, whose mean loss is `loss`; nothing waits for the device."""
    correct = (logits.argmax(1) == labels).sum()
    if totals.dtype == torch.float64:
        totals[0].add_(loss, alpha=len(labels))
        totals[1].add_(correct)
        totals[2].add_(len(labels))
        return
    loss = loss.float()
    batch = torch.stack([loss * len(labels), correct.float(), torch.full_like(loss, len(labels))])
    sums, lost = totals
    total = sums + batch
    added = total - sums
    lost += (sums - (total - added)) + (batch - added)
    sums.copy_(total)


def on_host(totals: Tensor) -> Tensor:
    """Totals, or several processes' [N, ...], as float64 [3] or [N, 3] on the host. Waits for the device."""
    host = totals.cpu()
    return host if host.dtype == torch.float64 else host.double().sum(-2)
