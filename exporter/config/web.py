"""The --web.config.file, in the format of Prometheus's exporter-toolkit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter
from typing_extensions import TypedDict

from exporter.config.validators import Bcrypt, File, Otherwise, Pattern, Secret, boolean, refuse
from exporter.config.yaml_source import Document, Vocabulary, contents
from exporter.config.yaml_source import Mapping as Given

_UNVERIFIED = "cannot be honoured: Python's ssl takes no client certificate without verifying it"
_OBSOLETE = "cannot be honoured: it is obsolete, and OpenSSL no longer offers it by default"


class ClientAuth(StrEnum):
    """The policies for client certificates that can be honoured, under Go's names for them."""

    NONE = "NoClientCert"
    VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRE_AND_VERIFY = "RequireAndVerifyClientCert"


_Policy = Annotated[
    ClientAuth,
    refuse(RequestClientCert=_UNVERIFIED, RequireAnyClientCert=_UNVERIFIED, RequireClientCert=_UNVERIFIED),
]
_Version = Annotated[Literal["TLS12", "TLS13"], refuse(TLS10=_OBSOLETE, TLS11=_OBSOLETE)]
_VERIFYING = [ClientAuth.VERIFY_IF_GIVEN, ClientAuth.REQUIRE_AND_VERIFY]


@dataclass(frozen=True, slots=True)
class TLSSettings:
    """How to serve TLS; all paths are absolute."""

    __pydantic_config__: ClassVar = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "dependencies": {
                "client_ca_file": {
                    "required": ["client_auth_type"],
                    "properties": {"client_auth_type": {"enum": [*_VERIFYING]}},
                },
                "client_auth_type": {
                    "anyOf": [
                        {"required": ["client_ca_file"]},
                        {"properties": {"client_auth_type": {"const": ClientAuth.NONE}}},
                    ]
                },
            },
            "not": {
                "required": ["min_version", "max_version"],
                "properties": {"min_version": {"const": "TLS13"}, "max_version": {"const": "TLS12"}},
            },
        },
    )

    cert_file: File
    key_file: File
    client_ca_file: File | None = None
    client_auth_type: _Policy = ClientAuth.NONE
    min_version: _Version = "TLS12"
    max_version: _Version = "TLS13"


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What the file asks for: no TLS, no passwords and no headers if it is empty."""

    tls: TLSSettings | None = None
    #: User: bcrypt hash.
    basic_auth_users: Mapping[str, Secret] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


# -- the file --------------------------------------------------------------------------------------

_Header = Annotated[
    str, Pattern("[ -~]*", "is not a header's value: printable ASCII on one line", shortest=0, longest=4096)
]
_FORBID = ConfigDict(extra="forbid")
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


def _user(name: str) -> str:
    """A colon would end the name in the Authorization header (RFC 7617)."""
    if not name or ":" in name or not name.isprintable():
        raise ValueError("is not a user name: visible characters, no colon")
    return name


@dataclass(frozen=True, slots=True)
class HTTPSettings:
    """The section http_server_config."""

    __pydantic_config__: ClassVar = _FORBID

    http2: Annotated[
        Literal[False],
        Otherwise("cannot be honoured: this server speaks HTTP/1.1; leave the key out", "refused"),
        BeforeValidator(boolean),
    ] = False
    headers: Headers = field(default_factory=Headers)


@dataclass(frozen=True, slots=True)
class WebFile:
    """The whole file."""

    __pydantic_config__: ClassVar = _FORBID

    tls_server_config: Annotated[TLSSettings | None, BeforeValidator(lambda tls: tls or None)] = None
    http_server_config: HTTPSettings = field(default_factory=HTTPSettings)
    basic_auth_users: Annotated[
        dict[Annotated[str, AfterValidator(_user)], Bcrypt],
        Field(json_schema_extra={"propertyNames": {"pattern": "^[^:]+$"}}),
    ] = field(default_factory=dict)


_OPENSSL = "OpenSSL's own choice is used; leave the key out"
VOCABULARY = Vocabulary(
    keys={
        (): [each.name for each in fields(WebFile)],
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
def adapter() -> TypeAdapter[WebFile]:
    """Pydantic's reader of the file."""
    return TypeAdapter(WebFile)


def load_web(path: str) -> WebSettings:
    """The settings in a file. Relative paths start in its directory. Raises ConfigError."""
    document = Document(contents(path), path)
    settings = document.validate(adapter(), VOCABULARY)
    _check_tls(document)
    found = document.close(settings)
    tls, directory = found.tls_server_config, Path(path).absolute().parent
    if tls:
        names: dict[str, Any] = {
            key: getattr(tls, key) for key in ("cert_file", "key_file", "client_ca_file")
        }
        paths: dict[str, Any] = {key: str(directory / name) for key, name in names.items() if name}
        tls = replace(tls, **paths)
    headers: dict[str, Any] = dict(found.http_server_config.headers)
    return WebSettings(tls, found.basic_auth_users, {name: value for name, value in headers.items() if value})


def _check_tls(document: Document) -> None:
    """What must go together, also beside other mistakes."""
    tls = document.root.get("tls_server_config")
    if not isinstance(tls, Given):
        return
    known = ("client_auth_type", "client_ca_file", "min_version", "max_version")
    policy, authorities, lowest, highest = (document.text(tls, key) for key in known)
    verifies = policy is not None and policy != ClientAuth.NONE.value
    if policy and verifies and "client_ca_file" not in tls:
        document.report(policy, f"{policy} needs client_ca_file: who may have signed the certificates")
    if authorities and not verifies and (policy or "client_auth_type" not in tls):
        message = f"has no effect without client_auth_type: {ClientAuth.REQUIRE_AND_VERIFY}"
        document.report(authorities, message)
    if lowest and highest and lowest > highest:
        document.report(lowest, f"{lowest} is above max_version, {highest}")
