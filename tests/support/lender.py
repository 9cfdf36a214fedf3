"""A credentials endpoint for tests: Pod Identity, ECS and IMDSv2."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from exporter.demo import ACCOUNT


class Lender:
    """The endpoints of Pod Identity (or ECS) and of IMDSv2; lends keys of an account for so many seconds."""

    def __init__(self) -> None:
        self.account = ACCOUNT
        self.lent = 0
        #: For how long it lends.
        self.seconds = 30.0
        #: The status of every answer, if nothing is lent.
        self.refuses: int | None = None
        lender = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = lender.answer(self.path, dict(self.headers))
                self.send_response(lender.refuses or (200 if answer else 401))
                self.end_headers()
                self.wfile.write(answer.encode())

            def do_PUT(self) -> None:
                self.do_GET()

            def log_message(self, *args: Any) -> None:
                """NoWorkers reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, headers: Mapping[str, str]) -> str:
        """What is lent; empty if the request is refused."""
        if self.refuses:
            return ""
        if path == "/latest/api/token":
            return "session"
        if path == "/pod" and headers.get("Authorization") == "projected token":
            return self.keys()
        if headers.get("x-aws-ec2-metadata-token") != "session":
            return ""
        return self.keys() if path.endswith("/reader") else "reader"

    def keys(self) -> str:
        self.lent += 1
        return json.dumps(
            {
                "Code": "Success",
                "AccessKeyId": f"AKIADEMO{self.account}",
                "SecretAccessKey": "x",
                "Token": f"token {self.lent}",
                "Expiration": (datetime.now(UTC) + timedelta(seconds=self.seconds)).isoformat(),
            }
        )
