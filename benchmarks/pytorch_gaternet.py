# pyright: reportCallIssue=false, reportArgumentType=false, reportGeneralTypeIssues=false, reportMissingImports=false
"""A plain PyTorch GaterNet, the peer that benchmarks and golden values are made with.

Module names are those of the released checkpoints, so that its state dicts have their format. Written from the
description of the method, independently of the JAX code; optional, like PyTorch itself.
"""

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, in_channels: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Sequential()
        if in_channels != channels:
            self.shortcut.add_module("conv", nn.Conv2d(in_channels, channels, 1, stride, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(channels))

    def forward(self, x, gates=None):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if gates is not None:
            y = y * gates[:, :, None, None]
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    def __init__(self, depth: int, classes: int | None, width: int = 16, bottleneck: int | None = None):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.gates_per_block, in_channels = [], width
        for stage in (1, 2, 3):
            blocks, channels = nn.Sequential(), width * 2 ** (stage - 1)
            for number in range(1, (depth - 2) // 6 + 1):
                stride = 2 if stage > 1 and number == 1 else 1
                blocks.add_module(f"block{number}", Block(in_channels, channels, stride))
                self.gates_per_block.append(channels)
                in_channels = channels
            self.add_module(f"stage{stage}", blocks)
        if bottleneck is None:
            self.fc = nn.Linear(in_channels, classes)
        else:
            self.newfc = nn.Linear(in_channels, bottleneck)

    def forward(self, x, gates=None):
        x = F.relu(self.bn(self.conv(x)))
        of_block = iter(gates.split(self.gates_per_block, dim=1) if gates is not None else [])
        for stage in (self.stage1, self.stage2, self.stage3):
            for block in stage:
                x = block(x, next(of_block, None))
        x = x.mean((2, 3))
        return self.fc(x) if hasattr(self, "fc") else self.newfc(x)


class Gater(nn.Module):
    def __init__(self, gates: int, depth: int = 20, width: int = 16, bottleneck: int = 8):
        super().__init__()
        self.resnet = ResNet(depth, None, width, bottleneck)
        self.fnn = nn.Module()
        self.fnn.fc = nn.Sequential(nn.Linear(bottleneck, gates))

    def forward(self, x):
        return self.fnn.fc(F.relu(self.resnet(x)))


class GaterNet(nn.Module):
    """Images [B, 3, H, W] -> logits, gates, gate scores."""

    def __init__(self, depth: int, classes: int = 10, width: int = 16, gater_depth: int = 20, gater_width: int = 16):
        super().__init__()
        self.backbone = ResNet(depth, classes, width)
        self.gater = Gater(sum(self.backbone.gates_per_block), gater_depth, gater_width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        scores = self.gater(x)
        noisy = scores + torch.randn_like(scores) if self.training else scores
        values = torch.clamp(1.2 * torch.sigmoid(noisy) - 0.1, 0, 1)
        binary = (values > 0.49999).to(values.dtype) - values.detach() + values  # straight-through
        gates = torch.where(torch.rand(len(x), 1) < 0.5, binary, values) if self.training else binary
        return self.backbone(x, gates), gates, scores

    def released_state(self) -> dict:
        """The contents of a released checkpoint."""
        return {
            f"{name}_state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}
            for name, network in (("backbone", self.backbone), ("gater", self.gater))
        }
