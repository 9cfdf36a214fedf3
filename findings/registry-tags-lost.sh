#!/bin/sh
# Do clients of OCI registries list all tags of a repository when the registry answers page by page?
# OCI Distribution Specification 1.1, Listing Tags: a registry may return fewer tags than were asked for when it sends
# the header Link with the address of the next page, so that a client has to follow that address.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install crpy==0.4.0 aioregistry==0.7.3 oras==0.2.43
npm install --silent --no-audit --no-fund --prefix "$folder" oci-registry-client@0.2.0 @snyk/docker-registry-v2-client@4.0.5
cat > "$folder/list.cjs" <<'SCRIPT'
const { RegistryClientV2 } = require("oci-registry-client");
const { getTagsPaginated } = require("@snyk/docker-registry-v2-client");
const [, , registry, repository] = process.argv;
(async () => {
  const client = new RegistryClientV2({ name: `${registry}/${repository}`, scheme: "http", insecure: true });
  const first = (await client.listTags()).tags;
  const second = await getTagsPaginated(registry, repository, undefined, undefined, 1000, { protocol: "http:" });
  console.log(JSON.stringify([first, second]));
})();
SCRIPT
"$folder/venv/bin/python" - "$folder/list.cjs" <<'PYTHON'
import asyncio, http.server, json, subprocess, sys, threading, urllib.parse
import aioregistry, crpy.registry, oras.client

TAGS = ["v1", "v2", "v3", "v4", "v5"]
PAGE = 2  # the registry's limit

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        query = dict(urllib.parse.parse_qsl(urllib.parse.urlparse(self.path).query))
        size = min(int(query.get("n", PAGE)), PAGE)
        rest = [tag for tag in TAGS if tag > query.get("last", "")]
        body = json.dumps({"name": "team/app", "tags": rest[:size]} if "tags" in self.path else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if len(rest) > size:
            self.send_header("Link", f'</v2/team/app/tags/list?last={rest[size - 1]}&n={size}>; rel="next"')
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

async def aioregistry_tags(port):
    async with aioregistry.AsyncRegistryClient() as client:
        registry = aioregistry.Registry(host="127.0.0.1", port=port, prot="http")
        return await client.registry_repo_tags(registry, ["team", "app"])

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
registry = f"127.0.0.1:{server.server_port}"
script = subprocess.run(["node", sys.argv[1], registry, "team/app"], capture_output=True, text=True)
from_npm, from_snyk = json.loads(script.stdout)
seen = {
    "oras 0.2.43": oras.client.OrasClient(insecure=True).get_tags(f"{registry}/team/app"),
    "crpy 0.4.0": asyncio.run(crpy.registry.RegistryInfo.from_url(f"http://{registry}/team/app").list_tags()),
    "aioregistry 0.7.3": asyncio.run(aioregistry_tags(server.server_port)),
    "oci-registry-client 0.2.0 (npm)": from_npm,
    "@snyk/docker-registry-v2-client 4.0.5 (npm), getTagsPaginated": from_snyk,
}
for client, tags in seen.items():
    print(f"{client}: {tags}")
raise SystemExit(list(seen.values()) != [TAGS, TAGS[:4], TAGS[:2], TAGS[:2], TAGS[:2]])
PYTHON
