//! Looks at everything that a server will need, changes nothing that stays, and says what to do.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Instant;

use super::parts::{isa, refuse_public, s3};
use super::process::{clock, open_files};
use crate::config::Settings;
use crate::engine::kernels::isa::Isa;
use crate::service::jobs::webhooks;
use crate::service::store::chain;
use crate::service::store::remote::Remote;
use crate::service::store::sql::open::{Schema, schema_of_postgres, schema_of_sqlite};

/// Free bytes below which a disk is nearly full.
const FREE_MIN: u64 = 1 << 30;
/// Milliseconds that the clocks of a process and its database may differ.
const CLOCKS_MS: u64 = 2_000;
/// Milliseconds for one synced write, above which every upload and every job is slow.
const SYNC_MS: u128 = 100;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// Nothing is to be done.
    Good,
    /// It works, but something should be done.
    Warning,
    /// A server does not start, or does not work.
    Bad,
}

/// What was found out about one thing.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What was looked at.
    pub what: &'static str,
    /// How bad it is.
    pub state: State,
    /// What it is.
    pub text: String,
    /// What to do; empty where there is nothing.
    pub advice: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Good => "good",
            State::Warning => "WARN",
            State::Bad => "BAD ",
        };
        write!(f, "{state}  {:<13} {}", self.what, self.text)?;
        if !self.advice.is_empty() {
            write!(f, "\n      {:<13} -> {}", "", self.advice)?;
        }
        Ok(())
    }
}

fn good(what: &'static str, text: impl Into<String>) -> Finding {
    Finding { what, state: State::Good, text: text.into(), advice: String::new() }
}

fn warning(what: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { what, state: State::Warning, text: text.into(), advice: advice.into() }
}

fn bad(what: &'static str, text: impl Into<String>, advice: impl Into<String>) -> Finding {
    Finding { what, state: State::Bad, text: text.into(), advice: advice.into() }
}

/// Looks at the machine, the folder, the database, the object store and the addresses of the settings.
pub async fn examine(settings: &Settings) -> Vec<Finding> {
    let running = is_in_use(&settings.data_dir);
    let mut findings = vec![cpu(settings), files(settings)];
    findings.extend(folder(&settings.data_dir, running));
    findings.push(database(settings).await);
    findings.push(object_store(settings).await);
    findings.push(address("listen", Some(settings.listen), running));
    findings.push(address("grpc_listen", settings.grpc_listen.0, running));
    findings.push(match refuse_public(settings) {
        Ok(()) => good("access", format!("auth.mode is {:?}", settings.auth.mode).to_lowercase()),
        Err(error) => bad("access", error.to_string(), ""),
    });
    findings.push(webhooks(settings));
    findings
}

fn webhooks(settings: &Settings) -> Finding {
    let given = &settings.webhooks;
    if given.secret.is_empty() {
        return good("webhooks", "off: jobs take no webhook_url");
    }
    match webhooks::count_secrets(given.secret.reveal()) {
        Err(error) => bad("webhooks", error.to_string(), ""),
        Ok(count) => {
            let whom = if given.allow_private { "anybody, also inside" } else { "public addresses" };
            good(
                "webhooks",
                format!("signed with {count} {}, to {whom}", if count == 1 { "secret" } else { "secrets" }),
            )
        }
    }
}

fn cpu(settings: &Settings) -> Finding {
    let available: Vec<_> = Isa::available().into_iter().map(Isa::name).collect();
    match isa(&settings.isa) {
        Err(error) => bad("cpu", error.to_string(), "set `isa` to \"auto\""),
        Ok(isa) if isa.name() == "scalar" => warning(
            "cpu",
            format!("kernels use {}, of {}", isa.name(), available.join(", ")),
            "without AVX2 or NEON everything is many times slower: use another machine, or set `isa` to \"auto\"",
        ),
        Ok(isa) => good("cpu", format!("kernels use {}, of {}", isa.name(), available.join(", "))),
    }
}

fn files(settings: &Settings) -> Finding {
    let wanted = settings.limits.connections;
    match open_files() {
        Some(limit) if limit / 2 < wanted => warning(
            "open files",
            format!("the process may open {limit} files, limits.connections is {wanted}"),
            "raise it (ulimit -n, LimitNOFILE=), or lower limits.connections",
        ),
        Some(limit) => good("open files", format!("the process may open {limit} files")),
        None => good("open files", "no limit"),
    }
}

