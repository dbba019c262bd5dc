"""Certificates, keys and authorities of every kind: those that serve, and those that are refused.

What serves is proven by OpenSSL's own client, which trusts exactly that certificate; what is
refused is named with its option, its value and a remedy. The files are made by the openssl command.
"""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from _children import run_command
from conftest import wait_until
from oslo_service import _options
from support.certify import OPENSSL, Pair, issued, make_key, openssl, self_signed
from support.raw_http import DEADLINE, configuration, serving
from support.serving import OSLOXIDE, Running, starter

from osloxide import _native, wsgi

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs the openssl command")


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [environ["wsgi.url_scheme"].encode()]


Serve = Callable[..., tuple[str, int]]
Start = Callable[..., Running]

SITE = """
def application(environ, start_response):
    start_response("200 OK", [])
    return [environ["wsgi.url_scheme"].encode()]
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start ``osloxide ...`` beside a module ``mysite``; nothing of it may be left."""
    (tmp_path / "mysite.py").write_text(SITE)
    with starter(tmp_path) as begin:
        yield begin


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start a server with options of the group ssl; where it listens."""
    with ExitStack() as servers:

        def start(pair: Pair, ca_file: Path | None = None, **options: Any) -> tuple[str, int]:
            conf = configuration()
            conf.register_opts(_options.ssl_opts, "ssl")
            conf.set_override("cert_file", str(pair.certificate), "ssl")
            conf.set_override("key_file", str(pair.key), "ssl")
            if ca_file is not None:
                conf.set_override("ca_file", str(ca_file), "ssl")
            for name, value in options.items():
                conf.set_override(name, value, "ssl")
            server = servers.enter_context(serving(app, use_ssl=True, conf=conf))
            return server.host, server.port

        yield start


def ask(
    where: tuple[str, int],
    trusted: Path | None = None,
    client: Pair | None = None,
    *,
    newest: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
) -> bytes:
    """The answer to one request; the server must prove that it is *trusted*."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.maximum_version = newest
    # A key of 1024 bits or a curve out of fashion is the server's affair, not this client's.
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if trusted is not None:
        context.load_verify_locations(trusted)
        context.verify_mode = ssl.CERT_REQUIRED
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    with (
        socket.create_connection(where, DEADLINE) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as encrypted,
    ):
        encrypted.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return encrypted.makefile("rb").read()


def is_refused(where: tuple[str, int], client: Pair | None, newest: ssl.TLSVersion) -> bool:
    try:
        return not ask(where, client=client, newest=newest)
    except (ssl.SSLError, ConnectionError):
        return True


BOTH = pytest.mark.parametrize(
    "newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=["tls12", "tls13"]
)


# ---- what serves ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "kind", ["rsa-2048", "rsa-3072", "rsa-8192", "p-256", "p-384", "p-521", "ed25519"]
)
def test_a_key_of_every_usual_kind_serves(
    serve: Serve, tmp_path: Path, kind: str, newest: ssl.TLSVersion
) -> None:
    pair = self_signed(tmp_path, kind)

    answer = ask(serve(pair), pair.certificate, newest=newest)

    assert answer.endswith(b"https")


def _text(pair: Pair, directory: Path) -> Pair:
    described = directory / "described.crt"
    openssl("x509 -text -in", pair.certificate, "-out", described)
    described.write_bytes("# für die Rezeption\n".encode("latin-1") + described.read_bytes())
    return Pair(described, pair.key)


def _trusted(pair: Pair, directory: Path) -> Pair:
    trusted = directory / "trusted.crt"
    openssl(
        "x509 -trustout -addtrust serverAuth -setalias web -in", pair.certificate, "-out", trusted
    )
    assert "TRUSTED CERTIFICATE" in trusted.read_text()
    return Pair(trusted, pair.key)


def _old_label(pair: Pair, directory: Path) -> Pair:
    old = directory / "old.crt"
    text = pair.certificate.read_text()
    old.write_text(text.replace(" CERTIFICATE-----", " X509 CERTIFICATE-----"))
    return Pair(old, pair.key)


