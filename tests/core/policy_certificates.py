"""Certificates to sign with: a made-up authority and a signer, as C2PA wants them."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": lambda: rsa.generate_private_key(65_537, 2_048),
}


def pem_of(key):
    """A private key as a file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _name(text):
    parts = [(NameOID.ORGANIZATION_NAME, "A School"), (NameOID.COMMON_NAME, text)]
    return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts])


def _certificate(subject, key, issuer_key, authority, days):
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=2)
    usage = x509.KeyUsage(not authority, False, False, False, False, authority, authority, False, False)
    made = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name("Authority"))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(authority, None), True)
        .add_extension(usage, True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
    )
    if not authority:
        made = made.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
    return made.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def signer(folder, kind="P-256", days=365):
    """Files with a chain and a key; returns their paths."""
    authority, key = KEYS["P-256"](), KEYS[kind]()
    chain, private = folder / f"chain-{kind}.pem", folder / f"key-{kind}.pem"
    signed = _certificate("Signer", key, authority, False, days)
    chain.write_bytes(signed + _certificate("Authority", authority, authority, True, 3_650))
    private.write_bytes(pem_of(key))
    return chain, private
