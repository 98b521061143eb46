"""A CA for tests: certificates that sign for C2PA, and some that do not."""

from datetime import UTC, datetime, timedelta
from functools import partial

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

EMAIL, SERVER = ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.SERVER_AUTH
CLAIMS = x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1")
DOCUMENTS = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")
DAY = timedelta(days=1)
KEYS = {
    "P-256": partial(ec.generate_private_key, ec.SECP256R1()),
    "P-384": partial(ec.generate_private_key, ec.SECP384R1()),
    "secp256k1": partial(ec.generate_private_key, ec.SECP256K1()),
    "Ed25519": ed25519.Ed25519PrivateKey.generate,
    "RSA": partial(rsa.generate_private_key, 65537, 2048),
}
TAKEN = [  # what to ask of an issuer
    *({"kind": kind} for kind in ("P-384", "Ed25519", "RSA")),
    *({"use": use} for use in (CLAIMS, DOCUMENTS)),
]
REFUSED = [
    ({"itself": True}, "self-signed"),
    ({"use": None}, "the certificate is invalid"),
    ({"use": SERVER}, "the certificate is invalid"),
    ({"since": -2 * DAY, "until": -DAY}, "not valid at time of signing"),
    ({"kind": "secp256k1"}, "cannot sign: "),
]


class Issuer:
    """A CA that writes PEM files into a folder: its own certificate, and what it issues."""

    def __init__(self, folder):
        self.folder, self.name = folder, named("Test CA")
        self.key = KEYS["P-256"]()
        self.trust = folder / "ca.pem"
        certificate = self.certify(self.key, self.name, ca=True)
        self.trust.write_bytes(certificate.public_bytes(Encoding.PEM))

    def issue(self, name, kind="P-256", password=None, **wishes):
        """The files of a certificate and of its key, as a signer gets them."""
        key = KEYS[kind]()
        files = self.folder / f"{name}.pem", self.folder / f"{name}-secret.pem"
        files[0].write_bytes(self.certify(key, named(name), **wishes).public_bytes(Encoding.PEM))
        lock = BestAvailableEncryption(password) if password else NoEncryption()
        files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
        return files

    def certify(self, key, name, ca=False, itself=False, use=EMAIL, since=-DAY, until=DAY):
        """A certificate of a key, by this CA or by itself."""
        now, signer = datetime.now(UTC), key if itself else self.key
        usage = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        )
        usage |= {"digital_signature": not ca, "key_cert_sign": ca, "crl_sign": ca}
        usage |= {"encipher_only": False, "decipher_only": False}
        authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
        builder = (
            x509.CertificateBuilder(name if itself else self.name, name, key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + since)
            .not_valid_after(now + until)
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(authority, critical=False)
        )
        if use and not ca:
            builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        return builder.sign(signer, hashes.SHA256())


def named(name):
    """A subject of one organisation."""
    parts = (NameOID.ORGANIZATION_NAME, "Test House"), (NameOID.COMMON_NAME, name)
    return x509.Name([x509.NameAttribute(*part) for part in parts])
