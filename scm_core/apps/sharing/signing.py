"""Signed C2PA manifests in the files that are written, and whether a file's signature holds.

A manifest states what `scm_core.provenance` states. A hash binds it to the file, and a certificate
to whoever has its key. The network is never asked: no timestamps, no revocations.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

import scm_core
from scm_core.base.errors import UserError

ACTIONS, FACTS = "c2pa.actions", "org.scm-core.provenance"
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
SETTINGS = {
    # c2pa-kp-claimSigning and documentSigning; emailProtection is always taken.
    "trust": {"trust_config": "1.3.6.1.4.1.62558.2.1\n1.3.6.1.5.5.7.3.36"},
    "core": {"allowed_network_hosts": []},
    "builder": {"thumbnail": {"enabled": False}, "created_assertion_labels": [ACTIONS, FACTS]},
}
WANTED = (
    "; C2PA takes a certificate that is valid today, issued by a CA, with the key usage "
    "digitalSignature, the extended key usage emailProtection, documentSigning or "
    "c2pa-kp-claimSigning, and a key RSA, Ed25519, P-256, P-384 or P-521"
)


class Signer:
    """Signs by PEM files: a certificate, with those between it and its CA behind it, and its key.

    Raises UserError at once where they will not do.
    """

    def __init__(self, certificate: str, key: str) -> None:
        c2pa = library()
        info = c2pa.C2paSignerInfo(*_credentials(certificate, key), None)
        self._certificate = certificate
        with _refusals(f"{certificate} cannot sign", WANTED):
            self._context = c2pa.Context.from_dict(SETTINGS, c2pa.Signer.from_info(info))
        trial = BytesIO()
        Image.new("L", (1, 1)).save(trial, "PNG")
        self.sign(trial, "trial.png", {})

    def sign(self, file: BytesIO, name: str, facts: dict[str, Any]) -> bytes:
        """A file that is to have that name, with a manifest that states the facts."""
        created = {"actions": [{"action": "c2pa.created", "digitalSourceType": SOURCE}]}
        manifest = {
            "title": name,
            "claim_generator_info": [{"name": "scm-core", "version": scm_core.__version__}],
            "assertions": [{"label": ACTIONS, "data": created}, {"label": FACTS, "data": facts}],
        }
        signed = BytesIO()
        with _refusals(f"{self._certificate} cannot sign {name}", WANTED):
            builder = library().Builder(json.dumps(manifest), self._context)
            builder.sign(Path(name).suffix[1:].lower(), file, signed)
        return signed.getvalue()


def verify(path: str | Path, trust: str | None = None) -> str:
    """Whose signature a file has; UserError where it does not hold.

    With `trust`, a PEM file of CAs, one of them has to vouch for the signer.
    """
    c2pa = library()
    anchors = {"trust_anchors": _certificates(trust)[1].decode()} if trust else {}
    context = c2pa.Context.from_dict(SETTINGS | {"trust": SETTINGS["trust"] | anchors})
    with _refusals(f"{path} has a manifest that cannot be read"):
        found = json.loads(c2pa.Reader(path, context=context).json())
    state, failed = found["validation_state"], found.get("validation_status", [])
    if any(one["code"].endswith(".mismatch") for one in failed):
        raise UserError(f"{path} was changed after it was signed")
    if state == "Invalid":
        why = ", ".join(one.get("explanation", one["code"]) for one in failed)
        raise UserError(f"{path} has a signature that does not hold: {why}")
    signer = found["manifests"][found["active_manifest"]]["signature_info"]
    names = (signer[key] for key in ("common_name", "issuer") if key in signer)
    who = " of ".join(json.dumps(name, ensure_ascii=False) for name in names)  # which may hold any
    if trust and state != "Trusted":
        raise UserError(f"{path} is signed by {who}, for whom no CA in {trust} vouches")
    vouched = f"for whom {trust} vouches" if trust else "not checked against a trust list (trust=)"
    return f"valid, the file is as it was signed; by {who}, {vouched}"


def library() -> Any:
    """The package c2pa; UserError where it is missing."""
    try:
        import c2pa
    except ImportError:
        raise UserError("C2PA needs c2pa-python: pip install 'scm-core[c2pa]'") from None
    return c2pa


def _credentials(certificate: str, key: str) -> tuple[str, bytes, bytes]:
    """The algorithm, the chain and the key, in the form that the library takes."""
    from cryptography.hazmat.primitives import serialization

    (first, chain), content = _certificates(certificate), _read(key)
    try:
        private = serialization.load_pem_private_key(content, password=None)
        same = private.public_key() == first.public_key()
    except TypeError:  # it wants a password
        raise UserError(f"{key} is encrypted: openssl pkey -in {key} -out FILE") from None
    except Exception:  # which depends on the kind of key
        raise UserError(f"{key} holds no private key in PEM form, or one of a rare kind") from None
    if not same:
        raise UserError(f"{key} is not the key of the first certificate in {certificate}")
    if first.issuer == first.subject:
        raise UserError(f"{certificate} cannot sign: it is self-signed{WANTED}")
    other = "ps256" if hasattr(private, "key_size") else "ed25519"
    algorithm = CURVES.get(private.curve.name, "none") if hasattr(private, "curve") else other
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return algorithm, chain, private.private_bytes(*form, serialization.NoEncryption())


def _certificates(path: str) -> tuple[Any, bytes]:
    """The first certificate of a PEM file, and all of them without what else it holds."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        found = x509.load_pem_x509_certificates(_read(path))
    except ValueError:
        raise UserError(f"{path} holds no certificate in PEM form") from None
    return found[0], b"".join(one.public_bytes(Encoding.PEM) for one in found)


def _read(path: str) -> bytes:
    try:
        return Path(os.path.expanduser(path)).read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


@contextlib.contextmanager
def _refusals(what: str, advice: str = "") -> Iterator[None]:
    """What C2PA refuses in one line, without its names of the kind and of the place."""
    try:
        yield
    except library().C2paError as error:
        reason = str(error).splitlines()[-1].partition(": ")[2].partition(" (self#")[0]
        raise UserError(f"{what}: {reason}{advice}") from error
