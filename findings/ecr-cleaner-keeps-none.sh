#!/bin/sh
# Does ecr-cleaner keep as many untagged images of a repository of ECR as its policy says?
# `--repositories app:untagged=3` is to keep the three newest of them. In Python items[-0:] is all of a list, and 0 is the number
# of images to delete where no more than three are there.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install "ecr-cleaner[cli]==0.1.11"
echo "ecr-cleaner 0.1.11"
"$folder/venv/bin/python" - "$folder/venv/bin/ecr-cleaner" <<'PYTHON'
import http.server, json, os, subprocess, sys, threading

images, deleted = [], []

class Registry(http.server.BaseHTTPRequestHandler):
    """ECR on loopback: lists `images` and notes what it is asked to delete."""

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["X-Amz-Target"].endswith(".BatchDeleteImage"):
            deleted.extend(image["imageDigest"][-1] for image in request["imageIds"])
        body = json.dumps({"imageDetails": images, "imageIds": [], "failures": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry)
threading.Thread(target=server.serve_forever, daemon=True).start()
environment = os.environ | {
    "AWS_ENDPOINT_URL_ECR": f"http://127.0.0.1:{server.server_port}",
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "example",
}
command = [sys.argv[1], "--region", "eu-central-1", "--repositories", "app:untagged=3"]
seen = {}
for count in (2, 3, 4):
    images[:] = [{"imageDigest": f"sha256:{number:064}", "imagePushedAt": 1.7e9 + number} for number in range(count)]
    deleted.clear()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    seen[count] = len(deleted)
    print(f"of {count} untagged images app:untagged=3 deletes {len(deleted)}")
raise SystemExit(seen != {2: 2, 3: 3, 4: 1})
PYTHON
