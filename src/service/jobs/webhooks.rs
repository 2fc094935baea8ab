//! Tells whom a job names that it has ended: messages signed as Standard Webhooks, sent from the outbox at least once.
//!
//! An address comes from a stranger and the request from inside: only public addresses are connected to, unless the
//! settings say otherwise. Names are resolved here, so that what was checked is what is connected to.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{info, warn};
use url::{Host, Url};

use super::{goes_on, stopped};
use crate::service::metrics::process::Metrics;
use crate::service::store::{Catalog, Clock, Job, WebhookClaim, WebhookOutcome, chain};

/// At most so many bytes of an address.
const URL_BYTES_MAX: usize = 2048;
/// From the first byte out to the last one in.
const TIMEOUT: Duration = Duration::from_secs(10);
/// An attempt whose process has died is due again after this time: that of an attempt, and as long again for the
/// database and for clocks that differ.
const LEASE: Duration = Duration::from_secs(30);
/// So long after its lease began an attempt may begin and still end well before another process takes it up.
const BEGIN: Duration = Duration::from_secs(10);
/// More of an answer is not read: only its status counts.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Attempts that run at a time.
const SIDE_BY_SIDE: usize = 64;
/// Of those, to one receiver: one that does not answer keeps no other from hearing.
const SIDE_BY_SIDE_EACH: usize = 4;
/// Attempts until a message is given up.
const ATTEMPTS_MAX: u32 = 5;
/// A receiver that answers this wants no further attempt (RFC 9110, 15.5.11; Standard Webhooks, "Responding to webhooks").
const GONE: u16 = 410;
/// The outbox is looked at so often even if nothing woke us.
const POLL: Duration = Duration::from_secs(1);

/// Who may be told that a job has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receivers {
    /// Nobody: there is no secret to sign with.
    None,
    /// Whoever has a public address.
    Public,
    /// Also those on this machine and in private networks.
    Any,
}

/// Why nobody can be told at an address. The address itself is not repeated: it may hold secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Nothing could be signed.
    #[error("webhook_url: this server signs no messages; set `webhooks.secret`")]
    NoSecret,
    /// It is too long.
    #[error("webhook_url: {got} bytes, at most {URL_BYTES_MAX} are taken")]
    TooLong {
        /// Its bytes.
        got: usize,
    },
    /// It is something else.
    #[error("webhook_url: not a URL that begins with https:// or http:// and names a host")]
    NotHttp,
    /// There is a user or a password in it.
    #[error("webhook_url: a user or a password in the URL is not taken; the signature says who sends")]
    Credentials,
    /// It leads inside.
    #[error("webhook_url: `{host}` is no public address; set `webhooks.allow_private` to send there")]
    Private {
        /// The host in it.
        host: String,
    },
}

/// Whether a job may name the address. A name is looked up only when something is sent.
///
/// # Errors
/// [`BadUrl`].
pub fn check(url: &str, receivers: Receivers) -> Result<Url, BadUrl> {
    if receivers == Receivers::None {
        return Err(BadUrl::NoSecret);
    }
    if url.len() > URL_BYTES_MAX {
        return Err(BadUrl::TooLong { got: url.len() });
    }
    let url: Url = url.parse().map_err(|_| BadUrl::NotHttp)?;
    if !matches!(url.scheme(), "https" | "http") {
        return Err(BadUrl::NotHttp);
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(BadUrl::Credentials);
    }
    // The parser has made `0x7f.1`, `017700000001` and `2130706433` the address that they are. An address is not
    // resolved, so this is the only place that sees it.
    let inside = match url.host() {
        None => return Err(BadUrl::NotHttp),
        Some(Host::Ipv4(address)) => !is_public(address.into()),
        Some(Host::Ipv6(address)) => !is_public(address.into()),
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
    };
    if inside && receivers == Receivers::Public {
        return Err(BadUrl::Private { host: url.host_str().unwrap_or_default().to_owned() });
    }
    Ok(url)
}

