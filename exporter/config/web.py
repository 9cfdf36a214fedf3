"""The --web.config.file, in the format of Prometheus's exporter-toolkit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, with_config
from typing_extensions import TypedDict

from exporter.config.validators import Bcrypt, File, text
from exporter.config.yaml_source import Document, Place, contents

_Version = Literal["TLS12", "TLS13"]
_NO_POLICY = {"client_auth_type": {"const": "NoClientCert"}}
_CLIENT_CA: Any = {
    "if": {"required": ["client_ca_file"]},
    "then": {"required": ["client_auth_type"], "not": {"properties": _NO_POLICY}},
    "else": {"properties": _NO_POLICY},
}


def _absolute(name: str, info: ValidationInfo[Path]) -> str:
    """A path relative to the directory of the file, which is the context."""
    return str(info.context / name)


_File = Annotated[File, AfterValidator(_absolute)]


@with_config(extra="forbid", json_schema_extra=_CLIENT_CA)
@dataclass(frozen=True, slots=True)
class TLSSettings:
    """How to serve TLS; all paths are absolute. Policies for client certificates have Go's names."""

    cert_file: _File
    key_file: _File
    client_ca_file: _File | None = None
    client_auth_type: Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"] = (
        "NoClientCert"
    )
    min_version: _Version = "TLS12"
    max_version: _Version = "TLS13"


_VALUE = "a header's value: printable ASCII on one line"
_Header = Annotated[str, text("[ -~]*", _VALUE, shortest=0, longest=4096)]
#: The only headers that exporter-toolkit lets be set.
Headers = TypedDict(
    "Headers",
    {
        "Content-Security-Policy": _Header,
        "Strict-Transport-Security": _Header,
        "X-Content-Type-Options": Literal["nosniff"],
        "X-Frame-Options": Literal["deny", "sameorigin"],
        "X-XSS-Protection": _Header,
    },
    total=False,
)


@dataclass(frozen=True, slots=True)
class HTTPSettings:
    """The section http_server_config. The server speaks HTTP/1.1 alone."""

    http2: Literal[False] = False
    headers: Headers = field(default_factory=Headers)


#: A colon would end the name in the Authorization header (RFC 7617).
_User = Annotated[str, text("[^:]+", "a user name: visible characters, no colon")]
_USERS = Field(json_schema_extra={"propertyNames": {"pattern": "^[^:]+$"}})


@with_config(extra="forbid")
@dataclass(frozen=True, slots=True)
class WebSettings:
    """The whole file: no TLS, no passwords and no headers if it is empty."""

    tls_server_config: Annotated[TLSSettings | None, BeforeValidator(lambda tls: tls or None)] = None
    http_server_config: HTTPSettings = field(default_factory=HTTPSettings)
    #: User: bcrypt hash.
    basic_auth_users: Annotated[dict[_User, Bcrypt], _USERS] = field(default_factory=dict)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of each response. A blank one is not sent."""
        headers: dict[str, Any] = dict(self.http_server_config.headers)
        return {name: value for name, value in headers.items() if value}


_OPENSSL = "OpenSSL's own choice is used; leave the key out"
REFUSED = {
    "cert": "write the certificate to a file and name it as cert_file",
    "key": "write the key to a file and name it as key_file",
    "client_ca": "write the certificates to a file and name it as client_ca_file",
    "client_allowed_sans": "names in client certificates are not checked; use a CA of your own",
    "cipher_suites": _OPENSSL,
    "prefer_server_cipher_suites": _OPENSSL,
    "curve_preferences": _OPENSSL,
    "rate_limit": "requests are limited by --web.max-requests",
}


def load_web(path: str) -> WebSettings:
    """The settings in a file. Relative paths start in its directory. Raises ConfigError."""
    document = Document(contents(path), path, WebSettings, refused=REFUSED)
    return document.validate(_conflicts, context=Path(path).absolute().parent)


def _conflicts(values: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """What must go together in TLS, also beside other mistakes. A wrong value is None."""
    section, tls = "tls_server_config", values.get("tls_server_config") or {}
    policy, authorities = tls.get("client_auth_type", "NoClientCert"), "client_ca_file" in tls
    if policy == "NoClientCert" and authorities:
        message = "has no effect without client_auth_type: RequireAndVerifyClientCert"
        yield (section, "client_ca_file"), message
    elif policy and policy != "NoClientCert" and not authorities:
        message = f"{policy} needs client_ca_file: who may have signed the certificates"
        yield (section, "client_auth_type"), message
    lowest, highest = tls.get("min_version"), tls.get("max_version")
    if lowest and highest and lowest > highest:
        yield (section, "min_version"), f"{lowest} is above max_version, {highest}"
