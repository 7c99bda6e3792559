"""What a saved picture says about itself: read by other programs' rules, no pixel changed, a manifest that is valid."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from safeguidance.errors import InputError
from safeguidance.policy import evidence
from safeguidance.policy.containers import ContainerError, jpeg_with_xmp, kind_of, png_texts, png_with, webp_with_xmp
from safeguidance.policy.decision import Decision
from safeguidance.policy.load import preset
from safeguidance.policy.schema import EvidenceRules
from tests.core.policy_certificates import KEYS, pem_of, signer

GENERATED = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
SOURCE = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
SCHOOL = preset("school")
DECISION = Decision("guard", "violence", 0.71, 0.5)
WORKFLOW = '{"1": {"class_type": "KSampler"}}'
FORMATS = {"PNG": {}, "WEBP": {"lossless": True}, "JPEG": {"quality": 80}}


def policy(**rules):
    return replace(SCHOOL, evidence=EvidenceRules(**rules))


def picture(kind, mode="RGB", **more):
    """A file as a save node writes it, with the workflow in it."""
    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, len(mode)), dtype=np.uint8)
    saved, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("prompt", WORKFLOW)
    exif = Image.Exif()
    exif[0x0110] = f"prompt:{WORKFLOW}"
    options = {"pnginfo": info} if kind == "PNG" else {"exif": exif}
    Image.fromarray(pixels, mode).save(saved, kind, **{**FORMATS[kind], **options, **more})
    return saved.getvalue()


def opened(content):
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def said_by(tmp_path, content):
    path = tmp_path / "picture"
    path.write_bytes(content)
    return evidence.read_back(path)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_marks_are_read_by_others_and_no_pixel_changes(tmp_path, kind, mode):
    if kind == "JPEG":
        mode = "RGB"
    before = picture(kind, mode)
    after = evidence.mark(before, policy(), DECISION, "id-1")
    old, new = opened(before), opened(after)
    assert np.array_equal(np.asarray(old), np.asarray(new))
    assert new.mode == old.mode
    packet = new.info["xmp"]
    root = ElementTree.fromstring(packet.decode() if isinstance(packet, bytes) else packet)
    assert [element.attrib[SOURCE] for element in root.iter() if SOURCE in element.attrib] == [GENERATED]
    if kind == "PNG":
        assert new.text["prompt"] == WORKFLOW
        assert json.loads(new.text["safeguidance"])["policy"] == SCHOOL.digest
    else:
        assert new.getexif()[0x0110] == f"prompt:{WORKFLOW}"
    found = said_by(tmp_path, after)
    assert found["digital_source_type"] == GENERATED
    assert found["c2pa"] is None
    assert found["safeguidance"] == {
        **{"policy": SCHOOL.digest, "name": "school", "action": "guard", "stage": "prompt", "prompt_id": "id-1"},
        **{"category": "violence", "score": 0.71, "threshold": 0.5},
    }


@pytest.mark.parametrize("kind", FORMATS)
def test_only_what_the_policy_asks_for_is_put_in(tmp_path, kind):
    content = picture(kind)
    assert evidence.mark(content, policy(metadata=False, iptc=False), DECISION) == content
    only_iptc = said_by(tmp_path, evidence.mark(content, policy(metadata=False), DECISION))
    assert (only_iptc["safeguidance"], only_iptc["digital_source_type"]) == (None, GENERATED)
    only_policy = said_by(tmp_path, evidence.mark(content, policy(iptc=False), DECISION))
    assert only_policy["safeguidance"]["action"] == "guard"
    assert only_policy["digital_source_type"] is None
    assert evidence.metadata(policy(metadata=False), DECISION) == {}


def test_a_harmless_picture_is_not_named_after_a_category():
    found = evidence.metadata(policy(), replace(DECISION, action="pass"))
    assert "violence" not in found["safeguidance"]
    assert json.loads(found["safeguidance"])["action"] == "pass"


@pytest.mark.parametrize("kind", FORMATS)
def test_a_second_mark_takes_the_place_of_the_first(tmp_path, kind):
    once = evidence.mark(picture(kind), policy(), DECISION, "id-1")
    twice = evidence.mark(once, policy(), replace(DECISION, action="replace"), "id-2")
    assert said_by(tmp_path, twice)["safeguidance"]["prompt_id"] == "id-2"
    assert twice.count(b"trainedAlgorithmicMedia") == 1


@pytest.mark.parametrize("kind", FORMATS)
def test_other_properties_of_the_picture_stay(tmp_path, kind):
    own = evidence.mark(picture(kind), policy(metadata=False), DECISION)
    packet = opened(own).info["xmp"]
    packet = packet.decode() if isinstance(packet, bytes) else packet
    other = '<rdf:Description rdf:about="" xmlns:d="urn:d" d:title="A &quot;title&quot;"/>'
    theirs = packet.replace("</rdf:RDF>", other + "</rdf:RDF>")
    put = {"PNG": lambda c, x: png_with(c, {"XML:com.adobe.xmp": x}), "WEBP": webp_with_xmp, "JPEG": jpeg_with_xmp}
    content = put[kind](picture(kind), theirs)
    for _ in range(2):
        content = evidence.mark(content, policy(), DECISION)
        assert content.count(other.encode()) == 1
        assert content.count(b"trainedAlgorithmicMedia") == 1
        assert said_by(tmp_path, content)["digital_source_type"] == GENERATED


def test_an_animation_keeps_its_frames():
    frames = [Image.new("RGB", (16, 16), (50 * n, 0, 0)) for n in range(4)]
    for kind in ("PNG", "WEBP"):
        saved = io.BytesIO()
        frames[0].save(saved, kind, save_all=True, append_images=frames[1:], lossless=True)
        image = Image.open(io.BytesIO(evidence.mark(saved.getvalue(), policy(), DECISION)))
        assert image.n_frames == 4
        image.seek(3)
        assert image.convert("RGB").getpixel((3, 3)) == (150, 0, 0)


@pytest.mark.parametrize("kind", KEYS)
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_manifest_is_valid_and_says_who_made_it(tmp_path, kind, suffix):
    chain, key = signer(tmp_path, kind)
    rules = EvidenceRules(c2pa=True, certificate=chain, private_key=key)
    evidence.check(rules)
    before = picture(suffix)
    path = tmp_path / "picture.out"
    path.write_bytes(before)
    assert evidence.mark_file(path, replace(SCHOOL, evidence=rules), DECISION)
    assert np.array_equal(np.asarray(opened(before)), np.asarray(opened(path.read_bytes())))
    found = evidence.read_back(path)
    assert found["c2pa"]["state"] == "Valid"
    # nobody but the test knows the authority
    assert found["c2pa"]["problems"] == ["signingCredential.untrusted"]
    assertions = found["c2pa"]["assertions"]
    assert assertions["org.safeguidance.policy"] == {"policy": SCHOOL.digest, "action": "guard"}
    assert GENERATED in json.dumps(assertions)
    assert found["safeguidance"]["policy"] == SCHOOL.digest
    content = bytearray(path.read_bytes())
    content[-len(content) // 40] ^= 1
    path.write_bytes(content)
    assert found != _read_or_error(path)


def _read_or_error(path):
    try:
        return evidence.read_back(path)
    except InputError as error:
        return error


@pytest.mark.parametrize("field", ["certificate", "private_key"])
def test_a_server_that_cannot_sign_does_not_start(tmp_path, field):
    chain, key = signer(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = signer(tmp_path / "other")
    for name, content in {
        "missing": None,
        "empty": b"",
        "text": b"no key",
        "wrong": (chain if field == "private_key" else key).read_bytes(),
        "cut": (key if field == "private_key" else chain).read_bytes()[:150],
        "of another": other.read_bytes() if field == "private_key" else b"",
    }.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        rules = EvidenceRules(c2pa=True, **{"certificate": chain, "private_key": key, field: path})
        with pytest.raises(InputError, match=rf"evidence\.{field}"):
            evidence.check(rules)


def test_a_certificate_that_has_run_out_is_refused(tmp_path):
    chain, key = signer(tmp_path, days=1)
    with pytest.raises(InputError, match=r"evidence\.certificate"):
        evidence.check(EvidenceRules(c2pa=True, certificate=chain, private_key=key))


def test_a_key_that_c2pa_does_not_know_is_refused(tmp_path):
    from cryptography.hazmat.primitives.asymmetric import ec

    chain, _ = signer(tmp_path)
    path = tmp_path / "k1.pem"
    path.write_bytes(pem_of(ec.generate_private_key(ec.SECP256K1())))
    with pytest.raises(InputError, match="not the key of the certificate"):
        evidence.check(EvidenceRules(c2pa=True, certificate=chain, private_key=path))


def test_without_the_library_a_policy_with_c2pa_is_refused_and_others_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "c2pa", None)
    chain, key = signer(tmp_path)
    with pytest.raises(InputError, match="c2pa-python is not installed"):
        evidence.check(EvidenceRules(c2pa=True, certificate=chain, private_key=key))
    evidence.check(EvidenceRules())
    assert said_by(tmp_path, evidence.mark(picture("PNG"), policy(), DECISION))["c2pa"] is None


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\0\0\0\x18ftypmp42", b"fLaC", b"{}"])
def test_other_files_are_left_alone(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert not evidence.mark_file(path, SCHOOL, DECISION)
    assert path.read_bytes() == content
    with pytest.raises(InputError, match="no PNG, WebP or JPEG"):
        evidence.read_back(path)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_cut_picture_is_an_error_and_stays_as_it_is(tmp_path, kind):
    content = picture(kind)
    path = tmp_path / "picture"
    for cut in (16, 60, 200):
        path.write_bytes(content[:cut])
        with pytest.raises(InputError, match="picture"):
            evidence.mark_file(path, SCHOOL, DECISION)
        assert path.read_bytes() == content[:cut]
        assert [one.name for one in tmp_path.iterdir()] == ["picture"]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(list(FORMATS)),
    place=st.integers(0, 4_000),
    cut=st.integers(0, 8),
    put=st.binary(max_size=8),
)
def test_a_damaged_picture_is_marked_or_one_error(tmp_path, kind, place, cut, put):
    content = picture(kind)
    place %= len(content)
    path = tmp_path / "picture"
    path.write_bytes(content[:place] + put + content[place + cut :])
    try:
        evidence.mark_file(path, SCHOOL, DECISION)
        evidence.read_back(path)
    except InputError as error:
        assert len(str(error)) < 500


def test_a_packet_that_unfolds_is_not_read(tmp_path):
    entities = '<!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>'
    bomb = f'{entities}<x:xmpmeta xmlns:x="adobe:ns:meta/" x:DigitalSourceType="&b;"/>'
    content = png_with(picture("PNG"), {"XML:com.adobe.xmp": bomb})
    assert said_by(tmp_path, content)["digital_source_type"] is None
    with pytest.raises(ContainerError):
        png_texts(content[:40])
    assert kind_of(content) == "image/png"
