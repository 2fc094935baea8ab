"""The crates that the program is built of: where they come from, their licences, and what must not be among them.

Known vulnerabilities need the advisories of the day, which a test without a network has not: `cargo audit` tells them."""

import json
import pathlib
import re
import subprocess
import sys

import support

ROOT = pathlib.Path(__file__).parents[2]
REGISTRY = "registry+https://github.com/rust-lang/crates.io-index"
# Permissive ones: a program under any licence may hold such crates.
LICENCES = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "CDLA-Permissive-2.0", "ISC", "MIT", "MIT-0", "Unicode-3.0", "Unlicense", "Zlib",
}
# What would need a library of the system, or a second implementation of what is there.
UNWANTED = {"openssl", "openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys", "libz-sys"}
# Where a vulnerability would matter most, there is one version.
ONCE = {"axum", "flate2", "h2", "hyper", "prost", "ring", "rustls", "serde_json", "sqlx-core", "tokio", "tonic", "zip"}


def metadata():
    command = ["cargo", "metadata", "--locked", "--offline", "--format-version=1", "--all-features"]
    host = re.search(r"^host: (\S+)", subprocess.check_output(["rustc", "-vV"], text=True), re.M)[1]
    done = subprocess.run(command + ["--filter-platform", host], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["packages"]


def allowed(expression):
    """Whether one may choose licences of the list: alternatives by OR or `/`, all of them by AND."""
    expression = expression.strip()
    if expression in LICENCES:
        return True
    while True:
        # The innermost parentheses first.
        inner = re.search(r"\(([^()]*)\)", expression)
        if not inner:
            break
        expression = expression.replace(inner[0], "MIT" if allowed(inner[1]) else "none")
    alternatives = re.split(r" OR |/", expression)
    return any(all(part.strip() in LICENCES for part in one.split(" AND ")) for one in alternatives)


def check_every_crate_comes_from_the_registry_under_a_known_licence():
    packages = [p for p in metadata() if p["source"] is not None]
    foreign = {f"{p['name']} {p['version']}: {p['source']}" for p in packages if p["source"] != REGISTRY}
    assert not foreign, foreign
    unknown = {f"{p['name']} {p['version']}: {p['license']}" for p in packages if not allowed(p["license"] or "")}
    assert not unknown, unknown
    lock = (ROOT / "Cargo.lock").read_text()
    entries = lock.split("[[package]]")[1:]
    unsummed = [e.split('"')[1] for e in entries if "source" in e and not re.search(r'checksum = "[0-9a-f]{64}"', e)]
    assert not unsummed, unsummed
    return f"{len(packages)} crates"


def check_what_must_not_be_among_them():
    versions = {}
    for p in metadata():
        versions.setdefault(p["name"], set()).add(p["version"])
    assert not UNWANTED & set(versions), UNWANTED & set(versions)
    twice = {name: found for name, found in versions.items() if name in ONCE and len(found) > 1}
    assert not twice, twice
    assert ONCE <= set(versions), f"no such crates: {ONCE - set(versions)}"


def check_the_list_of_licences_is_read_right():
    rows = {
        "MIT": True, "MIT OR GPL-3.0": True, "MIT/Apache-2.0": True, "GPL-3.0": False, "MIT AND GPL-3.0": False,
        "(MIT OR GPL-3.0) AND Unicode-3.0": True, "(GPL-2.0 OR GPL-3.0) AND MIT": False, "": False,
    }
    for expression, want in rows.items():
        assert allowed(expression) is want, expression


if __name__ == "__main__":
    support.main(sys.modules[__name__])
