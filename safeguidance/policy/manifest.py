"""Signed C2PA manifests by c2pa-python, the extra ``evidence``. Nothing is fetched and no time stamp is asked for."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from ..card_fields import shown
from ..errors import InputError
from .containers import one_point
from .rules import EvidenceRules

_TEMPLATE = Path(__file__).parent / "data" / "c2pa.json"
_LABEL = "org.safeguidance.policy"
_OFFLINE = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}}
_CURVES = {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}
_LEAST_RSA = 2048


def _library() -> Any:
    try:
        import c2pa
    except ImportError as error:
        found = "it is true, but c2pa-python is not installed for this Python"
        next_step = 'python -m pip install "c2pa-python>=0.38", or set c2pa = false'
        raise InputError("evidence.c2pa", found, "true where the extra evidence is installed", next_step) from error
    return c2pa


def check_signing(rules: EvidenceRules) -> None:
    """Sign a picture of one point and read it back.

    Raises:
        InputError: if the library is missing, or certificate and key cannot sign.
    """
    made = sign(one_point(), "image/png", rules, "0" * 64, "pass")
    found = read(made, "image/png")
    # a certificate that no list of C2PA knows is valid all the same; who reads the picture decides whom to trust
    if found is None or found["state"] not in ("Valid", "Trusted"):
        state = "none" if found is None else f"{found['state']} ({', '.join(found['problems'])})"
        raise InputError("evidence.certificate", f"a manifest signed with it is read as {state}", "a valid one")


def sign(content: bytes, kind: str, rules: EvidenceRules, policy_digest: str, action: str) -> bytes:
    """A picture's file with a signed manifest in it, as the last change of it.

    Args:
        content: of the file.
        kind: its media type.
        rules: with certificate and key.
        policy_digest: of the policy.
        action: of the decision.

    Raises:
        InputError: if it cannot be signed.
    """
    c2pa = _library()
    manifest = json.loads(_TEMPLATE.read_text(encoding="utf-8"))
    manifest["claim_generator_info"] = [{"name": "SafeGuidance"}]
    manifest["assertions"].append({"label": _LABEL, "data": {"policy": policy_digest, "action": action}})
    chain, key = _pem(rules.certificate, "certificate"), _pem(rules.private_key, "private_key")
    algorithm, made = _algorithm(chain, key), io.BytesIO()
    try:
        signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, key, None))
        with c2pa.Context(c2pa.Settings.from_dict(_OFFLINE)) as context, c2pa.Builder(manifest, context) as builder:
            builder.sign(signer, kind, io.BytesIO(content), made)
    except c2pa.C2paError as error:
        raise InputError("evidence.certificate", f"it cannot sign ({shown(error)})", "one for C2PA") from error
    return made.getvalue()


def read(content: bytes, kind: str) -> dict[str, Any] | None:
    """State and assertions of a picture's manifest; None if it has none, or the library is missing.

    Args:
        content: of the file.
        kind: its media type.
    """
    try:
        import c2pa
    except ImportError:
        return None
    try:
        with c2pa.Context(c2pa.Settings.from_dict(_OFFLINE)) as context:
            reader = c2pa.Reader.try_create(kind, io.BytesIO(content), context=context)
            if reader is None:
                return None
            with reader:
                values = json.loads(reader.json())
    except c2pa.C2paError as error:
        return {"state": "unreadable", "problems": [shown(error)], "assertions": {}}
    active = values["manifests"][values["active_manifest"]]
    return {
        "state": values.get("validation_state", "unknown"),
        "problems": [status["code"] for status in values.get("validation_status", [])],
        "assertions": {assertion["label"]: assertion["data"] for assertion in active.get("assertions", [])},
    }


def _pem(path: Path | None, name: str) -> bytes:
    if path is None:
        raise InputError(f"evidence.{name}", "it is missing", "the path of a PEM file")
    try:
        return path.read_bytes()
    except OSError as error:
        found = f"{path} cannot be read ({error.strerror or error})"
        raise InputError(f"evidence.{name}", found, "a PEM file") from error


def _algorithm(chain: bytes, key: bytes) -> bytes:
    """The C2PA algorithm of a key that belongs to the first certificate.

    Raises:
        InputError: if one of them cannot be read, they do not belong together, or C2PA has no such algorithm.
    """
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        certificate = x509.load_pem_x509_certificates(chain)[0]
    except (ValueError, IndexError) as error:
        found = f"it is no certificate ({shown(error)})"
        raise InputError("evidence.certificate", found, "a chain in PEM, the signer's certificate first") from error
    try:
        private = load_pem_private_key(key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        found = f"it is no private key ({shown(error)})"
        raise InputError("evidence.private_key", found, "a key in PEM without password") from error
    if private.public_key() != certificate.public_key():
        raise InputError("evidence.private_key", "it is not the key of the certificate", "the key that belongs to it")
    if isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name in _CURVES:
        return _CURVES[private.curve.name]
    if isinstance(private, ed25519.Ed25519PrivateKey):
        return b"ed25519"
    if isinstance(private, rsa.RSAPrivateKey) and private.key_size >= _LEAST_RSA:
        return b"ps256"
    allowed = f"P-256, P-384, P-521, Ed25519 or RSA of {_LEAST_RSA} bits and more"
    raise InputError("evidence.private_key", "C2PA does not sign with keys of its kind", allowed)