def _windows(pair: Pair, directory: Path) -> Pair:
    result = Pair(directory / "crlf.crt", directory / "crlf.key")
    for source, target in ((pair.certificate, result.certificate), (pair.key, result.key)):
        target.write_bytes(b"\xef\xbb\xbf" + source.read_bytes().replace(b"\n", b"\r\n"))
    return result


def _one_file(pair: Pair, directory: Path) -> Pair:
    both = directory / "both.pem"
    both.write_text(pair.key.read_text() + pair.certificate.read_text())
    return Pair(both, both)


def _traditional(pair: Pair, directory: Path) -> Pair:
    key = directory / "sec1.key"
    parameters = directory / "parameters"
    openssl("ecparam -name prime256v1 -out", parameters)
    openssl("ec -in", pair.key, "-out", key)
    key.write_text(parameters.read_text() + key.read_text())
    assert "EC PRIVATE KEY" in key.read_text()
    return Pair(pair.certificate, key)


@pytest.mark.parametrize(
    "written", [_text, _trusted, _old_label, _windows, _one_file, _traditional],
    ids=lambda written: written.__name__.strip("_"),
)  # fmt: skip
def test_files_serve_however_they_are_written(
    serve: Serve, tmp_path: Path, written: Callable[[Pair, Path], Pair]
) -> None:
    pair = self_signed(tmp_path)

    assert ask(serve(written(pair, tmp_path)), pair.certificate).endswith(b"https")


def test_serve_looks_for_a_key_beside_its_certificate(start: Start, tmp_path: Path) -> None:
    pair = self_signed(tmp_path)
    both = _one_file(pair, tmp_path).certificate

    site = start("serve", "mysite", "--bind", "127.0.0.1:0", "--certfile", str(both))

    assert ask(("127.0.0.1", site.port()), pair.certificate).endswith(b"https")
    assert site.stop() == 0, site.log


def test_a_certificate_of_version_1_serves(serve: Serve, tmp_path: Path) -> None:
    authority = self_signed(tmp_path, name="authority")
    pair = issued(tmp_path, authority, version=1)

    assert ask(serve(pair), authority.certificate).endswith(b"https")


# ---- keys with a passphrase ----------------------------------------------------------------------

ENCRYPTIONS = {
    "aes-256": "pkcs8 -topk8 -v2 aes-256-cbc",
    "aes-128-sha1": "pkcs8 -topk8 -v2 aes-128-cbc -v2prf hmacWithSHA1",
    "des3": "pkcs8 -topk8 -v2 des3",
    "scrypt": "pkcs8 -topk8 -scrypt",
}


def encrypted(pair: Pair, directory: Path, command: str, passphrase: str = "open sesame") -> Pair:
    key = directory / "encrypted.key"
    openssl(f"{command} -in", pair.key, "-passout", f"pass:{passphrase}", "-out", key)
    return Pair(pair.certificate, key)


