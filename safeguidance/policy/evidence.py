"""What a saved picture says about itself: the policy and the decision, that it was generated, and a signed manifest.

Policy and decision are a text of the file (PNG) or a property of its XMP. The IPTC field *Digital Source Type* says
that the picture was generated. C2PA manifests are written by c2pa-python, the extra ``evidence``.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.sax.saxutils import quoteattr

from ..errors import InputError
from . import containers
from .containers import MOST_TEXT, XMP_KEY, ContainerError
from .decision import Decision
from .rules import EvidenceRules
from .schema import Policy

KEY = "safeguidance"
"""Name of the text in a PNG, and of the property in XMP."""
MOST_BYTES = 500_000_000
_DATA = Path(__file__).parent / "data"
_NAMESPACE = "urn:safeguidance:policy:1"
# the element that _xmp puts in
_OURS = re.compile(rf'\s*<rdf:Description rdf:about=""[^<>]*(?:{_NAMESPACE}|Ext:DigitalSourceType)[^<>]*/>')


def metadata(policy: Policy, decision: Decision, prompt_id: str = "") -> dict[str, str]:
    """Texts for a picture's metadata, by key; nothing of the user or the prompt.

    Args:
        policy: of the server.
        decision: on the picture, or on its prompt where no judge looked.
        prompt_id: of the host's queue.
    """
    if not policy.evidence.metadata:
        return {}
    values: dict[str, Any] = {"policy": policy.digest, "name": policy.name, "action": decision.action}
    values["stage"] = decision.stage
    # a picture that was left alone is not named after the category that it came nearest to
    if decision.action != "pass":
        values |= {"category": decision.category} if decision.category else {}
        values |= {"score": round(decision.score, 4)} if decision.score is not None else {}
        values |= {"threshold": round(decision.threshold, 4)} if decision.threshold is not None else {}
    values |= {"prompt_id": prompt_id} if prompt_id else {}
    return {KEY: json.dumps(values)}


def check(rules: EvidenceRules) -> None:
    """Refuse rules that this server cannot keep: called before it listens.

    Raises:
        InputError: if the library for C2PA is missing, or the certificate and key cannot sign.
    """
    if rules.c2pa:
        from .manifest import check_signing

        check_signing(rules)


def mark(content: bytes, policy: Policy, decision: Decision, prompt_id: str = "") -> bytes:
    """A picture's file with everything in it that the policy asks for.

    Args:
        content: of a PNG, WebP or JPEG file; no pixel changes.
        policy: of the server.
        decision: on the picture.
        prompt_id: of the host's queue.

    Raises:
        InputError: if the file is of another format or damaged, or cannot be signed.
    """
    rules = policy.evidence
    kind = containers.kind_of(content)
    if not (rules.metadata or rules.iptc or rules.c2pa):
        return content
    if not kind:
        raise InputError("picture", "it is no PNG, WebP or JPEG", "one of these, where the policy asks for evidence")
    texts = metadata(policy, decision, prompt_id)
    try:
        if kind == "image/png":
            found = containers.png_texts(content).get(XMP_KEY, "")
            more = {XMP_KEY: _xmp("", found)} if rules.iptc else {}
            content = containers.png_with(content, {**texts, **more}) if texts or more else content
        elif texts or rules.iptc:
            put = containers.webp_with_xmp if kind == "image/webp" else containers.jpeg_with_xmp
            get = containers.webp_xmp if kind == "image/webp" else containers.jpeg_xmp
            content = put(content, _xmp(texts.get(KEY, ""), get(content), rules.iptc))
    except ContainerError as error:
        raise InputError("picture", str(error), "a whole picture file") from error
    if rules.c2pa:
        from .manifest import sign

        content = sign(content, kind, rules, policy.digest, decision.action)
    return content


def mark_file(path: Path, policy: Policy, decision: Decision, prompt_id: str = "") -> bool:
    """The same for a file, which is replaced at once.

    Returns:
        Whether the file holds now what the policy asks for; False for formats that cannot, such as videos and sound.

    Raises:
        InputError: if a PNG, WebP or JPEG is damaged or cannot be read, signed or written; it is then as it was.
    """
    try:
        with path.open("rb") as file:
            if not containers.kind_of(file.read(64)):
                return False
        content = path.read_bytes()
        made = mark(content, policy, decision, prompt_id)
        if made == content:
            return True
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            part.write_bytes(made)
            part.chmod(path.stat().st_mode)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
        return True
    except OSError as error:
        found = f"{path} cannot be marked ({error.strerror or error})"
        raise InputError("picture", found, "a file that can be written") from error


def read_back(path: Path) -> dict[str, Any]:
    """What a picture says about itself.

    Returns:
        ``safeguidance``: what ``metadata`` wrote, None if nothing; ``digital_source_type``: the IPTC field, None if it
        has none; ``c2pa``: state and assertions of the manifest, None if there is none or the library is missing.

    Raises:
        InputError: if the file cannot be read or is damaged.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError("FILE", f"{path} is larger than {MOST_BYTES:,} bytes", "a picture")
        content = path.read_bytes()
    except OSError as error:
        raise InputError("FILE", f"{path} cannot be read ({error.strerror or error})", "a picture") from error
    kind = containers.kind_of(content)
    try:
        if kind == "image/png":
            texts = containers.png_texts(content)
            said, source = texts.get(KEY), _read_xmp(texts.get(XMP_KEY, ""))[1]
        elif kind:
            said, source = _read_xmp(containers.webp_xmp(content) if "webp" in kind else containers.jpeg_xmp(content))
        else:
            raise InputError("FILE", f"{path} is no PNG, WebP or JPEG", "one of these")
    except ContainerError as error:
        raise InputError("FILE", f"{path}: {error}", "a whole picture file") from error
    from .manifest import read

    return {KEY: _json(said), "digital_source_type": source, "c2pa": read(content, kind)}


def _json(text: str | None) -> Any:
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None


def _xmp(said: str, before: str, iptc: bool = True) -> str:
    """An XMP packet with our properties beside those that are there."""
    packet = (_DATA / "xmp.txt").read_text(encoding="utf-8")
    start, end = packet.index("  <rdf:Description"), packet.index(" </rdf:RDF>")
    ours = packet[start:end] if iptc else '  <rdf:Description rdf:about=""/>\n'
    if said:
        ours = ours.replace("/>", f"\n    xmlns:sg={quoteattr(_NAMESPACE)}\n    sg:{KEY}={quoteattr(said)}/>")
    before = _OURS.sub("", before)
    closing = before.rfind("</rdf:RDF>")
    if closing >= 0:
        return before[:closing] + ours + before[closing:]
    return packet[:start] + ours + packet[end:]


def _read_xmp(text: str) -> tuple[str | None, str | None]:
    """What a packet says of the policy, and its digital source type."""
    # entities can make a short text a huge one
    if not text or len(text) > MOST_TEXT or "<!" in text:
        return None, None
    body = text[max(text.find("<x:xmpmeta"), 0) :].partition("<?xpacket end")[0]
    try:
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError):
        return None, None
    said = source = None
    for element in root.iter():
        pairs = [*element.attrib.items(), (element.tag, (element.text or "").strip())]
        for name, value in pairs:
            said = value if name == f"{{{_NAMESPACE}}}{KEY}" else said
            source = value if name.endswith("}DigitalSourceType") and value else source
    return said, source
