"""Damaged weight files: every one is refused in one sentence or behaves exactly as the original, none differently.

Mutations are drawn from seeds: bits of the tensors and of the header, sizes, structure, dtypes, and every field of a
card. Cards are also changed as a faulty program would write them, with digests that fit, and as older files without any
digest.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load as load_bytes

from safeguidance.conditioning import Conditioning
from safeguidance.redirector.hgr import HGR, HGRConfig
from safeguidance.redirector.text_weights import TextCard, load_text_redirector, read_text_card, save_text_redirector
from safeguidance.redirector.weights import HGRCard, load_hgr, read_card, save_hgr
from safeguidance.testbed.model import HGR_FILE, WEIGHTS
from safeguidance.training.lora import LoRA, LoRACard, load_lora, save_lora
from safeguidance.weight_files import meta_digest, tensor_digest
from tests.core.weight_fields import CARD_FIELDS, LORA_FIELDS, NETWORK_FIELDS, TEXT_FIELDS

SHAPE = HGRConfig(16, ("knives", "drugs"), width=16, layers=1, heads=2, chunk=5)
CARD = HGRCard("SD15", "A", 1.5, 0.3, 0.01, 100, "made up", "Apache-2.0", {"steps": 3, "figures": {"AUC": 0.9}})
TEXT_CARD = TextCard("SomeClip", 0.3, 0.01, 100, "made up", "Apache-2.0", {"steps": 3, "figures": {"AUC": 0.9}})
LORA_CARD = LoRACard("SD15", "HGR x", 0.4, 10, 5, "prompts.txt", "Apache-2.0", {"steps": 3})
LONGEST = 500
"""Characters of a message beside the path."""


@dataclass(frozen=True)
class Original:
    """A good file: its bytes, and how to read what it does."""

    data: bytes
    behave: Callable[[Path], dict]

    @property
    def start(self) -> int:
        """Where the tensors begin."""
        return 8 + struct.unpack("<Q", self.data[:8])[0]


def _hgr_behaves(path):
    config, card = read_card(path)
    redirector = load_hgr(path)
    tokens = torch.randn(2, 10, config.context_width, generator=torch.Generator().manual_seed(0))
    proposal = redirector.propose(Conditioning(tokens), Conditioning(torch.zeros_like(tokens)))
    values = {"threshold": redirector.threshold, "kappa": redirector.kappa, "base": redirector.base_hash}
    tensors = {"gate": proposal.gate, "delta": proposal.delta[0], **redirector.network.state_dict()}
    return {"config": config, "card": card, **values, **tensors}


def _lora_behaves(path):
    lora, card = load_lora(path)
    return {"card": card, "names": lora.names, "rank": lora.rank, "alpha": lora.alpha, **lora.state_dict()}


def _text_behaves(path):
    config, card = read_text_card(path)
    redirector = load_text_redirector(path)
    prompt = Conditioning(torch.randn(2, 10, config.context_width, generator=torch.Generator().manual_seed(0)))
    values = {"threshold": redirector.threshold, "encoder": redirector.encoder, "hash": redirector.encoder_hash}
    tensors = {"gate": redirector.scores(prompt), "delta": redirector.change(prompt).tokens}
    return {"config": config, "card": card, **values, **tensors, **redirector.network.state_dict()}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """Original by name: a small HGR, the shipped one, a small LoRA, a small text redirector."""
    folder = tmp_path_factory.mktemp("originals")
    torch.manual_seed(0)
    network = HGR(SHAPE)
    torch.nn.init.normal_(network.leave.weight)
    save_hgr(folder / "small.safetensors", network, CARD)
    save_text_redirector(folder / "text.safetensors", network, TEXT_CARD)
    lora = LoRA({"block.attn": (6, 4), "block.out": (4, 5)}, 2)
    for up in lora.up:
        torch.nn.init.normal_(up)
    save_lora(folder / "lora.safetensors", lora, LORA_CARD)
    return {
        "small": Original((folder / "small.safetensors").read_bytes(), _hgr_behaves),
        "shipped": Original((WEIGHTS / HGR_FILE).read_bytes(), _hgr_behaves),
        "text": Original((folder / "text.safetensors").read_bytes(), _text_behaves),
        "lora": Original((folder / "lora.safetensors").read_bytes(), _lora_behaves),
    }


@pytest.fixture
def judge(originals, tmp_path):
    """A function that says whether a mutated file is "refused" or the "same"; anything else fails the test."""
    expected = {}

    def write(data):
        path = tmp_path / "case.safetensors"
        path.write_bytes(data)
        return path

    def decide(name, data):
        original = originals[name]
        if name not in expected:
            expected[name] = original.behave(write(original.data))
        path = write(data)
        try:
            found = original.behave(path)
        except ValueError as error:
            _check_sentence(str(error), path)
            return "refused"
        assert _same(found, expected[name]), "accepted, and it behaves differently"
        return "same"

    return decide


def _check_sentence(text, path):
    assert text.startswith(("HGR file ", "LoRA file ", "text redirector file ")), text
    assert str(path) in text
    assert text.count("; ") >= 2, f"no word on what is allowed and what to do: {text}"
    assert text.isprintable(), "more than one line, or control characters"
    assert len(text) < LONGEST + len(str(path)), text


def _same(found, expected):
    if found.keys() != expected.keys():
        return False
    pairs = [(found[key], expected[key]) for key in expected]
    return all(a.equal(b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


# --- bits ----------------------------------------------------------------------------------------------------------


def _flipped(data, rng, first, last):
    """Data with 1 to 32 different bits of the bytes ``first`` to before ``last`` flipped."""
    out = bytearray(data)
    for bit in rng.sample(range(8 * first, 8 * last), rng.randint(1, 32)):
        out[bit // 8] ^= 1 << bit % 8
    return bytes(out)


@pytest.mark.parametrize("name", ["small", "shipped", "lora"])
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_of_the_tensors_are_refused(originals, judge, name, seed):
    original, rng = originals[name], random.Random(f"tensors {seed}")
    for _ in range(10 if name == "shipped" else 40):
        assert judge(name, _flipped(original.data, rng, original.start, len(original.data))) == "refused"


@pytest.mark.parametrize("name", ["small", "lora", "text"])
@pytest.mark.parametrize("seed", range(3))
def test_flipped_bits_of_the_header_change_nothing_in_silence(originals, judge, name, seed):
    original, rng = originals[name], random.Random(f"header {seed}")
    for _ in range(50):
        judge(name, _flipped(original.data, rng, 0, original.start))


@pytest.mark.parametrize("seed", range(2))
def test_a_single_flipped_bit_of_the_header_changes_nothing_in_silence(originals, judge, seed):
    original, rng = originals["small"], random.Random(f"single {seed}")
    for bit in rng.sample(range(8 * original.start), 100):
        out = bytearray(original.data)
        out[bit // 8] ^= 1 << bit % 8
        judge("small", bytes(out))


# --- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small", "lora", "text"])
def test_truncated_files_are_refused(originals, judge, name):
    data, rng = originals[name].data, random.Random(f"short {name}")
    for size in (0, 1, 7, 8, 9, originals[name].start, len(data) - 1, *rng.sample(range(len(data)), 30)):
        assert judge(name, data[:size]) == "refused"


@pytest.mark.parametrize("name", ["small", "lora", "text"])
def test_files_with_more_or_moved_bytes_are_refused(originals, judge, name):
    data, rng = originals[name].data, random.Random(f"long {name}")
    for _ in range(20):
        more = rng.randbytes(rng.randint(1, 1000))
        place = rng.randrange(originals[name].start, len(data))
        assert judge(name, data + more) == "refused"
        assert judge(name, data[:place] + more + data[place:]) == "refused"


def test_another_length_of_the_header_is_refused(originals, judge):
    data, rng = originals["small"].data, random.Random("length")
    for length in (
        0,
        1,
        2**31,
        2**32,
        2**63,
        2**64 - 1,
        *(rng.getrandbits(64) >> rng.randrange(64) for _ in range(30)),
    ):
        assert judge("small", struct.pack("<Q", length) + data[8:]) == "refused"


@pytest.mark.parametrize(
    "content",
    [b"\x80\x04K\x01.", b"PK\x03\x04" + bytes(200), bytes(100), b"{}", struct.pack("<Q", 2) + b"[]", b"\xff" * 300],
    ids=["pickle", "zip", "zeros", "json", "list", "ones"],
)
def test_other_formats_are_refused(judge, content):
    assert judge("small", content) == "refused"


# --- structure and dtypes ------------------------------------------------------------------------------------------


def _parts(data):
    """Header as an object, and the tensors' bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _file(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body


