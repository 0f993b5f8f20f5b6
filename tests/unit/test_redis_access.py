"""access, tls: what the settings add to a URL, what they refuse, and which files a connection is made with."""

import os
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.tls import Certificates
from uno.event_bus.dead_letter.config import DeadLetterConfig
from uno.event_bus.dead_letter.errors import ConfigError
from uno.event_bus.dead_letter.queue import DeadLetterQueue
from uno.event_bus.dead_letter.store.access import Access, PasswordFile
from uno.event_bus.dead_letter.store.connect import Seeds, seeds_of
from uno.event_bus.dead_letter.store.tls import TlsConnection, Unusable

SECRET = "s3cr3t-word"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def seeds(url: str, **settings: Any) -> Seeds:
    return seeds_of(url, Access.of(DeadLetterConfig(**settings)))


def connection(url: str, **settings: Any) -> Any:
    pool = seeds(url, **settings).targets[0].pool(name="n", size=1, timeout_s=1)
    return pool.make_connection()


def context(url: str, **settings: Any) -> ssl.SSLContext:
    found: ssl.SSLContext = connection(url, **settings)._connection_arguments()["ssl"]
    return found


@pytest.mark.parametrize(
    ("url", "settings", "user", "password"),
    [
        ("redis://h", {"redis_password": SECRET}, None, SECRET),
        ("redis://h", {"redis_username": "shop", "redis_password": SECRET}, "shop", SECRET),
        ("redis://shop@h", {"redis_password": SECRET}, "shop", SECRET),
        (f"redis://:{SECRET}@h", {"redis_username": "shop"}, "shop", SECRET),
        (f"redis://shop:{SECRET}@h", {"redis_username": "shop", "redis_password": SECRET}, "shop", SECRET),
        (f"unix://shop:{SECRET}@/x.sock", {}, "shop", SECRET),
        ("redis://h", {"redis_username": "shop"}, "shop", None),
    ],
)
def test_a_url_and_the_settings_make_one_login(url: str, settings: Any, user: str | None, password: str | None) -> None:
    """One may have the user, and the other the password; both may say the same."""
    made = connection(url, **settings)
    assert (made.username, made.password, made.credential_provider) == (user, password, None)


def test_a_password_file_is_read_for_each_connection(tmp_path: Path) -> None:
    """Its first line, without the end of the line; spaces are part of it."""
    path = tmp_path / "password"
    path.write_text(f" {SECRET} \r\nmore")
    made = connection("rediss://shop@h", redis_password_file=str(path))
    assert (made.username, made.password) == (None, None)
    assert made.credential_provider.get_credentials() == ("shop", f" {SECRET} ")
    path.write_text("new")
    assert made.credential_provider.get_credentials() == ("shop", "new")
    assert PasswordFile(None, str(path)).get_credentials() == ("new",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        (b"", "0 characters"),
        (b"\nx", "0 characters"),
        (b"x" * 4097, "4097"),
        (b"\xff", "UTF-8"),
    ],
)
def test_a_password_file_without_a_password_is_one_line(tmp_path: Path, content: bytes | None, words: str) -> None:
    """That names the variable, the path and the reason: a `ConfigError` before use, `Unusable` later."""
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    for call, kind in (
        (seeds("redis://h", redis_password_file=str(path)).check, ConfigError),
        (PasswordFile(None, str(path)).get_credentials, Unusable),
    ):
        with pytest.raises(kind, match=words) as refused:
            call()
        assert str(refused.value).startswith(f"DLQ_REDIS_PASSWORD_FILE (redis_password_file) is '{path}': ")
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "settings", "words"),
    [
        ("redis://h", {"redis_ca_file": "/ca"}, r"redis_ca_file.*is set, but redis_url is redis:.*write rediss:"),
        ("redis://h", {"redis_cert_file": "/c"}, r"redis_cert_file.*write rediss:"),
        ("redis://a,b?cluster=true", {"redis_key_file": "/k"}, r"redis_key_file.*write rediss:"),
        ("unix:///x.sock", {"redis_ca_file": "/ca"}, r"redis_ca_file.*is set, but redis_url is unix:"),
        ("redis://h?ssl_ca_certs=/ca", {}, r"redis_url has ssl_ca_certs.*write rediss:"),
        ("embedded:", {"redis_ca_file": "/ca"}, r"redis_ca_file.*embedded:"),
        ("embedded:", {"redis_password": SECRET}, r"redis_password.*embedded:"),
        (f"redis://:{SECRET}@h", {"redis_password": "0ther"}, r"redis_url has one password, .*redis_password"),
        (f"redis://:{SECRET}@h", {"redis_password_file": "/p"}, r"one password, .*redis_password_file"),
        ("redis://h", {"redis_password": SECRET, "redis_password_file": "/p"}, r"are set: allowed is one"),
        (f"redis://{SECRET}@h", {"redis_username": "shop"}, r"redis_url names one user, .*redis_username"),
        ("rediss://h?ssl_ca_certs=/a", {"redis_ca_file": "/b"}, r"redis_url has ssl_ca_certs, .*another file"),
        ("rediss://h", {"redis_key_file": "/k"}, r"redis_key_file.*no certificate: set .*redis_cert_file"),
        ("rediss://h?ssl_check_hostname=false", {}, r"ssl_check_hostname=false: allowed is true"),
    ],
)
def test_what_contradicts_a_url_is_refused_before_anything_is_sent(url: str, settings: Any, words: str) -> None:
    """In one line, when the queue is made, and without a secret."""
    with pytest.raises(ConfigError, match=words) as refused:
        DeadLetterQueue(url, DeadLetterConfig(**settings))
    for secret in (SECRET, "0ther", "\n"):
        assert secret not in str(refused.value)


