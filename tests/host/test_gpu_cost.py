"""The command that makes every GPU figure, on small models of the same classes; where there is no GPU it says so."""

from __future__ import annotations

import pytest

from tools import gpu

pytestmark = pytest.mark.usefixtures("pack")


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(gpu, "STEPS", 4)
    monkeypatch.setattr(gpu, "PAIRS", 1)


def test_every_model_has_a_row_for_every_method(short):
    told = []
    rows = gpu.measure_all(gpu.SMALL_MODELS, (), told.append)
    assert len(told) == len(rows)
    found = {size: [row["method"] for row in rows if row["model"] == size] for size in gpu.SMALL_MODELS}
    assert found["small"] == found["small-sdxl"]
    # a DiT has no skip features
    assert set(found["small"]) - set(found["small-sd3"]) == {"SAFREE filter and re-attention"}
    for row in rows:
        assert row["stock"]["rows_per_step"] == 2
        assert row["ratio"]["median"] > 0
    cost = {row["method"]: row["guarded"]["rows_per_step"] for row in rows if row["model"] == "small"}
    assert cost["SafeCFG"] == cost["Safe Conditioning"] == 2
    assert cost["SAFREE filter and re-attention"] == 3
    assert 2 < cost["SP-Guard, one concept"] < cost["SP-Guard, seven concepts"]


def test_what_does_not_fit_into_the_time_is_named(short):
    rows = gpu.measure_all(("small", "small-sd3"), ("small",), lambda _: None, limit=-1.0)
    assert [(row["model"], row["skipped"]) for row in rows] == [
        ("small", "the time was over"),
        ("small-sd3", "the time was over"),
    ]
    assert "not measured: the time was over" in gpu.table_row(rows[0])


def test_without_a_gpu_nothing_is_measured_and_that_is_said(capsys, monkeypatch, tmp_path):
    import comfy.model_management
    import torch

    monkeypatch.setattr(comfy.model_management, "get_torch_device", lambda: torch.device("cpu"))
    assert gpu.run({"small": False, "out": str(tmp_path)}) == 3
    assert "NO GPU" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_row_of_the_table_says_what_was_measured():
    ratio = {"median": 1.01, "min": 0.99, "max": 1.04}
    row = {"model": "sd15", "latent": [1, 4, 64, 64], "method": "SafeCFG", "ratio": ratio}
    row |= {"guarded": {"rows_per_step": 2.0}, "peak_memory_bytes": 3 * 2**30, "peak_memory_difference_bytes": 2**20}
    assert gpu.table_row(row) == "| sd15, 1x4x64x64 | SafeCFG | 1.010 (0.990 to 1.040) | 2 | 3072 (+1) |"
    training = {"model": "sdxl", "latent": [4, 4, 128, 128], "method": "HGR training"}
    training |= {"steps_per_second": 1.234, "cuda_peak": 2**31}
    assert gpu.table_row(training) == ("| sdxl, 4x4x128x128 | HGR training | 1.23 training steps a second | | 2048 |")
