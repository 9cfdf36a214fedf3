"""The operator's letter: YAML -> frozen, checked settings, or every problem with its place.

Top to bottom: the settings that the other rooms get; the tables, one row a key; and the rules between keys.
words.py says what the text of one value may be, letter.py does the reading. Nothing here touches the network
or the files that are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from exporter.config import validators as words
from exporter.config.validators import GLOB, Secret, format_duration, parse_duration
from exporter.config.yaml_source import (
    ConfigError,
    ListOf,
    MappingOf,
    Place,
    Problem,
    Reader,
    Refused,
    Section,
    TextOf,
    WordsOf,
    WrongError,
    contents,
    dump,
    flag,
    items,
    quote,
    read,
    shorten,
    values,
    whole,
    without_garbage_collection,
)

__all__ = [
    "ClientAuth",
    "ConfigError",
    "Problem",
    "RegistrySettings",
    "Secret",
    "Settings",
    "TLSSettings",
    "TargetSettings",
    "WebSettings",
    "contents",
    "format_duration",
    "load",
    "load_web",
    "parse",
    "parse_duration",
    "to_yaml",
]


@dataclass(frozen=True, slots=True)
class RegistrySettings:
    """A source registry; an empty one is the account and Region that boto3 finds by itself."""

    name: str = ""
    region: str | None = None
    role_arn: str | None = None
    external_id: Secret | None = None
    registry_id: str | None = None

    @property
    def default_name(self) -> str:
        """`<account>/<region>` if both can be told without asking AWS, else ""."""
        account = self.registry_id or (self.role_arn.split(":")[4] if self.role_arn else None)
        return f"{account}/{self.region}" if account and self.region else ""


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """What to watch: one tag, one digest, or what passes the filters, in every repository that matches."""

    repository: str
    tag: str | None = None
    digest: str | None = None
    tags: tuple[str, ...] = ()
    exclude_tags: tuple[str, ...] = ()
    latest: int | None = None
    pushed_within: float | None = None
    untagged: bool = False
    #: Names of registries; none for all of them.
    registries: tuple[str, ...] = ()

    @property
    def is_glob(self) -> bool:
        """Whether the repository is a pattern, so that the registry's repositories must be listed."""
        return not GLOB.isdisjoint(self.repository)

    @property
    def label(self) -> str:
        """The value of the `target` metric label: targets that select differently differ in it."""
        if self.digest:
            return f"{self.repository}@{self.digest}"
        tags = ",".join([self.tag] if self.tag else self.tags)
        parts = [f"{self.repository}:{tags}" if tags else self.repository]
        if self.exclude_tags:
            parts.append("exclude_tags=" + ",".join(self.exclude_tags))
        if self.latest is not None:
            parts.append(f"latest={self.latest}")
        if self.pushed_within is not None:
            parts.append(f"pushed_within={format_duration(self.pushed_within)}")
        if self.untagged:
            parts.append("untagged")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class Settings:
    """A whole configuration. Intervals are in seconds, the rate is per account and Region."""

    targets: tuple[TargetSettings, ...]
    registries: tuple[RegistrySettings, ...] = (RegistrySettings(),)
    discovery_interval: float = 60.0
    pending_interval: float = 15.0
    failed_interval: float = 300.0
    settled_interval: float = 21600.0
    stale_after: float = 3600.0
    requests_per_second: float = 10.0
    max_images: int = 100_000
    #: Where what is settled survives a restart.
    state_file: str | None = None


_DEFAULTS = Settings(targets=())


class ClientAuth(StrEnum):
    """The policies for client certificates that can be honoured, under Go's names for them."""

    NONE = "NoClientCert"
    VERIFY_IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRE_AND_VERIFY = "RequireAndVerifyClientCert"


@dataclass(frozen=True, slots=True)
class TLSSettings:
    """How to serve TLS; all paths are absolute."""

    cert_file: str
    key_file: str
    client_ca_file: str | None = None
    client_auth_type: ClientAuth = ClientAuth.NONE
    min_version: str = "TLS12"
    max_version: str = "TLS13"


@dataclass(frozen=True, slots=True)
class WebSettings:
    """What `--web.config.file` asks for: no TLS, no passwords and no headers if it is empty."""

    tls: TLSSettings | None = None
    #: User -> bcrypt hash.
    basic_auth_users: Mapping[str, Secret] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


