#!/bin/sh
# A proxy answers a call to ECR with its login page and status 200. What do AWS's SDKs for Python and JavaScript return?
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" --disable-pip-version-check -q install boto3==1.44.8
npm install --silent --no-audit --no-fund --prefix "$folder" @aws-sdk/client-ecr@3.1169.0
cat > "$folder/read.mjs" <<'SCRIPT'
import { DescribeImagesCommand, ECRClient } from "@aws-sdk/client-ecr";
const credentials = { accessKeyId: "AKIDEXAMPLE", secretAccessKey: "example" };
const client = new ECRClient({ region: "us-east-1", endpoint: process.argv[2], credentials });
const answer = await client.send(new DescribeImagesCommand({ repositoryName: "team/app" })).catch((error) => error);
console.log(answer instanceof Error ? answer.name : answer);
SCRIPT
NODE_NO_WARNINGS=1 "$folder/venv/bin/python" - "$folder/read.mjs" <<'PYTHON'
import http.server, subprocess, sys, threading
import boto3

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        body = b"<html><title>Sign in</title></html>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
url = f"http://127.0.0.1:{server.server_port}"
keys = {"aws_access_key_id": "AKIDEXAMPLE", "aws_secret_access_key": "example"}
ecr = boto3.client("ecr", region_name="us-east-1", endpoint_url=url, **keys)
pages = list(ecr.get_paginator("describe_images").paginate(repositoryName="team/app"))
images = [image for page in pages for image in page.get("imageDetails", [])]
script = subprocess.run(["node", sys.argv[1], url], capture_output=True, text=True).stdout.strip()
print("boto3 1.44.8: no error,", len(pages), "page, images of team/app:", images)
print("@aws-sdk/client-ecr 3.1169.0:", script)
raise SystemExit(len(pages) != 1 or images or script != "SyntaxError")
PYTHON
