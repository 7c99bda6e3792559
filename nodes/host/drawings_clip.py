"""The encoder of the world of drawings as a CLIP of the host's own BERT class.

Everything of the host is imported inside functions, so that the pack can be imported without a host.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ...safeguidance.errors import InputError


def drawings_clip(
    tokenizer_class: type, bert_config: Mapping[str, Any], max_length: int, state: dict[str, torch.Tensor]
) -> Any:
    """A CLIP of the host's BERT with a tokenizer of ours; padding is masked and its states are zero.

    Args:
        tokenizer_class: word pieces; has ``start``, ``end`` and ``padding``, and a length.
        bert_config: shape of the encoder, in BERT's words, without ``vocab_size``.
        max_length: tokens per chunk.
        state: weights, with the keys of the host's BERT.

    Raises:
        InputError: if the weights are not the encoder's.
    """
    import comfy.sd
    import comfy.sd1_clip
    import comfy.supported_models_base
    from comfy.text_encoders.bert import BertModel

    width = bert_config["hidden_size"]
    config = {**bert_config, "vocab_size": len(tokenizer_class.from_pretrained())}  # type: ignore[attr-defined]

    class Encoder(comfy.sd1_clip.SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] = {}) -> None:  # noqa: B006
            marks = {
                "start": tokenizer_class.start,  # type: ignore[attr-defined]
                "end": tokenizer_class.end,  # type: ignore[attr-defined]
                "pad": tokenizer_class.padding,  # type: ignore[attr-defined]
            }
            super().__init__(
                device=device,
                dtype=dtype,
                max_length=max_length,
                textmodel_json_config=dict(config),
                model_class=BertModel,
                special_tokens=marks,
                enable_attention_masks=True,
                zero_out_masked=True,
                model_options=model_options,
            )

    class ClipModel(comfy.sd1_clip.SD1ClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Mapping[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(device=device, dtype=dtype, model_options=model_options, clip_model=Encoder)

    class Pieces(comfy.sd1_clip.SDTokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(
                "",
                max_length=max_length,
                pad_with_end=False,
                embedding_directory=embedding_directory,
                embedding_size=width,
                tokenizer_class=tokenizer_class,
                tokenizer_data=tokenizer_data,
            )

    class Tokenizer(comfy.sd1_clip.SD1Tokenizer):
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Mapping[str, Any] = {}) -> None:  # noqa: B006
            super().__init__(embedding_directory, tokenizer_data=tokenizer_data, tokenizer=Pieces)

    target = comfy.supported_models_base.ClipTarget(Tokenizer, ClipModel)
    clip = comfy.sd.CLIP(
        target, parameters=sum(t.numel() for t in state.values()), model_options={"dtype": torch.float32}
    )
    missing, unexpected = clip.load_sd(dict(state))
    if missing or unexpected:
        raise InputError(
            "text encoder weights",
            f"they do not fit, first differences {sorted({*missing, *unexpected})[:3]}",
            "the weights that ship with the pack",
            "restore the files in the pack's weights folder",
        )
    return clip