def load(path: str) -> Settings:
    """The settings in a file. Raises ConfigError, also if it cannot be read."""
    return parse(contents(path), file=path)


def parse(text: str | bytes, *, file: str = "config.yaml") -> Settings:
    """The settings in a text; `file` is what its problems name. Raises ConfigError and nothing else."""
    with without_garbage_collection():
        return _settings(read(text, file, SHAPE))


def load_web(path: str) -> WebSettings:
    """The settings in a `--web.config.file`. Raises ConfigError, also if it cannot be read."""
    return _web(read(contents(path), path, WEB_SHAPE), Path(path).absolute().parent)


def to_yaml(settings: Settings) -> str:
    """The complete effective settings; the same settings when parsed again, unless it holds secrets."""
    plain: dict[str, Any] = {
        "registries": [_registry_as_yaml(registry) for registry in settings.registries],
        "targets": [_target_as_yaml(target) for target in settings.targets],
    }
    for key in _INTERVALS:
        plain[key] = format_duration(getattr(settings, key))
    rate = settings.requests_per_second
    plain["requests_per_second"] = int(rate) if rate.is_integer() else rate
    plain["max_images"] = settings.max_images
    if settings.state_file:
        plain["state_file"] = settings.state_file
    return dump(plain)


def _registry_as_yaml(registry: RegistrySettings) -> dict[str, Any]:
    shown = _non_defaults(registry)
    if registry.name == registry.default_name:
        shown.pop("name", None)
    if registry.external_id:
        shown["external_id"] = str(registry.external_id)
    return shown


def _target_as_yaml(target: TargetSettings) -> dict[str, Any]:
    shown = {k: list(v) if isinstance(v, tuple) else v for k, v in _non_defaults(target).items()}
    if target.pushed_within is not None:
        shown["pushed_within"] = format_duration(target.pushed_within)
    return shown


def _non_defaults(settings: RegistrySettings | TargetSettings) -> dict[str, Any]:
    pairs = ((each, getattr(settings, each.name)) for each in fields(settings))
    return {each.name: value for each, value in pairs if value != each.default}


# -- the configuration file: shape -----------------------------------------------------------------


def rate(place: Place) -> float:
    text = place.number()
    number = float(text) if re.fullmatch(r"[0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]{1,3})?|[0-9]+\.", text) else 0.0
    if not 0 < number <= 10_000:
        raise WrongError(f"{shorten(text)} is not a number above 0 and up to 10000")
    return number


_INTERVALS = ("discovery_interval", "pending_interval", "failed_interval", "settled_interval", "stale_after")

_REGISTRY: dict[str, Reader] = {
    "name": TextOf(words.name),
    "region": TextOf(words.region),
    "role_arn": TextOf(words.role_arn),
    "external_id": TextOf(words.external_id),
    "registry_id": TextOf(words.registry_id),
}
SELECTORS = ("tag", "digest", "tags", "exclude_tags", "latest", "pushed_within", "untagged")
_TARGET: dict[str, Reader] = {
    "repository": TextOf(words.Globbing(words.repository, words.repository_glob)),
    "tag": TextOf(words.tag),
    "digest": TextOf(words.digest),
    "tags": WordsOf(words.Globbing(words.tag, words.tag_glob)),
    "exclude_tags": WordsOf(words.Globbing(words.tag, words.tag_glob)),
    "latest": whole,
    "pushed_within": TextOf(words.Duration(0.001)),
    "untagged": flag,
    "registries": WordsOf(words.name),
}
_SETTINGS: dict[str, Reader] = {
    "registries": ListOf(MappingOf(_REGISTRY)),
    "targets": ListOf(MappingOf(_TARGET)),
    **dict.fromkeys(_INTERVALS, TextOf(words.Duration(1.0))),
    "requests_per_second": rate,
    "max_images": whole,
    "state_file": TextOf(words.file),
}
#: What a whole file looks like.
SHAPE = MappingOf(_SETTINGS)


# -- the configuration file: meaning ---------------------------------------------------------------


def _settings(root: Place) -> Settings:
    sections: Section = root.value
    if "targets" not in sections:
        root.step("targets").wrong("is missing; name at least one, e.g. - repository: team/app")
    _check_staleness(sections)
    registries = _registries(root)
    for target in items(sections, "targets"):
        _check_target(target)
    if not _hides_names(root):
        _check_references(items(sections, "targets"), registries)
    root.letter.close()
    given = values(sections)
    given["targets"] = tuple(TargetSettings(**values(place.value)) for place in items(sections, "targets"))
    if registries:
        given["registries"] = registries
    return Settings(**given)


