"""The --web.config.file, in the format of Prometheus's exporter-toolkit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationInfo
from typing_extensions import TypedDict

from exporter.config.validators import Bcrypt, File, refuse, text
from exporter.config.yaml_source import Document, Place, Vocabulary, contents

_UNVERIFIED = "Python's ssl takes no client certificate without verifying it"
_OBSOLETE = "it is obsolete, and OpenSSL no longer offers it by default"


class ClientAuth(StrEnum):
    """The policies for client certificates that can be honoured, under Go's names for them."""

    NONE = "NoClientCert"
    VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRE_AND_VERIFY = "RequireAndVerifyClientCert"


_Policy = Annotated[
    ClientAuth,
    refuse(dict.fromkeys(("RequestClientCert", "RequireAnyClientCert", "RequireClientCert"), _UNVERIFIED)),
]
_Version = Annotated[Literal["TLS12", "TLS13"], refuse({"TLS10": _OBSOLETE, "TLS11": _OBSOLETE})]
_VERIFYING = [ClientAuth.VERIFY_IF_GIVEN, ClientAuth.REQUIRE_AND_VERIFY]


def _absolute(name: str, info: ValidationInfo[Path]) -> str:
    """A path relative to the directory of the file, which is the context."""
    return str(info.context / name)


_File = Annotated[File, AfterValidator(_absolute)]
_FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True)
class TLSSettings:
    """How to serve TLS; all paths are absolute."""

    __pydantic_config__: ClassVar = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "anyOf": [
                {
                    "required": ["client_ca_file", "client_auth_type"],
                    "properties": {"client_auth_type": {"enum": [*_VERIFYING]}},
                },
                {"properties": {"client_ca_file": False, "client_auth_type": {"const": ClientAuth.NONE}}},
            ],
            "not": {
                "required": ["min_version", "max_version"],
                "properties": {"min_version": {"const": "TLS13"}, "max_version": {"const": "TLS12"}},
            },
        },
    )

    cert_file: _File
    key_file: _File
    client_ca_file: _File | None = None
    client_auth_type: _Policy = ClientAuth.NONE
    min_version: _Version = "TLS12"
    max_version: _Version = "TLS13"


_Header = Annotated[
    str, text("[ -~]*", "a header's value: printable ASCII on one line", shortest=0, longest=4096)
]
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
Headers.__pydantic_config__ = _FORBID  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class HTTPSettings:
    """The section http_server_config."""

    __pydantic_config__: ClassVar = _FORBID

    http2: Annotated[Literal[False], refuse({True: "this server speaks HTTP/1.1; leave the key out"})] = False
    headers: Headers = field(default_factory=Headers)


#: A user name has no colon: it would end the name in the Authorization header (RFC 7617).
_User = Annotated[str, text("[^:]+", "a user name: visible characters, no colon")]


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What the file asks for: no TLS, no passwords and no headers if it is empty."""

    __pydantic_config__: ClassVar = _FORBID

    tls_server_config: Annotated[TLSSettings | None, BeforeValidator(lambda tls: tls or None)] = None
    http_server_config: HTTPSettings = field(default_factory=HTTPSettings)
    #: User: bcrypt hash.
    basic_auth_users: Annotated[
        dict[_User, Bcrypt], Field(json_schema_extra={"propertyNames": {"pattern": "^[^:]+$"}})
    ] = field(default_factory=dict)

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of each response. A blank one is not sent."""
        headers: dict[str, Any] = dict(self.http_server_config.headers)
        return {name: value for name, value in headers.items() if value}


_OPENSSL = "OpenSSL's own choice is used; leave the key out"
VOCABULARY = Vocabulary(
    keys={
        (): [each.name for each in fields(WebSettings)],
        ("tls_server_config",): [each.name for each in fields(TLSSettings)],
        ("http_server_config",): [each.name for each in fields(HTTPSettings)],
        ("http_server_config", "headers"): list(Headers.__annotations__),
    },
    refused={
        "cert": "write the certificate to a file and name it as cert_file",
        "key": "write the key to a file and name it as key_file",
        "client_ca": "write the certificates to a file and name it as client_ca_file",
        "client_allowed_sans": "names in client certificates are not checked; use a CA of your own",
        "cipher_suites": _OPENSSL,
        "prefer_server_cipher_suites": _OPENSSL,
        "curve_preferences": _OPENSSL,
        "rate_limit": "requests are limited by --web.max-requests",
    },
    required=dict.fromkeys(("cert_file", "key_file"), "TLS needs a certificate and its key"),
)


@cache
def adapter() -> TypeAdapter[WebSettings]:
    """Pydantic's reader of the file."""
    return TypeAdapter(WebSettings)


def load_web(path: str) -> WebSettings:
    """The settings in a file. Relative paths start in its directory. Raises ConfigError."""
    document = Document(contents(path), path, VOCABULARY)
    return document.validate(adapter(), _conflicts, context=Path(path).absolute().parent)


def _conflicts(values: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """What must go together in TLS, also beside other mistakes. A wrong value is None."""
    section, tls = "tls_server_config", values.get("tls_server_config") or {}
    policy, authorities = tls.get("client_auth_type", ClientAuth.NONE), "client_ca_file" in tls
    if policy in _VERIFYING and not authorities:
        message = f"{policy} needs client_ca_file: who may have signed the certificates"
        yield (section, "client_auth_type"), message
    if policy == ClientAuth.NONE and authorities:
        message = f"has no effect without client_auth_type: {ClientAuth.REQUIRE_AND_VERIFY}"
        yield (section, "client_ca_file"), message
    lowest, highest = tls.get("min_version"), tls.get("max_version")
    if lowest and highest and lowest > highest:
        yield (section, "min_version"), f"{lowest} is above max_version, {highest}"
