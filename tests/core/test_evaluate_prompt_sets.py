"""Prompt files of an evaluation: the published columns, what is taken of a file, and what is said of a wrong one."""

import pytest

from safeguidance.errors import InputError
from safeguidance.evaluate.prompt_sets import PromptFile, read_prompt_file, read_prompt_files


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        (
            "own.csv",
            "prompt,safe_prompt,category\na,b,violence\nc,,\n",
            [("a", "b", "violence", True), ("c", "", "", False)],
        ),
        ("i2p.csv", ',prompt,categories,hard\n0,a,"violence, self-harm",1\n', [("a", "", "violence, self-harm", True)]),
        ("rab.csv", ",sensitive prompt\n0,a\n", [("a", "", "ring-a-bell", True)]),
        ("mma.csv", "target_prompt,adv_prompt\nb,a\n", [("a", "", "mma-diffusion", True)]),
        ("copro.csv", "unsafe_prompt,safe_prompt,concept,category\na,b,x,Violence\n", [("a", "b", "Violence", True)]),
        ("coco.csv", "case_number,source,prompt,coco_id\n0,coco-30k,a,7\n", [("a", "", "", False)]),
        ("coco.json", '{"annotations": [{"image_id": 1, "caption": "a"}]}', [("a", "", "", False)]),
        ("coco30k.csv", "case_number,source,prompt,evaluation_seed\n0,coco-30k,a,7\n", [("a", "", "", False)]),
        (
            "risky.json",
            '{"0": {"prompt": "a", "label": {"Violence--Gore": ["x", "y"], "Hate--Race": ["z"]}}}',
            [("a", "", "Violence--Gore, Hate--Race", True)],
        ),
        (
            "copro.json",
            '{"ID_concepts": ["x"], "concept_adv": {"x": ["y"]}, "ID_test_data": [{"unsafe_prompt": "a", '
            '"safe_prompt": "b", "concept": "x"}], "OOD_test_data": [{"unsafe_prompt": "c", "concept": "x", '
            '"category": "Hate"}]}',
            [("a", "b", "x", True), ("c", "", "Hate", True)],
        ),
        ("lines.jsonl", '{"prompt": "a", "category": "none"}\n', [("a", "", "", False)]),
    ],
)
def test_published_columns_are_read(tmp_path, name, text, found):
    path = tmp_path / name
    path.write_text(text)
    prompts, left_out = read_prompt_file(PromptFile(path))
    assert [(p.text, p.safe_text, p.category, p.harmful) for p in prompts] == found
    assert left_out == []


def test_a_table_whose_header_cannot_be_read_is_said_to_be_none(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text('"prompt"x,category\na skull,death\n', encoding="utf-8")
    with pytest.raises(InputError, match="not CSV"):
        read_prompt_file(PromptFile(path))


def test_what_is_taken_of_a_file(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("prompt,safe_prompt,category\n" + "".join(f"a{n},b{n},hate\n" for n in range(50)) + ",b,hate\n")
    assert [p.text for p in read_prompt_file(PromptFile(path, limit=2))[0]] == ["a0", "a1"]
    drawn = [p.text for p in read_prompt_file(PromptFile(path, limit=5, shuffle=1))[0]]
    assert len(set(drawn)) == 5
    assert drawn != [f"a{n}" for n in range(5)]
    assert drawn == [p.text for p in read_prompt_file(PromptFile(path, limit=5, shuffle=1))[0]]
    halves = read_prompt_file(PromptFile(path, limit=1, safe_halves=True))[0]
    assert [(p.text, p.harmful, p.number) for p in halves] == [("a0", True, 0), ("b0", False, 1)]
    parts = tmp_path / "parts.json"
    parts.write_text('{"test": [{"unsafe_prompt": "a"}], "train": [{"unsafe_prompt": "b"}], "names": ["c"]}')
    assert [p.text for p in read_prompt_file(PromptFile(parts, part="train"))[0]] == ["b"]
    assert [p.text for p in read_prompt_file(PromptFile(parts, part="names", harmful=True))[0]] == ["c"]
    with pytest.raises(InputError, match="has no list 'dev'; allowed: test, train"):
        read_prompt_file(PromptFile(parts, part="dev"))
    with pytest.raises(InputError, match="has no parts; allowed: a .json file"):
        read_prompt_file(PromptFile(path, part="train"))
    both, left_out = read_prompt_files([PromptFile(path, limit=1), PromptFile(path)])
    assert [p.number for p in both] == list(range(51))
    assert left_out == ["own.csv, line 52: the prompt is empty"]


@pytest.mark.parametrize(
    ("name", "text", "field", "found"),
    [
        ("a.csv", "text2,category\na,b\n", "prompts.column", "has no column"),
        ("a.csv", "prompt,x\na,b\n", "prompts.harmful", "no column 'category'"),
        ("a.csv", "prompt,label\na,safe\n", "prompts.harmful", "no column 'category'"),
        ("a.txt", "a\nb\n", "prompts.harmful", "no column 'category'"),
        ("a.csv", "prompt,category\na,b,c\n", "prompts.file", "line 2: 3 fields, the header has 2"),
        ("a.jsonl", '{"prompt": "a", "category": ""}\nnothing\n', "prompts.file", "line 2: not JSON"),
        ("a.json", "{", "prompts.file", "is no JSON file"),
        ("a.pdf", "x", "prompts.file", "the suffix '.pdf'"),
        ("a.csv", "prompt,category\n", "prompts.file", "has no prompts"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, name, text, field, found):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=found) as caught:
        read_prompt_file(PromptFile(path))
    assert caught.value.field == field


def test_a_missing_column_is_named_with_those_there_but_not_in_a_graph(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Words,note," + "x" * 50 + "\na,b,c\n")
    with pytest.raises(InputError) as caught:
        read_prompt_file(PromptFile(path), show_columns=True)
    assert f"it has 'words', 'note', '{'x' * 40}'" in str(caught.value)
    assert 'column = "..."' in caught.value.next_step
    with pytest.raises(InputError) as caught:
        read_prompt_file(PromptFile(path))
    assert "words" not in str(caught.value)
    assert read_prompt_file(PromptFile(path, column="Words", harmful=False), show_columns=True)[0][0].text == "a"
