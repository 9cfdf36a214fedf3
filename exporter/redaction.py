"""Masks secrets in text that comes from outside, before it is written to the log.

Two things are masked: the values of the environment variables that hold secrets, wherever they appear, and
text that has the form of a secret. Both are found in every form of quoting: as Python, JSON, URLs and XML
write them. Names of things stay readable: image references, ARNs, digests.
"""

from __future__ import annotations

import html
import json
import math
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from urllib.parse import unquote

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
#: How many times text is unescaped to look for secrets.
_DEEPEST = 3
#: Env files keep these around a value.
_QUOTES = "\"' \t\r\n"


def _mark(characters: str) -> str:
    """A pattern for one of the characters: bare, percent-encoded, or as JSON and HTML escape it."""
    forms = (
        r"{0}|%(?:25)*{1:02X}|\\+u{1:04X}|&(?:amp;)*\#(?:{1}|x{1:X});".format(re.escape(c), ord(c))
        for c in characters
    )
    return f"(?:{'|'.join(forms)})"


# The marks around a secret.
_COLON = _mark(":")
_SLASH = _mark("/\\")
_AT = _mark("@")
_NOT_A_DIGEST = rf"(?!sha\d+{_COLON})"
_SPACE = r"(?:\s|\+|%(?:25)*20)"
_QUOTE = r"""(?:b?\\*["']|%(?:25)*2[27]|&quot;|&\#)?"""
#: From a name to its value: a sign, the end of an XML tag, or two cells of a table.
_TO = r"(?:[=:]|%(?:25)*3[ADE]|&gt;|(?:\s[^<>]{0,80})?>|</\w+>\s*<\w+>)(?:<!\[CDATA\[)?"
_EQUALS = rf"{_QUOTE}{_SPACE}*{_TO}{_SPACE}*{_QUOTE}"

_NAMES = (
    "secret[_-]?access[_-]?key|access[_-]?key[_-]?id|client[_-]?secret|secret[_-]?string|external[_-]?id"
    "|(?:session|security|refresh|access|id|web[_-]?identity|bearer|metadata|vault|auth|authorization)[_-]?token"
    "|password|passwd|passphrase|pwd|token[_-]?code|code[_-]?verifier|saml[_-]?assertion|dpop[_-]?key"
    "|api[_-]?key|authorization|cookie"
)

_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), replacement)
    for pattern, replacement in (
        # The user information of a URL, up to its last @. A digest after an @ is an image reference.
        (rf"({_COLON}{_SLASH}{{2,8}})\S{{1,500}}{_AT}{_NOT_A_DIGEST}", rf"\1{MASK}@"),
        # The same with white space in it, in quotation marks.
        (rf"""(["']\w{{2,10}}://)[^"'\n]{{1,500}}@{_NOT_A_DIGEST}""", rf"\1{MASK}@"),
        # The same without a scheme.
        (rf"""(?<![^\s"'=(<\[])[^\s"'=(<\[/@:]{{1,200}}?{_COLON}(?!{_SLASH}{{2}})[^\s@]{{1,500}}{_AT}{_NOT_A_DIGEST}""",
         f"{MASK}@"),
        # A header that http.client does not send.
        (r"(Invalid header value )b?(['\"]).*?(?<!\\)\2", rf"\1{MASK}"),
        # Headers of signed requests and of proxies.
        (rf"(Credential|Signature|X-Amz-Security-Token)({_EQUALS})[^\s,&'\"\\]+", rf"\1\2{MASK}"),
        (rf"(?:\b|%20)(Basic|Bearer|Digest)({_SPACE}+)[\w+/=.~%-]{{8,}}", rf"\1\2{MASK}"),
        # Keys of JSON, XML, INI files and variables that name a secret: its value with quotes, and without.
        (rf"""({_NAMES})({_QUOTE}{_SPACE}*{_TO}\s*)b?(\\*["']).{{1,2000}}?(?<!\\)\3""", rf"\1\2\3{MASK}\3"),
        (rf"""({_NAMES})({_EQUALS})[^\s"',}}<\\]+""", rf"\1\2{MASK}"),
        # A word that is also part of error codes, which a colon follows.
        (r"""(\btoken(?:\\*["']\s*:\s*\\*["']?|=))[^\s"',}<\\]+""", rf"\1{MASK}"),
        (r"(BEGIN [A-Z ]*PRIVATE KEY-+)(?s:.{1,5000}?)(-+END|\Z)", rf"\1{MASK}\2"),
    )
) + tuple(
    (re.compile(pattern), MASK)
    for pattern in (
        # Access key ids, session tokens and JSON web tokens, by their first letters.
        r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{8,}",
        r"(?:IQoJ|FwoG|FQoG|FQoD|AQoD)[\w/+=%-]{8,}",
        r"\beyJ[\w-]{8,}\.[\w-]+\.?[\w-]*",
    )
)  # fmt: skip
#: A secret access key, or a token of another kind: long, with capital and small letters and digits.
_LONG_WORD = re.compile(r"[A-Za-z0-9/+=]{40,}")


