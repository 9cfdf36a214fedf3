"""Masks secrets in text that comes from outside, before it is written to the log.

Two things are masked: the values of the environment variables that hold secrets, wherever they appear, and
text that has the form of a secret. Names of things stay readable: image references, ARNs, digests.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote

MASK = "<secret>"

#: Environment variables whose whole value is a secret, as boto3 reads them.
_SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_SECURITY_TOKEN",
    "AWS_CONTAINER_AUTHORIZATION_TOKEN",
)
#: A shorter secret is not looked for by itself: it would be part of other words.
_SHORTEST = 4

_PATTERNS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # The user information of a URL, up to its last @. A digest after an @ is an image reference.
        (r"(:[/\\]{2,4})\S{1,500}@(?!sha\d+:)", rf"\1{MASK}@"),
        # The same without a scheme.
        (r"""(?<![^\s"'=(<\[])[^\s"'=(<\[/@:]{1,200}:(?![/\\]{2})[^\s@]{1,500}@(?!sha\d+:)""", f"{MASK}@"),
        # Headers of signed requests and of proxies.
        (r"(?i)\b(Credential|Signature|X-Amz-(?:Security-Token|Credential|Signature))(\s*[=:]\s*)[^\s,&'\"]+",
         rf"\1\2{MASK}"),
        (r"(?i)\b(Basic|Bearer|Digest)(\s+)[\w+/=.~-]{8,}", rf"\1\2{MASK}"),
        # Keys of JSON, XML, INI files and variables that name a secret.
        (r"""(?ix)\b((?:aws[_-]?)?(?:secret[_-]?access[_-]?key|access[_-]?key[_-]?id|session[_-]?token
         |security[_-]?token|refresh[_-]?token|access[_-]?token|id[_-]?token|client[_-]?secret|password|passwd
         |external[_-]?id))
         (\\?["']?\s*[=:>]\s*\\?["']?)[^\s"',}<\\]+""", rf"\1\2{MASK}"),
        # Access key ids, session tokens and JSON web tokens, by their first letters.
        (r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{8,}", MASK),
        (r"(?:IQoJ|FwoG|FQoG|FQoD|AQoD)[\w/+=%-]{8,}", MASK),
        (r"\beyJ[\w-]{8,}\.[\w-]+\.?[\w-]*", MASK),
    )
)  # fmt: skip
#: A secret access key, or a token of another kind: long, with capital and small letters and digits.
_LONG_WORD = re.compile(r"[A-Za-z0-9/+=]{40,}")


def redact(text: str) -> str:
    """The text without secrets. Reads the environment at each call, so what is set later is masked too."""
    for secret in sorted(set(_known(os.environ)), key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, MASK)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return _LONG_WORD.sub(_mixed, text)


def redacted(value: object) -> object:
    """The value of a log field without secrets. Numbers and booleans stay what they are."""
    return value if isinstance(value, bool | int | float) else redact(str(value))


def _mixed(word: re.Match[str]) -> str:
    text = word.group()
    kinds = all(re.search(kind, text) for kind in ("[A-Z]", "[a-z]", "[0-9]"))
    return MASK if kinds else text


def _known(environment: Mapping[str, str]) -> Iterator[str]:
    """The secrets of the environment, in every form in which they may be quoted."""
    for name, value in environment.items():
        if name.upper() in _SECRET_VARIABLES:
            yield from _forms(value)
        elif name.lower().endswith("_proxy") and "@" in value:
            user, colon, password = value.rpartition("@")[0].rpartition("//")[2].partition(":")
            # The user name alone may be a word that log lines need.
            for part in (f"{user}{colon}{password}", password):
                yield from _forms(part)


def _forms(secret: str) -> Iterator[str]:
    for plain in {secret, secret.strip(), secret.strip("\"' \t\r\n"), unquote(secret)}:
        if len(plain) >= _SHORTEST:
            yield from (plain, quote(plain, safe=""), quote(plain), repr(plain)[1:-1])
