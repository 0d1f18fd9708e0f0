"""`watch` on 50 architectures by others: names are unique, and two measurements equal the oracle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from torch import nn

from rwc_wandb import elementwise_relative_weight_change, relative_weight_change, watch

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TIMM = [
    "resnet10t", "mobilenetv3_small_050", "efficientnet_lite0", "tf_efficientnetv2_b0", "ghostnet_050",
    "convnext_atto", "convnextv2_atto", "vit_tiny_patch16_224", "swin_s3_tiny_224", "gmlp_ti16_224", "resmlp_12_224",
    "mixer_s32_224", "xcit_nano_12_p16_224", "poolformer_s12", "edgenext_xx_small", "mobilevit_xxs", "levit_128s",
    "coat_lite_tiny", "pit_ti_224", "cait_xxs24_224", "regnety_002", "densenet121", "dla46_c", "hardcorenas_a",
    "tinynet_e", "repvgg_a0", "hrnet_w18_small", "skresnet18", "sequencer2d_s", "visformer_tiny",
    "efficientformer_l1", "fastvit_t8", "mobileone_s0", "crossvit_tiny_240", "gcvit_xxtiny", "tiny_vit_5m_224",
    "res2net50_14w_8s",
]  # fmt: skip
TORCHVISION = [
    "squeezenet1_1", "shufflenet_v2_x0_5", "googlenet", "mobilenet_v2", "mnasnet0_5",
    "ssdlite320_mobilenet_v3_large", "lraspp_mobilenet_v3_large",
]  # fmt: skip
SMALL: dict[str, Any] = {"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "GPT2": {"vocab_size": 99, "n_embd": 16, "n_head": 2, "n_layer": 96},
    "Bert": {**SMALL, "num_hidden_layers": 3, "intermediate_size": 64},
    "T5": {"vocab_size": 99, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8},
    "Llama": {**SMALL, "num_hidden_layers": 3, "intermediate_size": 64},
    "Mixtral": {**SMALL, "num_hidden_layers": 2, "intermediate_size": 64, "num_key_value_heads": 2},
    "Mamba": {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
}


def without_initialisation(build: Callable[[], nn.Module]) -> nn.Module:
    """The initial values do not matter here, and take most of the time."""
    try:
        with torch.device("meta"):
            model = build()
    except NotImplementedError:
        # timm 1.0.29's RegNets compute their widths with torch, on the meta device too.
        model = build()
    model.to_empty(device=DEVICE)
    for parameter in model.parameters():
        parameter.data.uniform_(-1, 1)
    return model


def assert_measured(model: nn.Module) -> int:
    """Against the model's own list of parameters, which knows of ties but not of our names."""
    expected = {name: parameter for name, parameter in model.named_parameters() if parameter.dim() > 1}
    monitor = watch(model, run=False)
    assert [id(layer.parameter) for layer in monitor.layers] == [id(parameter) for parameter in expected.values()]
    names = [layer.name for layer in monitor.layers]
    assert len(set(names)) == len(names)
    assert all(full.startswith(name) for name, full in zip(names, expected, strict=True))
    series, elementwise = [], []
    for _ in range(2):
        before = {name: parameter.detach().clone() for name, parameter in expected.items()}
        with torch.no_grad():
            for parameter in expected.values():
                parameter.add_(torch.rand(()) * torch.rand_like(parameter))
        monitor.measure()
        pairs = [(parameter.detach(), before[name]) for name, parameter in expected.items()]
        series.append([relative_weight_change(new, old).item() for new, old in pairs])
        elementwise.append([elementwise_relative_weight_change(new, old).item() for new, old in pairs])
    monitor.close()
    np.testing.assert_allclose(monitor.history.rwc, series, rtol=1e-6)
    np.testing.assert_allclose(monitor.history.rwc_elementwise, elementwise, rtol=1e-6)
    return len(names)


@pytest.mark.parametrize("name", TIMM)
def test_timm(name: str) -> None:
    assert assert_measured(without_initialisation(lambda: timm.create_model(name))) > 10


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str) -> None:
    options = {"weights_backbone": None} if "320" in name or "lraspp" in name else {}
    model = without_initialisation(lambda: torchvision.models.get_model(name, weights=None, **options))
    assert assert_measured(model) > 10


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    configuration = getattr(transformers, f"{name}Config")(**TRANSFORMERS[name])
    kind = "ForMaskedLM" if name == "Bert" else "ForConditionalGeneration" if name == "T5" else "ForCausalLM"
    if name == "GPT2":
        kind = "LMHeadModel"
    model = getattr(transformers, f"{name}{kind}")(configuration).to(DEVICE)
    layers = assert_measured(model)
    assert layers > 10
    if name == "GPT2":
        assert len(list(model.parameters())) > 1000
        assert model.lm_head.weight is model.transformer.wte.weight