/// Scheme, host and port of an address: what may be shown and logged.
#[must_use]
pub fn origin(url: &str) -> String {
    url.parse::<Url>().map_or_else(|_| "null".to_owned(), |url| url.origin().ascii_serialization())
}

/// What all addresses at one receiver begin with, as they were written: another spelling counts as another receiver.
fn receiver(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    let end = url[host..].find(['/', '?', '#']).map_or(url.len(), |at| host + at + 1);
    &url[..end]
}

/// Whether anybody in the internet has this address, so that sending there tells nothing that only we can reach.
///
/// The IANA special-purpose address registries (RFC 6890), as far as they are not globally reachable, and what a cloud
/// has taken beside them; of IPv6 only what is given out at all (2000::/3), without what holds an IPv4 address that
/// another router would unpack.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => match (address.to_ipv4_mapped(), nat64(address)) {
            (Some(inner), _) | (None, Some(inner)) => is_public_v4(inner),
            (None, None) => {
                let [a, b, ..] = address.segments();
                let given_out = a & 0xe000 == 0x2000;
                // 2001::/23 protocol assignments (Teredo among them), documentation twice, 6to4.
                let special =
                    a == 0x2001 && (b < 0x0200 || b == 0x0db8) || a == 0x3fff && b < 0x1000 || a == 0x2002;
                given_out && !special
            }
        },
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let shared = a == 100 && b & 0xc0 == 64;
    let benchmarks = a == 198 && b & 0xfe == 18;
    let assignments = (a, b, c) == (192, 0, 0) || (a, b, c) == (192, 88, 99);
    // An address like any other, but inside Azure it is the host of the virtual machine, which gives out certificates.
    let azure = address == Ipv4Addr::new(168, 63, 129, 16);
    !(a == 0
        || a >= 224
        || address.is_loopback()
        || address.is_private()
        || address.is_link_local()
        || address.is_documentation()
        || shared
        || benchmarks
        || assignments
        || azure)
}

/// The IPv4 address in one of 64:ff9b::/96 (RFC 6052): how a network without IPv4 reaches it.
fn nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    match address.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low))),
        _ => None,
    }
}

/// Why no messages can be sent.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is no secret.
    #[error(
        "webhooks.secret: secret {index} of {count} is not `whsec_` and 24 to 64 bytes in base64 (make one with \
         `echo whsec_$(head -c 32 /dev/urandom | base64)`)"
    )]
    BadSecret {
        /// Which, from 1.
        index: usize,
        /// Of so many.
        count: usize,
    },
    /// The client of HTTP cannot be made.
    #[error("making the client of webhooks: {0}")]
    Client(#[source] reqwest::Error),
}

/// What messages are signed with: one secret, or while it is replaced, the new and the old one.
struct Secrets(Vec<Vec<u8>>);

impl Secrets {
    fn parse(text: &str) -> Result<Secrets, Error> {
        let parts: Vec<&str> = text.split(',').collect();
        let count = parts.len();
        let secrets = parts.into_iter().zip(1..).map(|(part, index)| {
            let bytes = part.trim().strip_prefix("whsec_").and_then(|part| STANDARD.decode(part).ok());
            bytes.filter(|b| (24..=64).contains(&b.len())).ok_or(Error::BadSecret { index, count })
        });
        Ok(Secrets(secrets.collect::<Result<_, _>>()?))
    }

    /// The value of `webhook-signature`: for each secret `v1,` and the HMAC-SHA256 of `id.timestamp.body` in base64
    /// (Standard Webhooks 1.0.0, "Signature scheme").
    fn sign(&self, id: &str, timestamp: i64, body: &str) -> String {
        let signatures = self.0.iter().map(|secret| {
            let mut mac = Hmac::<Sha256>::new_from_slice(secret).expect("HMAC takes keys of any length");
            mac.update(format!("{id}.{timestamp}.{body}").as_bytes());
            format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))
        });
        signatures.collect::<Vec<_>>().join(" ")
    }
}