/// Whether a server holds the lock of the folder.
fn is_in_use(folder: &Path) -> bool {
    let Ok(lock) = std::fs::File::open(folder.join("lock")) else { return false };
    matches!(lock.try_lock_shared(), Err(std::fs::TryLockError::WouldBlock))
}

fn folder(folder: &Path, running: bool) -> Vec<Finding> {
    let shown = folder.display();
    if !folder.exists() {
        let text = format!("`{shown}` does not exist: it is made at the first start");
        return vec![good("data folder", text)];
    }
    let probe = folder.join(format!("probe-{}", std::process::id()));
    let begun = Instant::now();
    let written = std::fs::File::create(&probe).and_then(|mut file| {
        std::io::Write::write_all(&mut file, b"octet")?;
        file.sync_all()
    });
    let took = begun.elapsed().as_millis();
    // A probe that stays is harmless, and told by the error of the write.
    let _ = std::fs::remove_file(&probe);
    let used = if running { "; a server uses it" } else { "" };
    let mut findings = vec![match written {
        Err(error) => {
            bad("data folder", format!("`{shown}`: {error}"), "let the user of the server write to it")
        }
        Ok(()) if took > SYNC_MS => warning(
            "data folder",
            format!("`{shown}`: a synced write takes {took} ms{used}"),
            "every upload and job waits for such writes: use a faster disk",
        ),
        Ok(()) => good("data folder", format!("`{shown}` can be written to, synced in {took} ms{used}")),
    }];
    if let Ok(stat) = rustix::fs::statvfs(folder) {
        let (free, all) = (stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize);
        let text = format!("{:.1} of {:.1} GB are free", free as f64 / 1e9, all as f64 / 1e9);
        findings.push(if free < FREE_MIN {
            warning("disk", text, "make room: delete models, datasets and artifacts, or move data_dir")
        } else {
            good("disk", text)
        });
    }
    findings
}

async fn database(settings: &Settings) -> Finding {
    let url = settings.store.database_url.reveal();
    let path = settings.data_dir.join("octet.db");
    let (name, found) = if url.is_empty() {
        if !path.exists() {
            return good("database", "SQLite: the file is made at the first start");
        }
        ("SQLite", schema_of_sqlite(&path).await)
    } else {
        ("Postgres", schema_of_postgres(url, clock()).await)
    };
    let advice = match name {
        "SQLite" => "restore a backup (octet restore), or move the file away to begin anew",
        _ => {
            "look at store.database_url: host, port, user, password, database, and whether the server takes connections"
        }
    };
    let Schema { have, known, healthy, ahead_ms } = match found {
        Ok(schema) => schema,
        Err(error) => return bad("database", format!("{name}: {}", chain(&error)), advice),
    };
    let version = format!("{name}, schema version {have}");
    if let Some(fault) = healthy.err() {
        return bad("database", format!("{version}: {fault}"), advice);
    }
    if have > known {
        let text = format!("{version}, this program knows up to {known}");
        return bad("database", text, "install the program that wrote it, or a newer one");
    }
    if ahead_ms.unsigned_abs() > CLOCKS_MS {
        let text = format!("{version}; its clock is {ahead_ms} ms ahead of this one");
        return warning(
            "database",
            text,
            "set the clocks (NTP): leases use that of the database, log lines this one",
        );
    }
    if have < known {
        let text = format!("{version}, this program brings it to {known} when it starts");
        return warning("database", text, "make a backup first; `octet migrate` does it without a server");
    }
    good("database", version)
}

async fn object_store(settings: &Settings) -> Finding {
    let Some(s3) = s3(&settings.store) else { return good("files", "in the data folder") };
    let begun = Instant::now();
    match Remote::probe(&s3).await {
        Ok(()) => {
            let took = begun.elapsed().as_millis();
            good("files", format!("bucket `{}`: written, read and removed in {took} ms", s3.bucket))
        }
        Err(error) => bad(
            "files",
            format!("bucket `{}`: {}", s3.bucket, chain(&error)),
            "look at store.s3_bucket, s3_endpoint, s3_region and the credentials; the bucket must exist",
        ),
    }
}

fn address(what: &'static str, address: Option<SocketAddr>, running: bool) -> Finding {
    let Some(address) = address else { return good(what, "off") };
    match std::net::TcpListener::bind(address) {
        Ok(_) => good(what, format!("{address} is free")),
        Err(error) if running && error.kind() == std::io::ErrorKind::AddrInUse => {
            good(what, format!("{address} is in use, by the server of this folder it seems"))
        }
        Err(error) => bad(what, format!("{address}: {error}"), format!("stop what uses it, or set `{what}`")),
    }
}
