//! API keys in memory: whose a request is, whether it may, and how often. Knows no HTTP and no database.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::service::metrics::process::Metrics;
use crate::service::store::{
    self, Catalog, Clock, Digest, Key, KeyId, Name, Owner, Scope, Scopes, Timestamp,
};
use crate::service::tokens::{NotTaken, Tokens};

/// How often the catalog is asked for changes: a key that was revoked is refused at most so much later.
const POLL: Duration = Duration::from_secs(1);

/// So many times a second the catalog is asked at once, for keys that are not known: one that was just made is taken without
/// a wait, and strangers cannot make the server ask the database for each request.
const LOOKS: u32 = 4;

/// How every key begins, so that people and scanners of repositories know one when they see it.
const PREFIX: &str = "octet_";

/// What a client sends: `octet_ID_SECRET`, the secret 64 hexadecimal digits. It is shown by [`Token::reveal`] only.
pub struct Token {
    id: KeyId,
    secret: [u8; 32],
}

/// A text that no key looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a key is octet_, 16 hexadecimal digits, _ and 64 hexadecimal digits")]
pub struct NoToken;

impl Token {
    /// A new one, from the random numbers of the operating system.
    ///
    /// # Errors
    /// Where that has none.
    pub fn new() -> Result<Token, getrandom::Error> {
        let (mut id, mut secret) = ([0; 8], [0; 32]);
        getrandom::fill(&mut id)?;
        getrandom::fill(&mut secret)?;
        Ok(Token { id: KeyId(id), secret })
    }

    /// The part that is no secret.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// What is kept of the secret.
    ///
    /// One round of SHA-256: slow hashes such as Argon2 make up for passwords that can be guessed, and 256 random bits
    /// cannot. A slow one would cost each request milliseconds and give a stranger a way to keep the server busy.
    #[must_use]
    pub fn sha256(&self) -> Digest {
        Digest(Sha256::digest(self.secret).into())
    }

    /// The whole key, secret included.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}_{}", self.id, hex::encode(self.secret))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({PREFIX}{}_…)", self.id)
    }
}

impl FromStr for Token {
    type Err = NoToken;
    fn from_str(text: &str) -> Result<Token, NoToken> {
        let (id, secret) = text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).ok_or(NoToken)?;
        let mut bytes = [0; 32];
        hex::decode_to_slice(secret, &mut bytes).map_err(|_| NoToken)?;
        Ok(Token { id: id.parse().map_err(|_| NoToken)?, secret: bytes })
    }
}

/// Why a request is refused. The text never holds what was sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// There is no key with it.
    #[error("a key is needed: send `Authorization: Bearer octet_…` or `X-Api-Key: octet_…`")]
    Missing,
    /// No key of ours. Whether there is such an id is not told.
    #[error("the key is not known")]
    Unknown,
    /// A token of a provider that is not taken.
    #[error(transparent)]
    Token(#[from] NotTaken),
    /// Its time is over.
    #[error("key `{id}` has expired at {at}")]
    Expired {
        /// The key.
        id: KeyId,
        /// Since when.
        at: Timestamp,
    },
    /// It was taken back.
    #[error("key `{id}` was revoked at {at}")]
    Revoked {
        /// The key.
        id: KeyId,
        /// Since when.
        at: Timestamp,
    },
    /// It may do other things.
    #[error("this needs the scope `{needs}`; key `{id}` has `{has}`")]
    Scope {
        /// The key.
        id: KeyId,
        /// What is needed.
        needs: Scope,
        /// What it may do.
        has: Scopes,
    },
    /// A browser sends it for a page of somebody else.
    #[error("the request comes from a page of another origin")]
    Origin,
    /// Too often.
    #[error("key `{id}` is good for {rate} requests a second")]
    Rate {
        /// The key.
        id: KeyId,
        /// Requests a second.
        rate: u32,
    },
}

impl Refused {
    /// The label of `octet_auth_refused_total`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Refused::Missing => "missing",
            Refused::Unknown => "unknown",
            Refused::Token(_) => "token",
            Refused::Expired { .. } => "expired",
            Refused::Revoked { .. } => "revoked",
            Refused::Scope { .. } => "scope",
            Refused::Origin => "origin",
            Refused::Rate { .. } => "rate",
        }
    }
}

/// Whose request it is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller(Arc<Known>);

impl Caller {
    /// The id of the key.
    #[must_use]
    pub fn id(&self) -> KeyId {
        self.0.key.id
    }

    /// The name of the key.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.0.key.name
    }

    /// What it stores counts for.
    #[must_use]
    pub fn owner(&self) -> Owner {
        Owner { key: self.0.key.id, quota: self.0.key.quota }
    }

    /// What the key may do.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.0.key.scopes
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} ({})", self.name(), self.id())
    }
}

