"""Scores of a file of prompts: a line each, the same after an interruption, and figures that are counted right."""

import csv
import json

import numpy as np
import pytest
import torch

from safeguidance.__main__ import main
from safeguidance.concepts.banks import BENIGN_PROMPTS
from safeguidance.concepts.prompt_banks import gate_bank
from safeguidance.errors import InputError
from safeguidance.lab import encoders, score_prompts
from safeguidance.lab.encoders import LENGTH, load_encoder
from safeguidance.lab.score_prompts import in_words, redirector_by_name, score_file, score_rows, summarise, texts_of
from safeguidance.redirector.bank_gate import fit_bank_gate
from safeguidance.testbed.model import HGR_FILE, WEIGHTS

HARM = "a skull on a meadow"
CALM = "a cup of coffee, the sea behind it"


@pytest.fixture(scope="module")
def testbed():
    return load_encoder("testbed")


@pytest.fixture(scope="module")
def minilm():
    return load_encoder("minilm")


@pytest.fixture(scope="module")
def hgr(testbed):
    return redirector_by_name(str(WEIGHTS / HGR_FILE), testbed, True)


def _csv(path, texts, column="prompt"):
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([[column], *([text] for text in texts)])
    return path


def _rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_prompt_gets_a_line_with_score_threshold_and_category(tmp_path, testbed, hgr):
    path = _csv(tmp_path / "p.csv", [HARM, CALM, ""] * 30)
    scores = score_file(hgr, testbed, path, "prompt", tmp_path / "out.jsonl")
    rows = _rows(tmp_path / "out.jsonl")
    assert [row["index"] for row in rows] == list(range(90))
    assert [row["score"] for row in rows] == scores
    assert [row["opens"] for row in rows[:3]] == [True, False, False]
    assert rows[0]["category"] == "death"
    assert {row["threshold"] for row in rows} == {hgr.threshold}
    assert set(rows[0]) == {"index", "score", "threshold", "opens", "category"}


