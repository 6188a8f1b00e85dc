# pyright: reportCallIssue=false, reportArgumentType=false, reportMissingImports=false, reportOperatorIssue=false
"""A gated ResNet as plain PyTorch with masks, from a model of this package: the peer of the benchmarks.

The same layers and weights; optional, like PyTorch itself. Closed filters are computed and multiplied by zero, as any
PyTorch user would write it first.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from gaternet_jax.gating.semhash import SHIFT, STRETCH, THRESHOLD
from gaternet_jax.models.blocks import ResidualBlock
from gaternet_jax.models.gaternet import GaterNet
from gaternet_jax.models.resnet import ResNet
from gaternet_jax.nn.layers import BatchNorm, Conv, Linear


def _tensor(variable: Any) -> torch.Tensor:
    return torch.tensor(np.asarray(variable.get_value(), np.float32))


def _only(value: Any) -> int:
    """The one number of a stride or a padding."""
    (number,) = set(np.ravel(value).tolist())
    return number


def _conv(layer: Conv) -> nn.Conv2d:
    inputs, outputs = layer.in_features, layer.out_features
    conv = nn.Conv2d(inputs, outputs, layer.kernel_size[0], _only(layer.strides), _only(layer.padding), bias=False)
    conv.weight.data = _tensor(layer.kernel).permute(3, 2, 0, 1).contiguous()
    return conv


def _batch_norm(layer: BatchNorm) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(layer.num_features, eps=layer.epsilon)
    bn.weight.data, bn.bias.data = _tensor(layer.scale), _tensor(layer.bias)
    bn.running_mean, bn.running_var = _tensor(layer.mean), _tensor(layer.var)
    return bn


def _linear(layer: Linear) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features)
    linear.weight.data, linear.bias.data = _tensor(layer.kernel).T.contiguous(), _tensor(layer.bias)
    return linear


class Block(nn.Module):
    def __init__(self, block: ResidualBlock):
        super().__init__()
        numbers = range(1, block.depth + 1)
        self.convs = nn.ModuleList(_conv(getattr(block, f"conv{i}")) for i in numbers)
        self.bns = nn.ModuleList(_batch_norm(getattr(block, f"bn{i}")) for i in numbers)
        sites = [getattr(block, f"conv{i}").site for i in numbers]
        self.gates = [site and site.gates for site in sites]
        self.shortcut = nn.Identity()
        if block.shortcut is not None:
            self.shortcut = nn.Sequential(_conv(block.shortcut.conv), _batch_norm(block.shortcut.bn))

    def forward(self, x, gates):
        h = x
        for i, (conv, bn, of_site) in enumerate(zip(self.convs, self.bns, self.gates, strict=True), 1):
            h = bn(conv(h))
            h = F.relu(h) if i < len(self.convs) else h
            if of_site is not None:
                h = h * gates[:, of_site, None, None]
        return F.relu(h + self.shortcut(x))


class Net(nn.Module):
    def __init__(self, net: ResNet):
        super().__init__()
        self.conv, self.bn, self.pools = _conv(net.conv), _batch_norm(net.bn), net.large_images
        stages = [getattr(net, name) for name in net.stage_names]
        self.blocks = nn.ModuleList(Block(getattr(stage, name)) for stage in stages for name in stage.block_names)
        self.fc = nn.Identity() if net.fc is None else _linear(net.fc)

    def forward(self, x, gates=None):
        x = F.relu(self.bn(self.conv(x)))
        x = F.max_pool2d(x, 3, 2, 1) if self.pools else x
        for block in self.blocks:
            x = block(x, gates)
        return self.fc(x.mean((2, 3)))


class MaskedGaterNet(nn.Module):
    """Images [B, 3, H, W] -> logits; in training mode with the noise and the mixture of gates of SemHash."""

    def __init__(self, model: GaterNet):
        super().__init__()
        if model.gater is None or not isinstance(model.backbone, ResNet):
            raise ValueError("only gated ResNets with a global gater")
        head: Any = model.gater.head
        self.extractor, self.backbone = Net(model.gater.extractor), Net(model.backbone)
        self.bottleneck, self.scores = _linear(head.bottleneck), _linear(head.scores)
        self.eval()

    def forward(self, x):
        return self.with_gates(x)[0]

    def with_gates(self, x):
        """Logits and gates."""
        scores = self.scores(F.relu(self.bottleneck(self.extractor(x))))
        noisy = scores + torch.randn_like(scores) if self.training else scores
        values = torch.clamp(STRETCH * torch.sigmoid(noisy) - SHIFT, 0, 1)
        gates = (values > THRESHOLD).to(x.dtype)
        if self.training:
            binary = gates - values.detach() + values  # straight-through
            gates = torch.where(torch.rand(len(x), 1, device=x.device) < 0.5, binary, values)
        return self.backbone(x, gates), gates
