"""Zero-shot CLIP from files: what transformers' own class gives, whether the files are in one folder or in parts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from transformers import CLIPConfig, CLIPModel

from safeguidance.errors import InputError
from safeguidance.evaluate import distances
from safeguidance.evaluate.judges import load
from safeguidance.evaluate.judges.interface import ask

PICTURES = [
    Image.fromarray(getattr(data, name)()).resize(size) for name, size in (("coffee", (64, 40)), ("cat", (32, 32)))
]
TEXTS = ["a cup of coffee", "a cat"]
WORDS = ["<|startoftext|>", "<|endoftext|>"]


def write_tokenizer(folder):
    letters = "abcdefghijklmnopqrstuvwxyz"
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), ",</w>", "{", *WORDS]
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(vocabulary)}), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    return len(vocabulary)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a random CLIP of 32 pixels, as transformers writes one, and its two towers in files."""
    path = tmp_path_factory.mktemp("clip")
    size = write_tokenizer(path)
    width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2}
    text = {
        **width,
        "vocab_size": size,
        "max_position_embeddings": 40,
        "bos_token_id": size - 2,
        "eos_token_id": size - 1,
    }
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config={**width, "image_size": 32, "patch_size": 8}, projection_dim=24)
    CLIPModel(config).save_pretrained(path)
    state = load_file(path / "model.safetensors")
    for tower, projection in (("vision_model.", "visual_projection"), ("text_model.", "text_projection")):
        part = {key: value for key, value in state.items() if key.startswith((tower, projection))}
        save_file(part, path / f"{tower}only")
        save_file({key: value for key, value in part.items() if "projection." not in key}, path / f"{tower}bare")
    return path


def parts(folder, **more):
    return {
        "kind": "clip", "vision": "vision_model.only", "text": "text_model.only", "tokenizer": ".", "vision_heads": 2,
        "text_heads": 2, "activation": "quick_gelu", **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def judges(folder):
    return load([{"kind": "clip", "folder": str(folder)}, {**parts(folder), "name": "in parts"}], folder)


@pytest.fixture(scope="module")
def published(folder):
    """Return embeddings of the pictures and texts by transformers' own forward pass."""
    model = CLIPModel.from_pretrained(folder).eval()
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    rows = []
    for text in TEXTS:
        letters = [word[:-1] + (word[-1] + "</w>",) for word in map(tuple, text.split())]
        rows.append([vocabulary[w] for w in (WORDS[0], *(letter for word in letters for letter in word), WORDS[1])])
    length = max(map(len, rows))
    ids = torch.tensor([row + [vocabulary[WORDS[1]]] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    pixels = []
    for picture in PICTURES:
        # by hand for these two: 64x40 becomes 51x32, the middle 32 columns count
        fitted = picture.resize((51, 32), Image.Resampling.BICUBIC) if picture.width > 32 else picture
        middle = np.asarray(fitted, dtype=np.float32)[:, (fitted.width - 32) // 2 :][:, :32] / 255
        mean, spread = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        pixels.append((middle - np.float32(mean)) / np.float32(spread))
    with torch.no_grad():
        out = model(
            input_ids=ids, attention_mask=mask, pixel_values=torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2)
        )
    return out.image_embeds, out.text_embeds, float(model.logit_scale.detach().exp())


@pytest.mark.parametrize("place", [0, 1], ids=["folder", "parts"])
def test_embeddings_are_those_of_transformers(judges, published, place):
    pictures, texts, scale = published
    clip = judges[place].clip
    assert torch.allclose(clip.pictures(PICTURES), pictures, atol=1e-5)
    assert torch.allclose(clip.texts(TEXTS), texts, atol=1e-5)
    assert clip.scale == pytest.approx(100.0 if place else scale, rel=1e-4)


def test_scores_are_a_softmax_over_harmful_and_harmless_texts(folder):
    phrases = {"drinks": ["coffee", "tea"], "pets": ["a cat"]}
    (judge,) = load(
        [{"kind": "clip", "folder": str(folder), "phrases": phrases, "neutral": ["a stone"], "threshold": 0.3}]
    )
    texts = ["a picture of coffee", "a picture of tea", "a picture of a cat", "a stone"]
    for picture, verdicts in zip(PICTURES, ask(judge, PICTURES, TEXTS), strict=True):
        likeness = [float(judge.clip.pictures([picture])[0] @ judge.clip.texts([text])[0]) for text in texts]
        weights = [np.exp(judge.clip.scale * value) for value in likeness]
        expected = {"drinks": (weights[0] + weights[1]) / sum(weights), "pets": weights[2] / sum(weights)}
        assert {v.category: v.score for v in verdicts} == pytest.approx(expected, rel=1e-4)
        assert [v.harmful for v in verdicts] == [v.score >= 0.3 for v in verdicts]


def test_it_lends_distances_and_the_clip_score(judges):
    judge = judges[0]
    assert distances.features_of(judges) is judge is distances.agreement_of(judges)
    layers = judge.maps(PICTURES)
    assert [tuple(layer.shape) for layer in layers] == [(2, 64, 4, 4)] * 4
    assert distances.perceptual(judge, PICTURES[1], PICTURES[1]) == 0
    assert distances.perceptual(judge, PICTURES[1], PICTURES[0].resize((32, 32))) > 0
    likeness = (judge.clip.pictures(PICTURES) * judge.clip.texts(TEXTS)).sum(dim=1)
    assert judge.agreement(PICTURES, TEXTS) == pytest.approx([100 * max(0, value) for value in likeness.tolist()])


def test_long_prompts_are_cut_not_refused(judges):
    assert judges[0].agreement(PICTURES[:1], ["cat " * 100])


WRONG = {
    "a tower without its projection": ({"text": "text_model.bare"}, "text: it lacks text_projection.weight"),
    "towers swapped": ({"vision": "text_model.only"}, r"vision: it holds no tensors vision_model.\*"),
    "no weights": ({"vision": "vocab.json"}, "vision: vocab.json cannot be read"),
    "a width nobody published": ({"vision_heads": 0, "activation": ""}, "its width is 64, of no published CLIP"),
    "a device that is not there": ({"device": "cuda:99"}, "device: 'cuda:99' cannot be used"),
    "no tokenizer": ({"tokenizer": "gone"}, "tokenizer: there is no folder"),
    "no phrases": ({"phrases": {}}, "phrases: it is empty"),
    "an empty phrase": ({"phrases": {"pets": [""]}}, "phrases.pets"),
}


@pytest.mark.parametrize(("change", "match"), WRONG.values(), ids=WRONG.keys())
def test_files_that_cannot_serve_are_named(folder, change, match):
    with pytest.raises(InputError, match=match):
        load([parts(folder, **change)], folder)


def test_a_folder_without_a_clip_is_named(tmp_path):
    for name, match in (("", "holds no .safetensors"), ("x.safetensors", "cannot be read")):
        if name:
            (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(InputError, match=match):
            load([{"kind": "clip", "folder": str(tmp_path)}])