def _with_digests(header, body):
    """The same file with digests that fit, as a program with a fault would write it."""
    meta = header["__metadata__"]
    meta["tensor_digest"] = tensor_digest(load_bytes(_file(header, body)))
    meta["header_digest"] = meta_digest(meta)
    return _file(header, body)


def _tensor_names(header):
    return sorted(key for key in header if key != "__metadata__")


def _transposed(header, rng):
    entry = header[rng.choice([n for n in _tensor_names(header) if len(set(header[n]["shape"])) == 2])]
    entry["shape"].reverse()


def _swapped(header, rng):
    first, second = rng.sample(_tensor_names(header), 2)
    header[first], header[second] = header[second], header[first]


def _renamed(header, rng):
    name = rng.choice(_tensor_names(header))
    header[rng.choice(["", "x", name + ".weight", name.upper(), "\n" * 900, "__proto__"])] = header.pop(name)


def _without(header, rng):
    del header[rng.choice(_tensor_names(header))]


def _odd_entry(header, rng):
    entry = header[rng.choice(_tensor_names(header))]
    key = rng.choice(["dtype", "shape", "data_offsets"])
    entry[key] = rng.choice([None, True, -1, 1.5, 2**70, "F16", [], [-1], [1.5], [2**63, 2**63], [[1]], {"a": 1}])


