"""For whoever runs a server: `octet doctor`, backups, and a disk that is full."""

import contextlib
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy as np
import support

# Fails every write to a file, as a full disk does, while the file that FULL_DISK_FLAG names is there.
FULL = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int full(int fd) {
    struct stat s;
    const char *flag = getenv("FULL_DISK_FLAG");
    if (!flag || access(flag, F_OK) != 0 || fstat(fd, &s) != 0 || !S_ISREG(s.st_mode)) return 0;
    errno = ENOSPC;
    return 1;
}
#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)
ssize_t write(int fd, const void *b, size_t n) { REAL(write); return fd > 2 && full(fd) ? -1 : real(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { REAL(pwrite); return full(fd) ? -1 : real(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { REAL(pwrite64); return full(fd) ? -1 : real(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) { REAL(writev); return full(fd) ? -1 : real(fd, v, n); }
"""


@contextlib.contextmanager
def server_on_a_disk_that_fills(binary):
    """A server, and what fills its disk and empties it again."""
    with tempfile.TemporaryDirectory(prefix="octet-full-") as folder:
        folder = pathlib.Path(folder)
        (folder / "full.c").write_text(FULL)
        library, flag = folder / "full.so", folder / "full"
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, folder / "full.c", "-ldl"], check=True)
        settings = {"LD_PRELOAD": str(library), "FULL_DISK_FLAG": str(flag), "OCTET_JOBS__LEASE_SECONDS": "5",
                    "OCTET_JOBS__ATTEMPTS_MAX": "20", "OCTET_JOBS__RETRY_WAIT_MS": "200"}
        with support.Server(binary, folder / "data", settings) as server:
            def fill(yes):
                flag.touch() if yes else flag.unlink(missing_ok=True)
            yield server, fill


def works(server, batch, want):
    """What needs no room goes on."""
    assert server.get("/v2/health/ready").status == 200
    assert server.get("/v1/models").status == 200
    assert np.array_equal(server.infer("resnet8", "input", batch), want)
    assert server.get("/metrics").status == 200


def check_a_full_disk_while_uploading(binary):
    with server_on_a_disk_that_fills(binary) as (server, fill):
        server.serve("resnet8", "fm_resnet8")
        batch = support.images()[0][:4]
        want = server.infer("resnet8", "input", batch)
        fill(True)
        for path, file in [("/v1/models/m", support.model_path("fm_lenet")), ("/v1/datasets/d", support.EVALUATION_PATH)]:
            refused = server.put(path, file)
            assert refused.status == 507 and refused.json()["code"] == "storage_full", f"{refused.status} {refused.text()}"
            assert server.get(path).status == 404
        works(server, batch, want)
        assert not list((server.data_dir / "tmp").iterdir()), "what was half written is gone"
        fill(False)
        assert server.put("/v1/models/m", support.model_path("fm_lenet")).status == 201


def check_a_full_disk_is_emptied_by_deleting(binary):
    """The disk is full as long as the room that is put by is not given away."""
    with server_on_a_disk_that_fills(binary) as (server, _):
        for name in ("a", "b"):
            assert server.put(f"/v1/models/{name}", support.model_path("fm_lenet")).status in (200, 201)
        reserve = server.data_dir / "reserve"
        server.until(reserve.exists, "room is put by")
        pathlib.Path(server.settings["FULL_DISK_FLAG"]).symlink_to(reserve)
        assert server.put("/v1/datasets/d", support.EVALUATION_PATH).status == 507
        for name in ("a", "b"):
            gone = server.request("DELETE", f"/v1/models/{name}")
            assert gone.status == 204, f"{gone.status} {gone.text()}"
        # Nobody refers to the file any more.
        server.until(lambda: not [p for p in (server.data_dir / "blobs").rglob("*") if p.is_file()], "the file is gone")


def fill_in(binary, phase):
    with server_on_a_disk_that_fills(binary) as (server, fill):
        server.serve("resnet8", "fm_resnet8")
        batch = support.images()[0][:4]
        want = server.infer("resnet8", "input", batch)
        for path, file in [("/v1/models/m", support.model_path("fm_resnet8")), ("/v1/datasets/d", support.EVALUATION_PATH)]:
            assert server.put(path, file).status == 201
        spec = {"model": "m", "calibration": "d", "keep": True}
        artifact = server.download(server.wait(server.submit(**spec)))
        job = server.submit(**spec)
        server.until(lambda: server.job(job)["phase"] == phase, f"it is in {phase}", 120)
        fill(True)
        # Longer than the rest of the job: what it makes meets the full disk.
        end = time.monotonic() + 15
        while time.monotonic() < end:
            works(server, batch, want)
            time.sleep(0.2)
        assert server.job(job)["state"] in ("queued", "running"), server.job(job)
        assert "full" in server.log() or "No space" in server.log(), server.log()
        fill(False)
        done = server.wait(job, 180)
        assert done["state"] == "succeeded", json.dumps(done, indent=1)
        assert server.download(done) == artifact
        assert not list((server.data_dir / "tmp").iterdir())
        return f"{done['attempt']} attempts"


def check_a_full_disk_while_calibrating(binary):
    return fill_in(binary, "calibrate")


def check_a_full_disk_while_the_artifact_is_written(binary):
    return fill_in(binary, "evaluate")


def check_the_doctor(binary):
    with support.Server(binary) as server:
        said = support.run_octet(binary, "doctor", "--data-dir", server.data_dir, "--set", f"listen={server.address}",
                                 "--set", f"grpc_listen={server.grpc_address}")
        assert "BAD" not in said and "by the server of this folder" in said and "SQLite, schema version" in said, said
    done = subprocess.run([str(binary), "doctor", "--data-dir", "/proc/nowhere", "--set", "listen=0.0.0.0:1",
                           "--set", "store.database_url=postgres://nobody@127.0.0.1:1/none"], capture_output=True, text=True)
    assert done.returncode == 1, done
    for line in ("BAD   database", "store.database_url", "BAD   access"):
        assert line in done.stdout, done.stdout
    done = subprocess.run([str(binary), "migrate", "--data-dir", str(server.data_dir / "new")], capture_output=True, text=True)
    assert done.returncode == 0 and "applied: catalog, " in done.stdout, done


def check_a_backup_made_beside_a_server_comes_back(binary):
    with tempfile.TemporaryDirectory(prefix="octet-backup-") as folder, support.Server(binary) as server:
        folder = pathlib.Path(folder)
        job = server.quantize("fm_lenet", endpoint="fm_lenet", keep=True)
        batch = support.images()[0][:4]
        want, artifact = server.infer("fm_lenet", "input", batch), server.download(job)
        said = support.run_octet(binary, "backup", folder / "copy", "--data-dir", server.data_dir)
        # What comes afterwards is not in it.
        server.put("/v1/models/later", support.model_path("fm_mlp"))
        support.run_octet(binary, "restore", folder / "copy", "--data-dir", folder / "back")
        with support.Server(binary, folder / "back") as again:
            again.until(lambda: again.get("/v2/models/fm_lenet/ready").status == 200, "it is served again")
            assert np.array_equal(again.infer("fm_lenet", "input", batch), want)
            assert again.download(job) == artifact
            assert again.get("/v1/models/later").status == 404
        # Not over what is there, and not from what is not whole.
        done = subprocess.run([binary, "restore", folder / "copy", "--data-dir", folder / "back"], capture_output=True, text=True)
        assert done.returncode == 1 and "is not empty" in done.stderr, done
        one = next((folder / "copy/blobs").glob("*/*"))
        one.write_bytes(one.read_bytes()[:-1] + b"x")
        done = subprocess.run([binary, "restore", folder / "copy", "--data-dir", folder / "no"], capture_output=True, text=True)
        assert done.returncode == 1 and "not what its name says" in done.stderr, done
        shutil.rmtree(folder / "copy")
        return said.strip()


if __name__ == "__main__":
    support.main(sys.modules[__name__])
