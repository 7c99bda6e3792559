"""Prompt sets: files are read or refused in words, templates are matched, the checker finds what is planted."""

import json
import re
from dataclasses import replace

import pytest

from safeguidance.__main__ import main
from safeguidance.concepts.categories import FIELD_PRESETS, Category
from safeguidance.errors import InputError
from safeguidance.prompts.check import check_prompts
from safeguidance.prompts.files import Example, Row, lies_within, read_prompts, scan_prompts, write_prompts
from safeguidance.prompts.templates import make_prompts
from safeguidance.roc import auc, curve, threshold
from safeguidance.testbed.captions import known_wording
from safeguidance.testbed.concepts import ALL_PRESETS, PREFIX, TESTBED_PRESETS
from safeguidance.testbed.prompts import ROW_MAKERS
from safeguidance.testbed.world import stand_ins, things
from safeguidance.training.align_data import read_unlabelled


def _file(folder, text, name="p.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- reading -------------------------------------------------------------------------------------------------------


def test_a_table_gives_rows_with_safe_halves_as_hard_negatives(tmp_path):
    text = '\ufeffPrompt,safe_prompt,category\n"a knife, red","a spoon, red",violence\na cat,,\n'
    data = read_prompts(_file(tmp_path, text))
    assert data.examples[0] == Example("a knife, red", "a spoon, red", "violence", line=2)
    assert data.rows() == [
        Row("a knife, red", "a spoon, red", 0),
        Row("a spoon, red", "a spoon, red", -1),
        Row("a cat", "a cat", -1),
    ]
    assert data.categories == ("violence",)
    assert data.counts() == {"violence": 1, "clean": 1}


def test_the_names_of_copro_are_understood(tmp_path):
    text = "unsafe_prompt,safe_prompt,concept,category\na,b,knife,Shocking Images\nc,d,slur,Hate\n"
    assert read_prompts(_file(tmp_path, text)).categories == ("hate", "shocking")


def test_json_lines_and_tables_hold_the_same(tmp_path):
    examples = make_prompts(FIELD_PRESETS[:2], count=5)
    for name in ("a.csv", "a.jsonl"):
        write_prompts(tmp_path / name, examples)
        assert [replace(e, line=0) for e in read_prompts(tmp_path / name).examples] == examples


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "prompt,safe_prompt,category\nok,fine,hate\na,b,bombs\n",
            "line 3, column 'category': unknown; allowed are hate, harassment",
        ),
        ("prompt,safe_prompt,category\na,,hate\n", "line 2, column 'safe_prompt': .*harmful .hate. and has no safe"),
        ("prompt,safe_prompt,category\na,A,hate\n", "line 2, column 'safe_prompt': .*harmful prompt itself"),
        ("prompt,safe_prompt,category\na,b,\n", "line 2, column 'safe_prompt': .*no category"),
        ("unsafe_prompt,safe_prompt,category\n , b,hate\n", "line 2, column 'unsafe_prompt': the prompt is empty"),
        ('prompt,safe_prompt,category\n"two\nlines",b,hate\na, cat,b,hate\n', "line 4: 4 fields, the header has 3"),
        ('prompt,safe_prompt,category\na,b,hate\na,"b"c,hate\n', "line 3: not CSV"),
        ("text,label\na,1\n", "line 1: there is no category column .accepted: category.;"),
        ("prompt,category,split\na,,dev\n", "line 2, column 'split': unknown; allowed are train, held-out"),
        ("prompt,category\n", "has no rows"),
        (b"prompt,category\na,\ncaf\xe9,\n", "line 3: not UTF-8"),
    ],
)
def test_bad_tables_are_refused_with_line_and_column(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read_prompts(_file(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"prompt": "a", "category": ""}\n{"prompt": "b", category: ""}\n', "line 2, column '17': not JSON"),
        ('{"prompt": 3, "category": ""}\n', "line 1, column 'prompt': int instead of a text"),
        ('["a"]\n', "line 1: list instead of an object"),
        ('{"prompt": "a"}\n', "line 1: there is no category column"),
        ("[" * 100_000, "line 1: not JSON that can be read"),
        ('{"prompt": ' + "9" * 10_000 + "}", "line 1: not JSON that can be read"),
    ],
)
def test_bad_json_lines_are_refused_with_line_and_column(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        read_prompts(_file(tmp_path, text, "p.jsonl"))


SECRETS = {
    "p.csv": ["SECRET,k\na,b\n", "prompt,category\na,SECRET\n", "prompt,category,split\na,,SECRET\n", "SECRET"],
    "p.jsonl": ['{"SECRET": "x"}\n', '{"prompt": "a", "category": "SECRET"}\n', '{"prompt": ["SECRET"]}\n', "SECRET"],
    "p.txt": ["SECRET"],
}


@pytest.mark.parametrize("read", [read_prompts, read_unlabelled])
@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in SECRETS.items() for text in texts])
def test_messages_repeat_nothing_that_a_file_holds(tmp_path, name, text, read):
    try:
        read(_file(tmp_path, text, name))
    except InputError as error:
        assert error.field == "dataset"
        assert "SECRET" not in str(error)
    else:
        # these are prompts without labels, of whatever they speak
        assert read is read_unlabelled


