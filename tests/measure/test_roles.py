"""Roles, blocks and kinds of architectures by others, built from their configurations on the meta device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn

from rwc_wandb import find_layers
from rwc_wandb.measure.layers import Layer
from rwc_wandb.measure.roles import roles_and_blocks

TIMM: dict[str, tuple[set[str], int, int]] = {
    "resnet18": ({"conv1", "conv2", "downsample.0"}, 8, 2),
    "resnet10t": ({"conv1", "conv2", "downsample.1"}, 4, 4),
    "res2net50_14w_8s": ({"conv1", *(f"convs.{i}" for i in range(7)), "conv3", "downsample.0"}, 16, 2),
    "efficientnet_b4": ({"conv_dw", "conv_pw", "conv_pwl", "se.conv_reduce", "se.conv_expand"}, 32, 3),
    "mobilenetv3_small_050": ({"conv_dw", "conv_pw", "conv_pwl", "se.conv_reduce", "se.conv_expand"}, 11, 4),
    "convnext_atto": ({"conv_dw", "mlp.fc1", "mlp.fc2", "downsample.1"}, 12, 2),
    "vit_tiny_patch16_224": ({"attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"}, 12, 4),
    "swin_tiny_patch4_window7_224": (
        {"attn.qkv", "attn.proj", "attn.relative_position_bias_table", "mlp.fc1", "mlp.fc2", "downsample.reduction"},
        12,
        2,
    ),
    "densenet121": ({"conv1", "conv2"}, 58, 5),
    "regnety_002": (
        {"conv1.conv", "conv2.conv", "conv3.conv", "se.fc1", "se.fc2", "downsample.conv"},
        13,
        2,
    ),
    "mixer_s32_224": ({"mlp_tokens.fc1", "mlp_tokens.fc2", "mlp_channels.fc1", "mlp_channels.fc2"}, 8, 2),
    "cait_xxs24_224": (
        {f"blocks.attn.{part}" for part in ("qkv", "proj", "proj_l", "proj_w")}
        | {f"blocks_token_only.attn.{part}" for part in ("q", "k", "v", "proj")}
        | {f"{blocks}.mlp.fc{i}" for blocks in ("blocks", "blocks_token_only") for i in (1, 2)},
        24,
        4,
    ),
    "repvgg_a0": ({"conv_kxk.conv", "conv_1x1.conv"}, 21, 3),
    "vgg11": (set(), 0, 11),
}
"""Name: the roles that repeat, the number of blocks, the number of layers that stand by themselves."""

TORCHVISION: dict[str, tuple[set[str], int, int]] = {
    "resnet34": ({"conv1", "conv2", "downsample.0"}, 16, 2),
    "mobilenet_v2": ({"conv.0.0", "conv.1", "conv.1.0", "conv.2"}, 17, 3),
    "convnext_tiny": ({"layer_scale", "block.0", "block.3", "block.5"}, 18, 5),
    "vit_b_16": ({"self_attention.in_proj_weight", "self_attention.out_proj", "mlp.0", "mlp.3"}, 12, 4),
    "shufflenet_v2_x0_5": ({"branch1.0", "branch1.2", "branch2.0", "branch2.3", "branch2.5"}, 16, 3),
    "squeezenet1_1": ({"squeeze", "expand1x1", "expand3x3"}, 8, 2),
    "alexnet": (set(), 0, 8),
}

SMALL: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
ATTENTION = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
TRANSFORMERS: dict[str, tuple[str, dict[str, Any], set[str], int, int]] = {
    "GPT2LMHeadModel": (
        "GPT2",
        {"vocab_size": 99, "n_embd": 16, "n_head": 2, "n_layer": 6, "bos_token_id": 0, "eos_token_id": 0},
        {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
        6,
        2,
    ),
    "LlamaForCausalLM": (
        "Llama",
        {**SMALL, "num_hidden_layers": 3},
        ATTENTION | {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
        3,
        2,
    ),
    "MixtralForCausalLM": (
        "Mixtral",
        {**SMALL, "num_hidden_layers": 2, "num_key_value_heads": 2},
        ATTENTION | {"mlp.gate", "mlp.experts.gate_up_proj", "mlp.experts.down_proj"},
        2,
        2,
    ),
    "BertForMaskedLM": (
        "Bert",
        {**SMALL, "num_hidden_layers": 3},
        {f"attention.self.{part}" for part in ("query", "key", "value")}
        | {"attention.output.dense", "intermediate.dense", "output.dense"},
        3,
        4,
    ),
    "T5ForConditionalGeneration": (
        "T5",
        {"vocab_size": 99, "d_model": 32, "d_ff": 64, "num_layers": 3, "num_heads": 4, "d_kv": 8},
        {
            f"{half}.layer.0.SelfAttention.{part}"
            for half in ("encoder", "decoder")
            for part in ("q", "k", "v", "o", "relative_attention_bias")
        }
        | {f"decoder.layer.1.EncDecAttention.{part}" for part in "qkvo"}
        | {f"{half}.DenseReluDense.{part}" for half in ("encoder.layer.1", "decoder.layer.2") for part in ("wi", "wo")},
        3,
        1,
    ),
    "WhisperModel": (
        "Whisper",
        {
            "encoder_layers": 4,
            "decoder_layers": 4,
            "d_model": 32,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
        },
        {f"{half}.self_attn.{part}_proj" for half in ("encoder", "decoder") for part in ("q", "k", "v", "out")}
        | {f"decoder.encoder_attn.{part}_proj" for part in ("q", "k", "v", "out")}
        | {f"{half}.fc{i}" for half in ("encoder", "decoder") for i in (1, 2)},
        4,
        5,
    ),
    "MambaForCausalLM": (
        "Mamba",
        {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
        {f"mixer.{part}" for part in ("A_log", "conv1d", "in_proj", "x_proj", "dt_proj", "out_proj")},
        3,
        1,
    ),
}


def empty(build: Callable[[], nn.Module]) -> nn.Module:
    """The initial values do not matter here, and take most of the time."""
    with torch.device("meta"):
        model = build()
    model.to_empty(device="cpu")
    # Emptying has torn tied weights apart.
    getattr(model, "tie_weights", lambda: None)()
    return model


def built(build: Callable[[], nn.Module]) -> list[Layer]:
    return find_layers(empty(build))


def check(layers: list[Layer], roles: set[str], blocks: int, alone: int) -> None:
    """Also that the names alone, of which older files consist, say the same."""
    assert {layer.role for layer in layers if layer.block is not None} == roles
    assert {layer.block for layer in layers} - {None} == set(range(blocks))
    single = [layer for layer in layers if layer.block is None]
    assert len(single) == alone
    assert all(layer.role.removesuffix(" (stem)").removesuffix(" (head)") == layer.name for layer in single)
    assert not {layer.role for layer in single} & roles
    from_names = roles_and_blocks([layer.name for layer in layers])
    assert from_names == ([layer.role for layer in layers], [layer.block for layer in layers])


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    check(built(lambda: timm.create_model(name)), *TIMM[name])


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    check(built(lambda: torchvision.models.get_model(name, weights=None)), *TORCHVISION[name])


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    configuration, options, *expected = TRANSFORMERS[name]
    build = getattr(transformers, name)
    check(built(lambda: build(getattr(transformers, f"{configuration}Config")(**options))), *expected)


def double(channels: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, 3), nn.ReLU(), nn.Conv2d(out, out, 3))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inc = double(3, 8)
        self.down = nn.ModuleList(nn.ModuleDict({"conv": double(8, 8)}) for _ in range(3))
        self.up = nn.ModuleList(
            nn.ModuleDict({"up": nn.ConvTranspose2d(8, 8, 2), "conv": double(16, 8)}) for _ in range(3)
        )
        self.out = nn.Conv2d(8, 2, 1)


def test_a_unet() -> None:
    layers = built(UNet)
    check(layers, {"down.conv.0", "down.conv.2", "up.up", "up.conv.0", "up.conv.2"}, 3, 3)
    by_name = {layer.name: (layer.role, layer.block, layer.kind) for layer in layers}
    assert by_name["down.2.conv.0"] == ("down.conv.0", 2, "convolution")
    assert by_name["up.0.up"] == ("up.up", 0, "transposed convolution")
    assert by_name["out"] == ("out", None, "pointwise")


def test_an_lstm() -> None:
    layers = built(
        lambda: nn.ModuleDict({"embedding": nn.Embedding(9, 4), "lstm": nn.LSTM(4, 4, 3), "head": nn.Linear(4, 9)})
    )
    check(layers, {"weight_ih", "weight_hh"}, 3, 2)
    assert [layer.kind for layer in layers] == ["embedding", *["recurrent"] * 6, "linear"]
    check(built(lambda: nn.LSTM(4, 4)), set(), 0, 2)


def test_experts_of_a_block_are_one_role() -> None:
    def block() -> nn.ModuleDict:
        expert = {"w1": nn.Linear(4, 8), "w2": nn.Linear(8, 4)}
        attention = {key: nn.Linear(4, 4) for key in "qkvo"}
        return nn.ModuleDict(
            {"attention": nn.ModuleDict(attention), "experts": nn.ModuleList(nn.ModuleDict(expert) for _ in range(8))}
        )

    names = [f"layers.{i}.{name}" for i in range(3) for name, _ in block().named_modules(remove_duplicate=False)]
    names = [name for name in names if name.split(".")[-1] in ("w1", "w2", *"qkvo")]
    roles, blocks = roles_and_blocks(names)
    assert set(roles) == {"attention.q", "attention.k", "attention.v", "attention.o", "experts.w1", "experts.w2"}
    assert blocks == [0] * 20 + [1] * 20 + [2] * 20


def test_what_lies_between_the_blocks_of_a_stage_belongs_to_the_next() -> None:
    layers = {layer.name: layer for layer in built(lambda: timm.create_model("convnext_atto"))}
    assert layers["stages.1.downsample.1"].block == layers["stages.1.blocks.0.conv_dw"].block == 2


def test_a_bias_has_the_role_and_the_kind_of_its_module() -> None:
    model = empty(lambda: timm.create_model("vit_tiny_patch16_224"))
    layers = {layer.name: layer for layer in find_layers(model, "all")}
    bias, norm = layers["blocks.3.attn.qkv.bias"], layers["blocks.11.norm2"]
    assert (bias.role, bias.block, bias.kind) == ("attn.qkv.bias", 3, "linear")
    assert (norm.role, norm.block, norm.kind) == ("norm2", 11, "normalization")
    assert layers["pos_embed"].kind == "parameter"


def test_kinds() -> None:
    kinds = {layer.role: layer.kind for layer in built(lambda: timm.create_model("mobilenetv3_small_050"))}
    assert (kinds["conv_dw"], kinds["conv_pw"], kinds["conv_stem"]) == ("depthwise", "pointwise", "convolution")
    normed = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 8, 3, groups=2))
    assert {layer.kind for layer in find_layers(normed)} == {"grouped convolution"}
    assert {layer.kind for layer in find_layers(nn.MultiheadAttention(4, 2))} == {"attention", "linear"}


def test_layers_are_chosen_by_role() -> None:
    model = empty(lambda: timm.create_model("convnext_atto"))
    chosen = find_layers(model, "role:conv_dw")
    assert [layer.name for layer in chosen][:3] == [
        "stages.0.blocks.0.conv_dw", "stages.0.blocks.1.conv_dw", "stages.1.blocks.0.conv_dw",
    ]  # fmt: skip
    assert [layer.block for layer in chosen] == list(range(12))
    assert {layer.role for layer in find_layers(model, r"role:mlp\..*")} >= {"mlp.fc1", "mlp.fc2", "mlp.fc1.bias"}
    with pytest.raises(ValueError, match="layers='role:dw' matches no parameter"):
        find_layers(model, "role:dw")
