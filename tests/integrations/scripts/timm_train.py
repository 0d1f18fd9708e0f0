"""In the manner of timm's train.py: its factories, Lookahead, an EMA of the weights, its scheduler, W&B if asked."""

import argparse
import os

import torch
from timm.data import Mixup
from timm.loss import SoftTargetCrossEntropy
from timm.models import create_model
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import AverageMeter, ModelEmaV3, dispatch_clip_grad, random_seed

try:
    import wandb

    has_wandb = True
except ImportError:
    has_wandb = False

parser = argparse.ArgumentParser(description="PyTorch ImageNet Training")
parser.add_argument("--model", default="test_vit")
parser.add_argument("--opt", default="lookahead_adamw")
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--epochs", type=int, default=2)
parser.add_argument("--clip-grad", type=float, default=1.0)
parser.add_argument("--output", default="output")
parser.add_argument("--log-wandb", action="store_true")


def main():
    args = parser.parse_args()
    random_seed(42, 0)
    model = create_model(args.model, img_size=32, num_classes=10)
    optimizer = create_optimizer_v2(model, opt=args.opt, lr=args.lr, weight_decay=0.05)
    model_ema = ModelEmaV3(model, decay=0.99)
    mixup_fn = Mixup(mixup_alpha=0.2, num_classes=10)
    scheduler, num_epochs = create_scheduler_v2(optimizer, sched="cosine", num_epochs=args.epochs, updates_per_epoch=5)
    if args.log_wandb and has_wandb:
        wandb.init(project="timm", config=vars(args))
    os.makedirs(args.output, exist_ok=True)
    torch.save(model.state_dict(), os.path.join(args.output, "0.pt"))
    updates = 0
    for epoch in range(num_epochs):
        updates, losses = train_one_epoch(epoch, model, optimizer, model_ema, mixup_fn, scheduler, updates, args)
        scheduler.step(epoch + 1)
        if args.log_wandb and has_wandb:
            wandb.log({"epoch": epoch, "train_loss": losses.avg})


def train_one_epoch(epoch, model, optimizer, model_ema, mixup_fn, scheduler, updates, args):
    model.train()
    losses = AverageMeter()
    loss_fn = SoftTargetCrossEntropy()
    optimizer.zero_grad()
    for _ in range(5):
        images, target = mixup_fn(torch.randn(4, 3, 32, 32), torch.randint(0, 10, (4,)))
        loss = loss_fn(model(images), target)
        loss.backward()
        dispatch_clip_grad(model.parameters(), args.clip_grad, mode="norm")
        optimizer.step()
        updates += 1
        torch.save(model.state_dict(), os.path.join(args.output, f"{updates}.pt"))
        model_ema.update(model, step=updates)
        optimizer.zero_grad()
        scheduler.step_update(num_updates=updates)
        losses.update(loss.item(), 4)
    return updates, losses


if __name__ == "__main__":
    main()
