"""What trains: model, optimizer and data, prepared by Accelerate."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, parse_flag_from_env, set_seed
from torch import nn
from torch.utils.data import DataLoader

import rwc_wandb
from rwc_wandb.errors import UserError
from rwc_wandb.study.data.batches import Batches
from rwc_wandb.study.data.sets import Images, check_data_set, count_classes, load_data
from rwc_wandb.study.models import build_trainable, check_model, smallest_image
from rwc_wandb.study.train.config import TrainConfig


@dataclass
class Learner:
    """What trains: everything that an epoch needs.

    Attributes:
        model: what takes the training batches: compiled, spread over processes.
        module: the network in it, as it was built.
    """

    accelerator: Accelerator
    config: TrainConfig
    model: nn.Module
    module: nn.Module
    optimizer: torch.optim.Optimizer
    loader: DataLoader[int]
    train: Batches
    test: Batches


SHARDED = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism config",
}
"""What `accelerate launch` sets -> what the launcher's configuration asks for and this trainer cannot do."""

LEAST_CHANNELS_LAST = 16
"""The image side from which channels_last is faster on a CPU too; bench/README.md has the times."""


def build(config: TrainConfig) -> Learner:
    """Data, model and optimizer, prepared by Accelerate for the processes that there are."""
    check_data_set(config.dataset)
    check_model(config.model)
    accelerator = accelerator_for(config)
    with accelerator.main_process_first():
        images, test_images = load_images(config)
    return assemble(config, accelerator, images, test_images)


def load_images(config: TrainConfig) -> tuple[Images, Images]:
    """Training and test images, of the size that is asked for or that the model needs."""
    side = config.image_size or max(check_data_set(config.dataset).side, smallest_image(config.model))
    return load_data(config.dataset, Path(config.data_dir), side, config.limit_train, config.limit_test)


def accelerator_for(config: TrainConfig, on_cpu: bool = False) -> Accelerator:
    """Of the device that Accelerate finds, or of the CPU.

    Raises:
        UserError: the launcher asks for sharded weights, of which the main process alone cannot make a checkpoint; or
            the batch cannot be shared among the processes that there are.
    """
    for variable, name in SHARDED.items():
        # Before `Accelerator` exists: it would ask for packages, or start to shard.
        if parse_flag_from_env(variable):
            raise UserError(
                f"accelerate is configured for {name}, which rwc-wandb train does not support: every process keeps the "
                "whole model; start it by `accelerate launch --multi_gpu` or `accelerate launch --cpu`, which ignore "
                "that configuration, or as `rwc-wandb train`."
            )
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision="bf16" if config.precision == "bf16" else "no",
        # Table 1's batch size holds for all processes together, however many there are.
        dataloader_config=DataLoaderConfiguration(
            split_batches=True, use_seedable_sampler=True, data_seed=config.seed * 1_000_003
        ),
    )
    if config.batch_size % accelerator.num_processes:
        raise UserError(
            f"--batch-size {config.batch_size}: it takes a multiple of the {accelerator.num_processes} processes."
        )
    return accelerator


def assemble(config: TrainConfig, accelerator: Accelerator, images: Images, test_images: Images) -> Learner:
    """A learner of these images, which are varied and normalised as those of the data set that is configured."""
    set_seed(config.seed)
    data_set, device, side = check_data_set(config.dataset), accelerator.device, images.images.shape[-1]
    classes = count_classes(config.dataset, images, test_images)
    smallest = max(1, min(2, config.batch_size // accelerator.num_processes, len(images) // accelerator.num_processes))
    model = build_trainable(config.model, images.images.shape[1], classes, side, smallest)
    try:
        rwc_wandb.find_layers(model, config.layers)
    except ValueError as error:
        names = [layer.name for layer in rwc_wandb.find_layers(model, "all")]
        raise UserError(
            f"--layers {shlex.quote(config.layers)}: it matches no layer of {config.model}, such as {names[0]} or "
            f'{names[-1]}; it takes "weights", "all" or a regular expression.'
        ) from error
    layout = torch.contiguous_format
    if device.type == "cuda" or side >= LEAST_CHANNELS_LAST:
        layout = torch.channels_last
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    module = model.to(memory_format=layout)
    # A last batch of one image per process has no variance: batch norm cannot train on it.
    lone = len(images) % config.batch_size < 2 * accelerator.num_processes and len(images) > config.batch_size
    indices: Any = range(len(images))
    # `Batches` copies them to the GPU: from pinned memory, without a wait.
    loader: DataLoader[int] = DataLoader(
        indices, config.batch_size, shuffle=True, drop_last=lone, pin_memory=device.type == "cuda"
    )
    if config.compile and device.type == "cuda":
        # CUDA graphs: for small images the host takes longer to launch a step's kernels than the GPU to run them. So it
        # launches two graphs, forward and backward. A graph has one shape: an epoch's last, smaller batch has its own.
        model = torch.compile(module, mode="reduce-overhead", dynamic=False)  # type: ignore[assignment]
    elif config.compile:
        model = torch.compile(module)  # type: ignore[assignment]
    model, loader = accelerator.prepare(model, loader, device_placement=[True, False])
    # Accelerate's wrapper of an optimizer has nothing to do here (no scaler, no accumulation), and at every step spends
    # 0.3 ms on looking for a package and for the arguments of `zero_grad`.
    optimizer = torch.optim.SGD(
        model.parameters(),
        lr=config.learning_rate,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        fused=True,
    )
    return Learner(
        accelerator,
        config,
        model,
        module,
        optimizer,
        loader,
        Batches(images, data_set, device, config.seed, layout),
        Batches(test_images, data_set, device, None, layout),
    )
