"""Groups of the bench that start from a picture, and the one that an attacker makes."""

import numpy as np
import pytest
import torch

from safeguidance.lab.bench.measure import measure
from safeguidance.lab.bench.methods import METHODS, Setting
from safeguidance.lab.bench.prompts import captions_for
from safeguidance.lab.bench.sampling import sample
from safeguidance.lab.bench.starts import DENOISE, Start, start_of
from safeguidance.lab.oracle import Oracle
from safeguidance.testbed.denoiser import Denoiser
from safeguidance.testbed.latents import EDGE, from_bytes, to_bytes
from safeguidance.testbed.model import Testbed, load_testbed
from safeguidance.testbed.sampler import euler, schedule
from safeguidance.testbed.world import things

SETTING = Setting(steps=4)


@pytest.fixture(scope="module")
def testbed():
    return load_testbed()


@pytest.fixture(scope="module")
def oracle():
    torch.manual_seed(0)
    return Oracle().requires_grad_(False).eval()


def _drawn(captions, seed):
    rng = np.random.default_rng(seed)
    return from_bytes(torch.from_numpy(rng.integers(0, 256, (len(captions), 48, 48, 3), dtype=np.uint8)))


def test_every_second_picture_to_start_from_shows_the_look_alike():
    captions, asked = captions_for("img2img", 6, 0), []

    def drawn(shown, seed):
        asked.extend(shown)
        return _drawn(shown, seed)

    start_of("img2img", captions, drawn, 0)
    assert [any(things()[kind].harm for kind in shown.scene.kinds) for shown in asked] == [True, False] * 3
    for caption, shown in zip(captions[1::2], asked[1::2], strict=True):
        harm = next(kind for kind in caption.scene.kinds if things()[kind].harm)
        assert things()[harm].like in shown.text
        assert harm not in shown.text
        assert caption.scene.background == shown.scene.background


def test_captions_begin_from_noise():
    assert start_of("explicit", captions_for("explicit", 2, 0), _drawn, 0) is None


def test_inpainting_changes_nothing_outside_its_mask(testbed, oracle):
    captions = captions_for("inpaint", 4, 0)
    start = start_of("inpaint", captions, _drawn, 0)
    got = sample(testbed, oracle, METHODS["none"], captions, SETTING, 0, start=start)
    before = to_bytes(start.latent).int()
    outside = (start.mask.repeat_interleave(4, 2).repeat_interleave(4, 3) == 0)[:, 0]
    change = (got.pictures.int() - before).abs().amax(-1)
    assert int(change[outside].max()) <= 1
    assert (change[~outside] > 8).float().mean() > 0.3


def test_the_mask_holds_the_stand_in_alone(testbed):
    for caption in captions_for("inpaint", 20, 3):
        mask = start_of("inpaint", [caption], _drawn, 0).mask[0, 0]
        if len(caption.scene.kinds) == 1:
            assert mask[1:-1, 1:-1].all()
            assert mask.sum() == (EDGE - 2) ** 2
            continue
        assert mask.sum() == EDGE**2 / 2
        second = things()[caption.scene.kinds[1]].harm
        corner = mask[0, -1] if caption.scene.layout == "beside" else mask[-1, 0]
        assert bool(corner) == second


def test_a_run_from_a_picture_uses_the_last_sigmas_of_a_longer_one():
    start = Start(torch.zeros(1, 22, EDGE, EDGE), None, DENOISE)
    assert torch.equal(start.sigmas(15), schedule(20)[5:])
    seen = []

    def guided(x, sigma, step):
        seen.append(float(sigma[0]))
        return torch.ones_like(x)

    noise, latent = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    sigmas = torch.tensor([0.5, 0.25, 0.0])
    out = euler(guided, noise, sigmas, latent)
    # from 0.5 * 1 + 0.5 * 3 straight to what is predicted
    assert seen == [0.5, 0.25]
    assert torch.allclose(out, torch.ones_like(out))


def test_a_method_is_told_how_far_along_a_run_from_a_picture_is(testbed, oracle):
    told = []

    def method(model, setting, prompts):
        def guided(x, sigma, step):
            told.append(step / setting.steps)
            return x

        return guided

    captions = captions_for("img2img", 2, 0)
    start = start_of("img2img", captions, _drawn, 0)
    sample(testbed, oracle, method, captions, Setting(steps=12), 0, start=start)
    assert len(told) == 12
    assert told[0] == pytest.approx(1 - DENOISE, abs=0.05)
    assert told[-1] < 1


def test_the_attack_row_counts_attacked_captions(oracle, tmp_path):
    torch.manual_seed(0)
    blind = Testbed(load_testbed().text, Denoiser())
    for last in blind.denoiser.out[-1].parameters():
        torch.nn.init.zeros_(last)
    report = measure(blind, oracle, ["none"], ["benign", "attack"], 2, 0, SETTING, folder=tmp_path, queries=3)
    benign, attack = report.rows
    assert (benign.group, attack.group) == ("benign", "attack")
    # a model that draws nothing is never attacked, and every query was spent
    assert (attack.count, attack.harmful, attack.queries) == (2, 0, 3)
    assert [one.query for one in report.attacks["none"]] == [0, 0]
    assert (tmp_path / "report.json").read_text(encoding="utf-8").count('"query": 0') == 2
