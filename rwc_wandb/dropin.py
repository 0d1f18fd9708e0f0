"""The one line: `rwc_wandb.watch(model, optimizer)`."""

from __future__ import annotations

import atexit
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import torch

from rwc_wandb.measure.choice import LayerChoice
from rwc_wandb.measure.distributed.ranks import current_rank, join_ranks, world_size
from rwc_wandb.measure.layers import Layer, Models, as_module, find_layers
from rwc_wandb.measure.monitor import Monitor
from rwc_wandb.measure.sampled_layers import SampleChoice, advise, with_samples
from rwc_wandb.measure.steps.optimizers import torch_optimizers
from rwc_wandb.options import check_options, refused

if TYPE_CHECKING:
    from wandb import Run


def watch(
    model: Models,
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
    *,
    every: int = 1,
    log_every: int = 50,
    histogram_every: int | None = 1000,
    layers: LayerChoice = "weights",
    stages: Callable[[str], str] | None = None,
    run: Run | Literal[False] | None = None,
    prefix: str = "rwc",
    rows: Literal["attached", "own"] = "attached",
    alert_above: float | None = None,
    alert_below: float | None = None,
    share: bool = False,
    sample: SampleChoice = None,
) -> Monitor:
    """Measure the Relative Weight Change of every layer as `optimizer` steps, and log it to W&B.

        RWC = ||w_t - w_{t-1}||_1 / ||w_{t-1}||_1        (eq. 1 of arXiv 2011.06735)

    Call it once, after model, optimizer and W&B run are built; the training loop stays as it is. On the weights' device
    it keeps one more copy of what is measured, its snapshots (4 GB for 10^9 float32 weights: under DDP on rank 0, with
    `share` 1/N on each of N ranks, where weights are sharded each rank's shard), and so does `state_dict`.

    Args:
        model: the module whose layers are measured; wrapped (DDP, FSDP, `torch.compile`) or not. Several, which one
            optimizer steps (a GAN), as a list or dict: their names start with the key.
        optimizer: its optimizer; several for one model: a step is complete when all have stepped, or when one begins to
            step again. Wrappers of Accelerate and Lightning are seen through. None: call `monitor.measure()` yourself,
            at the end of an epoch, say.
        every: optimizer steps between measurements. With n > 1 a measurement compares with the weights n steps before.
        log_every: measurements per row; a row holds their mean.
        histogram_every: optimizer steps between histograms of weights and updates, of 64 bins; None: no histograms.
            Bins reach from the least to the largest value; where weights are sharded or measuring is shared they are a
            power of two wide and begin at multiples of it, so that ranks' counts add up: more than half are used.
        layers: "weights" (parameters with more than one dimension, the paper's choice) or "all", of those in the
            optimizer's groups, and in groups added later; or, of all in the model, a regular expression searched for in
            layer names, or a callable of (name, parameter). Layers that do not move count in no mean.
        stages: a function from a layer's name to its stage; default: blocks where the module tree shows them,
            else thirds by depth.
        run: the W&B run, or Accelerate's tracker of it; None: the active run; False: no W&B at all, only
            `monitor.history`.
        prefix: what keys start with.
        rows: "attached": our values join the row that you commit next, your step counter never moves.
            "own": rows of our own, each of which moves it on: do not log with `step=` yourself then.
        alert_above, alert_below: send a W&B alert, once per run, when the mean RWC of a layer over a row rises above
            (0.5 is much, per step) or falls below (1e-7 is what fp32 still resolves); None: no alert. Weights that are
            not finite always send one.
        share: under DDP, divide the measuring among the ranks: each holds and compares 1/N of the weights, and their
            sums are added up once per row. Every rank must then call `watch`.
        sample: of each layer with more weights than that (65_536, say), draw at most so many at random, anew for every
            row, and keep and compare only these: for models whose snapshots would take too much memory. RWC is then an
            estimate, `history.rwc_error` its standard error, of 65_536 weights about 0.4 % of it under AdamW;
            histograms are of those drawn, and weights that are not finite are noticed among them only. A dict gives a
            number, or None for all, to the layers in whose names a regular expression is found, the first that is:
            `{"embed": None, "": 65_536}`. Any number of ranks draw the same weights where they hold whole layers or
            shards of rows (DDP, FSDP); with shards of other dimensions (tensor parallel) the draw depends on their
            number. Where weights are sharded each rank draws its part. On a CPU a float32 layer takes longer than the
            whole of it where it has less than 8 times as many weights.

    Returns:
        The monitor: `history` has the full series. It closes itself when the run finishes; it is a context manager too.
        Under DDP rank 0 measures and the other ranks' monitors do nothing: whether they call `watch` does not matter.
        Where weights are sharded (FSDP, tensor parallel) every rank measures its shards and must call `watch` and
        `close`. Only rank 0 logs.

    Raises:
        ValueError, TypeError: an argument that cannot be used; the message names what is allowed.
        UserError: weights that cannot be measured (DeepSpeed ZeRO-3, DTensors with `Partial` placements); an optimizer
            of DeepSpeed, which tells of no step (ZeRO-1, ZeRO-2: `watch(model)`, and `monitor.measure()` after each);
            or a rank that did not come within 60 s where all are needed.
        wandb.Error: no run is active and none was given.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with watch(model, optimizer, run=False) as monitor:  # without W&B; within a run leave `run` out
        ...     for _ in range(3):
        ...         model(torch.ones(1, 4)).square().sum().backward()
        ...         optimizer.step()
        >>> monitor.history.layers, monitor.history.steps
        (['0', '2'], array([1, 2, 3]))
    """
    check_options(
        every=every, log_every=log_every, histogram_every=histogram_every, stages=stages, prefix=prefix,
        rows=rows, alert_above=alert_above, alert_below=alert_below, share=share,
        sample=sample,
    )  # fmt: skip
    optimizers = torch_optimizers(optimizer)
    module = as_module(model)

    def find(optimizers: Sequence[torch.optim.Optimizer]) -> list[Layer]:
        return with_samples(find_layers(module, layers, stages, optimizers), sample)

    tracked = find(optimizers)
    is_joint = world_size() > 1 and (share or any(layer.spread.is_sharded for layer in tracked))
    ranks = join_ranks(tracked, share, every, log_every, histogram_every) if is_joint else None
    if current_rank() == 0 or is_joint:
        advise(tracked)
    rows_of_run = None
    if run is not False and current_rank() == 0:
        from rwc_wandb.log.rows import RunRows

        rows_of_run = RunRows(_active_run(run), tracked, prefix, rows, alert_above, alert_below)
    monitor = Monitor(
        module,
        tracked,
        optimizers,
        every=every,
        log_every=log_every,
        histogram_every=histogram_every,
        delivery=rows_of_run,
        idle=current_rank() != 0 and not is_joint,
        ranks=ranks,
        share=share and ranks is not None,
        find_again=find,
    )
    if rows_of_run is not None:
        rows_of_run.close_with_run(monitor)
    elif ranks is not None:
        # Rank 0 closes at the latest when its run ends, and needs the others' part of the last row.
        atexit.register(monitor.close)
    return monitor


def _active_run(run: Run | None) -> Run:
    import wandb

    active = run if run is not None else wandb.run
    if run is not None and not hasattr(active, "define_metric"):
        active = getattr(active, "tracker", None)  # Accelerate's holds the run
        if active is None:
            allowed = "a W&B run, Accelerate's tracker of one, None (the active run) or False (no W&B)"
            raise refused("run", run, allowed)
    if active is None:
        raise wandb.Error("watch found no active W&B run: call wandb.init() first, or pass run=... (False: no W&B).")
    return active
