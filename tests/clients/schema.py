"""Everything that openapi.yaml says, tried by schemathesis: no answer that is not in the document, no fault of the server.

CASES is the number of cases for each operation and kind; 200 are what we hold to (more than 20,000 in all).
"""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

import support

CASES = os.environ.get("CASES", "10")
# What a schema cannot say: whether bytes are a model, whether a record is as a header expects.
SETTINGS = """
[checks]
positive_data_acceptance.expected-statuses = ["2xx", "3xx", "400", "401", "403", "404", "409", "412", "413", "422", "429", "501", "503"]
# An inference that names tensors which a model does not have is refused by the model, not by the schema.
negative_data_rejection.expected-statuses = ["4xx", "5xx"]
"""


def run(server, *arguments):
    """Runs it; gives its summary, and fails with its findings."""
    python = os.environ.get("PYTHON_SCHEMA") or support.ROOT / ".venv-schema/bin/python"
    program = pathlib.Path(python).parent / "st"
    assert program.exists(), f"{program} is missing: tests/run makes it (tests/clients/schema/requirements.txt)"
    with tempfile.TemporaryDirectory() as folder:
        config = pathlib.Path(folder) / "schemathesis.toml"
        config.write_text(SETTINGS)
        command = [str(program), "--config-file", str(config), "run", str(support.ROOT / "openapi.yaml"), "--url", server.url,
                   "--checks", "all", "--max-examples", CASES, "--continue-on-failure", "--no-shrink",
                   # It cannot send application/offset+octet-stream: PATCH is that of uploads.py alone.
                   "--exclude-method", "PATCH", "--request-timeout", "60", "--seed", "7", "--no-color", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=3000)
    said = done.stdout[max(done.stdout.find("FAILURES"), done.stdout.find("ERRORS"), 0):]
    assert done.returncode == 0, f"exit {done.returncode}\n{said[:12000]}\n{done.stderr[-2000:]}"
    cases = re.search(r"(\d+) generated", done.stdout)
    assert "panic" not in server.log() and server.process.poll() is None, server.log()
    return cases[1] + " cases" if cases else done.stdout[-300:]


# All that the document has: what is off answers 501.
SERVER = {"OCTET_AUTH__MODE": "keys", "OCTET_SERVING__SHARED_MEMORY": "true"}


def key(binary, server, scopes):
    return support.run_octet(binary, "key", "create", "--name", "schema", "--scope", scopes, "--data-dir", server.data_dir).strip()


def check_with_a_key(binary):
    with support.Server(binary, settings=SERVER) as server:
        return run(server, "--header", f"Authorization: Bearer {key(binary, server, 'admin')}", "--exclude-checks",
                   "ignored_auth")


def check_without_a_key(binary):
    with support.Server(binary, settings=SERVER) as server:
        key(binary, server, "read")
        return run(server)


if __name__ == "__main__":
    support.main(sys.modules[__name__])