def _check_staleness(sections: Section) -> None:
    """Series that go stale between two listings would come and go for ever."""
    given = {key: sections[key] for key in ("stale_after", "discovery_interval") if key in sections}
    stale, discovery = given.get("stale_after"), given.get("discovery_interval")
    after = stale.value if stale else _DEFAULTS.stale_after
    least = 2 * (discovery.value if discovery else _DEFAULTS.discovery_interval)
    at = stale or discovery
    if at and None not in given.values() and after < least:
        at.wrong(
            f"stale_after ({format_duration(after)}) is shorter than two discovery intervals"
            f" ({format_duration(least)}): series would come and go between listings"
        )


def _registries(root: Place) -> tuple[RegistrySettings, ...]:
    """The registries with their names, without what is wrong with them; none if the default is meant."""
    places = items(root.value, "registries")
    for place in places:
        _check_registry(place)
    _check_names(places)
    found = (RegistrySettings(**values(place.value)) for place in places)
    return tuple(replace(registry, name=registry.name or registry.default_name) for registry in found)


def _hides_names(root: Place) -> bool:
    """Whether a mistake leaves it open what some registry is called."""
    named = [place.path for place in items(root.value, "registries") if values(place.value).get("name")]
    paths = [p.path for p in root.letter.problems if p.path.startswith("registries")]
    return any(not path.startswith(tuple(f"{name}." for name in named)) for path in paths)


def _check_registry(place: Place) -> None:
    section: Section = place.value
    external_id = section.get("external_id")
    if external_id and "role_arn" not in section:
        external_id.wrong("works only with a role_arn: it is handed over when a role is assumed")


def _check_names(places: Sequence[Place]) -> None:
    """Names that are given are unique. Two entries of one default name are fine: they are one registry."""
    owners = {
        RegistrySettings(**values(place.value)).default_name: place.path
        for place in places
        if "name" not in place.value and None not in place.value.values()
    }
    for place in places:
        name = place.value.get("name")
        if name and (owner := owners.setdefault(name.value, place.path)) != place.path:
            name.wrong(f"{quote(name.value)} is already the name of {owner}")


def _check_target(target: Place) -> None:
    section: Section = target.value
    if "repository" not in section:
        target.step("repository").wrong("is missing; write e.g. repository: team/app")
    given = [key for key in SELECTORS if key in section and not _is_false(section[key])]
    if len(given) > 1 and given[0] in ("tag", "digest"):
        at = section[given[0]] or target.step(given[0])
        at.wrong(f"cannot be combined with {', '.join(given[1:])}: name one tag, one digest, or filters")


def _is_false(place: Place | None) -> bool:
    return place is not None and place.value is False


def _check_references(targets: Iterable[Place], registries: Sequence[RegistrySettings]) -> None:
    names = {registry.name for registry in registries} - {""}
    nameless = [f"registries[{i}]" for i, registry in enumerate(registries) if not registry.name]
    known = f"known: {shorten(', '.join(sorted(names)))}" if names else "no registry has a name yet"
    advice = f"; give {shorten(', '.join(nameless))} a name to refer to it" if nameless else ""
    for target in targets:
        for reference in items(target.value, "registries"):
            if reference.value not in names:
                reference.wrong(f"{quote(reference.value)} is not the name of a registry; {known}{advice}")


# -- the web configuration file --------------------------------------------------------------------

_UNVERIFIED = "cannot be honoured: Python's ssl takes no client certificate without verifying it"
_OBSOLETE = "cannot be honoured: it is obsolete, and OpenSSL no longer offers it by default"
TLS_VERSIONS = ("TLS12", "TLS13")

_tls_version = words.OneOf(TLS_VERSIONS, refused={"TLS10": _OBSOLETE, "TLS11": _OBSOLETE})
_client_auth = words.OneOf(
    tuple(ClientAuth),
    refused=dict.fromkeys(("RequestClientCert", "RequireAnyClientCert", "RequireClientCert"), _UNVERIFIED),
)
_header = words.pattern(
    r"[ -~]*", "is not a header's value: printable ASCII on one line", shortest=0, longest=4096
)
_OPENSSL_DECIDES = Refused("OpenSSL's own choice is used; leave the key out")