#[derive(Debug)]
struct Known {
    key: Key,
    /// Whether it was made of a token: then the catalog does not know it.
    by_token: bool,
    /// Outlives the record: a key that is read again has no more requests for it.
    bucket: Arc<Mutex<Option<Bucket>>>,
}

/// The keys, as the catalog had them a second ago at most; one that is not known is looked for at once.
pub struct Keys {
    catalog: Arc<dyn Catalog>,
    clock: Clock,
    metrics: Arc<Metrics>,
    tokens: Option<Arc<Tokens>>,
    known: RwLock<HashMap<KeyId, Caller>>,
    // Held while the catalog is asked: what one has read must not replace what another has read later.
    reading: tokio::sync::Mutex<()>,
    // Looks for keys that are not known.
    looks: Mutex<Option<Bucket>>,
}

impl Keys {
    /// Reads the keys. With `tokens`, those are taken too.
    ///
    /// # Errors
    /// Where the catalog does not answer.
    pub async fn open(
        catalog: Arc<dyn Catalog>,
        clock: Clock,
        metrics: Arc<Metrics>,
        tokens: Option<Arc<Tokens>>,
    ) -> Result<Arc<Keys>, store::Error> {
        let keys = Keys {
            catalog,
            clock,
            metrics,
            tokens,
            known: RwLock::default(),
            reading: tokio::sync::Mutex::default(),
            looks: Mutex::default(),
        };
        keys.refresh().await?;
        Ok(Arc::new(keys))
    }

    /// Whether there is no key that is taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let now = (self.clock)();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        !known.values().any(|caller| in_force(&caller.0.key, now).is_ok())
    }

    /// What checks tokens, where they are taken.
    #[must_use]
    pub fn tokens(&self) -> Option<Arc<Tokens>> {
        self.tokens.clone()
    }

    /// Reads the keys again.
    ///
    /// # Errors
    /// Where the catalog does not answer. What was known stays.
    pub async fn refresh(&self) -> Result<(), store::Error> {
        let _one = self.reading.lock().await;
        let keys = self.catalog.keys().await?;
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let fresh = keys.into_iter().map(|key| {
            let before = known.get(&key.id);
            let bucket = before.map(|caller| Arc::clone(&caller.0.bucket)).unwrap_or_default();
            (key.id, Caller(Arc::new(Known { key, by_token: false, bucket })))
        });
        *known = fresh.collect();
        Ok(())
    }

    /// Reads the keys again and again, until it is dropped.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut failing = false;
        loop {
            tokio::time::sleep(POLL).await;
            match self.refresh().await {
                Ok(()) => failing = false,
                // Said once. Keys that are known stay: a database that rests is no reason to lock everybody out.
                Err(error) if !failing => {
                    failing = true;
                    tracing::error!(%error, "Keys cannot be read; those known are taken as before: {error}");
                }
                Err(_) => {}
            }
        }
    }

    /// Whose key it is.
    ///
    /// # Errors
    /// [`Refused`], counted.
    pub async fn identify(&self, text: &str) -> Result<Caller, Refused> {
        self.identify_at(text, Instant::now()).await
    }

    async fn identify_at(&self, text: &str, now: Instant) -> Result<Caller, Refused> {
        if let Ok(token) = text.parse::<Token>()
            && self.latest(token.id).is_none()
            && Bucket::take_of(&self.looks, LOOKS, now)
        {
            // Where the catalog does not answer, or not soon, the request is refused as it would be without the look;
            // `keep_fresh` tells of it.
            let _ = tokio::time::timeout(POLL, self.refresh()).await;
        }
        self.counted(self.find(text))
    }

    /// Whether the request may do what needs `scope`, now; each call counts as a request of the key.
    ///
    /// # Errors
    /// [`Refused`], counted.
    pub fn allow(&self, caller: &Caller, needs: Scope) -> Result<(), Refused> {
        self.counted(self.allowed(caller, needs, Instant::now()))
    }

    /// Whether it may still do what it was once let do: no request of its own, and no refusal to be counted.
    #[must_use]
    pub fn still(&self, caller: &Caller, needs: Scope) -> bool {
        self.in_force(caller, needs).is_ok()
    }

    /// Counts a refusal that was found elsewhere.
    #[must_use]
    pub fn refused(&self, refused: Refused) -> Refused {
        self.metrics.auth_refused(refused.reason());
        refused
    }

    fn counted<T>(&self, result: Result<T, Refused>) -> Result<T, Refused> {
        result.map_err(|refused| self.refused(refused))
    }

    fn find(&self, text: &str) -> Result<Caller, Refused> {
        if let Some(tokens) = self.tokens.as_ref().filter(|_| Tokens::looks_like_one(text)) {
            let key = tokens.identify(text, (self.clock)())?;
            return Ok(Caller(Arc::new(Known { key, by_token: true, bucket: Arc::default() })));
        }
        let token: Token = text.parse().map_err(|NoToken| Refused::Unknown)?;
        let caller = self.latest(token.id).ok_or(Refused::Unknown)?;
        // What is compared are hashes, so that how long it takes would tell nothing of the secret anyway.
        if !bool::from(token.sha256().0.ct_eq(&caller.0.key.sha256.0)) {
            return Err(Refused::Unknown);
        }
        in_force(&caller.0.key, (self.clock)())?;
        Ok(caller)
    }

    fn latest(&self, id: KeyId) -> Option<Caller> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// The key of a caller as it is now, where it has the scope.
    fn in_force(&self, caller: &Caller, needs: Scope) -> Result<Caller, Refused> {
        // A stream may have been opened long ago.
        let latest = match caller.0.by_token {
            true => caller.clone(),
            false => self.latest(caller.id()).ok_or(Refused::Unknown)?,
        };
        let key = &latest.0.key;
        in_force(key, (self.clock)())?;
        if !key.scopes.allow(needs) {
            return Err(Refused::Scope { id: key.id, needs, has: key.scopes.clone() });
        }
        Ok(latest)
    }

    fn allowed(&self, caller: &Caller, needs: Scope, now: Instant) -> Result<(), Refused> {
        let latest = self.in_force(caller, needs)?;
        let key = &latest.0.key;
        let Some(rate) = key.rate else { return Ok(()) };
        let taken = Bucket::take_of(&caller.0.bucket, rate, now);
        if taken { Ok(()) } else { Err(Refused::Rate { id: key.id, rate }) }
    }
}

