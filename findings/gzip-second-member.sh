#!/bin/sh
# A gzip body may have several members (RFC 1952, section 2.2). Which Python clients read all of them?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install httpx==0.28.1 aiohttp==3.13.2 urllib3==2.5.0
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio, gzip, http.server, threading
import aiohttp, httpx, urllib3

BODY = gzip.compress(b"first 1\n") + gzip.compress(b"second 2\n")

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}/"

async def with_aiohttp():
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        return await response.read()

seen = {
    "httpx 0.28.1": httpx.get(url, trust_env=False).content,
    "aiohttp 3.13.2": asyncio.run(with_aiohttp()),
    "urllib3 2.5.0": urllib3.PoolManager().request("GET", url).data,
}
for client, content in seen.items():
    print(client, "reads", content)
expected = {"httpx 0.28.1": b"first 1\n", "aiohttp 3.13.2": b"first 1\n", "urllib3 2.5.0": b"first 1\nsecond 2\n"}
raise SystemExit(seen != expected)
PYTHON
