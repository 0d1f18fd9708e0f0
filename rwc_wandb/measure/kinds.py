"""What a layer's module is."""

from __future__ import annotations

from torch import nn

_KINDS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear, nn.Bilinear), "linear"),
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
    ((nn.MultiheadAttention,), "attention"),
)


def kind_of(module: nn.Module) -> str:
    """What a module is: convolution, depthwise, pointwise, grouped or transposed convolution, linear, embedding,
    recurrent, attention, normalization; "parameter" where it holds other modules too (a position embedding of a
    transformer's own); otherwise the name of its class."""
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.transposed:
            return "transposed convolution"
        if module.groups > 1:
            return "depthwise" if module.groups == module.in_channels else "grouped convolution"
        return "pointwise" if all(side == 1 for side in module.kernel_size) else "convolution"
    for classes, kind in _KINDS:
        if isinstance(module, classes):
            return kind
    if next(module.children(), None) is not None:
        return "parameter"
    name = type(module).__name__
    # GPT-2's linear layer is called after the convolution that it equals.
    return "normalization" if "norm" in name.lower() else "linear" if name == "Conv1D" else name
