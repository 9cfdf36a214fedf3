"""Credentials that end: when they are renewed, by which thread, and how long the old ones are used.

The policy is one for all sources. One thread renews while the others go on with what is valid. Credentials
are used until their end, whatever a renewal before it says.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, NoReturn

from botocore.credentials import (
    CredentialProvider,
    Credentials,
    ProcessProvider,
    ReadOnlyCredentials,
    RefreshableCredentials,
)
from botocore.exceptions import BotoCoreError, ClientError, CredentialRetrievalError, NoCredentialsError

from exporter.aws.errors import BY_HAND, NO_OUTPUT, Classified, ECRError
from exporter.replication.model import Reason

#: Seconds before their end at which credentials are renewed. STS lends for 900 s at least.
RENEW_BEFORE = 300.0
#: Seconds that new credentials are used at least, whatever their end and our clock say.
RENEW_EVERY = 60.0
#: Seconds from a renewal that failed to the next one, while the old credentials are valid.
RENEW_AGAIN = 20.0
#: Seconds after which a credential_process is killed.
PROCESS_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True, eq=False)
class Loan:
    """One set of temporary credentials. `ends_at` is Unix time."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str | None = field(repr=False)
    ends_at: float


class _Held(NamedTuple):
    loan: Loan
    renew_at: float
    usable_until: float


class Lease:
    """Temporary credentials that are kept valid. All methods are for any thread.

    `borrow` fetches new ones and may take long. `clock` is wall time in Unix seconds.
    """

    def __init__(self, borrow: Callable[[], Loan], *, clock: Callable[[], float]) -> None:
        self._borrow = borrow
        self._clock = clock
        #: Held by the thread that renews.
        self._renewing = threading.Lock()
        self._held: _Held | None = None
        #: How many times `borrow` was called, and what it raised last.
        self._renewals = 0
        self._failure: Exception | None = None

    def current(self) -> Loan:
        """Valid credentials. Raises what `borrow` raises if none are held.

        A thread waits for another thread's renewal only if no valid credentials are held. It then shares the
        outcome.
        """
        held, renewals, now = self._held, self._renewals, self._clock()
        if held and now < held.renew_at:
            return held.loan
        if held and now < held.usable_until:
            return self._renewed_early(held)
        with self._renewing:
            if self._renewals == renewals:
                return self._renew()
            if self._failure:
                raise self._failure
            return self._held.loan if self._held else self._renew()

    def discard(self, stale: object) -> None:
        """Renew before the next use: AWS refuses these credentials. No effect if they are replaced."""
        if self._held and self._held.loan is stale:
            self._held = None

    def _renewed_early(self, held: _Held) -> Loan:
        """New credentials if this thread is the one that renews and succeeds, else the old ones."""
        if not self._renewing.acquire(blocking=False):
            return held.loan
        try:
            return self._renew() if self._held is held else held.loan
        except Exception:  # noqa: BLE001 - the old ones are valid, and their end brings the error up
            self._held = held._replace(renew_at=self._clock() + RENEW_AGAIN)
            return held.loan
        finally:
            self._renewing.release()

    def _renew(self) -> Loan:
        self._failure = None
        try:
            loan = self._borrow()
            _check(loan)
        except Exception as error:
            self._failure = error
            raise
        finally:
            self._renewals += 1
        least = self._clock() + RENEW_EVERY
        self._held = _Held(loan, max(loan.ends_at - RENEW_BEFORE, least), max(loan.ends_at, least))
        return loan


class RenewedCredentials(Credentials):
    """Credentials that botocore signs with, from a lease. The first use borrows."""

    def __init__(self, lease: Lease, *, method: str) -> None:
        super().__init__("", "", None, method)
        self._lease = lease

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        loan = self._lease.current()
        return ReadOnlyCredentials(loan.access_key, loan.secret_key, loan.token)