/// How many secrets there are in the setting.
///
/// # Errors
/// [`Error::BadSecret`].
pub fn count_secrets(text: &str) -> Result<usize, Error> {
    Ok(Secrets::parse(text)?.0.len())
}

/// Looks names up and gives public addresses only.
struct PublicOnly;

impl Resolve for PublicOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let public: Vec<SocketAddr> = found.filter(|address| is_public(address.ip())).collect();
            if public.is_empty() {
                return Err(BadUrl::Private { host: name.as_str().to_owned() }.into());
            }
            Ok(Box::new(public.into_iter()) as Addrs)
        })
    }
}

/// What the settings say.
pub struct Options<'a> {
    /// Secrets, with commas between them.
    pub secrets: &'a str,
    /// Whom to send to.
    pub receivers: Receivers,
    /// Wait before the second attempt; six times as long before each further one.
    pub retry_wait: Duration,
}

/// Sends what is in the outbox.
pub struct Webhooks {
    catalog: Arc<dyn Catalog>,
    metrics: Arc<Metrics>,
    clock: Clock,
    secrets: Secrets,
    receivers: Receivers,
    retry_wait: Duration,
    client: reqwest::Client,
}

/// The attempts that run now.
#[derive(Default)]
struct Attempts {
    running: JoinSet<()>,
    // Each attempt holds one of its receiver, and lets go of it however it ends.
    receivers: HashMap<String, Arc<()>>,
}

impl Attempts {
    /// Gives how many run still.
    fn forget_ended(&mut self) -> usize {
        while self.running.try_join_next().is_some() {}
        self.receivers.retain(|_, counted| Arc::strong_count(counted) > 1);
        self.running.len()
    }

    /// The receivers that have as many as one may have.
    fn busy(&self) -> Vec<String> {
        let full =
            self.receivers.iter().filter(|(_, counted)| Arc::strong_count(counted) > SIDE_BY_SIDE_EACH);
        full.map(|(receiver, _)| receiver.clone()).collect()
    }
}

/// Why an attempt failed.
struct Failure {
    status: Option<u16>,
    why: String,
}

impl Webhooks {
    /// A sender for the outbox of the catalog.
    ///
    /// # Errors
    /// [`Error`].
    pub fn new(
        catalog: Arc<dyn Catalog>,
        metrics: Arc<Metrics>,
        clock: Clock,
        options: &Options<'_>,
    ) -> Result<Arc<Webhooks>, Error> {
        let secrets = Secrets::parse(options.secrets)?;
        let mut client = reqwest::Client::builder()
            .user_agent(concat!("octet/", env!("CARGO_PKG_VERSION")))
            .timeout(TIMEOUT)
            // Both would connect to an address that nobody has checked.
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // Messages are rare, and each is to be resolved anew.
            .pool_max_idle_per_host(0);
        if options.receivers != Receivers::Any {
            client = client.dns_resolver(PublicOnly);
        }
        let client = client.build().map_err(Error::Client)?;
        let (receivers, retry_wait) = (options.receivers, options.retry_wait);
        Ok(Arc::new(Webhooks { catalog, metrics, clock, secrets, receivers, retry_wait, client }))
    }

    /// Sends, until `stop` becomes `true` (or its sender is gone) and the attempts that run then have ended. Where it is
    /// aborted, they are due again when their leases have run out.
    pub async fn run(self: Arc<Self>, mut stop: watch::Receiver<bool>) {
        let mut changes = self.catalog.job_changes();
        let mut attempts = Attempts::default();
        while goes_on(&stop) {
            let full = attempts.forget_ended() >= SIDE_BY_SIDE;
            if !full && self.begin(&mut attempts).await {
                continue;
            }
            tokio::select! {
                () = stopped(&mut stop) => {}
                Some(_) = attempts.running.join_next() => {}
                _ = changes.changed(), if !full => {}
                () = tokio::time::sleep(POLL), if !full => {}
            }
        }
        while attempts.running.join_next().await.is_some() {}
    }