fn in_force(key: &Key, now: Timestamp) -> Result<(), Refused> {
    if let Some(at) = key.revoked_at {
        return Err(Refused::Revoked { id: key.id, at });
    }
    match key.expires_at {
        Some(at) if at <= now => Err(Refused::Expired { id: key.id, at }),
        _ => Ok(()),
    }
}

/// Requests that a key has left, or looks at the catalog: as many as a second's worth after a rest.
#[derive(Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// The same of one that is made full by the first who asks.
    fn take_of(bucket: &Mutex<Option<Bucket>>, rate: u32, now: Instant) -> bool {
        let rate = f64::from(rate);
        let mut bucket = bucket.lock().unwrap_or_else(PoisonError::into_inner);
        bucket.get_or_insert(Bucket { tokens: rate, at: now }).take(rate, now)
    }

    /// Takes one, where there is one. `rate` is requests a second.
    fn take(&mut self, rate: f64, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + passed * rate).min(rate);
        self.at = now;
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::store::NewKey;
    use crate::service::store::sql::tests::{Scratch, name};
    use std::sync::atomic::Ordering;

    struct Fixture {
        scratch: Scratch,
        keys: Arc<Keys>,
    }

    impl Fixture {
        async fn new() -> Fixture {
            let scratch = Scratch::new().await;
            let now = Arc::clone(&scratch.now);
            let clock: Clock = Arc::new(move || Timestamp(now.load(Ordering::Relaxed)));
            let catalog: Arc<dyn Catalog> = Arc::<store::sql::open::Sql>::clone(&scratch.catalog);
            let metrics = Arc::new(Metrics::new("0", "scalar"));
            let keys = Keys::open(catalog, clock, metrics, None).await.unwrap();
            Fixture { scratch, keys }
        }

        async fn key(&self, scopes: &str, rate: Option<u32>, lifetime: Option<Duration>) -> Token {
            let token = Token::new().unwrap();
            let scopes = scopes.parse().unwrap();
            let (id, sha256) = (token.id(), token.sha256());
            let new = NewKey { id, name: name("k"), sha256, scopes, rate, quota: None, lifetime };
            self.keys.catalog.create_key(new).await.unwrap();
            self.keys.refresh().await.unwrap();
            token
        }
    }

    #[test]
    fn a_token_has_one_spelling_and_does_not_show_itself() {
        let token = Token::new().unwrap();
        let text = token.reveal();
        assert_eq!(text.len(), 6 + 16 + 1 + 64);
        assert_eq!(text.parse::<Token>().unwrap().reveal(), text);
        let secret = text.rsplit('_').next().unwrap();
        assert!(!format!("{token:?}").contains(secret), "{token:?}");
        assert_ne!(Token::new().unwrap().reveal(), text);
        for wrong in ["", "octet_", "octet__", &text[1..], &text[..text.len() - 1], &format!("{text}0")] {
            assert!(wrong.parse::<Token>().is_err(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn only_the_right_secret_is_taken_and_only_for_its_scopes() {
        let fixture = Fixture::new().await;
        assert!(fixture.keys.is_empty());
        let token = fixture.key("read,infer", None, None).await;
        assert!(!fixture.keys.is_empty());
        let caller = fixture.keys.identify(&token.reveal()).await.unwrap();
        assert_eq!(caller.to_string(), format!("key k ({})", token.id()));
        assert_eq!(fixture.keys.allow(&caller, Scope::Infer), Ok(()));
        let refused = fixture.keys.allow(&caller, Scope::Write).unwrap_err();
        assert_eq!(refused.reason(), "scope");
        assert!(refused.to_string().contains("`write`"), "{refused}");
        let mut other = Token::new().unwrap();
        assert_eq!(fixture.keys.identify(&other.reveal()).await.unwrap_err(), Refused::Unknown);
        other.id = token.id();
        assert_eq!(fixture.keys.identify(&other.reveal()).await.unwrap_err(), Refused::Unknown);
        assert_eq!(fixture.keys.identify("Basic").await.unwrap_err(), Refused::Unknown);
        let figures = fixture.keys.metrics.render();
        for want in [r#"octet_auth_refused_total{reason="unknown"} 3"#, r#"{reason="scope"} 1"#] {
            assert!(figures.contains(want), "no {want} in\n{figures}");
        }
    }

    #[tokio::test]
    async fn a_key_ends_by_its_time_and_by_being_revoked() {
        let fixture = Fixture::new().await;
        let token = fixture.key("read", None, Some(Duration::from_secs(60))).await;
        let caller = fixture.keys.identify(&token.reveal()).await.unwrap();
        fixture.scratch.pass(59_999);
        assert_eq!(fixture.keys.allow(&caller, Scope::Read), Ok(()));
        fixture.scratch.pass(1);
        assert_eq!(fixture.keys.allow(&caller, Scope::Read).unwrap_err().reason(), "expired");
        assert_eq!(fixture.keys.identify(&token.reveal()).await.unwrap_err().reason(), "expired");

        let token = fixture.key("read", None, None).await;
        let caller = fixture.keys.identify(&token.reveal()).await.unwrap();
        fixture.keys.catalog.revoke_key(token.id()).await.unwrap();
        assert_eq!(fixture.keys.allow(&caller, Scope::Read), Ok(()), "it is not known before the next look");
        fixture.keys.refresh().await.unwrap();
        assert_eq!(fixture.keys.allow(&caller, Scope::Read).unwrap_err().reason(), "revoked");
        assert_eq!(fixture.keys.identify(&token.reveal()).await.unwrap_err().reason(), "revoked");
        assert!(fixture.keys.is_empty());
    }

    #[tokio::test]
    async fn a_rate_holds_across_looks_at_the_catalog() {
        let fixture = Fixture::new().await;
        let token = fixture.key("read", Some(2), None).await;
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let caller = fixture.keys.identify(&token.reveal()).await.unwrap();
        let ask = |caller: &Caller, ms| fixture.keys.allowed(caller, Scope::Read, after(ms)).is_ok();
        assert_eq!([0, 0, 0].map(|ms| ask(&caller, ms)), [true, true, false]);
        fixture.keys.refresh().await.unwrap();
        let caller = fixture.keys.identify(&token.reveal()).await.unwrap();
        assert!(!ask(&caller, 499));
        assert!(ask(&caller, 500));
        assert!(!ask(&caller, 500));
        // A rest of an hour is worth a second.
        assert_eq!([3_600_000; 3].map(|ms| ask(&caller, ms)), [true, true, false]);
        assert_eq!(fixture.keys.allowed(&caller, Scope::Infer, start).unwrap_err().reason(), "scope");
    }

    #[tokio::test]
    async fn a_new_key_is_taken_at_once_and_strangers_do_not_keep_the_catalog_busy() {
        let fixture = Fixture::new().await;
        let keys = &fixture.keys;
        let made = async || {
            let token = Token::new().unwrap();
            let (id, sha256, scopes) = (token.id(), token.sha256(), "read".parse().unwrap());
            let new = NewKey { id, name: name("k"), sha256, scopes, rate: None, quota: None, lifetime: None };
            keys.catalog.create_key(new).await.unwrap();
            token.reveal()
        };
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let first = made().await;
        assert!(keys.identify_at(&first, start).await.is_ok());
        // What is no key at all costs no look.
        for _ in 0..100 {
            assert!(keys.identify_at("octet_", start).await.is_err());
        }
        for _ in 1..LOOKS {
            let stranger = Token::new().unwrap().reveal();
            assert_eq!(keys.identify_at(&stranger, start).await.unwrap_err(), Refused::Unknown);
        }
        let second = made().await;
        assert_eq!(
            keys.identify_at(&second, after(249)).await.unwrap_err(),
            Refused::Unknown,
            "no look is left"
        );
        assert!(keys.identify_at(&first, after(249)).await.is_ok(), "a key that is known needs none");
        assert!(keys.identify_at(&second, after(251)).await.is_ok());
    }
}
