"""TLS as in exporter-toolkit."""

from __future__ import annotations

import ssl
import time

from exporter.config.web import TLSSettings

#: The first byte of a TLS connection: a record of the type handshake (RFC 8446, 5.1).
HANDSHAKE = b"\x16"

_VERSIONS = {"TLS12": ssl.TLSVersion.TLSv1_2, "TLS13": ssl.TLSVersion.TLSv1_3}
_CLIENT_AUTH = {
    "NoClientCert": ssl.CERT_NONE,
    "VerifyClientCertIfGiven": ssl.CERT_OPTIONAL,
    "RequireAndVerifyClientCert": ssl.CERT_REQUIRED,
}


def server_context(settings: TLSSettings) -> ssl.SSLContext:
    """A new context. Raises OSError, also as ssl.SSLError, for a file that cannot be read or used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[settings.min_version]
    context.maximum_version = _VERSIONS[settings.max_version]
    context.set_alpn_protocols(["http/1.1"])
    # Without a password OpenSSL prompts on the terminal for that of an encrypted key.
    context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    if settings.client_ca_file:
        context.load_verify_locations(settings.client_ca_file)
    context.verify_mode = _CLIENT_AUTH[settings.client_auth_type]
    # A resumed session skips the check of the client's certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET
    return context


def shake_hands(connection: ssl.SSLSocket) -> None:
    """Make the handshake. Raises OSError.

    TLS 1.2 also resumes sessions without tickets, which Python cannot switch off. A session ends with the
    client's certificate, and another client CA comes with another context, which knows none of its sessions.
    """
    connection.do_handshake()
    certificate = connection.getpeercert() if connection.session_reused else None
    if certificate and ssl.cert_time_to_seconds(str(certificate["notAfter"])) < time.time():
        raise ssl.SSLError("the client's certificate has expired")