def test_a_file_lies_within_a_folder_when_no_link_leads_out(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    (inside / "sub" / "a").touch()
    (inside / "link").symlink_to(outside, target_is_directory=True)
    (inside / "near").symlink_to(inside / "sub", target_is_directory=True)
    found = {name: lies_within(inside / name, inside) for name in ("sub/a", "near/a", "new", "link/a", "../in2/a")}
    assert found == {"sub/a": True, "near/a": True, "new": True, "link/a": False, "../in2/a": False}
    assert not lies_within(inside / "nul\0", inside)


def test_all_bad_rows_are_named_at_once_and_other_files_refused(tmp_path):
    text = "prompt,safe_prompt,category\n" + "a,,hate\n" * 30
    with pytest.raises(ValueError, match="30 rows cannot be used(.|\n)*line 21(.|\n)*and 10 more"):
        read_prompts(_file(tmp_path, text))
    with pytest.raises(ValueError, match="'.parquet'; allowed: a file with the suffix .csv"):
        read_prompts(_file(tmp_path, "x", "p.parquet"))
    with pytest.raises(ValueError, match="does not exist.*data make"):
        read_prompts(tmp_path / "none.csv")
    own = _file(tmp_path, "prompt,safe_prompt,category\na,b,spiders\n")
    assert read_prompts(own, ["spiders"]).categories == ("spiders",)


# --- templates -----------------------------------------------------------------------------------------------------


def _wordings(category):
    """What a prompt of a category may say: its phrases, and in the testbed all that a defender knows of its things."""
    known = category.removeprefix(PREFIX)
    if known == category:
        return ALL_PRESETS[category].phrases
    return [text for kind in stand_ins(known) for text in (kind, *things()[kind].names, *known_wording()[kind])]


@pytest.mark.parametrize("categories", [FIELD_PRESETS, TESTBED_PRESETS], ids=["field", "testbed"])
def test_templates_are_matched_and_pass_the_checker(categories):
    examples = make_prompts(categories, count=60, makers=ROW_MAKERS)
    assert not [f for f in check_prompts(examples, presets=ALL_PRESETS) if f.kind != "note"]
    for split, number in (("train", 48), ("held-out", 12)):
        for category in categories:
            assert sum(e.category == category.name and e.split == split for e in examples) == number
    for example in examples:
        if example.category:
            changed = set(example.prompt.split()) ^ set(example.safe.split())
            assert changed
            assert len(changed) < 10
            assert any(phrase in example.prompt for phrase in _wordings(example.category))
            assert not any(phrase in example.safe for phrase in ALL_PRESETS[example.category].phrases)
    texts = [e.prompt for e in examples]
    assert len(set(texts)) == len(texts)
    assert (
        make_prompts(categories, count=60, makers=ROW_MAKERS)
        == examples
        != make_prompts(categories, count=60, seed=1, makers=ROW_MAKERS)
    )


def test_own_categories_get_an_everyday_counterpart():
    examples = make_prompts([Category("spiders", ("a huge spider",))], count=40, held_out=0)
    pairs = [e for e in examples if e.category]
    assert len(pairs) == 40
    assert all("spider" in e.prompt and "spider" not in e.safe for e in pairs)
    with pytest.raises(InputError, match="^count: .*'spiders' do not fit .*; allowed: no more than .*; ask for fewer"):
        make_prompts([Category("spiders", ("a huge spider",))], count=300_000, held_out=0.999)


@pytest.mark.parametrize("wrong", [{"count": 0}, {"held_out": 1.0}, {"categories": ()}])
def test_impossible_requests_are_refused(wrong):
    with pytest.raises(InputError) as error:
        make_prompts(**{"categories": FIELD_PRESETS, **wrong})
    assert error.value.field in wrong


# --- the checker ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good():
    return make_prompts(FIELD_PRESETS[:3], count=60)


def _kinds(examples):
    return {f.kind for f in check_prompts(examples) if f.kind != "note"}


def _first(examples, **wanted):
    return next(e for e in examples if all(getattr(e, k) == v for k, v in wanted.items()))


def test_leaks_are_found_word_for_word_and_nearly(good):
    train = _first(good, split="train", category="hate")
    for prompt in (train.prompt, train.safe, " ".join(reversed(train.prompt.split())), train.prompt.upper() + "!"):
        assert _kinds([*good, Example(prompt, prompt, "", "held-out")]) >= {"leak"}
    long = "a very long prompt about many things that stand on a table in the old kitchen by night"
    near = [Example(long, long), Example(long + " again", long + " again", split="held-out")]
    assert _kinds([*good, *near]) == {"leak"}
    assert not _kinds([*good, near[0], Example(f"{long} {long[::-1]}", f"{long} {long[::-1]}", split="held-out")])


def test_duplicates_contradictions_and_unsafe_counterparts_are_found(good):
    harmful = _first(good, split="train", category="hate")
    assert _kinds([*good, harmful]) == {"duplicate"}
    assert "contradiction" in _kinds([*good, Example(harmful.prompt, harmful.prompt)])
    assert _kinds([*good, Example("a hate symbol here", "a hate symbol there", "hate")]) == {"unsafe counterpart"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: f"{e}, trending", "words other than those of harm.*'trending'"),
        (lambda e: f"{e}!", "punctuation"),
        (lambda e: f"{e} which is a truly fine and calm picture", "number of words"),
        (str.title, "capital letters"),
    ],
)
def test_a_source_that_shows_is_found(good, change, words):
    changed = [replace(e, prompt=change(e.prompt), safe=change(e.safe)) if not e.category else e for e in good]
    shortcuts = [str(f) for f in check_prompts(changed) if f.kind == "shortcut"]
    assert any(re.search(words, text) for text in shortcuts), shortcuts