@pytest.mark.parametrize("command", ENCRYPTIONS.values(), ids=ENCRYPTIONS)
def test_an_encrypted_key_serves_with_its_passphrase(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    pair = self_signed(tmp_path)
    (tmp_path / "passphrase").write_text("open sesame\n")
    monkeypatch.setenv("OSLOXIDE_KEY_PASSPHRASE_FILE", str(tmp_path / "passphrase"))

    where = serve(encrypted(pair, tmp_path, command))

    assert ask(where, pair.certificate).endswith(b"https")


@pytest.mark.parametrize(
    ("command", "passphrase", "problem", "remedy"),
    [
        (ENCRYPTIONS["aes-256"], None, "is encrypted, and no passphrase is given",
         "OSLOXIDE_KEY_PASSPHRASE_FILE"),
        (ENCRYPTIONS["aes-256"], "wrong", "cannot be decrypted with the passphrase in ",
         "first line of that file"),
        ("ec -aes256", "open sesame", "is encrypted in a format older than PKCS #8",
         "openssl pkcs8 -topk8"),
    ],
)  # fmt: skip
def test_an_encrypted_key_that_cannot_be_read_is_named_with_a_remedy(
    tmp_path: Path, command: str, passphrase: str | None, problem: str, remedy: str
) -> None:
    pair = encrypted(self_signed(tmp_path), tmp_path, command)
    file = None
    if passphrase is not None:
        (tmp_path / "passphrase").write_text(passphrase)
        file = str(tmp_path / "passphrase")

    with pytest.raises(ValueError, match="key_file") as refusal:
        _native.TlsConfig(str(pair.certificate), str(pair.key), passphrase_file=file)

    assert problem in str(refusal.value)
    assert remedy in str(refusal.value)


def test_a_missing_passphrase_file_is_named(tmp_path: Path) -> None:
    pair = encrypted(self_signed(tmp_path), tmp_path, ENCRYPTIONS["aes-256"])

    with pytest.raises(OSError, match="key_passphrase_file /nowhere"):
        _native.TlsConfig(str(pair.certificate), str(pair.key), passphrase_file="/nowhere")


# ---- what is refused -----------------------------------------------------------------------------


def load(pair: Pair, **options: Any) -> str:
    """Why *pair* is refused."""
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 - the text is what is tested
        _native.TlsConfig(str(pair.certificate), str(pair.key), **options)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("rsa-1024", "an RSA key of 1024 bits"),
        ("rsa-2041", "an RSA key of 2041 bits"),
        ("rsa-2047", "an RSA key of 2047 bits"),
        ("secp256k1", "an ECDSA key on the curve 1.3.132.0.10"),
        ("brainpool", "an ECDSA key on the curve 1.3.36.3.3.2.8.1.1.7"),
        ("ed448", "a key of the algorithm 1.3.101.113"),
    ],
)
def test_a_key_that_cannot_serve_is_named_with_its_kind(
    tmp_path: Path, kind: str, named: str
) -> None:
    pair = self_signed(tmp_path, kind)

    message = load(pair)

    assert message.startswith(f"key_file = {pair.key}: cannot serve")
    assert named in message
    assert "use an RSA key of 2048 to 8192 bits" in message


def test_the_key_of_another_certificate_is_told_so_whatever_its_version(tmp_path: Path) -> None:
    authority = self_signed(tmp_path, name="authority")
    pair = issued(tmp_path, authority, version=1)

    message = load(Pair(pair.certificate, authority.key))

    assert message == (
        f"key_file = {authority.key}: cannot be used with {pair.certificate} (keys may not be "
        "consistent: KeyMismatch); give the private key that the certificate was made for"
    )


def test_a_chain_in_the_wrong_order_is_told_so(tmp_path: Path) -> None:
    authority = self_signed(tmp_path, name="authority")
    pair = issued(tmp_path, authority)
    chain = tmp_path / "chain.pem"
    chain.write_text(authority.certificate.read_text() + pair.certificate.read_text())

    message = load(Pair(chain, pair.key))

    assert "put the certificate of that key first in cert_file" in message


@pytest.mark.parametrize("option", ["cert_file", "key_file"])
def test_der_is_told_from_pem(tmp_path: Path, option: str) -> None:
    pair = self_signed(tmp_path)
    der = tmp_path / "der"
    if option == "cert_file":
        openssl("x509 -outform der -in", pair.certificate, "-out", der)
        message = load(Pair(der, pair.key))
    else:
        openssl("pkey -outform der -in", pair.key, "-out", der)
        message = load(Pair(pair.certificate, der))

    assert message.startswith(f"{option} = {der}: is not PEM but DER or PKCS #12; convert it")


