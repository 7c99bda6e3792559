"""Model files that the suite needs: small, and made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

RED, BLUE = 0xE01010, 0x1010E0


def tiny() -> dict[str, torch.Tensor]:
    """A weight file that is one, and nothing more."""
    return {"nothing.lora_up.weight": torch.zeros(4, 4)}


def classifier(folder: Path) -> dict[str, Any]:
    """An image classifier as transformers writes it, which calls a picture red where its middle is.

    Returns:
        The lines of a policy that name it.
    """
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    shape = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    config = ResNetConfig(num_channels=3, **shape, id2label={0: "calm", 1: "red"}, label2id={"calm": 0, "red": 1})
    model = ResNetForImageClassification(config).eval()
    flat = torch.tensor([[0.88, 0.06, 0.06], [0.06, 0.06, 0.88], [0.5, 0.5, 0.5], [0.3, 0.6, 0.3]])
    with torch.no_grad():
        seen = model.resnet(flat[:, :, None, None].expand(-1, 3, 224, 224)).pooler_output.flatten(1)
        # the direction in which red differs from all others
        direction = seen[0] - seen[1:].mean(dim=0)
        head = model.classifier[-1]
        places = seen @ direction
        scale = 40 / (places[0] - places[1:].max())
        head.weight.zero_()
        head.weight[1] = direction * scale
        head.bias.zero_()
        head.bias[1] = -scale * (0.85 * places[0] + 0.15 * places[1:].max())  # near to red itself
    model.save_pretrained(folder, safe_serialization=True)
    (folder / "preprocessor_config.json").write_text(
        '{"image_processor_type": "ViTImageProcessor", "do_resize": true, "size": {"height": 224, "width": 224}, '
        '"do_rescale": true, "rescale_factor": 0.00392156862745098, "do_normalize": false}'
    )
    return {"file": folder}