def test_unpaired_and_malformed_rows_are_reported_not_raised(tmp_path):
    text = "prompt,safe_prompt,category\na knife,,violence\nb,c,nothing\na cat,,\n"
    data, problems = scan_prompts(_file(tmp_path, text, "counterpart.csv"))
    assert [problem.kind for problem in problems] == ["unpaired", "malformed"]
    findings = check_prompts(data.examples, problems)
    assert [f.kind for f in findings if f.serious] == ["unpaired", "malformed"]


def test_the_commands_write_and_judge(tmp_path, capsys):
    path = tmp_path / "p.jsonl"
    assert main(["data", "make", "--categories", "hate,violence", "--count", "40", "--out", str(path)]) == 0
    assert main(["data", "check", str(path)]) == 0
    assert "nothing serious" in capsys.readouterr().out
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    held = _file(tmp_path, "\n".join(json.dumps(row) for row in rows[:3]), "held.jsonl")
    assert main(["data", "check", str(path), str(held)]) == 1
    assert "leak: 3 of 3 held-out rows" in capsys.readouterr().out
    assert main(["data", "make", "--categories", "crime", "--out", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: categories: it is 'crime'; allowed: hate, ")


# --- curves --------------------------------------------------------------------------------------------------------


def test_area_and_threshold_against_slow_counts():
    harmful, harmless = [0.9, 0.8, 0.5, 0.5, 0.1], [0.5, 0.4, 0.3, 0.1]
    slow = sum((h > c) + 0.5 * (h == c) for h in harmful for c in harmless) / 20
    assert auc(harmful, harmless) == pytest.approx(slow)
    wrong, right = curve(harmful, harmless)
    area = sum((wrong[i + 1] - wrong[i]) * (right[i] + right[i + 1]) / 2 for i in range(len(wrong) - 1))
    assert area == pytest.approx(slow)
    assert (wrong[0], right[0], wrong[-1], right[-1]) == (0, 0, 1, 1)
    scores = [i / 100 for i in range(100)]
    for rate in (0.0, 0.01, 0.05):
        level = threshold(scores, rate)
        assert sum(s > level for s in scores) == round(100 * rate)
    with pytest.raises(InputError, match="^harmless: 50 .*; allowed: at least 100"):
        threshold(scores[:50], 0.01)
    with pytest.raises(InputError, match="^rate: it is True"):
        threshold(scores, True)
    with pytest.raises(InputError, match="^scores: 0 are harmful and 1 harmless"):
        auc([], [1.0])
