"""The --web.config.file, in the format of Prometheus's exporter-toolkit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationInfo
from typing_extensions import TypedDict

from exporter.config.validators import Bcrypt, File, text
from exporter.config.yaml_source import Document, Place, contents

_FORBID = ConfigDict(extra="forbid")
_Version = Literal["TLS12", "TLS13"]


def _absolute(name: str, info: ValidationInfo[Path]) -> str:
    """A path relative to the directory of the file, which is the context."""
    return str(info.context / name)


_File = Annotated[File, AfterValidator(_absolute)]


@dataclass(frozen=True, slots=True)
class TLSSettings:
    """How to serve TLS; all paths are absolute. Policies for client certificates have Go's names."""

    __pydantic_config__: ClassVar = _FORBID

    cert_file: _File
    key_file: _File
    client_ca_file: _File | None = None
    client_auth_type: Literal["NoClientCert", "VerifyClientCertIfGiven", "RequireAndVerifyClientCert"] = (
        "NoClientCert"
    )
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
    """The section http_server_config. The server speaks HTTP/1.1 alone."""

    __pydantic_config__: ClassVar = _FORBID

    http2: Literal[False] = False
    headers: Headers = field(default_factory=Headers)


#: A colon would end the name in the Authorization header (RFC 7617).
_User = Annotated[str, text("[^:]+", "a user name: visible characters, no colon")]


@dataclass(frozen=True, slots=True)
class WebSettings:
    """The whole file: no TLS, no passwords and no headers if it is empty."""

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


KEYS: dict[Place, Sequence[str]] = {
    (): [each.name for each in fields(WebSettings)],
    ("tls_server_config",): [each.name for each in fields(TLSSettings)],
    ("http_server_config",): [each.name for each in fields(HTTPSettings)],
    ("http_server_config", "headers"): list(Headers.__annotations__),
}
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
    document = Document(contents(path), path, keys=KEYS, refused=REFUSED)
    return document.validate(TypeAdapter(WebSettings), _conflicts, context=Path(path).absolute().parent)


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
