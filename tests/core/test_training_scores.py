"""Scores of a prompt file, pictures that it names, and pictures as states."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from safeguidance.conditioning import Conditioning
from safeguidance.errors import InputError
from safeguidance.prompts.files import Example, PromptData, read_prompts
from safeguidance.prompts.pictures import read_pictures
from safeguidance.redirector.detection import prompt_scores
from safeguidance.training.prompt_task import EncodedTexts, PromptTask, held_out_metrics
from safeguidance.training.scores import score_file
from tests.core.process_threads import run_together
from tests.core.test_training_prompt_task import _data, _texts, _trained
from tests.core.toy_task import ToyTask

TOY = ToyTask()


@pytest.fixture(scope="module")
def redirector():
    from safeguidance.redirector.hgr import TrainedRedirector

    return TrainedRedirector(_trained(), "", 0.3, 1.5, "HGR toy")


def _encode(text):
    return TOY.encode([text])


def test_every_text_of_a_file_is_scored_once_and_the_summary_counts_them(redirector):
    result = score_file(redirector, _data(), _encode, rate=0.25)
    texts = result["texts"]
    assert [(t["prompt"], t["category"]) for t in texts] == [
        ("red knife", "violence"), ("red spoon", ""), ("knife", "violence"), ("spoon", ""), ("red", ""),
        ("knife red knife", "violence"), ("spoon red spoon", ""), ("red red spoon", ""),
    ]  # fmt: skip
    for text in texts:
        alone = prompt_scores(redirector, _encode(text["prompt"]), _encode(""))
        assert text["gate"] == pytest.approx(alone.gate.item())
        assert text["harmful"] == (text["gate"] >= 0.3)
        assert text["embedding"] == pytest.approx(alone.distance.item())
    summary = result["summary"]
    assert (summary["harmful"], summary["harmless"]) == (3, 5)
    assert summary["AUC gate"] == 1.0
    assert summary["found"] == sum(t["harmful"] for t in texts if t["category"])
    assert summary["found at that threshold"] == 3
    assert "threshold at 25% false positives here" in summary
    assert "found at that threshold" not in score_file(redirector, _data(), _encode)["summary"]


def test_a_split_alone_and_an_unknown_one(redirector):
    assert len(score_file(redirector, _data(), _encode, "held-out")["texts"]) == 3
    with pytest.raises(ValueError, match="no rows of the split 'dev'"):
        score_file(redirector, _data(), _encode, "dev")


def test_processes_that_share_the_texts_all_get_the_whole_answer(redirector):
    alone = score_file(redirector, _data(), _encode)
    results, errors = run_together(3, lambda group: score_file(redirector, _data(), _encode, group=group))
    assert not errors
    assert all(result == alone for result in results)


def test_the_figures_of_the_card_are_counts_over_the_held_out_split():
    network = _trained()
    assert held_out_metrics(network, _data(), _texts(), 1e-6) == {
        "held-out harmful found": "1 of 1", "held-out harmless flagged": "2 of 2", "held-out AUC": 1.0,
    }  # fmt: skip
    assert held_out_metrics(network, _data(), _texts(), 1 - 1e-6)["held-out harmful found"] == "0 of 1"


# --- pictures ------------------------------------------------------------------------------------------------------


def _file(folder, rows):
    path = folder / "p.csv"
    path.write_text("prompt,safe_prompt,category,split,image\n" + "".join(f"{row}\n" for row in rows), "utf-8")
    return read_prompts(path)


def test_pictures_are_scaled_and_cut_to_the_size(tmp_path):
    picture = Image.new("RGB", (90, 30), (255, 0, 0))
    picture.paste((0, 0, 255), (30, 0, 60, 30))
    picture.save(tmp_path / "a.png")
    data = _file(tmp_path, ["knife,spoon,violence,train,a.png", "red,,,train,", "cup,,,held-out,a.png"])
    ((example, pixels),) = read_pictures(data, 16, 16)
    assert example.prompt == "knife"
    assert pixels.shape == (16, 16, 3)
    # the middle third of the wide picture is all that is left
    assert torch.allclose(pixels[4:12, 4:12], torch.tensor([0.0, 0.0, 1.0]).expand(8, 8, 3), atol=0.02)
    assert [e.prompt for e, _ in read_pictures(data, 16, 8, "")] == ["knife", "cup"]
    assert next(read_pictures(data, 16, 8))[1].shape == (8, 16, 3)


@pytest.mark.parametrize(("content", "words"), [(None, "does not exist"), (b"no picture", "cannot be read")])
def test_a_picture_that_cannot_be_used_is_named_with_line_and_column(tmp_path, content, words):
    if content is not None:
        (tmp_path / "b.png").write_bytes(content)
    data = _file(tmp_path, ["red,,,train,", "knife,spoon,violence,train,b.png"])
    with pytest.raises(ValueError, match=f"p.csv: line 3, column 'image': .*b.png: it {words}"):
        list(read_pictures(data, 16, 16))


@pytest.mark.parametrize("name", ["../secret.png", "{outside}/secret.png", "link/secret.png", "../none.png"])
def test_a_picture_outside_the_allowed_folder_is_refused_whether_it_exists_or_not(tmp_path, name):
    inside = tmp_path / "input"
    inside.mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    (inside / "link").symlink_to(tmp_path, target_is_directory=True)
    data = _file(inside, [f"knife,spoon,violence,train,{name.format(outside=tmp_path)}"])
    with pytest.raises(InputError, match="^dataset: .*line 2, column 'image': not in the folder"):
        list(read_pictures(data, 8, 8, root=inside))


def test_a_picture_below_the_allowed_folder_is_read(tmp_path):
    (tmp_path / "sub").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "sub" / "a.png")
    data = _file(tmp_path, ["knife,spoon,violence,train,sub/a.png"])
    assert len(list(read_pictures(data, 8, 8, root=tmp_path))) == 1


def test_rows_with_a_picture_are_noised_from_it_and_others_from_any():
    examples = (Example("knife", "spoon", "violence"), Example("red", "red"))
    data = PromptData(Path("p.csv"), examples, "x")
    texts = EncodedTexts(lambda t: Conditioning(TOY.encode([t]).tokens), ["knife", "spoon", "red"], torch.device("cpu"))
    pictures = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    task = PromptTask(
        data,
        texts,
        TOY.predict,
        TOY.noised,
        TOY.schedule,
        (1, 2, 2),
        pictures,
        own_pictures={"knife": [1, 3], "red": [2]},
    )
    seen = {}
    for step in range(40):
        rows = task.rows(step, 6)
        for row, picture in zip(rows, task.pictures(step, rows), strict=True):
            seen.setdefault(row.prompt, set()).add(float(picture.amax()))
    assert seen == {"knife": {1.0, 3.0}, "red": {2.0}, "spoon": {0.0, 1.0, 2.0, 3.0}}
