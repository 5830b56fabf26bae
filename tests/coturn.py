"""A real TURN server for tests: coturn, on loopback, with or without TLS."""

import asyncio
import datetime
import ipaddress
import shutil
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

SECRET = "north-star"
TURNSERVER = shutil.which("turnserver")

needs_coturn = pytest.mark.skipif(TURNSERVER is None, reason="coturn is not installed (tests/system_packages.sh)")


@asynccontextmanager
async def relay(folder: Path, certificate: Path | None = None) -> AsyncIterator[str]:
    """Run coturn on loopback; give its address and port.

    Args:
        folder: for its files.
        certificate: PEM, with its key; then it takes TLS alone. None: it takes none.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert TURNSERVER is not None
    listening = f"--listening-port {port} --no-tls"
    if certificate is not None:
        listening = f"--tls-listening-port {port} --cert {certificate} --pkey {certificate} --no-udp --no-tcp"
    options = (
        f"-n --listening-ip 127.0.0.1 --relay-ip 127.0.0.1 {listening} --no-dtls --use-auth-secret "
        f"--static-auth-secret {SECRET} --realm parley --no-cli --allow-loopback-peers "
        f"--log-file stdout --simple-log --pidfile {folder}/turn.pid --userdb {folder}/turn.db"
    )
    process = await asyncio.create_subprocess_exec(TURNSERVER, *options.split(), stdout=asyncio.subprocess.PIPE)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(20):
            while b"Total General servers" not in (line := await process.stdout.readline()):
                assert line, "coturn ended at once"
        yield f"127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()


def make_certificate(folder: Path) -> Path:
    """Return a file with a key and a certificate of 127.0.0.1 that vouches for itself, both PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a relay for tests")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    # What RFC 5280 section 4.2.1 asks of a CA: later Pythons look.
    signs = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign"), False
    )
    usage = x509.KeyUsage(**signs, digital_signature=True, key_cert_sign=True, encipher_only=False, decipher_only=False)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "relay.pem"
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path