class CredentialSource:
    """Stands in for botocore's chain of providers: the same providers, renewed by our policy.

    botocore 1.44.8 fetches credentials that last 15 minutes or less again at every call. From 10 minutes
    before their end every call fails if they cannot be renewed, though they are valid.
    """

    def __init__(
        self, chain: Any, *, clock: Callable[[], float], process_timeout: float = PROCESS_TIMEOUT
    ) -> None:
        self._providers: list[CredentialProvider] = chain.providers
        self._clock = clock
        self._process = partial(_Process, seconds=process_timeout)
        self._failure: Exception | None = None
        for provider in self._providers:
            self._unattended(provider)

    def load_credentials(self) -> Credentials | None:
        """The credentials of the first provider that has any; None without one.

        Raises ECRError if a provider fails. It then raises the same for every thread that waits to make a
        client of this session, so that a provider that hangs is waited for once. The next session asks again.
        """
        if self._failure:
            raise self._failure
        try:
            with _lending():
                found = self._load()
                if found and not isinstance(found, RefreshableCredentials):
                    _check(found.get_frozen_credentials())
        except ECRError as error:
            self._failure = error
            raise
        if not isinstance(found, RefreshableCredentials):
            return found
        waiting = [found]

        def borrow() -> Loan:
            with _lending():
                renewed = waiting.pop() if waiting else self._load()
                if not isinstance(renewed, RefreshableCredentials):
                    raise NoCredentialsError
                with _lent_by(renewed.method):
                    return _loan(renewed)

        return RenewedCredentials(Lease(borrow, clock=self._clock), method=str(found.method))

    def _unattended(self, provider: Any) -> None:
        """Let no provider wait for a person. botocore takes no other prompter or Popen from outside."""
        if hasattr(provider, "_prompter"):
            provider._prompter = _no_prompt  # noqa: SLF001
        if provider.METHOD == ProcessProvider.METHOD:
            provider._popen = self._process  # noqa: SLF001
        builder = getattr(provider, "_profile_provider_builder", None)
        if builder:  # makes the providers of a source_profile
            create = builder._create_process_provider  # noqa: SLF001

            def create_unattended(profile_name: str) -> CredentialProvider:
                created: CredentialProvider = create(profile_name)
                self._unattended(created)
                return created

            builder._create_process_provider = create_unattended  # noqa: SLF001

    def _load(self) -> Credentials | None:
        provider: Any
        for provider in self._providers:
            if hasattr(provider, "_visited_profiles"):
                # botocore 1.44.5 takes the second load of a role of a profile for a loop of profiles.
                provider._visited_profiles = [provider._profile_name]  # noqa: SLF001
            with _lent_by(provider.METHOD):
                found: Credentials | None = provider.load()
            if found is not None:
                return found
        return None


class _Process(subprocess.Popen[bytes]):
    """A credential_process that cannot ask for anything: no input, no terminal, and an end to waiting.

    botocore 1.44.8 lets it read the exporter's stdin and waits for ever.
    """

    def __init__(self, arguments: list[str], *, seconds: float, **options: Any) -> None:
        super().__init__(arguments, stdin=subprocess.DEVNULL, start_new_session=True, **options)
        self._seconds = seconds

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:  # noqa: A002
        """What the process printed. Raises ECRError, without that, if the process failed or took too long."""
        try:
            printed = super().communicate(input, timeout or self._seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # its children too: they hold the pipes open
            super().communicate()
            _denied("CredentialProcess", f"{NO_OUTPUT}: it is killed after {self._seconds:g} s")
        if self.returncode:
            _denied("CredentialProcess", f"{NO_OUTPUT}: its exit status is {self.returncode}; {BY_HAND}")
        return printed


@contextmanager
def _lending() -> Iterator[None]:
    """Turns every exception into an ECRError of the credentials: the call that needs them is not made."""
    try:
        with Classified("credentials"):
            yield
    except ECRError as error:
        error.everything = True
        raise


@contextmanager
def _lent_by(method: object) -> Iterator[None]:
    """Turns what an unreadable answer of this lender raises in botocore into a CredentialRetrievalError."""
    try:
        yield
    except (BotoCoreError, ClientError, OSError, ECRError):
        raise
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        raise CredentialRetrievalError(provider=str(method), error_msg=message) from error


def _loan(found: Any) -> Loan:
    # The lease decides when to renew, so botocore must not renew what was just fetched.
    found._advisory_refresh_timeout = found._mandatory_refresh_timeout = 0  # noqa: SLF001
    try:
        keys = found.get_frozen_credentials()
    except RuntimeError:  # botocore fetched credentials, and their end has passed
        _denied(
            "ExpiredCredentials",
            f"{found.method} lends credentials whose end has passed; compare its clock with this machine's",
        )
    return Loan(keys.access_key, keys.secret_key, keys.token, ends_at=found._expiry_time.timestamp())  # noqa: SLF001


def _check(keys: Any) -> None:
    """Raises ECRError if a key is missing or no request can carry it."""
    for what, value, required in (
        ("access key id", keys.access_key, True),
        ("secret access key", keys.secret_key, True),
        ("session token", keys.token, False),
    ):
        flaw = _flaw(value) if required or value else None
        if flaw:
            _denied("MalformedCredentials", f"the {what} {flaw}")


def _flaw(key: object) -> str | None:
    """What is wrong with a key; None if it consists of printable ASCII characters."""
    if not isinstance(key, str) or not key:
        return "is empty or not text"
    if key.endswith(("\r", "\n")):
        return "ends in a line break"
    if key != key.strip():
        return "has white space around it"
    if key != key.strip("\"'"):
        return "has quotation marks around it"
    if not (key.isascii() and key.isprintable()):
        return "holds a line break, a control character or a character that is not ASCII"
    return None


def _no_prompt(_: str) -> str:
    _denied("MFARequired", "the profile has mfa_serial, and the exporter cannot enter an MFA code")


def _denied(code: str, message: str) -> NoReturn:
    raise ECRError(Reason.ACCESS_DENIED, action="credentials", code=code, message=message, everything=True)
