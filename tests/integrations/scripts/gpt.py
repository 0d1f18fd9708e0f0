"""In the manner of nanoGPT's train.py: globals set on the command line, GradScaler, gradient accumulation, two
parameter groups, tied embeddings, clipping, torch.compile if asked, rows with explicit steps in its own W&B run."""

import math
import os
import sys

import torch
import torch.nn as nn
from torch.nn import functional as F

out_dir = "out"
wandb_log = True
wandb_project = "owt"
gradient_accumulation_steps = 2
batch_size = 2
block_size = 16
n_layer, n_head, n_embd, vocab_size = 2, 2, 16, 32
learning_rate, weight_decay, grad_clip, max_iters = 1e-2, 1e-1, 1.0, 8
compile = False
for word in sys.argv[1:]:
    key, value = word.removeprefix("--").split("=", 1)
    globals()[key] = type(globals()[key])(value)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(n_embd), nn.LayerNorm(n_embd)
        self.c_attn, self.c_proj = nn.Linear(n_embd, 3 * n_embd), nn.Linear(n_embd, n_embd)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(n_embd, 4 * n_embd), "c_proj": nn.Linear(4 * n_embd, n_embd)})

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = (t.view(B, T, n_head, C // n_head).transpose(1, 2) for t in self.c_attn(self.ln_1(x)).split(C, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x = x + self.c_proj(y)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(vocab_size, n_embd),
                "wpe": nn.Embedding(block_size, n_embd),
                "h": nn.ModuleList([Block() for _ in range(n_layer)]),
                "ln_f": nn.LayerNorm(n_embd),
            }
        )
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx, targets):
        x = self.transformer.wte(idx) + self.transformer.wpe(torch.arange(idx.size(1)))
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        return logits, F.cross_entropy(logits.view(-1, vocab_size), targets.reshape(-1))

    def configure_optimizers(self):
        params = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in params if p.dim() >= 2], "weight_decay": weight_decay},
            {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95))


def get_batch():
    data = torch.randint(0, vocab_size, (batch_size, block_size + 1))
    return data[:, :-1], data[:, 1:]


torch.manual_seed(1337)
os.makedirs(out_dir, exist_ok=True)
model = raw_model = GPT()
# The first step's gradients overflow and it is skipped, as at the beginning of every fp16 training.
scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-60)
optimizer = model.configure_optimizers()
if compile:
    model = torch.compile(model, backend="eager")
if wandb_log:
    import wandb

    wandb.init(project=wandb_project, name="gpt", config={"learning_rate": learning_rate})
torch.save(raw_model.state_dict(), os.path.join(out_dir, "0.pt"))
saved = 0
for iter_num in range(max_iters):
    lr = learning_rate * 0.5 * (1.0 + math.cos(math.pi * iter_num / max_iters))
    for param_group in optimizer.param_groups:
        param_group["lr"] = lr
    for _ in range(gradient_accumulation_steps):
        X, Y = get_batch()
        logits, loss = model(X, Y)
        if iter_num == 0:
            loss = loss * 1e3
        scaler.scale(loss / gradient_accumulation_steps).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip)
    scale = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    if scaler.get_scale() >= scale:
        saved += 1
        torch.save(raw_model.state_dict(), os.path.join(out_dir, f"{saved}.pt"))
    if wandb_log:
        wandb.log({"iter": iter_num, "train/loss": loss.item(), "lr": lr}, step=10 * iter_num)
assert saved == max_iters - 1, "one step should have been skipped"
