"""perf_analyzer, a client by others: that it can talk to Octet, and what latency it sees.

The wheel on PyPI is for glibc 2.38. Where the system has an older one, Debian 13's libraries are unpacked beside it and
its own loader starts it; nothing is installed.
"""

import csv
import json
import os
import platform
import subprocess
import sys

import provide
import servers
from table import verdict

VERSION = "2.60.0"
CUDA = "nvidia-cuda-runtime-cu12==12.9.79"
LIBRARIES = ["libc6", "libstdc++6", "libgcc-s1", "zlib1g", "libssl3t64", "libzstd1"]
FOLDER = provide.TARGET / "perf_analyzer"


def program():
    """The command that starts perf_analyzer."""
    binary = FOLDER / "wheel/perf_analyzer/bin/perf_analyzer"
    if not binary.exists():
        provide.peers.say("Fetching perf_analyzer")
        fetch(FOLDER / "wheel", f"perf-analyzer=={VERSION}", "--platform", "manylinux_2_38_x86_64")
        binary = next(p for p in (FOLDER / "wheel").rglob("perf_analyzer") if p.is_file() and p.stat().st_size > 1e6)
        binary.chmod(0o755)
    cuda = cuda_runtime()
    libc = tuple(int(n) for n in platform.libc_ver()[1].split(".")[:2])
    if libc >= (2, 38):
        return ["env", f"LD_LIBRARY_PATH={cuda}", binary]
    library = FOLDER / "root/usr/lib/x86_64-linux-gnu"
    if not (library / "libzstd.so.1").exists():
        debian_13(FOLDER / "root")
    return [library / "ld-linux-x86-64.so.2", "--library-path", f"{library}:{cuda}", binary]


def cuda_runtime():
    """A folder with NVIDIA's libcudart.so: perf_analyzer wants it for shared memory of any kind, on any machine."""
    folder = FOLDER / "cuda"
    if not (folder / "libcudart.so").exists():
        fetch(folder, CUDA)
        (folder / "libcudart.so").symlink_to(next(folder.rglob("libcudart.so.12")))
    return folder


def fetch(folder, package, *options):
    """Unpacks a package of PyPI as it is, without installing anything."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                    "--only-binary=:all:", *options, "--dest", folder, package], check=True)
    subprocess.run([sys.executable, "-m", "zipfile", "-e", next(folder.glob("*.whl")), folder], check=True)


def debian_13(root):
    """Unpacks libraries of Debian 13 from the mirror that this machine has for its own Debian."""
    listed = subprocess.run(["apt-get", "indextargets", "--format", "$(REPO_URI)"], check=True, capture_output=True,
                            text=True).stdout.split()
    mirror = next(u for u in listed if u.rstrip("/").endswith("/debian"))
    state = FOLDER / "apt"
    for part in ("lists/partial", "cache/archives/partial", "etc"):
        (state / part).mkdir(parents=True, exist_ok=True)
    keys = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (state / "sources.list").write_text(f"deb [signed-by={keys}] {mirror} trixie main\n")
    options = ["-o", f"Dir::State={state}", "-o", f"Dir::State::lists={state}/lists", "-o", f"Dir::Cache={state}/cache",
               "-o", f"Dir::Etc::sourcelist={state}/sources.list", "-o", "Dir::Etc::sourceparts=-",
               "-o", "APT::Sandbox::User=root", "--quiet=2"]
    root.mkdir(parents=True, exist_ok=True)
    subprocess.run(["apt-get", *options, "update"], check=True)
    subprocess.run(["apt-get", *options, "download", *LIBRARIES], cwd=root, check=True)
    for package in root.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
        package.unlink()


def run(binary, arguments):
    command, found = program(), {"lines": [], "verdicts": []}
    data = arguments.out / "input.json"
    with servers.Octet(binary, arguments.port, arguments.out) as octet:
        for name in ("mlp", "image"):
            model = provide.models([name])[name]
            octet.quantize(model, name) if model.calibration else octet.serve_float(model, name)
            values = json.loads(provide.bodies(model, arguments.out / "bodies")["json"][0].read_bytes())["inputs"][0]["data"]
            data.write_text(json.dumps({"data": [{model.tensor: {"content": values, "shape": model.shape[1:]}}]}))
            for protocol in ("http", "grpc"):
                port = octet.port if protocol == "http" else octet.grpc_port
                if port is None:
                    found["lines"].append(f"{name}, {protocol}: not run, this server has no --grpc-listen")
                    continue
                address = f"127.0.0.1:{port}"
                for concurrency in (1, 4):
                    found["verdicts"].append(once(command, name, protocol, address, concurrency, data, arguments))
                found["verdicts"].append(once(command, name, protocol, address, 1, data, arguments, shared=True))
    for v in found["verdicts"]:
        provide.peers.say(f"  {v['goal']}: {v['measured']}")
    return found


def once(command, model, protocol, address, concurrency, data, arguments, shared=False):
    """One measurement of a fixed number of requests, which skips the check for stability."""
    kind = ", shared memory" if shared else ""
    table = arguments.out / f"perf_analyzer-{model}-{protocol}-{concurrency}{'-shared' if shared else ''}.csv"
    count = 200 if arguments.quick else 2000
    done = subprocess.run(
        [*command, "-m", model, "-i", protocol, "-u", address, "-b", "1", "--input-data", data,
         "--concurrency-range", f"{concurrency}:{concurrency}", "--request-count", str(count), "-f", table,
         *(["--shared-memory", "system", "--output-shared-memory-size", "4096"] if shared else [])],
        capture_output=True, text=True, timeout=180, env=os.environ, check=False)
    goal = f"perf_analyzer, {model}, {protocol}, {concurrency} at a time, {count} requests{kind}"
    if done.returncode or not table.exists():
        return verdict(goal, f"exit {done.returncode}: {(done.stdout + done.stderr)[-400:]}", "runs", False)
    row = next(csv.DictReader(table.open()))
    # Its rate is that of a whole number of seconds and means nothing for so few requests.
    return verdict(goal, f"p50 {row['p50 latency']} µs, p99 {row['p99 latency']} µs", "runs",
                   float(row["p50 latency"]) > 0)
