"""What lends credentials, as one HTTP server of 127.0.0.1: agents, IMDSv2, STS, SSO and a process's vault."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from exporter.demo import ACCOUNT, REGION

#: What the exporter may ask before it asks for credentials: the session of IMDSv2 and the role's name.
_BEFORE = ("/latest/api/token", "/latest/meta-data/iam/security-credentials/")


class Lender:
    """Lends keys of an account for so many seconds, in the form that the path asks for."""

    def __init__(self) -> None:
        self.account = ACCOUNT
        self.lent = 0
        #: How many requests for credentials came, refused ones too.
        self.asked = 0
        #: For how long it lends.
        self.seconds = 30.0
        #: The status of every answer, if nothing is lent.
        self.refuses: int | None = None
        #: The body of every answer with credentials, in place of them.
        self.says: str | None = None
        #: Answers wait until it is set.
        self.answers = threading.Event()
        self.answers.set()
        lender = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path not in _BEFORE:
                    lender.asked += 1
                length = int(self.headers.get("Content-Length") or 0)
                form = parse_qs(self.rfile.read(length).decode())
                lender.answers.wait()
                headers = dict(self.headers) | {"action": form.get("Action", [""])[0]}
                answer = lender.answer(self.path, headers)
                self.send_response(lender.refuses or (200 if answer else 401))
                self.end_headers()
                self.wfile.write(answer.encode())

            do_PUT = do_POST = do_GET  # noqa: N815 - the names that the standard library looks for

            def log_message(self, *args: Any) -> None:
                """No access log."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients hang up
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, headers: Mapping[str, str]) -> str:
        """What is lent; empty if the request is refused."""
        if self.refuses:
            return ""
        if path == "/latest/api/token":
            return "session"
        if path.startswith("/latest/") and headers.get("x-aws-ec2-metadata-token") != "session":
            return ""
        if path == "/pod" and headers.get("Authorization") != "projected token":
            return ""
        return "reader" if path in _BEFORE else self._loan(path, headers.get("action", ""))

    def _loan(self, path: str, action: str) -> str:
        if self.says is not None:
            return self.says
        if action:
            return self._xml(action)
        return self._sso() if path.startswith("/federation/") else self.keys()

    def keys(self) -> str:
        """Credentials as agents, IMDS and processes write them."""
        key, token, ends = self._lend()
        common = {"AccessKeyId": key, "SecretAccessKey": "x", "Expiration": ends.isoformat()}
        return json.dumps({"Version": 1, "Code": "Success", "Token": token, "SessionToken": token} | common)

    def _xml(self, action: str) -> str:
        key, token, ends = self._lend()
        return f"""<{action}Response><{action}Result><Credentials>
            <AccessKeyId>{key}</AccessKeyId><SecretAccessKey>x</SecretAccessKey>
            <SessionToken>{token}</SessionToken><Expiration>{ends.isoformat()}</Expiration>
            </Credentials></{action}Result></{action}Response>"""

    def _sso(self) -> str:
        key, token, ends = self._lend()
        keys = {"accessKeyId": key, "secretAccessKey": "x", "sessionToken": token}
        return json.dumps({"roleCredentials": keys | {"expiration": int(ends.timestamp() * 1000)}})

    def _lend(self) -> tuple[str, str, datetime]:
        self.lent += 1
        ends = datetime.now(UTC) + timedelta(seconds=self.seconds)
        return f"AKIADEMO{self.account}", f"token {self.lent}", ends


_ROLE = f"arn:aws:iam::{ACCOUNT}:role/reader"
#: A process that asks its vault for credentials and prints what it says.
_PROCESS = """import sys, urllib.request
print(urllib.request.urlopen(sys.argv[1]).read().decode())
"""


def _process(url: str, home: Path) -> dict[str, str]:
    (home / "process.py").write_text(_PROCESS)
    command = f"{sys.executable} -S {home / 'process.py'} {url}/process"
    (home / "config").write_text(f"[default]\ncredential_process = {command}\n")
    return {}


def _container(url: str, _: Path) -> dict[str, str]:
    return {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/container",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN": "task token",
    }


def _pod_identity(url: str, home: Path) -> dict[str, str]:
    (home / "token").write_text("projected token")
    return {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{url}/pod",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(home / "token"),
    }


def _instance_role(url: str, _: Path) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": url, "AWS_EC2_METADATA_DISABLED": "false"}


def _web_identity(url: str, home: Path) -> dict[str, str]:
    (home / "token").write_text("projected token")
    return {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(home / "token"),
        "AWS_ROLE_ARN": _ROLE,
        "AWS_ENDPOINT_URL_STS": url,
    }


def _sso(url: str, home: Path) -> dict[str, str]:
    cache = home / ".aws" / "sso" / "cache"
    cache.mkdir(parents=True)
    ends = (datetime.now(UTC) + timedelta(hours=8)).strftime("%Y-%m-%dT%H:%M:%SZ")
    token = {"accessToken": "signed in", "expiresAt": ends, "region": REGION, "startUrl": f"{url}/start"}
    (cache / f"{hashlib.sha1(b'work').hexdigest()}.json").write_text(json.dumps(token))
    (home / "config").write_text(
        f"[default]\nsso_session = work\nsso_account_id = {ACCOUNT}\nsso_role_name = reader\n"
        f"[sso-session work]\nsso_region = {REGION}\nsso_start_url = {url}/start\n"
    )
    return {"AWS_ENDPOINT_URL_SSO": url}


def _role_of_a_profile(url: str, home: Path) -> dict[str, str]:
    (home / "config").write_text(
        f"[default]\nrole_arn = {_ROLE}\nsource_profile = base\n"
        f"[profile base]\naws_access_key_id = AKIADEMO{ACCOUNT}\naws_secret_access_key = x\n"
    )
    return {"AWS_ENDPOINT_URL_STS": url}


def _role_of_an_entry(url: str, _: Path) -> dict[str, str]:
    """For a registry that has a role_arn."""
    keys = {"AWS_ACCESS_KEY_ID": f"AKIADEMO{ACCOUNT}", "AWS_SECRET_ACCESS_KEY": "x"}
    return keys | {"AWS_ENDPOINT_URL_STS": url}


#: Each way to lend credentials: where the lender is and a home directory -> the variables of the exporter.
WAYS: Mapping[str, Callable[[str, Path], dict[str, str]]] = {
    "credential_process": _process,
    "container agent": _container,
    "Pod Identity": _pod_identity,
    "instance role": _instance_role,
    "web identity": _web_identity,
    "SSO": _sso,
    "role of a profile": _role_of_a_profile,
    "role of an entry": _role_of_an_entry,
}


def lending(way: str, lender: Lender, home: Path) -> dict[str, str]:
    """The environment of an exporter that finds its credentials in this way, and in no other."""
    return {
        "HOME": str(home),
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_CONFIG_FILE": str(home / "config"),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": "127.0.0.1",
    } | WAYS[way](lender.url, home)