def test_no_secret_is_in_what_is_shown() -> None:
    """Of the settings, of what is made of them, and of a connection."""
    settings = DeadLetterConfig(redis_username="shop", redis_password=SECRET)
    access = Access.of(settings)
    made = seeds_of("rediss://h", access)
    pool = made.targets[0].pool(name="n", size=1, timeout_s=1)
    for thing in (settings, access, made, made.targets[0], pool.make_connection()):
        assert SECRET not in repr(thing)
        assert SECRET not in str(thing)


@pytest.mark.parametrize("how", ["redis_ca_file", "ssl_ca_certs"])
def test_a_context_trusts_the_given_authority_alone(certificates: Certificates, how: str) -> None:
    """redis-py would trust the system's beside it. The name is checked, and TLS is 1.2 at least."""
    if how == "redis_ca_file":
        made = context("rediss://h", redis_ca_file=str(certificates.ca))
    else:
        made = context(f"rediss://h?ssl_ca_certs={certificates.ca}&ssl_min_version={ssl.TLSVersion.TLSv1.value}")
    assert made.cert_store_stats()["x509_ca"] == 1
    assert made.check_hostname
    assert made.verify_mode is ssl.CERT_REQUIRED
    assert made.minimum_version is ssl.TLSVersion.TLSv1_2


def test_a_context_is_shared_until_a_file_changes(certificates: Certificates, tmp_path: Path) -> None:
    """By the connections of all nodes; so certificates rotate without a restart."""
    ca = tmp_path / "ca.pem"
    ca.write_bytes(certificates.ca.read_bytes())
    [target] = seeds("rediss://h", redis_ca_file=str(ca)).targets

    def made(port: int) -> Any:
        pool = target.at(("h", port)).pool(name="n", size=1, timeout_s=1)
        return pool.make_connection()._connection_arguments()["ssl"]

    first = made(1)
    assert made(2) is first
    ca.write_bytes(certificates.strange_ca.read_bytes())
    os.utime(ca, ns=(1, 1))  # whatever the clock's grain
    assert made(1) is not first
    assert made(1).get_ca_certs() != first.get_ca_certs()


def test_no_certificate_is_checked_only_where_the_url_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """And that is worth a warning, once."""
    made = connection("rediss://h?ssl_cert_reqs=none")
    assert isinstance(made, TlsConnection)
    for _ in range(2):
        assert made._connection_arguments()["ssl"].verify_mode is ssl.CERT_NONE
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "ssl_cert_reqs=none" in record.getMessage()


@pytest.mark.parametrize(
    ("field", "content", "words"),
    [
        ("redis_ca_file", None, "No such file"),
        ("redis_ca_file", b"none", "no certificate"),
        ("redis_cert_file", b"none", "no certificate with its private key"),
        ("redis_cert_file", "folder", "Is a directory"),
        ("redis_key_file", None, "No such file"),
        ("redis_key_file", "other", "the private key is not of this certificate"),
        ("redis_cert_file", "encrypted", "the private key is encrypted"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    certificates: Certificates, tmp_path: Path, field: str, content: bytes | str | None, words: str
) -> None:
    """That names the variable, the path and the reason; OpenSSL asks nobody for a key's password."""
    path = tmp_path / "file.pem"
    match content:
        case "folder":
            path.mkdir()
        case "other":
            path.write_bytes(certificates.server.read_bytes())
        case "encrypted":
            path.write_bytes(_encrypted())
        case bytes():
            path.write_bytes(content)
    settings = {"redis_cert_file": str(certificates.client), field: str(path)}
    made = seeds("rediss://h", **settings)
    with pytest.raises(ConfigError, match=words) as refused:
        made.check()
    named = "redis_cert_file" if content == "other" else field
    assert str(refused.value).startswith(f"DLQ_{named.upper()} ({named}) is '{settings[named]}': ")
    assert "\n" not in str(refused.value)


def _encrypted() -> bytes:
    """A certificate with a key that has a password."""
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    leaf = trustme.CA().issue_cert("h")
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    sealed = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"word"))
    return sealed + leaf.cert_chain_pems[0].bytes()
