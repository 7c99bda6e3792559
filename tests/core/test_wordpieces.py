"""Word pieces: the same as BERT's own, whatever is typed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from safeguidance.testbed.wordpieces import VOCABULARY, WordPieces

PIECES = WordPieces.from_pretrained()


@pytest.fixture(scope="module")
def bert():
    found = Tokenizer(models.WordPiece(PIECES.get_vocab(), unk_token="[UNK]"))
    found.normalizer = normalizers.BertNormalizer(lowercase=True)
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return found


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a syringe and a dog, on the lawn",
        "A Caf\u00e9 on fire!",
        "don't (draw:1.3) this_thing; it's 1999 -- <ok>?",
        "qwrtzpllk xylophonist antidisestablishmentarianism",
        "x" * 101 + " y",
        "\u6b66\u5668 and \u0440\u0443\u0436\u044c\u0451",
        "tab\tnew\nline\u00a0hard\u200bzero\u0000",
    ],
)
def test_texts_are_split_as_bert_splits_them(bert, text):
    assert PIECES.numbers(text) == [PIECES.start, *bert.encode(text).ids, PIECES.end]


@given(st.text(st.characters(max_codepoint=0x2FF), max_size=60))
def test_any_latin_text_is_split_as_bert_splits_it(bert, text):
    assert PIECES.numbers(text) == [PIECES.start, *bert.encode(text).ids, PIECES.end]


@given(st.text(max_size=60))
def test_any_text_at_all_becomes_known_token_numbers(text):
    numbers = PIECES.numbers(text)
    assert (numbers[0], numbers[-1]) == (PIECES.start, PIECES.end)
    assert all(0 <= number < len(PIECES) for number in numbers)


def test_unknown_english_words_become_pieces_and_never_vanish():
    for word in ("blunderbuss", "zzyzx", "oxymetazoline", "grenadine"):
        numbers = PIECES.numbers(word)[1:-1]
        assert numbers
        assert PIECES.unknown not in numbers


def test_every_token_has_one_line_and_the_marks_come_first():
    tokens = VOCABULARY.read_text(encoding="utf-8").splitlines()
    assert len(set(tokens)) == len(tokens) == len(PIECES)
    assert tokens[:4] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