def _odd_meta(header, rng):
    header["__metadata__"] = rng.choice([None, [], "x", {}, {"format": "safeguidance-hgr"}, {"format": 1}, {"a": {}}])


def _lost_meta(header, rng):
    del header["__metadata__"][rng.choice(sorted(header["__metadata__"]))]


STRUCTURE = (_transposed, _swapped, _renamed, _without, _odd_entry, _odd_meta, _lost_meta)


@pytest.mark.parametrize("name", ["small", "lora", "text"])
@pytest.mark.parametrize("change", STRUCTURE)
def test_another_structure_changes_nothing_in_silence(originals, judge, change, name):
    rng = random.Random(f"{change.__name__} {name}")
    for _ in range(20):
        header, body = _parts(originals[name].data)
        change(header, rng)
        judge(name, _file(header, body))


@pytest.mark.parametrize("dtype", ["BF16", "I16", "U16", "F8_E4M3", "F32", "F4", "X", "C64"])
@pytest.mark.parametrize("share", ["one", "all"])
def test_another_dtype_is_refused(originals, judge, dtype, share):
    rng = random.Random(dtype)
    for digests in (True, False) if dtype in ("BF16", "I16") else (False,):
        header, body = _parts(originals["small"].data)
        for name in _tensor_names(header) if share == "all" else [rng.choice(_tensor_names(header))]:
            header[name]["dtype"] = dtype
        assert judge("small", _with_digests(header, body) if digests else _file(header, body)) == "refused"


