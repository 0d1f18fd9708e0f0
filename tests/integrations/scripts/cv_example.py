"""In the manner of accelerate/examples/cv_example.py, with tracking: everything goes through `prepare`."""

import argparse

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm import create_model
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset


def training_function(config, args):
    accelerator = Accelerator(
        cpu=args.cpu, log_with="wandb", gradient_accumulation_steps=args.gradient_accumulation_steps
    )
    accelerator.init_trackers("cv_example", config)
    set_seed(int(config["seed"]))
    images, labels = torch.randn(48, 3, 32, 32), torch.randint(0, 4, (48,))
    train_dataloader = DataLoader(TensorDataset(images, labels), shuffle=True, batch_size=int(config["batch_size"]))
    eval_dataloader = DataLoader(TensorDataset(images[:8], labels[:8]), batch_size=4)
    model = create_model("test_resnet", num_classes=4)
    for param in model.parameters():
        param.requires_grad = False
    for part in (model.get_classifier(), model.layer4):
        for param in part.parameters():
            param.requires_grad = True
    optimizer = torch.optim.Adam(params=model.parameters(), lr=config["lr"] / 25)
    lr_scheduler = OneCycleLR(optimizer, max_lr=config["lr"], epochs=2, steps_per_epoch=len(train_dataloader))
    model, optimizer, train_dataloader, eval_dataloader, lr_scheduler = accelerator.prepare(
        model, optimizer, train_dataloader, eval_dataloader, lr_scheduler
    )
    steps = 0

    def save():
        if accelerator.is_main_process:
            torch.save(accelerator.unwrap_model(model).state_dict(), f"{args.output_dir}/{steps}.pt")

    save()
    for epoch in range(2):
        model.train()
        total_loss = 0
        for inputs, targets in train_dataloader:
            with accelerator.accumulate(model):
                loss = torch.nn.functional.cross_entropy(model(inputs), targets)
                total_loss += loss.detach().float()
                accelerator.backward(loss)
                optimizer.step()
                lr_scheduler.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                steps += 1
                save()
        model.eval()
        accurate = 0
        for inputs, targets in eval_dataloader:
            with torch.no_grad():
                predictions = model(inputs).argmax(dim=-1)
            predictions, references = accelerator.gather_for_metrics((predictions, targets))
            accurate += (predictions == references).sum().item()
        accelerator.log({"accuracy": accurate / 8, "train_loss": total_loss.item(), "epoch": epoch}, step=epoch)
    accelerator.print(f"processes: {accelerator.num_processes}, optimizer steps: {steps}")
    accelerator.end_training()


def main():
    parser = argparse.ArgumentParser(description="Simple example of training script.")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--gradient_accumulation_steps", type=int, default=2)
    parser.add_argument("--output_dir", type=str, default=".")
    args = parser.parse_args()
    training_function({"lr": 3e-2, "seed": 42, "batch_size": 8}, args)


if __name__ == "__main__":
    main()
