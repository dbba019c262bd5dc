"""Certificates and keys of every kind, made by the ``openssl`` command.

Owns the files that it writes below a directory of its caller. Rules: openssl-req(1),
openssl-x509(1), openssl-genpkey(1), openssl-pkcs8(1).
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OPENSSL = shutil.which("openssl")
"""The command; None where it is not installed."""

RSA_8192 = Path(__file__).parents[2] / "certificates" / "rsa8192.key"
"""A key whose making takes a minute."""

KINDS = {
    "rsa-2048": "RSA -pkeyopt rsa_keygen_bits:2048",
    "rsa-3072": "RSA -pkeyopt rsa_keygen_bits:3072",
    "p-256": "EC -pkeyopt ec_paramgen_curve:P-256",
    "p-384": "EC -pkeyopt ec_paramgen_curve:P-384",
    "p-521": "EC -pkeyopt ec_paramgen_curve:P-521",
    "ed25519": "ED25519",
    # These cannot serve.
    "rsa-1024": "RSA -pkeyopt rsa_keygen_bits:1024",
    "rsa-2041": "RSA -pkeyopt rsa_keygen_bits:2041",
    "rsa-2047": "RSA -pkeyopt rsa_keygen_bits:2047",
    "secp256k1": "EC -pkeyopt ec_paramgen_curve:secp256k1",
    "brainpool": "EC -pkeyopt ec_paramgen_curve:brainpoolP256r1",
    "ed448": "ED448",
}


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, both PEM."""

    certificate: Path
    key: Path


def openssl(command: str, *files: str | Path) -> str:
    """Run ``openssl COMMAND FILES...``; what it writes to stderr, where help goes too."""
    assert OPENSSL is not None
    return subprocess.run(
        [OPENSSL, *command.split(), *map(str, files)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stderr


def make_key(kind: str, path: Path) -> Path:
    """Write a private key of one of KINDS, or ``rsa-8192``, as PKCS #8."""
    if kind == "rsa-8192":
        shutil.copy(RSA_8192, path)
    else:
        openssl(f"genpkey -algorithm {KINDS[kind]} -out", path)
    return path


def self_signed(directory: Path, kind: str = "p-256", name: str = "self", extra: str = "") -> Pair:
    """Write a certificate for localhost that its own key has signed; an authority as well."""
    key = make_key(kind, directory / f"{name}.key")
    certificate = directory / f"{name}.crt"
    openssl(
        f"req -x509 -days 2 -subj /CN={name} -addext subjectAltName=DNS:localhost {extra} -key",
        key, "-out", certificate,
    )  # fmt: skip
    return Pair(certificate, key)


def issued(
    directory: Path,
    authority: Pair,
    kind: str = "p-256",
    name: str = "leaf",
    *,
    version: int = 3,
    extra: str = "",
) -> Pair:
    """Write a certificate for localhost and for clients that *authority* has signed."""
    key = make_key(kind, directory / f"{name}.key")
    certificate = directory / f"{name}.crt"
    if version == 1:
        # From 3.2 on `openssl x509 -req` makes version 3 in any case, and `req` unless it is told.
        file = directory / f"{name}.cnf"
        file.write_text("[req]\ndistinguished_name=dn\n[dn]\n")
        old = "-x509v1" if "-x509v1" in openssl("req -help") else ""
        openssl(
            f"req -x509 {old} -days 2 -set_serial 7 {extra} -subj /CN={name} -config", file,
            "-key", key, "-CA", authority.certificate, "-CAkey", authority.key, "-out", certificate,
        )  # fmt: skip
        return Pair(certificate, key)
    request, file = directory / f"{name}.csr", directory / f"{name}.ext"
    openssl(f"req -new -subj /CN={name} -key", key, "-out", request)
    file.write_text(
        "basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n"
        "subjectAltName=DNS:localhost\n"
    )
    openssl(
        f"x509 -req -days 2 -set_serial 7 {extra} -in",
        request, "-CA", authority.certificate, "-CAkey", authority.key, "-extfile", file,
        "-out", certificate,
    )  # fmt: skip
    return Pair(certificate, key)
