"""Load by wrk: one thread, so many connections, each with one request at a time."""

import json
import os
import subprocess

import provide


class Load:
    def __init__(self):
        self.program, self.variables = provide.wrk()

    def start(self, url, body, headers, connections, seconds):
        """wrk as a process that prints one line of JSON at its end."""
        lines = "\n".join(f"{k}: {v}" for k, v in headers.items())
        return subprocess.Popen(
            [self.program, "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s",
             "-s", str(provide.HERE / "request.lua"), url],
            env=os.environ | self.variables | {"BODY": str(body), "HEADERS": lines},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def result(self, process, timeout=120):
        """What it measured: requests, seconds, p50_ms, p99_ms, refused (status), broken (connection)."""
        try:
            out = process.communicate(timeout=timeout)[0]
        except subprocess.TimeoutExpired:
            process.kill()
            out = process.communicate()[0]
        for line in out.splitlines():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"wrk: {out[-500:]}")

    def run(self, url, body, headers, connections, seconds):
        return self.result(self.start(url, body, headers, connections, seconds), seconds + 60)