def redact(text: str, *, secrets: Collection[str] = ()) -> str:
    """The text without secrets, among them the given ones.

    Reads the environment at each call, so what is set later is masked too.
    """
    known = sorted({*secrets, *_known(os.environ)}, key=len, reverse=True)
    text = read = _masked(text, known)
    # XML in a URL, say: if a secret shows only when the text is unescaped, the unescaped text is written.
    for _ in range(_DEEPEST):
        unescaped = html.unescape(unquote(read))
        if unescaped == read:
            break
        read = _masked(unescaped, known)
        if read != unescaped:
            text = read
    return text


def _masked(text: str, known: Iterable[str]) -> str:
    for secret in known:
        if len(secret) >= _SHORTEST:
            text = _in_any_form(secret).sub(MASK, text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return _LONG_WORD.sub(_mixed, text)


def redacted(value: object) -> object:
    """The value of a log field without secrets. Booleans and numbers that JSON has stay what they are."""
    number = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if number else redact(str(value))


def _mixed(word: re.Match[str]) -> str:
    text = word.group()
    kinds = all(re.search(kind, text) for kind in ("[A-Z]", "[a-z]", "[0-9]"))
    return MASK if kinds else text


def _known(environment: Mapping[str, str]) -> Iterator[str]:
    """The secrets of the environment."""
    for name, value in environment.items():
        plain = value.strip(_QUOTES)
        if name.upper() in _SECRET_VARIABLES:
            yield plain
        elif "@" in plain and (
            name.lower().endswith("_proxy") or name.upper().startswith("AWS_ENDPOINT_URL")
        ):
            address = re.sub(r"^[a-z][\w+.-]*:[/\\]{2,4}", "", plain, flags=re.IGNORECASE)
            user = address.rpartition("@")[0]
            # The user name alone may be a word that log lines need.
            password = user.partition(":")[2]
            for part in (user, password, *re.split(r"[/\\?#\[\]@:]", password)):
                # A parser may quote what stands between two of these marks.
                yield from {part, unquote(part)}


@lru_cache(maxsize=64)
def _in_any_form(secret: str) -> re.Pattern[str]:
    """Finds the secret however each of its characters is escaped."""
    # White space at an end may be cut off.
    return re.compile("".join(map(_character, secret.strip(_QUOTES) or secret)))


def _character(character: str) -> str:
    """A pattern for the character: bare, after backslashes, percent-encoded, or as in Python, JSON or XML."""
    octets = character.encode(errors="surrogateescape")
    escapes = {
        repr(character)[1:-1],
        ascii(character)[1:-1],
        repr(octets)[2:-1],
        json.dumps(character)[1:-1],
        html.escape(character),
    }
    bare = {re.escape(escape).replace(r"\\", r"\\+") for escape in escapes if escape != character}
    percent = "".join(f"%(?:25)*(?i:{octet:02X})" for octet in octets)
    space = "|\\+" if character == " " else ""
    return rf"(?:\\{{0,8}}{re.escape(character)}|{'|'.join((percent, *sorted(bare)))}{space})"