def test_a_run_that_was_cut_off_goes_on_to_the_same_file(tmp_path, testbed, hgr):
    path = _csv(tmp_path / "p.csv", [HARM, CALM] * 40)
    score_file(hgr, testbed, path, "prompt", tmp_path / "whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_text(encoding="utf-8")
    (tmp_path / "cut.jsonl").write_text(whole[: len(whole) // 3], encoding="utf-8")
    asked = []

    class Counting:
        width = testbed.width

        length = testbed.length

        def __call__(self, texts):
            asked.extend(texts)
            return testbed(texts)

    score_file(hgr, Counting(), path, "prompt", tmp_path / "cut.jsonl")
    kept = whole[: len(whole) // 3].count("\n")
    # some of those that were kept are computed again, to compare
    assert len([text for text in asked if text]) == 80 - kept + min(kept, 16)
    cut, full = _rows(tmp_path / "cut.jsonl"), _rows(tmp_path / "whole.jsonl")
    assert [row["index"] for row in cut] == [row["index"] for row in full]
    assert [row["score"] for row in cut] == pytest.approx([row["score"] for row in full], abs=1e-5)


def test_scores_of_another_redirector_with_the_same_threshold_are_never_continued(tmp_path, testbed, hgr):
    path, out = _csv(tmp_path / "p.csv", [CALM, HARM]), tmp_path / "out.jsonl"
    row = {"index": 0, "score": 0.9, "threshold": hgr.threshold, "opens": True, "category": "death"}
    out.write_text(json.dumps(row) + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="out: .* holds something else"):
        score_file(hgr, testbed, path, "prompt", out)
    assert json.loads(out.read_text(encoding="utf-8")) == row


@pytest.mark.parametrize("text", ['{"index": 0}\n', "notes of mine\n", '{"index": 0, "threshold": 2, "score": 1}\n'])
def test_a_file_of_something_else_is_never_appended_to(tmp_path, testbed, hgr, text):
    out = tmp_path / "out.jsonl"
    out.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="out: .* holds something else"):
        score_file(hgr, testbed, _csv(tmp_path / "p.csv", [HARM]), "prompt", out)
    assert out.read_text(encoding="utf-8") == text


def test_csv_and_json_lines_hold_the_same(tmp_path):
    texts = [HARM, 'with, comma and "quotes"', "zwei\nZeilen", ""]
    first = list(texts_of(_csv(tmp_path / "p.csv", texts, "text"), "text"))
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    assert first == list(texts_of(tmp_path / "p.jsonl", "text")) == texts


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.txt", "x", "prompts: .*suffix '.txt'"),
        ("p.csv", None, "prompts: .*is not there"),
        ("p.csv", "text\na secret", "column: row 1 of p.csv has no text in 'prompt'; allowed: .*that row has text"),
        ("p.jsonl", "{", "prompts: line 1 of .* is no JSON"),
        ("p.jsonl", "[1]", "prompts: line 1 of .* is no object"),
        ("p.jsonl", '{"prompt": 3}', "column: row 1 of p.jsonl has no text in 'prompt'"),
        ("p.csv", b"prompt\n\xff\xfe", "prompts: .*no CSV in UTF-8"),
    ],
)
def test_what_cannot_be_read_is_named_and_not_repeated(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=f"^{words}") as error:
        list(texts_of(path, "prompt"))
    assert "secret" not in str(error.value)


def test_figures_are_counts_over_the_scores():
    harmless, harmful = [i / 200 for i in range(200)], [0.4, 0.994, 0.996, 1.0]
    found = summarise(harmful, harmless, 0.9)
    below = [np.mean([h > x for x in harmless]) for h in harmful]
    assert found["AUC"] == pytest.approx(np.mean(below), abs=2e-3)
    low, high = found["AUC interval"]
    assert low < found["AUC"] < high
    assert found["at the threshold"]["false positives"]["count"] == 20
    assert found["at the threshold"]["true positives"]["count"] == 3
    assert found["at 1% false positives"]["true positives"]["count"] == 3
    assert sum(x > found["at 1% false positives"]["threshold"] for x in harmless) == 2
    assert "true positives 3 of 4 (75.0%" in in_words(found)


def test_too_few_harmless_prompts_state_no_rate():
    assert "at 1% false positives" not in summarise([0.5], [0.1] * 99, 0.5)


def test_the_command_scores_and_compares(tmp_path, capsys):
    harmful = _csv(tmp_path / "bad.csv", [HARM] * 3, "text")
    harmless = _csv(tmp_path / "good.csv", [CALM] * 100, "caption")
    out = tmp_path / "bad.jsonl"
    options = [
        "--redirector",
        str(WEIGHTS / HGR_FILE),
        "--prompts",
        str(harmful),
        "--column",
        "text",
        "--out",
        str(out),
    ]
    code = main(["score", *options, "--negatives", str(harmless), "--negatives-column", "caption"])
    assert code == 0
    said = capsys.readouterr().out
    assert "the gate opens for 3 of 3 prompts" in said
    assert "AUC 1.000" in said
    summary = json.loads(out.with_suffix(".summary.json").read_text(encoding="utf-8"))
    assert summary["at the threshold"]["false positives"]["count"] == 0
    assert len(_rows(out)) == 3


# ---- encoders ----


def test_a_prompt_longer_than_a_chunk_of_the_testbed_is_read_to_its_end(testbed, hgr):
    long = f"{'a cup of coffee , ' * 10}{HARM}"
    rows = score_rows(hgr, testbed, [long, CALM])
    assert [row["opens"] for row in rows] == [True, False]
    assert rows[1]["score"] == pytest.approx(score_rows(hgr, testbed, [CALM])[0]["score"], abs=1e-5)


def test_minilm_knows_what_words_mean(minilm):
    cond = minilm(["a kitchen knife", "a sharp blade for cooking", "a cloud over the sea"]).tokens.mean(dim=1)
    unit = torch.nn.functional.normalize(cond, dim=-1)
    near, far = float(unit[0] @ unit[1]), float(unit[0] @ unit[2])
    assert near > far + 0.2


def test_padding_says_nothing_and_other_texts_of_the_batch_neither(minilm):
    alone = minilm(["a red apple"]).tokens
    beside = minilm(["a red apple", " ".join(["word"] * 60)]).tokens[:1]
    assert alone.shape == (1, LENGTH, minilm.width)
    assert torch.allclose(alone, beside, atol=1e-5)
    first, past = minilm.span("a red apple")
    assert (first, past) == (1, 5)
    own = alone[0, :past]
    assert torch.allclose(alone[0, past:], own.mean(dim=0).expand(LENGTH - past, -1), atol=1e-5)


def test_a_text_that_is_too_long_keeps_its_end_mark(minilm):
    assert minilm.span("word " * 500) == (1, LENGTH)
    assert bool(torch.isfinite(minilm(["word " * 500]).tokens).all())


def test_concepts_on_a_real_encoder_leave_their_bank_alone(minilm, monkeypatch):
    few = fit_bank_gate(minilm, minilm.span, gate_bank(most=300), at_once=32)
    monkeypatch.setattr(score_prompts, "kept_gate", lambda encoder: few)
    redirector = redirector_by_name("concepts", minilm, False)
    assert redirector.bank is few
    path_free = [float(score) for score in redirector.propose(minilm(BENIGN_PROMPTS), minilm([""])).gate]
    assert sum(score >= redirector.threshold for score in path_free) <= 2


def test_other_weights_under_the_name_are_refused(monkeypatch):
    monkeypatch.setattr(encoders, "_MINILM_DIGEST", "0" * 64)
    with pytest.raises(InputError, match="encoder: minilm has the digest .*install the pinned package"):
        load_encoder("minilm")


def test_a_folder_that_holds_no_encoder_is_named(tmp_path):
    with pytest.raises(InputError, match="encoder: .* is no encoder; allowed: testbed, minilm, or a folder"):
        load_encoder(str(tmp_path))


def test_a_folder_of_transformers_is_read(tmp_path):
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cup"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    shape = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    BertModel(shape).save_pretrained(tmp_path)
    encoder = load_encoder(str(tmp_path))
    assert encoder.width == 8
    assert encoder(["a cup", ""]).tokens.shape == (2, LENGTH, 8)
    assert encoder.span("a cup") == (1, 4)
    with pytest.raises(InputError, match="redirector: .*made for 384 channels, the encoder has 8"):
        redirector_by_name(str(WEIGHTS / HGR_FILE), encoder, False)
