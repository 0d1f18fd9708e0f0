"""`watch`, from its call to its history, on models that hypothesis draws, against the float64 oracle."""

from __future__ import annotations

import numpy as np
import torch
from fuzzing import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from rwc_wandb import elementwise_relative_weight_change, relative_weight_change, watch

DTYPES = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]


@st.composite
def parameters(draw: st.DrawFn, generator: torch.Generator) -> nn.Parameter:
    """Of any shape, zero-dimensional and empty ones too; dense or with gaps, in any order of strides; some frozen."""
    shape = draw(st.lists(st.integers(0, 9), max_size=4))
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 10.0 ** draw(st.integers(-3, 3))
    values[torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.2, 1.0]))] = 0
    values = values.to(draw(st.sampled_from(DTYPES)))
    if shape and draw(st.booleans()):
        order = draw(st.permutations(range(len(shape))))
        values = values.permute(order).contiguous().permute([order.index(place) for place in range(len(shape))])
    if shape and draw(st.booleans()):
        roomy = torch.zeros([*shape[:-1], shape[-1] + 2], dtype=values.dtype)
        values = roomy[..., : shape[-1]].copy_(values)
    return nn.Parameter(values, requires_grad=draw(st.booleans()))


@st.composite
def models(draw: st.DrawFn, generator: torch.Generator) -> nn.Module:
    """Modules in modules; what was drawn before may come again under another name: tied."""
    model, made = nn.Module(), []
    for number in range(draw(st.integers(1, 6))):
        owner = model
        for _ in range(draw(st.integers(0, 2))):
            if not hasattr(owner, "inner"):
                owner.inner = nn.Module()
            owner = owner.inner
        made.append(
            draw(st.sampled_from(made)) if made and draw(st.integers(0, 4)) == 0 else draw(parameters(generator))
        )
        owner.register_parameter(f"weight{number}", made[-1])
    return model


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(st.data())
def test_any_model(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1 << 30)))
    model = data.draw(models(generator))
    every, steps = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    log_every = data.draw(st.integers(1, 3))
    unique = {id(parameter): parameter for parameter in model.parameters()}
    optimizer = torch.optim.SGD(unique.values(), lr=0.1, momentum=data.draw(st.sampled_from([0, 0.9])))
    monitor = watch(model, optimizer, every=every, log_every=log_every, histogram_every=2, layers="all", run=False)
    assert {id(layer.parameter) for layer in monitor.layers} == set(unique)
    tensors = [layer.parameter for layer in monitor.layers]
    rwc, elementwise, before = [], [], copies(tensors)
    for step in range(1, steps + 1):
        for parameter in tensors:
            if parameter.requires_grad and data.draw(st.booleans()):
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.grad = (noise * parameter.detach().double()).to(parameter.dtype)
        optimizer.step()
        optimizer.zero_grad()
        if step % every == 0:
            pairs = list(zip(tensors, before, strict=True))
            rwc.append([relative_weight_change(new, old).item() for new, old in pairs])
            elementwise.append([elementwise_relative_weight_change(new, old).item() for new, old in pairs])
            before = copies(tensors)
    monitor.close()
    history = monitor.history
    assert history.steps.tolist() == list(range(every, steps + 1, every))
    np.testing.assert_allclose(history.rwc, np.reshape(rwc, history.rwc.shape), rtol=1e-6)
    np.testing.assert_allclose(history.rwc_elementwise, np.reshape(elementwise, history.rwc.shape), rtol=1e-6)


def copies(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]