def test_a_pem_file_without_its_end_is_refused(tmp_path: Path) -> None:
    pair = self_signed(tmp_path)
    for file, option in ((pair.certificate, "cert_file"), (pair.key, "key_file")):
        whole = file.read_text()
        file.write_text(whole[: len(whole) // 2])

        assert load(pair).startswith(f"{option} = {file}: is not PEM")

        file.write_text(whole)


def test_ciphers_that_the_key_cannot_use_are_refused(tmp_path: Path) -> None:
    pair = self_signed(tmp_path, "p-256")

    message = load(pair, version="TLSv1_2", ciphers="ECDHE-RSA-AES128-GCM-SHA256")

    assert message.startswith("ciphers = ECDHE-RSA-AES128-GCM-SHA256: none of them can be used")


# ---- certificates of clients ---------------------------------------------------------------------


@pytest.fixture
def server_pair(tmp_path: Path) -> Pair:
    (tmp_path / "server").mkdir()
    return self_signed(tmp_path / "server")


@BOTH
@pytest.mark.parametrize("kind", ["rsa-2048", "rsa-8192", "p-256", "p-384", "p-521", "ed25519"])
def test_a_client_certificate_of_every_usual_kind_is_accepted(
    serve: Serve, tmp_path: Path, server_pair: Pair, kind: str, newest: ssl.TLSVersion
) -> None:
    authority = self_signed(tmp_path, kind, "authority")
    client = issued(tmp_path, authority, kind)
    where = serve(server_pair, authority.certificate)

    assert ask(where, client=client, newest=newest).endswith(b"https")
    assert is_refused(where, None, newest)
    assert is_refused(where, server_pair, newest)


@BOTH
def test_a_client_certificate_of_a_short_key_is_refused(
    serve: Serve, tmp_path: Path, server_pair: Pair, newest: ssl.TLSVersion
) -> None:
    authority = self_signed(tmp_path, name="authority")
    where = serve(server_pair, authority.certificate)

    assert is_refused(where, issued(tmp_path, authority, "rsa-1024"), newest)


@BOTH
@pytest.mark.parametrize(("kind", "digest"), [("p-256", "sha512"), ("p-384", "sha256")])
def test_the_digest_of_a_signature_need_not_fit_the_curve(
    serve: Serve, tmp_path: Path, server_pair: Pair, kind: str, digest: str, newest: ssl.TLSVersion
) -> None:
    authority = self_signed(tmp_path, kind, "authority", f"-{digest}")
    client = issued(tmp_path, authority, kind, extra=f"-{digest}")

    where = serve(server_pair, authority.certificate)

    assert ask(where, client=client, newest=newest).endswith(b"https")


@BOTH
def test_a_self_signed_client_may_be_its_own_authority(
    serve: Serve, tmp_path: Path, server_pair: Pair, newest: ssl.TLSVersion
) -> None:
    client = self_signed(tmp_path, name="client")
    (tmp_path / "other").mkdir()
    # The same name, another key.
    stranger = self_signed(tmp_path / "other", name="client")
    where = serve(server_pair, client.certificate)

    assert ask(where, client=client, newest=newest).endswith(b"https")
    assert is_refused(where, stranger, newest)


def test_a_trusted_certificate_serves_as_an_authority(
    serve: Serve, tmp_path: Path, server_pair: Pair
) -> None:
    authority = self_signed(tmp_path, name="authority")
    client = issued(tmp_path, authority)

    where = serve(server_pair, _trusted(authority, tmp_path).certificate)

    assert ask(where, client=client).endswith(b"https")


@BOTH
def test_an_optional_client_certificate_must_be_valid_where_there_is_one(
    tmp_path: Path, server_pair: Pair, newest: ssl.TLSVersion
) -> None:
    class Optional(wsgi.Server):
        client_certificates = "optional"

    authority = self_signed(tmp_path, name="authority")
    client = issued(tmp_path, authority)
    conf = configuration()
    conf.register_opts(_options.ssl_opts, "ssl")
    conf.set_override("cert_file", str(server_pair.certificate), "ssl")
    conf.set_override("key_file", str(server_pair.key), "ssl")
    conf.set_override("ca_file", str(authority.certificate), "ssl")
    with serving(app, use_ssl=True, conf=conf, kind=Optional) as server:
        where = server.host, server.port

        assert ask(where, newest=newest).endswith(b"https")
        assert ask(where, client=client, newest=newest).endswith(b"https")
        assert is_refused(where, server_pair, newest)


def test_one_unusable_authority_does_not_spoil_a_bundle(
    serve: Serve, tmp_path: Path, server_pair: Pair
) -> None:
    authority = self_signed(tmp_path, name="authority")
    client = issued(tmp_path, authority)
    bundle = tmp_path / "bundle.pem"
    # A SEQUENCE that is no certificate.
    broken = "-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n"
    bundle.write_text(broken + authority.certificate.read_text())

    assert ask(serve(server_pair, bundle), client=client).endswith(b"https")

    bundle.write_text(broken)
    message = load(server_pair, ca_file=str(bundle))
    assert message.startswith(f"ca_file = {bundle}: holds no certificate that can be used")


# ---- what the log says of a handshake that fails -------------------------------------------------


def test_the_reason_of_a_failed_handshake_is_logged_at_debug(
    start: Start, tmp_path: Path, server_pair: Pair
) -> None:
    authority = self_signed(tmp_path, name="authority")
    unknown = self_signed(tmp_path, name="unknown")
    stranger = issued(tmp_path, unknown, name="stranger")
    old = issued(tmp_path, authority, name="old", version=1)
    site = start(
        "serve", "mysite", "--bind", "127.0.0.1:0", "--log-level", "debug",
        "--certfile", str(server_pair.certificate), "--keyfile", str(server_pair.key),
        "--ca-certs", str(authority.certificate),
    )  # fmt: skip
    where = "127.0.0.1", site.port()

    def is_logged(reason: str) -> bool:
        return any("TLS failed" in line and reason in line for line in site.log.splitlines())

    with socket.create_connection(where, DEADLINE) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        client.recv(100)
    wait_until(lambda: is_logged("InvalidContentType"), site.log)
    socket.create_connection(where, DEADLINE).close()
    wait_until(lambda: is_logged("left before the handshake was over"), site.log)
    assert is_refused(where, None, ssl.TLSVersion.TLSv1_3)
    wait_until(lambda: is_logged("sent no certificates"), site.log)
    assert is_refused(where, stranger, ssl.TLSVersion.TLSv1_2)
    wait_until(lambda: is_logged("UnknownIssuer"), site.log)
    assert is_refused(where, old, ssl.TLSVersion.TLSv1_3)
    wait_until(lambda: is_logged("UnsupportedCertVersion"), site.log)
    with pytest.raises(ssl.SSLError):
        ask(where, trusted=unknown.certificate)
    wait_until(lambda: is_logged("UnknownCA"), site.log)
    assert site.stop() == 0, site.log


def test_a_client_of_tls_writes_no_warnings_into_the_log(
    start: Start, tmp_path: Path, server_pair: Pair
) -> None:
    site = start(
        "serve", "mysite", "--bind", "127.0.0.1:0",
        "--certfile", str(server_pair.certificate), "--keyfile", str(server_pair.key),
    )  # fmt: skip
    where = "127.0.0.1", site.port()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outgoing = ssl.MemoryBIO()
    greeting = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        greeting.do_handshake()
    hello = outgoing.read()
    user_canceled = b"\x15\x03\x03\x00\x02\x01\x5a"

    for bytes_ in (hello + user_canceled * 100, b"\x16\x03\x01\x00\x00" * 100, b"\x80\x2e\x01"):
        with socket.create_connection(where, DEADLINE) as client:
            client.sendall(bytes_)
            client.shutdown(socket.SHUT_WR)
            with suppress(ConnectionError):
                while client.recv(65536):
                    pass

    assert ask(where, server_pair.certificate).endswith(b"https")
    assert site.stop() == 0, site.log
    assert "WARNING" not in site.log
    assert "ERROR" not in site.log


def test_debug_that_a_reload_turns_on_is_heard(
    serve: Serve, server_pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    def leave() -> bool:
        socket.create_connection(where, DEADLINE).close()
        return "left before the handshake was over" in caplog.text

    where = serve(server_pair)
    assert not leave()

    caplog.set_level(logging.DEBUG)
    _native.reread_log_levels()  # as Server.reset() does

    wait_until(leave, "the reason")


# ---- options of serve ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--keyfile", "x"], "--keyfile x needs --certfile; give both"),
        (["--ca-certs", "x"], "--ca-certs x needs --certfile; give both"),
        (["--ciphers", "HIGH"], "--ciphers HIGH needs --certfile; give both"),
        (["--ssl-version", "TLSv1_3"], "--ssl-version TLSv1_3 needs --certfile; give both"),
        (["--keyfile-passphrase-file", "x"], "--keyfile-passphrase-file x needs --certfile"),
        (["--certfile", "{crt}", "--keyfile", "{key}", "--cert-reqs", "optional"],
         "--cert-reqs optional needs --ca-certs; give both"),
        (["--certfile", "{crt}"], "--keyfile {crt}: holds nothing of the kind"),
        (["--certfile", "{crt}", "--keyfile", "{encrypted}"],
         "--keyfile {encrypted}: is encrypted, and no passphrase is given; name a file"),
        (["--certfile", "{crt}", "--keyfile", "{key}", "--ca-certs", "{key}"],
         "--ca-certs {key}: holds nothing of the kind"),
    ],
)  # fmt: skip
def test_serve_names_what_cannot_work(tmp_path: Path, arguments: list[str], error: str) -> None:
    pair = self_signed(tmp_path)
    locked = encrypted(pair, tmp_path, ENCRYPTIONS["aes-256"])
    files = {"crt": pair.certificate, "key": pair.key, "encrypted": locked.key}
    (tmp_path / "mysite.py").write_text(SITE)

    result = run_command(
        [*OSLOXIDE, "serve", "mysite", "--bind", "127.0.0.1:0",
         *(argument.format(**files) for argument in arguments)],
        cwd=tmp_path,
    )  # fmt: skip

    assert result.returncode == 1, result.stderr
    assert error.format(**files) in result.stderr


def test_serve_reads_a_passphrase_and_lets_clients_come_without_a_certificate(
    start: Start, tmp_path: Path, server_pair: Pair
) -> None:
    authority = self_signed(tmp_path, name="authority")
    locked = encrypted(server_pair, tmp_path, ENCRYPTIONS["aes-256"])
    (tmp_path / "passphrase").write_text("open sesame\n")
    site = start(
        "serve", "mysite", "--bind", "127.0.0.1:0", "--workers", "2",
        "--certfile", str(locked.certificate), "--keyfile", str(locked.key),
        "--keyfile-passphrase-file", str(tmp_path / "passphrase"),
        "--ca-certs", str(authority.certificate), "--cert-reqs", "optional",
    )  # fmt: skip
    where = "127.0.0.1", site.port()

    assert ask(where, server_pair.certificate).endswith(b"https")
    assert ask(where, client=issued(tmp_path, authority)).endswith(b"https")
    assert is_refused(where, server_pair, ssl.TLSVersion.TLSv1_3)
    assert site.stop() == 0, site.log


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_reload_with_a_certificate_that_cannot_serve_keeps_the_old_one_and_says_so(
    start: Start, tmp_path: Path, workers: str
) -> None:
    pair = self_signed(tmp_path)
    good = tmp_path / "good.crt"
    shutil.copy(pair.certificate, good)
    site = start(
        "serve", "mysite", "--bind", "127.0.0.1:0", "--workers", workers,
        "--certfile", str(pair.certificate), "--keyfile", str(pair.key),
    )  # fmt: skip
    where = "127.0.0.1", site.port()
    assert ask(where, good).endswith(b"https")

    pair.certificate.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n")
    site.process.send_signal(signal.SIGHUP)

    wait_until(lambda: f"--certfile {pair.certificate}: is not PEM" in site.log, site.log)
    assert ask(where, good).endswith(b"https")
    assert site.process.poll() is None

    # The next one that can serve is taken.
    shutil.copy(good, pair.certificate)
    seen = site.log.count("listening") + site.log.count("Stopping WSGI server")
    site.process.send_signal(signal.SIGHUP)
    wait_until(
        lambda: site.log.count("listening") + site.log.count("Stopping WSGI server") > seen,
        "the reload",
    )
    wait_until(lambda: ask(where, good).endswith(b"https"), "an answer")
    assert site.stop() == 0, site.log


def test_an_expired_certificate_is_told_once_at_a_reload(start: Start) -> None:
    certificates = Path(__file__).parents[1] / "certificates"
    site = start(
        "serve", "mysite", "--bind", "127.0.0.1:0", "--workers", "1",
        "--certfile", str(certificates / "expired.crt"),
        "--keyfile", str(certificates / "expired.key"),
    )  # fmt: skip
    warning = "a certificate is not valid now"
    assert site.port()
    assert site.log.count(warning) == 1

    site.process.send_signal(signal.SIGHUP)
    wait_until(lambda: site.log.count("listening") == 2, "the reload")
    assert ask(("127.0.0.1", site.port())).endswith(b"https")
    assert site.stop() == 0, site.log
    assert site.log.count(warning) == 2, site.log


def test_files_that_are_no_more_named_at_a_reload_are_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pair = self_signed(tmp_path)
    conf = configuration()
    conf.register_opts(_options.ssl_opts, "ssl")
    conf.set_override("cert_file", str(pair.certificate), "ssl")
    conf.set_override("key_file", str(pair.key), "ssl")
    with serving(app, use_ssl=True, conf=conf) as server:
        conf.clear_override("cert_file", "ssl")
        conf.clear_override("key_file", "ssl")
        server.reset()

        assert "cert_file and key_file of group [ssl] are not set; set both" in caplog.text
        assert ask((server.host, server.port), pair.certificate).endswith(b"https")


# ---- clients of other make -----------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1", "--http2", "--no-alpn"])
def test_curl_agrees_on_a_protocol_whatever_it_offers(
    serve: Serve, server_pair: Pair, version: str
) -> None:
    host, port = serve(server_pair)

    answer = subprocess.run(
        ["curl", "--silent", "--show-error", "--insecure", version, f"https://{host}:{port}/"],
        check=True,
        capture_output=True,
        timeout=DEADLINE,
    )

    assert answer.stdout == b"https"


SENDING = """
BODY = bytes(range(256)) * (8 << 12)

def application(environ, start_response):
    kind = environ["PATH_INFO"]
    start_response("200 OK", [] if kind == "/streamed" else [("Content-Length", str(len(BODY)))])
    if kind == "/file":
        with open("body", "wb") as file:
            file.write(BODY)
        return environ["wsgi.file_wrapper"](open("body", "rb"))
    return [BODY] if kind == "/whole" else iter([BODY[: 1 << 20]] * 8)
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("version", ["--http1.0", "--http1.1"])
@pytest.mark.parametrize("kind", ["whole", "streamed", "file"])
def test_curl_with_a_limited_rate_gets_the_whole_of_an_answer(
    start: Start, tmp_path: Path, server_pair: Pair, kind: str, version: str
) -> None:
    (tmp_path / "sending_site.py").write_text(SENDING)
    site = start(
        "serve", "sending_site", "--bind", "127.0.0.1:0",
        "--certfile", str(server_pair.certificate), "--keyfile", str(server_pair.key),
    )  # fmt: skip
    url = f"https://localhost:{site.port()}/{kind}"
    result = subprocess.run(
        ["curl", "-sS", version, "--limit-rate", "16M", "--resolve",
         f"localhost:{site.port()}:127.0.0.1", "--cacert", str(server_pair.certificate), url],
        check=False, capture_output=True, timeout=DEADLINE,
    )  # fmt: skip

    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout == bytes(range(256)) * (8 << 12)
    assert site.stop() == 0, site.log


def test_make_key_makes_what_it_is_asked_for(tmp_path: Path) -> None:
    """The kinds above are those that they claim to be."""
    for kind, bits in (("rsa-8192", b"8192 bit"), ("p-521", b"521 bit")):
        key = make_key(kind, tmp_path / kind)
        assert OPENSSL is not None
        shown = subprocess.run(
            [OPENSSL, "pkey", "-noout", "-text", "-in", str(key)],
            check=True, capture_output=True, timeout=DEADLINE,
        )  # fmt: skip
        assert bits in shown.stdout
