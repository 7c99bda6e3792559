"""Weight files: what is saved can be loaded, older files are read with a warning, and the command shows and resaves."""

import json
import logging
import struct
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from safeguidance.__main__ import main
from safeguidance.redirector.hgr import HGR
from safeguidance.redirector.weights import HGRCard, load_hgr, read_card, save_hgr
from safeguidance.testbed.model import DENOISER_FILE, HGR_FILE, TEXT_FILE, WEIGHTS, load_testbed
from safeguidance.testbed.text_encoder import CONTEXT
from tests.core.toy_task import SHAPE

CARD = HGRCard("SD15", "A", 1.5, 0.3, 0.01, 100, "made up", "Apache-2.0")
SHIPPED = sorted(WEIGHTS.glob("*.safetensors"))


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "some.safetensors"
    save_hgr(path, HGR(SHAPE), CARD)
    return path


def _meta(path):
    with safe_open(path, "pt") as opened:
        return opened.metadata()


@pytest.fixture
def older(file):
    """A file as version 1 wrote it."""
    meta = {key: value for key, value in _meta(file).items() if not key.endswith("_digest")}
    save_file(load_file(file), file, {**meta, "version": "1"})
    return file


# --- saving --------------------------------------------------------------------------------------------------------


def test_what_training_cannot_know_is_saved_as_unknown(tmp_path):
    path = tmp_path / "a.safetensors"
    training = {"figures": {"AUC": float("nan")}, "latent": (4, 8, 8), "command": "a\x00b", "seed": 2**64 - 1}
    save_hgr(path, HGR(SHAPE), replace(CARD, training=training))
    expected = {"figures": {"AUC": None}, "latent": [4, 8, 8], "command": "a?b", "seed": 2**64 - 1}
    assert read_card(path)[1].training == expected


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"threshold": float("nan")}, "threshold = None; allowed: a number above 0, at most 1; nothing was written"),
        ({"threshold": 0.0}, "threshold = 0.0; allowed"),
        ({"kappa": 1.0}, "kappa = 1.0; allowed"),
        ({"counts": {"knives": -1}}, "counts = "),
    ],
)
def test_a_card_that_could_not_be_loaded_is_not_saved(file, changes, words):
    before = file.read_bytes()
    with pytest.raises(ValueError, match=words):
        save_hgr(file, HGR(SHAPE), replace(CARD, **changes))
    assert file.read_bytes() == before


@pytest.mark.parametrize("value", [float("nan"), 1e6])
def test_weights_that_could_not_be_loaded_are_not_saved(file, value):
    before, network = file.read_bytes(), HGR(SHAPE)
    torch.nn.init.constant_(network.leave.bias, value)
    with pytest.raises(ValueError, match=r"some.safetensors: it was not written: values in leave.bias are not finite"):
        save_hgr(file, network, CARD)
    assert file.read_bytes() == before


# --- loading -------------------------------------------------------------------------------------------------------


def test_loading_draws_no_random_numbers(file):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_hgr(file)
    assert torch.rand(3).equal(expected)


@pytest.mark.parametrize("name", ["X.SAFETENSORS", "x.SafeTensors"])
def test_the_suffix_may_be_in_capitals(file, name):
    assert load_hgr(file.rename(file.with_name(name))).threshold == 0.3


@pytest.mark.parametrize(
    "shape", [{"layers": 64}, {"width": 16_384}, {"context_width": 65_536, "pooled_width": 65_536}]
)
def test_a_huge_network_in_a_card_takes_no_memory(older, shape):
    # the largest that a card may name would need 0.4 TB
    meta = _meta(older)
    network = {**json.loads(meta["network"]), "width": 16_384, **shape}
    save_file(load_file(older), older, {**meta, "network": json.dumps(network)})
    with pytest.raises(ValueError, match="does not hold the tensors its header describes"):
        load_hgr(older)


def test_an_edited_card_is_seen_before_any_tensor_is_read(file):
    meta = _meta(file)
    card = {**json.loads(meta["card"]), "threshold": 0.9}
    save_file(load_file(file), file, {**meta, "card": json.dumps(card)})
    with pytest.raises(ValueError, match="it was changed after it was saved"):
        read_card(file)


def test_an_older_file_is_read_with_one_warning_that_says_what_to_do(older, caplog):
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        assert load_hgr(older).threshold == 0.3
    (record,) = caplog.records
    assert f"{older} is an older file without a digest" in record.getMessage()
    assert f"`python -m safeguidance weights resave {older}`" in record.getMessage()


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_files_have_a_digest(path, capsys, caplog):
    assert main(["weights", "show", str(path)]) == 0
    assert "digest: matches the contents" in capsys.readouterr().out
    assert not caplog.records


@pytest.mark.parametrize("name", [TEXT_FILE, DENOISER_FILE])
def test_damaged_weights_of_the_testbed_are_refused(tmp_path, name):
    for path in SHIPPED:
        data = bytearray(path.read_bytes())
        if path.name == name:
            data[-1000] ^= 4
        (tmp_path / path.name).write_bytes(data)
    with pytest.raises(ValueError, match=f"{name}: it holds other values than those that were saved.*restore it"):
        load_testbed(tmp_path)


# --- the command ---------------------------------------------------------------------------------------------------


def test_resave_adds_a_digest_and_changes_nothing_else(older, capsys):
    before, card = load_file(older), read_card(older)
    assert main(["weights", "resave", str(older)]) == 0
    assert f"written: {older}" in capsys.readouterr().out
    after = load_file(older)
    assert list(after) == list(before)
    assert all(after[key].equal(before[key]) and after[key].dtype == before[key].dtype for key in before)
    assert read_card(older) == card
    assert _meta(older)["version"] == "2"


def test_resave_leaves_a_file_that_has_one(file, capsys):
    before = file.stat().st_mtime_ns
    assert main(["weights", "resave", str(file)]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert file.stat().st_mtime_ns == before


def test_resave_writes_elsewhere_on_request(older):
    other, before = older.with_name("other.safetensors"), older.read_bytes()
    assert main(["weights", "resave", str(older), "--out", str(other)]) == 0
    assert read_card(other)[1] == CARD
    assert older.read_bytes() == before


def test_resave_does_not_bless_a_damaged_file(file, capsys):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert main(["weights", "resave", str(file)]) == 2
    assert "holds other values than those that were saved" in capsys.readouterr().err
    assert file.read_bytes() == bytes(data)


def test_resave_refuses_a_name_that_no_loader_reads(older, capsys):
    assert main(["weights", "resave", str(older), "--out", "a.bin"]) == 2
    assert "--out: it is a.bin; allowed: a name that ends in .safetensors" in capsys.readouterr().err


def test_show_prints_the_card(capsys):
    assert main(["weights", "show", str(WEIGHTS / HGR_FILE)]) == 0
    out = capsys.readouterr().out
    network = load_hgr(WEIGHTS / HGR_FILE).network
    state = network.state_dict()
    for text in (
        "HGR file",
        "version 2",
        f"{len(state)} tensors, {sum(tensor.numel() for tensor in state.values()):,} numbers",
        "card, licence: Apache-2.0",
        f"network, width: {network.config.width}",
        f"network, context_width: {CONTEXT}",
    ):
        assert text in out


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"\x80\x04K\x01.", "cannot be read"),
        (struct.pack("<Q", 2) + b"{}", "says its format is"),
    ],
    ids=["missing", "pickle", "foreign"],
)
def test_show_names_what_is_wrong(tmp_path, capsys, content, words):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    assert main(["weights", "show", str(path)]) == 2
    assert f"error: weight file {path}: it {words}" in capsys.readouterr().err
