"""A stand-in of the hub's HTTP interface with one repository of data, as far as its client and file system use it."""

import base64
import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

REPOSITORY = "me/cartpole"
COMMITS: list[dict[str, bytes]] = [{}]
"""The files after each commit."""

LARGE: dict[str, bytes] = {}
"""Large files by SHA-256."""


def entry(path, content):
    found = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    return found | {"lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 100}}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *details):
        pass

    def answer(self, content, status=200, **headers):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def missing(self, kind):
        self.answer({"error": f"{kind} not found"}, 404, X_Error_Code=kind)

    def files(self):
        return COMMITS[-1]

    def host(self):
        return f"http://{self.headers['Host']}"

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        api, data = f"/api/datasets/{REPOSITORY}", f"/datasets/{REPOSITORY}/resolve/main/"
        if path.startswith(f"{api}/tree/main"):
            within = path.removeprefix(f"{api}/tree/main").strip("/")
            found = {name: content for name, content in self.files().items() if name.startswith(f"{within}/")}
            self.answer([entry(*each) for each in found.items()]) if found else self.missing("EntryNotFound")
        elif path in (api, f"{api}/revision/main"):
            self.answer({"id": REPOSITORY, "sha": "0" * 40, "siblings": [], "private": False, "tags": []})
        elif path.startswith(data):
            self.send_file(path.removeprefix(data))
        else:
            self.missing("RepoNotFound")

    do_HEAD = do_GET

    def send_file(self, name):
        if name not in self.files():
            self.missing("EntryNotFound")
            return
        content = self.files()[name]
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X_Repo_Commit": "0" * 40}
        if given := self.headers.get("Range"):
            begin, _, end = given.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or len(content)), len(content) - 1)
            if first >= len(content):
                self.answer(b"", 416)
            else:
                span = f"bytes {first}-{last}/{len(content)}"
                self.answer(content[first : last + 1], 206, Content_Range=span, **headers)
        else:
            self.answer(content, **headers)

    def do_POST(self):
        path, body = unquote(urlsplit(self.path).path), self.body()
        if path == f"/api/datasets/{REPOSITORY}/preupload/main":
            files = [
                {"path": file["path"], "uploadMode": mode_of(file["path"]), "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif path == f"/datasets/{REPOSITORY}.git/info/lfs/objects/batch":
            self.answer({"transfer": "basic", "objects": [self.action(each) for each in json.loads(body)["objects"]]})
        elif path == f"/api/datasets/{REPOSITORY}/commit/main":
            commit([json.loads(line) for line in body.splitlines()])
            self.answer({"commitUrl": f"{self.host()}/datasets/{REPOSITORY}/commit/{'0' * 40}", "commitOid": "0" * 40})
        elif path == f"/api/datasets/{REPOSITORY}/paths-info/main":
            asked = json.loads(body) if body.startswith(b"{") else {"paths": []}
            self.answer([entry(name, self.files()[name]) for name in asked["paths"] if name in self.files()])
        else:
            self.missing("RepoNotFound")

    def action(self, asked):
        upload = {"upload": {"href": f"{self.host()}/large/{asked['oid']}", "header": {}}}
        return {**asked, **({} if asked["oid"] in LARGE else {"actions": upload})}

    def do_PUT(self):
        LARGE[self.path.rsplit("/", 1)[-1]] = self.body()
        self.answer(b"")


def mode_of(path):
    return "lfs" if "/objects/" in path else "regular"


def commit(lines):
    files = dict(COMMITS[-1])
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            files[value["path"]] = LARGE[value["oid"]]
    COMMITS.append(files)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    print(server.server_port, flush=True)
    sys.stdout.close()
    server.serve_forever()