    /// Begins an attempt, where one is due.
    async fn begin(self: &Arc<Self>, attempts: &mut Attempts) -> bool {
        let asked = Instant::now();
        match self.catalog.claim_webhook(LEASE, &attempts.busy()).await {
            Ok(None) => false,
            Ok(Some(claim)) => {
                let this = Arc::clone(self);
                let url = claim.job.webhook_url.as_deref().unwrap_or_default();
                let counted = Arc::clone(attempts.receivers.entry(receiver(url).to_owned()).or_default());
                attempts.running.spawn(async move {
                    let _counted = counted;
                    // Else another process might send it at the same time. It is due again when the lease has run out.
                    if asked.elapsed() <= BEGIN {
                        this.attempt(&claim).await;
                    }
                });
                true
            }
            Err(error) => {
                warn!(%error, "Webhooks are left for later: {error}");
                false
            }
        }
    }

    async fn attempt(&self, claim: &WebhookClaim) {
        let id = claim.job.id;
        let url = claim.job.webhook_url.as_deref().unwrap_or_default();
        let (attempt, origin) = (claim.attempt, origin(url));
        let sent = self.send(&claim.job, url).await;
        let status = match &sent {
            Ok(status) => Some(*status),
            Err(failure) => failure.status,
        };
        let (outcome, counted) = match &sent {
            Ok(_) => (WebhookOutcome::Delivered, "delivered"),
            Err(_) => match wait_after(attempt, self.retry_wait) {
                Some(wait) if status != Some(GONE) => (WebhookOutcome::Retry(wait), "retried"),
                _ => (WebhookOutcome::GivenUp, "given_up"),
            },
        };
        match self.catalog.settle_webhook(claim, outcome, status).await {
            // Another attempt has begun and counts for itself.
            Ok(false) => return,
            Ok(true) => {}
            Err(error) => {
                // Due again when the lease runs out: told twice rather than never.
                warn!(job.id = %id, %error, "The webhook of job {id} will be sent again: {error}");
                return;
            }
        }
        self.metrics.webhook_tried(counted);
        match (sent, outcome) {
            (Ok(_), _) => info!(job.id = %id, attempt, origin, "{origin} was told that job {id} has ended"),
            (Err(failure), WebhookOutcome::Retry(wait)) => {
                let wait_ms = wait.as_millis();
                warn!(job.id = %id, attempt, origin, wait_ms, "{origin} was not told that job {id} has ended, attempt {attempt}: {}", failure.why);
            }
            (Err(failure), _) => {
                warn!(job.id = %id, attempt, origin, "{origin} will not be told that job {id} has ended, attempt {attempt} was the last: {}", failure.why);
            }
        }
    }

    async fn send(&self, job: &Job, url: &str) -> Result<u16, Failure> {
        // Once more: the settings may have changed since the job was made.
        let url =
            check(url, self.receivers).map_err(|error| Failure { status: None, why: error.to_string() })?;
        let (id, body) = (job.id.to_string(), message(job).to_string());
        let timestamp = (self.clock)().0.div_euclid(1000);
        let request = self
            .client
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", self.secrets.sign(&id, timestamp, &body))
            .body(body);
        let mut response = request
            .send()
            .await
            .map_err(|error| Failure { status: None, why: chain(&error.without_url()) })?;
        let status = response.status();
        // So that the receiver is not cut off while it answers.
        let mut bytes = 0;
        while let Ok(Some(part)) = response.chunk().await {
            bytes += part.len();
            if bytes >= ANSWER_BYTES_MAX {
                break;
            }
        }
        if status.is_success() {
            return Ok(status.as_u16());
        }
        Err(Failure { status: Some(status.as_u16()), why: format!("it answered {status}") })
    }
}