def http2(place: Place) -> bool:
    if flag(place):
        raise WrongError("cannot be honoured: this server speaks HTTP/1.1; leave the key out")
    return False


def users(place: Place) -> dict[str, Secret]:
    """User -> bcrypt hash. A colon would end the name in the Authorization header (RFC 7617)."""
    users = {}
    for key, node in place.entries().values():
        step = place.step(key.text, node)
        if not key.text or ":" in key.text or not key.text.isprintable():
            replace(step, node=key).wrong("is not a user name: visible characters, no colon")
        elif step.read(TextOf(words.bcrypt)):
            users[key.text] = step.value
    return users


_TLS: dict[str, Reader] = {
    "cert_file": TextOf(words.file),
    "key_file": TextOf(words.file),
    "client_ca_file": TextOf(words.file),
    "client_auth_type": TextOf(_client_auth),
    "min_version": TextOf(_tls_version),
    "max_version": TextOf(_tls_version),
    "cert": Refused("write the certificate to a file and name it as cert_file"),
    "key": Refused("write the key to a file and name it as key_file"),
    "client_ca": Refused("write the certificates to a file and name it as client_ca_file"),
    "client_allowed_sans": Refused("names in client certificates are not checked; use a CA of your own"),
    "cipher_suites": _OPENSSL_DECIDES,
    "prefer_server_cipher_suites": _OPENSSL_DECIDES,
    "curve_preferences": _OPENSSL_DECIDES,
}
#: The only headers that exporter-toolkit lets be set, and what they may be.
_HEADERS: dict[str, Reader] = {
    "Content-Security-Policy": TextOf(_header),
    "Strict-Transport-Security": TextOf(_header),
    "X-Content-Type-Options": TextOf(words.OneOf(("nosniff",))),
    "X-Frame-Options": TextOf(words.OneOf(("deny", "sameorigin"))),
    "X-XSS-Protection": TextOf(_header),
}
_WEB: dict[str, Reader] = {
    "tls_server_config": MappingOf(_TLS),
    "http_server_config": MappingOf({"http2": http2, "headers": MappingOf(_HEADERS)}),
    "basic_auth_users": users,
    "rate_limit": Refused("requests are limited by --web.max-requests"),
}
WEB_SHAPE = MappingOf(_WEB)


def _web(root: Place, directory: Path) -> WebSettings:
    """Check what must go together; relative paths are relative to the file's directory."""
    sections: Section = root.value
    tls = sections.get("tls_server_config")
    http = sections.get("http_server_config")
    users = sections.get("basic_auth_users")
    if tls:
        _check_tls(tls)
    root.letter.close()
    headers = http.value.get("headers") if http else None
    return WebSettings(
        tls=_tls(values(tls.value), directory) if tls and tls.value else None,
        basic_auth_users=users.value if users else {},
        headers={name: value for name, value in values(headers.value).items() if value} if headers else {},
    )


def _check_tls(tls: Place) -> None:
    section: Section = tls.value
    for key in ("cert_file", "key_file"):
        if section and key not in section and key.removesuffix("_file") not in section:
            tls.step(key).wrong("is missing; TLS needs a certificate and its key")
    authority, policy = section.get("client_ca_file"), section.get("client_auth_type")
    verifies = policy is not None and policy.value != ClientAuth.NONE
    if policy and verifies and not section.keys() & {"client_ca_file", "client_ca"}:
        policy.wrong(f"{policy.value} needs client_ca_file: who may have signed the certificates")
    if authority and not verifies and (policy or "client_auth_type" not in section):
        authority.wrong(f"has no effect without client_auth_type: {ClientAuth.REQUIRE_AND_VERIFY}")
    lowest, highest = section.get("min_version"), section.get("max_version")
    if lowest and highest and lowest.value > highest.value:
        lowest.wrong(f"{lowest.value} is above max_version, {highest.value}")


def _tls(values: dict[str, Any], directory: Path) -> TLSSettings:
    paths = {key: str(directory / values[key]) for key in values if key.endswith("_file")}
    policy = ClientAuth(values.get("client_auth_type", ClientAuth.NONE))
    return TLSSettings(**values | paths | {"client_auth_type": policy})