@pytest.mark.parametrize("name", ["small", "lora", "text"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_refused(originals, judge, name, value):
    header, body = _parts(originals[name].data)
    rng = random.Random(f"{value}")
    for tensor in rng.sample(_tensor_names(header), 6):
        begin, end = header[tensor]["data_offsets"]
        width = 4 if header[tensor]["dtype"] == "F32" else 2
        place = rng.randrange(begin, end, width)
        raw = struct.pack("<f" if width == 4 else "<e", value)
        assert judge(name, _with_digests(header, body[:place] + raw + body[place + width :])) == "refused"


# --- cards: JSON fragments in the place of one field's value ---------------------------------------------------------

FIELDS = [
    *(("small", "card", field, values) for field, values in CARD_FIELDS.items()),
    *(("small", "network", field, values) for field, values in NETWORK_FIELDS.items()),
    *(("lora", "card", field, values) for field, values in LORA_FIELDS.items()),
    *(("text", "card", field, values) for field, values in TEXT_FIELDS.items()),
]


def _with_entry(data, entry, text, digests):
    """A file with another metadata entry: with digests that fit ("new"), or as an older file without any ("old")."""
    header, body = _parts(data)
    meta = header["__metadata__"]
    meta[entry] = text
    if digests == "old":
        meta["version"] = "1"
        del meta["tensor_digest"], meta["header_digest"]
    elif digests == "new":
        return _with_digests(header, body)
    return _file(header, body)


def _with_field(data, entry, field, fragment):
    fields = {key: json.dumps(value) for key, value in json.loads(_parts(data)[0]["__metadata__"][entry]).items()}
    fields[field] = fragment
    return "{" + ", ".join(f"{json.dumps(key)}: {value}" for key, value in fields.items() if value) + "}"


@pytest.mark.parametrize("digests", ["new", "old"])
@pytest.mark.parametrize(("name", "entry", "field", "values"), FIELDS, ids=lambda v: v if isinstance(v, str) else "")
def test_a_field_of_another_type_or_range_is_refused(originals, judge, name, entry, field, values, digests):
    data = originals[name].data
    for fragment in values:
        changed = _with_entry(data, entry, _with_field(data, entry, field, fragment), digests)
        assert judge(name, changed) == "refused", fragment[:80]


@pytest.mark.parametrize(("name", "entry"), [("small", "card"), ("small", "network"), ("lora", "card")])
def test_cards_with_missing_and_unknown_fields_are_refused(originals, judge, name, entry):
    data = originals[name].data
    later = ("training", "base_hash", "data_hash", "counts")
    fields = json.loads(_parts(data)[0]["__metadata__"][entry])
    for field in [key for key in fields if key not in later]:
        assert judge(name, _with_entry(data, entry, _with_field(data, entry, field, ""), "old")) == "refused"
    for field in ("extra", "", "__class__", "\ud800", "x" * 5000, "Threshold"):
        assert judge(name, _with_entry(data, entry, _with_field(data, entry, field, "1"), "new")) == "refused"


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 50_000, "", "{", "null", "[]", '"x"', "1", "NaN", "x" * 2_000_000]
)
def test_entries_that_are_no_object_are_refused(originals, judge, text):
    for name, entry in (("small", "card"), ("small", "network"), ("lora", "card")):
        assert judge(name, _with_entry(originals[name].data, entry, text, "new")) == "refused"


@pytest.mark.parametrize("field", ["threshold", "threshold", "kappa", "licence"])
def test_a_field_named_twice_is_refused(originals, judge, field):
    data = originals["small"].data
    card = json.loads(_parts(data)[0]["__metadata__"]["card"])
    text = f'{json.dumps(card)[:-1]}, "{field}": {json.dumps(card[field])}}}'
    assert judge("small", _with_entry(data, "card", text, "new")) == "refused"


@pytest.mark.parametrize(
    ("field", "value"), [("threshold", "0.9"), ("kappa", "2.0"), ("base_hash", '"x"'), ("data", '"y"')]
)
def test_an_allowed_value_that_was_not_saved_is_refused(originals, judge, field, value):
    data = originals["small"].data
    assert judge("small", _with_entry(data, "card", _with_field(data, "card", field, value), "stale")) == "refused"
    assert (
        judge("small", _with_entry(data, "network", _with_field(data, "network", "chunk", "7"), "stale")) == "refused"
    )


@pytest.mark.parametrize("name", ["small", "shipped", "lora"])
def test_the_originals_are_accepted(originals, judge, name):
    """Without this, a loader that refuses everything would pass."""
    header, body = _parts(originals[name].data)
    assert judge(name, _with_digests(header, body)) == "same"
    assert judge(name, _file(dict(sorted(header.items(), reverse=True)), body)) == "same"
    card = header["__metadata__"]["card"]
    assert judge(name, _with_entry(originals[name].data, "card", card, "old")) == "same"