/// How long to wait after an attempt that failed; `None` gives up. With 14 s, attempts begin 0, 14, 84, 504 and 3024 s
/// after the first one, and the time that each takes: a restart of the receiver is bridged, and so is a bad hour.
fn wait_after(attempt: u32, first: Duration) -> Option<Duration> {
    // One that was cut off by a crash in its last attempt is tried once more.
    let begins = |attempt: u32| if attempt == 0 { 0 } else { 6_u32.pow(attempt - 1) };
    (attempt < ATTEMPTS_MAX).then(|| first * (begins(attempt) - begins(attempt.saturating_sub(1))))
}

/// What is told: the same in every attempt, since a job that has ended does not change.
fn message(job: &Job) -> Value {
    json!({
        "type": format!("job.{}", job.state),
        "timestamp": job.finished_at.unwrap_or(job.updated_at),
        "data": {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "model": job.model.to_string(),
            "endpoint": job.endpoint,
            "attempt": job.attempt,
            "result": job.result,
            "error": job.error,
            "created_at": job.created_at,
            "started_at": job.started_at,
            "finished_at": job.finished_at,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhook_signatures_are_those_of_the_published_example() {
        // The example of the Svix documentation and of the libraries of Standard Webhooks.
        let secrets = Secrets::parse("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let sign = |secrets: &Secrets| {
            secrets.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#)
        };
        let known = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(sign(&secrets), known);
        let new = STANDARD.encode([7; 32]);
        let both = Secrets::parse(&format!("whsec_{new}, whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")).unwrap();
        let signatures = sign(&both);
        let (first, second) = signatures.split_once(' ').unwrap();
        assert!(first.starts_with("v1,") && first != known && second == known, "{signatures}");
    }

    #[test]
    fn a_receiver_is_what_its_addresses_begin_with() {
        for (url, want) in [
            ("https://ci.example/a/b?c", "https://ci.example/"),
            ("http://ci.example:80?c=/", "http://ci.example:80?"),
            ("HTTPS://ci.example", "HTTPS://ci.example"),
            ("", ""),
        ] {
            assert_eq!(receiver(url), want, "{url}");
        }
    }

    #[test]
    fn webhook_secrets_have_a_prefix_and_enough_bytes() {
        let good = format!("whsec_{}", STANDARD.encode([1; 24]));
        for (text, at) in [
            (String::new(), 1),
            (STANDARD.encode([1; 24]), 1),
            (format!("whsec_{}", STANDARD.encode([1; 23])), 1),
            (format!("whsec_{}", STANDARD.encode([1; 65])), 1),
            (format!("{good},whsec_?"), 2),
            (format!("{good},"), 2),
        ] {
            let error = Secrets::parse(&text).err().map(|error| error.to_string());
            assert!(error.unwrap_or_default().contains(&format!("secret {at} of")), "{text}");
        }
        assert_eq!(Secrets::parse(&good).unwrap().0, [[1; 24]]);
    }

    #[test]
    fn webhooks_reach_public_addresses_only() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("1.1.1.1", true),
            ("100.63.255.255", true),
            ("100.128.0.0", true),
            ("172.15.255.255", true),
            ("172.32.0.0", true),
            ("198.17.255.255", true),
            ("223.255.255.255", true),
            ("0.0.0.0", false),
            ("0.1.2.3", false),
            ("10.0.0.1", false),
            ("100.64.0.1", false),
            ("100.127.255.255", false),
            ("127.0.0.1", false),
            ("127.255.255.254", false),
            ("168.63.129.15", true),
            ("168.63.129.16", false),
            ("169.254.169.254", false),
            ("172.16.0.1", false),
            ("172.31.255.255", false),
            ("192.0.0.170", false),
            ("192.0.2.1", false),
            ("192.88.99.1", false),
            ("192.168.0.1", false),
            ("198.18.0.1", false),
            ("198.19.255.255", false),
            ("198.51.100.1", false),
            ("203.0.113.1", false),
            ("224.0.0.1", false),
            ("240.0.0.1", false),
            ("255.255.255.255", false),
            ("2606:4700:4700::1111", true),
            ("2001:4860:4860::8888", true),
            ("::ffff:8.8.8.8", true),
            ("64:ff9b::808:808", true),
            ("::", false),
            ("::1", false),
            ("::8.8.8.8", false),
            ("::ffff:10.0.0.1", false),
            ("::ffff:169.254.169.254", false),
            ("::ffff:168.63.129.16", false),
            ("64:ff9b::7f00:1", false),
            ("64:ff9b:1::808:808", false),
            ("2001::1", false),
            ("2001:db8::1", false),
            ("2002:7f00:1::", false),
            ("3fff::1", false),
            ("fc00::1", false),
            ("fd00:ec2::254", false),
            ("fe80::1", false),
            ("fec0::1", false),
            ("ff02::1", false),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
    }

    #[test]
    fn webhook_urls_are_checked_before_a_job_is_made() {
        let private = |host: &str| Err(BadUrl::Private { host: host.to_owned() });
        let long = format!("https://a.example/{}", "p".repeat(URL_BYTES_MAX));
        for (url, want) in [
            ("https://hooks.example/a?b=c", Ok(())),
            ("http://8.8.8.8:8080/", Ok(())),
            ("https://localhost.example/", Ok(())),
            (&long, Err(BadUrl::TooLong { got: long.len() })),
            ("", Err(BadUrl::NotHttp)),
            ("hooks.example/a", Err(BadUrl::NotHttp)),
            ("file:///etc/passwd", Err(BadUrl::NotHttp)),
            ("gopher://8.8.8.8/", Err(BadUrl::NotHttp)),
            ("https://", Err(BadUrl::NotHttp)),
            ("https://user@hooks.example/", Err(BadUrl::Credentials)),
            ("https://:word@hooks.example/", Err(BadUrl::Credentials)),
            ("http://127.0.0.1:9/", private("127.0.0.1")),
            ("http://2130706433/", private("127.0.0.1")),
            ("http://0x7f.1/", private("127.0.0.1")),
            ("http://0177.0.0.1/", private("127.0.0.1")),
            ("http://127.0.0.1./", private("127.0.0.1")),
            ("http://a.127.0.0.1/", Err(BadUrl::NotHttp)),
            ("http://127\u{3002}0.0.1/", private("127.0.0.1")),
            ("http://169.254.169.254/latest", private("169.254.169.254")),
            ("http://[::1]/", private("[::1]")),
            ("http://[::ffff:7f00:1]/", private("[::ffff:7f00:1]")),
            ("http://LOCALHOST/", private("localhost")),
            ("http://localhost./", private("localhost.")),
            ("http://a.localhost/", private("a.localhost")),
        ] {
            assert_eq!(check(url, Receivers::Public).map(|_| ()), want, "{url}");
            let want = want.or_else(|e| if matches!(e, BadUrl::Private { .. }) { Ok(()) } else { Err(e) });
            assert_eq!(check(url, Receivers::Any).map(|_| ()), want, "{url}");
            assert_eq!(check(url, Receivers::None), Err(BadUrl::NoSecret), "{url}");
        }
    }

    #[tokio::test]
    async fn a_webhook_name_that_leads_inside_has_no_addresses() {
        let error = PublicOnly.resolve("localhost".parse().unwrap()).await.err().expect("refused");
        assert_eq!(error.to_string(), BadUrl::Private { host: "localhost".to_owned() }.to_string());
    }

    #[test]
    fn webhook_attempts_are_spread_over_an_hour() {
        let first = Duration::from_secs(14);
        let mut begins = vec![0];
        for attempt in 1.. {
            let Some(wait) = wait_after(attempt, first) else { break };
            begins.push(begins.last().unwrap() + wait.as_secs());
        }
        assert_eq!(begins, [0, 14, 84, 504, 3024]);
        assert_eq!(wait_after(6, first), None);
    }

    #[test]
    fn only_the_origin_of_a_webhook_is_shown() {
        assert_eq!(origin("https://hooks.example/services/T0/secret?key=1"), "https://hooks.example");
        assert_eq!(origin("http://10.0.0.1:8080/x"), "http://10.0.0.1:8080");
        assert_eq!(origin(""), "null");
    }
}
