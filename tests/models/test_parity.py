"""ResNet-18, ResNet-50 and squeeze-and-excitation against an independent PyTorch implementation, on random weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from gaternet_jax.models.build import empty_model
from gaternet_jax.models.functional import merge_model, split_model
from tests.helpers import model_config

torch = pytest.importorskip("torch")
nn, F = torch.nn, torch.nn.functional


class TorchBlock(nn.Module):
    """Plain PyTorch; `kernels` is (3, 3) or (1, 3, 1)."""

    def __init__(self, in_channels, width, out_channels, kernels, stride, se_ratio):
        super().__init__()
        self.n = len(kernels)
        for i, kernel in enumerate(kernels, 1):
            filters = out_channels if i == self.n else width
            strided = stride if (i == 1 and self.n == 2) or (i == 2 and self.n == 3) else 1
            conv = nn.Conv2d(in_channels if i == 1 else width, filters, kernel, strided, kernel // 2, bias=False)
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", nn.BatchNorm2d(filters))
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential()
            self.shortcut.add_module("conv", nn.Conv2d(in_channels, out_channels, 1, stride, bias=False))
            self.shortcut.add_module("bn", nn.BatchNorm2d(out_channels))
        self.squeeze = None
        if se_ratio:
            self.squeeze = nn.Module()
            self.squeeze.fc1 = nn.Linear(out_channels, out_channels // se_ratio)
            self.squeeze.fc2 = nn.Linear(out_channels // se_ratio, out_channels)

    def forward(self, x):
        h = x
        for i in range(1, self.n + 1):
            h = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(h))
            h = F.relu(h) if i < self.n else h
        if self.squeeze is not None:
            scale = torch.sigmoid(self.squeeze.fc2(F.relu(self.squeeze.fc1(h.mean((2, 3))))))
            h = h * scale[:, :, None, None]
        return F.relu(h + self.shortcut(x))


class TorchResNet(nn.Module):
    def __init__(self, kernels, blocks, expansion, se_ratio=0):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        channels = 64
        for stage, count in enumerate(blocks, 1):
            layers = nn.Sequential()
            for number in range(1, count + 1):
                width, stride = 32 * 2**stage, 2 if stage > 1 and number == 1 else 1
                block = TorchBlock(channels, width, expansion * width, kernels, stride, se_ratio)
                layers.add_module(f"block{number}", block)
                channels = expansion * width
            self.add_module(f"stage{stage}", layers)
        self.fc = nn.Linear(channels, 1000)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn(self.conv(x))), 3, 2, 1)
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)
        return self.fc(x.mean((2, 3)))


LEAVES = {"weight": "kernel", "bias": "bias", "running_mean": "mean", "running_var": "var"}


def to_jax(state, params, stats):
    """Fills our trees from a PyTorch state dict with the same module names."""
    filled = 0
    for name, value in state.items():
        *path, leaf = name.split(".")
        if leaf == "num_batches_tracked":
            continue
        tree = stats if leaf.startswith("running") else params
        for part in path:
            tree = tree[part]
        key = "scale" if leaf == "weight" and "scale" in tree else LEAVES[leaf]
        array = value.numpy()
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        assert tree[key].shape == array.shape, name
        tree[key] = jnp.asarray(array)
        filled += 1
    return filled


@pytest.mark.parametrize(
    ("name", "kernels", "blocks", "expansion", "se_ratio"),
    [
        ("resnet18", (3, 3), (2, 2, 2, 2), 1, 0),
        ("resnet50", (1, 3, 1), (3, 4, 6, 3), 4, 0),
        ("resnet18", (3, 3), (2, 2, 2, 2), 1, 16),
    ],
    ids=["resnet18", "resnet50", "resnet18-se"],
)
def test_logits_agree_with_pytorch(name, kernels, blocks, expansion, se_ratio):
    torch.manual_seed(0)
    theirs = TorchResNet(kernels, blocks, expansion, se_ratio)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    theirs.eval()
    images = np.random.default_rng(0).normal(size=(2, 97, 97, 3)).astype(np.float32)  # odd sizes try the padding
    with torch.no_grad():
        expected = theirs(torch.tensor(images).permute(0, 3, 1, 2)).numpy()

    config = model_config(backbone=name, width=0, gating="none", num_classes=1000, se_ratio=se_ratio)
    ours = empty_model(config)
    ours.eval()
    graphdef, params, stats = split_model(ours)
    filled = to_jax(theirs.state_dict(), params["backbone"], stats["backbone"])
    assert filled == sum(1 for name in theirs.state_dict() if not name.endswith("tracked"))
    logits = np.asarray(merge_model(graphdef, params, stats)(jnp.asarray(images)).logits)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits, expected, atol=1e-4 * max(1.0, np.abs(expected).max()))
