"""Makes the small golden checkpoint: python -m tests.golden.make_released   (needs PyTorch)

released_resnet8.pth   random weights and BatchNorm statistics in the format of the authors' released checkpoints
released_resnet8.npz   the same tensors, 16 random images, and what the PyTorch peer computes from them
"""

from pathlib import Path

import numpy as np
import torch

from benchmarks.pytorch_gaternet import GaterNet

FOLDER = Path(__file__).parent
MEAN, STD = torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616])


def main() -> None:
    torch.manual_seed(0)
    model = GaterNet(8, width=4, gater_depth=8, gater_width=4)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 3), np.uint8)
    model.eval()
    with torch.no_grad():
        inputs = ((torch.tensor(images) / 255 - MEAN) / STD).permute(0, 3, 1, 2)
        logits, gates, scores = model(inputs)
    checkpoint = model.released_state()
    torch.save(checkpoint, FOLDER / "released_resnet8.pth", _use_new_zipfile_serialization=False)
    tensors = {f"{part}/{name}": value.numpy() for part, state in checkpoint.items() for name, value in state.items()}
    np.savez_compressed(
        FOLDER / "released_resnet8.npz",
        images=images,
        logits=logits.numpy(),
        gates=gates.numpy().astype(np.uint8),
        gate_scores=scores.numpy(),
        **tensors,
    )


if __name__ == "__main__":
    main()
