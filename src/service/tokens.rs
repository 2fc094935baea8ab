//! JSON Web Tokens (RFC 7519) of an OpenID provider, taken where keys are: whose a request is and what it may, by a
//! signature of somebody whom the settings name. Nothing is asked of the provider but its public keys.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::crypto::{CryptoProvider, JwtVerifier, KeyUtils};
use jsonwebtoken::errors::{Error as JwtError, ErrorKind};
use jsonwebtoken::jwk::{JwkSet, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Validation, decode, decode_header};
use ring::signature::{self as ring_signature, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;

use crate::service::store::{Digest, Key, KeyId, Name, Scope, Scopes, Timestamp};

/// How often the keys of the provider are read again.
const REFRESH: Duration = Duration::from_secs(300);
/// The same where they could not be read, and the least between two tokens of a key that is not known.
const RETRY: Duration = Duration::from_secs(10);
/// How long the provider may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// So often it may send us elsewhere.
const REDIRECTS_MAX: usize = 3;
/// Longest answer of the provider.
const ANSWER_BYTES_MAX: usize = 1 << 20;
/// Longest token. Providers that list groups make long ones.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// How far clocks may differ.
const LEEWAY_MS: f64 = 30_000.0;
/// Longest name that is made of a subject.
const NAME_CHARS_MAX: usize = 64;

/// Signatures with a public key. Those with a shared secret (`HS256`) are refused: who can check them can make them.
const ALGORITHMS: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// Which tokens are taken.
#[derive(Clone, Debug)]
pub struct Options {
    /// `iss` of the tokens, to the letter.
    pub issuer: String,
    /// What `aud` must hold.
    pub audience: String,
    /// Where the public keys are.
    pub keys: KeysAt,
    /// The claim that says what its holder may do; dots lead into objects.
    pub claim: String,
    /// What stands before the name of a scope in it.
    pub prefix: String,
}

/// Where the public keys of a provider are, as a JWK set (RFC 7517).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeysAt {
    /// Where the issuer says (OpenID Connect Discovery 1.0).
    Issuer,
    /// At this URL.
    Url(String),
    /// In a file.
    File(PathBuf),
}

/// Why the keys of a provider could not be read.
#[derive(Debug, thiserror::Error)]
#[error("{at}: {why}")]
pub struct Error {
    at: String,
    why: String,
}

/// Why a token is not taken. The text never holds what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the token is not taken: {0}")]
pub struct NotTaken(&'static str);

/// A public key, under the id that headers of tokens name.
struct Public {
    id: Option<String>,
    algorithm: Option<String>,
    key: DecodingKey,
}

/// Checks tokens.
pub struct Tokens {
    options: Options,
    /// None where the keys are in a file.
    client: Option<reqwest::Client>,
    known: RwLock<Vec<Public>>,
    /// A token names a key that is not known.
    wanted: Notify,
}

impl Tokens {
    /// Makes it, without any key of the provider yet.
    ///
    /// # Errors
    /// Where keys would come over a connection that others can change, or no client can be made of what the system has.
    pub fn new(options: Options) -> Result<Arc<Tokens>, Error> {
        let (at, url) = match &options.keys {
            KeysAt::Issuer => ("auth.jwt_issuer", Some(&options.issuer)),
            KeysAt::Url(url) => ("auth.jwt_keys", Some(url)),
            KeysAt::File(_) => ("auth.jwt_keys", None),
        };
        if url.is_some_and(|url| !may_ask(url)) {
            let why = "it must begin with https://, or name a file in auth.jwt_keys".to_owned();
            return Err(Error { at: at.to_owned(), why });
        }
        // Another may be installed only by somebody who links this crate; then that one checks.
        let _ = provider().install_default();
        let client = url.map(|_| {
            let redirects = reqwest::redirect::Policy::custom(|attempt| {
                let (far, open) =
                    (attempt.previous().len() > REDIRECTS_MAX, !may_ask(attempt.url().as_str()));
                if far || open { attempt.stop() } else { attempt.follow() }
            });
            reqwest::Client::builder().timeout(PATIENCE).redirect(redirects).build()
        });
        let client = client.transpose();
        let client =
            client.map_err(|e| Error { at: "a client for the provider".to_owned(), why: e.to_string() })?;
        Ok(Arc::new(Tokens { options, client, known: RwLock::default(), wanted: Notify::new() }))
    }

    /// Whether a text is a token by its form; keys of ours have no dot.
    #[must_use]
    pub fn looks_like_one(text: &str) -> bool {
        text.bytes().filter(|&b| b == b'.').count() == 2
    }

    /// What a token stands for: a key that is in no catalog.
    ///
    /// # Errors
    /// [`NotTaken`].
    pub fn identify(&self, text: &str, now: Timestamp) -> Result<Key, NotTaken> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(NotTaken("it is too long"));
        }
        let header = decode_header(text).map_err(|_| NotTaken("it has no header of a token"))?;
        if !ALGORITHMS.contains(&header.alg) {
            return Err(NotTaken("its algorithm is not taken: one with a public key is needed"));
        }
        let mut rules = Validation::new(header.alg);
        rules.set_issuer(&[&self.options.issuer]);
        rules.set_audience(&[&self.options.audience]);
        rules.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
        // By the clock of the database, which decides on keys too.
        (rules.validate_exp, rules.validate_nbf) = (false, false);
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let public = match &header.kid {
            Some(id) => known.iter().find(|public| public.id.as_ref() == Some(id)),
            None => known.first().filter(|_| known.len() == 1),
        };
        let Some(public) = public else {
            self.wanted.notify_one();
            return Err(NotTaken("the key that has signed it is not known"));
        };
        let algorithm = format!("{:?}", header.alg);
        if public.algorithm.as_ref().is_some_and(|named| *named != algorithm) {
            return Err(NotTaken("its algorithm is not that of the key"));
        }
        let claims = decode::<Value>(text, &public.key, &rules).map_err(|e| NotTaken(why(&e)))?.claims;
        drop(known);
        let time = |name: &str| claims.get(name).map(|value| value.as_f64().map(|s| s * 1000.0));
        let Some(Some(expires)) = time("exp") else { return Err(NotTaken("`exp` is no time")) };
        let now = now.0 as f64;
        if expires + LEEWAY_MS <= now {
            return Err(NotTaken("it has expired"));
        }
        match time("nbf") {
            Some(None) => return Err(NotTaken("`nbf` is no time")),
            Some(Some(begins)) if begins - LEEWAY_MS > now => return Err(NotTaken("it is not valid yet")),
            Some(Some(_)) | None => {}
        }
        let Some(subject) = claims.get("sub").and_then(Value::as_str).filter(|s| !s.is_empty()) else {
            return Err(NotTaken("`sub` is no text"));
        };
        let scopes = self.scopes(&claims).ok_or(NotTaken("it names no scope of ours"))?;
        Ok(Key {
            id: id(&self.options.issuer, subject),
            name: name(subject),
            sha256: Digest(Sha256::digest(text).into()),
            scopes,
            rate: None,
            quota: None,
            created_at: Timestamp(now as i64),
            expires_at: Some(Timestamp((expires + LEEWAY_MS) as i64)),
            revoked_at: None,
        })
    }

    /// What a claim grants: a text with spaces or commas in it, or a list.
    fn scopes(&self, claims: &Value) -> Option<Scopes> {
        // A claim may have dots in its name, as those that are URLs.
        let direct = claims.get(&self.options.claim);
        let claim =
            direct.or_else(|| self.options.claim.split('.').try_fold(claims, |at, part| at.get(part)))?;
        let texts: Vec<&str> = match claim {
            Value::String(text) => text.split([' ', ',']).collect(),
            Value::Array(list) => list.iter().filter_map(Value::as_str).collect(),
            _ => return None,
        };
        let ours = texts.iter().filter_map(|text| text.strip_prefix(self.options.prefix.as_str()));
        let known: Vec<&str> =
            ours.filter(|name| Scope::ALL.into_iter().any(|scope| scope.as_str() == *name)).collect();
        known.join(",").parse().ok()
    }

    /// Reads the keys of the provider again.
    ///
    /// # Errors
    /// [`Error`]; the keys that were known stay.
    pub async fn refresh(&self) -> Result<(), Error> {
        let (at, bytes) = match &self.options.keys {
            KeysAt::File(path) => {
                let at = path.display().to_string();
                let read = tokio::fs::read(path).await;
                let bytes = read.map_err(|e| Error { at: at.clone(), why: e.to_string() })?;
                (at, bytes)
            }
            KeysAt::Url(url) => (url.clone(), self.get(url).await?),
            KeysAt::Issuer => {
                let url = self.discover().await?;
                let bytes = self.get(&url).await?;
                (url, bytes)
            }
        };
        let keys = public_keys(&bytes).map_err(|why| Error { at, why })?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(())
    }

    /// Where the issuer says that its keys are.
    async fn discover(&self) -> Result<String, Error> {
        let issuer = &self.options.issuer;
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let wrong = |why: &str| Error { at: url.clone(), why: why.to_owned() };
        let bytes = self.get(&url).await?;
        let found: Value = serde_json::from_slice(&bytes).map_err(|e| wrong(&e.to_string()))?;
        if found["issuer"] != Value::String(issuer.clone()) {
            return Err(wrong("`issuer` is another one"));
        }
        let keys = found["jwks_uri"].as_str().ok_or_else(|| wrong("it has no `jwks_uri`"))?;
        if !may_ask(keys) {
            return Err(wrong("`jwks_uri` is not https://"));
        }
        Ok(keys.to_owned())
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, Error> {
        let wrong = |why: String| Error { at: url.to_owned(), why };
        let Some(client) = &self.client else { return Err(wrong("it is not asked".to_owned())) };
        let answer = client.get(url).send().await.and_then(reqwest::Response::error_for_status);
        let mut answer = answer.map_err(|e| wrong(e.without_url().to_string()))?;
        let mut bytes = Vec::new();
        while let Some(part) = answer.chunk().await.map_err(|e| wrong(e.without_url().to_string()))? {
            if bytes.len() + part.len() > ANSWER_BYTES_MAX {
                return Err(wrong(format!("the answer is longer than {ANSWER_BYTES_MAX} bytes")));
            }
            bytes.extend_from_slice(&part);
        }
        Ok(bytes)
    }

    /// Reads the keys again and again, until it is dropped: after a while, and soon after a token of an unknown key.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut failing = false;
        loop {
            let read = self.refresh().await;
            match &read {
                Ok(()) if failing => tracing::info!("The keys of the provider of tokens are read again"),
                // Said once. Keys that are known stay.
                Err(error) if !failing => {
                    tracing::error!(%error, "The keys of the provider of tokens cannot be read: {error}");
                }
                Ok(()) | Err(_) => {}
            }
            failing = read.is_err();
            tokio::time::sleep(RETRY).await;
            if !failing {
                let _ = tokio::time::timeout(REFRESH.saturating_sub(RETRY), self.wanted.notified()).await;
            }
        }
    }
}

/// Whether a URL may be asked for keys: nobody in between can change the answer.
fn may_ask(url: &str) -> bool {
    let Ok(url) = url::Url::parse(url) else { return false };
    let loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && loopback)
}

/// The keys of a set that can check signatures. Others are passed over: a provider may have them for other ends.
fn public_keys(bytes: &[u8]) -> Result<Vec<Public>, String> {
    let set: Value = serde_json::from_slice(bytes).map_err(|e| format!("no JWK set: {e}"))?;
    let list = set["keys"].as_array().ok_or("no JWK set: it has no `keys`")?;
    let mut found = Vec::new();
    for jwk in list {
        // One by one, so that a key of a kind that is not known hides no other.
        let one: Result<JwkSet, _> = serde_json::from_value(serde_json::json!({ "keys": [jwk] }));
        let Some(jwk) = one.ok().and_then(|mut one| one.keys.pop()) else { continue };
        let signs = jwk.common.public_key_use.as_ref().is_none_or(|u| *u == PublicKeyUse::Signature);
        let Ok(key) = DecodingKey::from_jwk(&jwk) else { continue };
        let shared = matches!(jwk.algorithm, jsonwebtoken::jwk::AlgorithmParameters::OctetKey(_));
        if signs && !shared {
            let algorithm = jwk.common.key_algorithm.map(|algorithm| algorithm.to_string());
            found.push(Public { id: jwk.common.key_id, algorithm, key });
        }
    }
    match found.is_empty() {
        true => Err("no key in it can check signatures".to_owned()),
        false => Ok(found),
    }
}

/// The same for the same subject, and like no key that is made by chance.
fn id(issuer: &str, subject: &str) -> KeyId {
    let mut hash = Sha256::new();
    hash.update((issuer.len() as u64).to_le_bytes());
    hash.update(issuer);
    hash.update(subject);
    let hash = hash.finalize();
    let mut id = [0; 8];
    id.copy_from_slice(&hash[..8]);
    KeyId(id)
}

/// A subject as people see it in logs: what a name may not hold becomes `_`.
fn name(subject: &str) -> Name {
    let fits = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let text: String = subject.chars().take(NAME_CHARS_MAX).map(fits).collect();
    text.parse().unwrap_or_else(|_| "token".parse().expect("a name"))
}

fn why(error: &JwtError) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidSignature => "its signature is wrong",
        ErrorKind::InvalidIssuer => "`iss` is not the issuer that is asked for",
        ErrorKind::InvalidAudience => "`aud` is not for this server",
        ErrorKind::MissingRequiredClaim(_) => "one of `iss`, `aud`, `sub` and `exp` is missing",
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidKeyFormat => "its algorithm is not that of the key",
        _ => "it is damaged",
    }
}

/// What computes signatures: what TLS computes with.
fn provider() -> &'static CryptoProvider {
    static PROVIDER: OnceLock<CryptoProvider> = OnceLock::new();
    PROVIDER.get_or_init(|| CryptoProvider {
        signer_factory: |_, _| Err(ErrorKind::InvalidAlgorithm.into()),
        verifier_factory: |algorithm, key| {
            Ok(Box::new(Verifier { algorithm: *algorithm, key: key.clone() }) as Box<dyn JwtVerifier>)
        },
        key_utils: KeyUtils::new_unimplemented(),
    })
}

struct Verifier {
    algorithm: Algorithm,
    key: DecodingKey,
}

impl JwtVerifier for Verifier {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl signature::Verifier<Vec<u8>> for Verifier {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> Result<(), signature::Error> {
        let checked = match (self.key.kind(), self.algorithm) {
            (DecodingKeyKind::RsaModulusExponent { n, e }, algorithm) => {
                let rules = match algorithm {
                    Algorithm::RS256 => &ring_signature::RSA_PKCS1_2048_8192_SHA256,
                    Algorithm::RS384 => &ring_signature::RSA_PKCS1_2048_8192_SHA384,
                    Algorithm::RS512 => &ring_signature::RSA_PKCS1_2048_8192_SHA512,
                    Algorithm::PS256 => &ring_signature::RSA_PSS_2048_8192_SHA256,
                    Algorithm::PS384 => &ring_signature::RSA_PSS_2048_8192_SHA384,
                    Algorithm::PS512 => &ring_signature::RSA_PSS_2048_8192_SHA512,
                    _ => return Err(signature::Error::new()),
                };
                RsaPublicKeyComponents { n, e }.verify(rules, message, signature)
            }
            (DecodingKeyKind::SecretOrDer(point), Algorithm::ES256) => {
                UnparsedPublicKey::new(&ring_signature::ECDSA_P256_SHA256_FIXED, point)
                    .verify(message, signature)
            }
            (DecodingKeyKind::SecretOrDer(point), Algorithm::ES384) => {
                UnparsedPublicKey::new(&ring_signature::ECDSA_P384_SHA384_FIXED, point)
                    .verify(message, signature)
            }
            (DecodingKeyKind::SecretOrDer(point), Algorithm::EdDSA) => {
                UnparsedPublicKey::new(&ring_signature::ED25519, point).verify(message, signature)
            }
            (DecodingKeyKind::SecretOrDer(_), _) => return Err(signature::Error::new()),
        };
        checked.map_err(|_| signature::Error::new())
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
    use ring::rand::SystemRandom;
    use ring::signature::{Ed25519KeyPair, KeyPair as _};
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp(1_000_000_000_000);

    /// A provider that signs with one Ed25519 key.
    struct Provider {
        key: Ed25519KeyPair,
        tokens: Arc<Tokens>,
        _file: tempfile::NamedTempFile,
    }

    impl Provider {
        async fn new(claim: &str) -> Provider {
            let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).unwrap();
            let key = Ed25519KeyPair::from_pkcs8(document.as_ref()).unwrap();
            let x = BASE64.encode(key.public_key().as_ref());
            let set = json!({"keys": [
                {"kty": "new", "kid": "unknown"},
                {"kty": "oct", "kid": "shared", "k": BASE64.encode(b"secret")},
                {"kty": "OKP", "crv": "Ed25519", "kid": "one", "use": "sig", "alg": "EdDSA", "x": x},
            ]});
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), set.to_string()).unwrap();
            let options = Options {
                issuer: "https://issuer".to_owned(),
                audience: "octet".to_owned(),
                keys: KeysAt::File(file.path().to_owned()),
                claim: claim.to_owned(),
                prefix: "octet:".to_owned(),
            };
            let tokens = Tokens::new(options).unwrap();
            tokens.refresh().await.unwrap();
            Provider { key, tokens, _file: file }
        }

        fn sign(&self, header: &Value, claims: &Value) -> String {
            let part = |value: &Value| BASE64.encode(value.to_string());
            let message = format!("{}.{}", part(header), part(claims));
            let signature = BASE64.encode(self.key.sign(message.as_bytes()).as_ref());
            format!("{message}.{signature}")
        }
    }

    fn header() -> Value {
        json!({"alg": "EdDSA", "kid": "one"})
    }

    fn claims() -> Value {
        json!({"iss": "https://issuer", "aud": ["octet", "other"], "sub": "ci/pipeline", "exp": 1_000_000_060,
               "scope": "openid octet:read octet:infer octet:nonsense"})
    }

    #[tokio::test]
    async fn a_token_is_a_key_until_it_expires() {
        let provider = Provider::new("scope").await;
        let text = provider.sign(&header(), &claims());
        assert!(Tokens::looks_like_one(&text));
        let key = provider.tokens.identify(&text, NOW).unwrap();
        assert_eq!(
            (key.name.to_string(), key.scopes.to_string()),
            ("ci_pipeline".into(), "read,infer".into())
        );
        assert_eq!(key.expires_at, Some(Timestamp(1_000_000_090_000)));
        assert_eq!(provider.tokens.identify(&text, NOW).unwrap().id, key.id, "the same subject");
        let late = Timestamp(1_000_000_090_000);
        assert!(provider.tokens.identify(&text, late).unwrap_err().to_string().contains("expired"));
    }

    #[tokio::test]
    async fn everything_else_is_refused_with_the_reason_and_without_the_token() {
        let provider = Provider::new("scope").await;
        let with = |changes: Value| {
            let mut all = claims();
            for (name, value) in changes.as_object().unwrap() {
                match value.is_null() {
                    true => drop(all.as_object_mut().unwrap().remove(name)),
                    false => all[name] = value.clone(),
                }
            }
            provider.sign(&header(), &all)
        };
        let good = provider.sign(&header(), &claims());
        let (message, signature) = good.rsplit_once('.').unwrap();
        let forged: String = BASE64.encode(claims().to_string().replace("read", "admin"));
        let first = message.split('.').next().unwrap();
        let stranger = Provider::new("scope").await.sign(&header(), &claims());
        let rows = [
            (with(json!({"iss": "https://other"})), "`iss`"),
            (with(json!({"aud": "other"})), "`aud`"),
            (with(json!({"aud": null})), "missing"),
            (with(json!({"exp": null})), "missing"),
            (with(json!({"sub": null})), "missing"),
            (with(json!({"exp": "never"})), "`exp`"),
            (with(json!({"exp": 999_999_969})), "expired"),
            (with(json!({"nbf": 1_000_000_031})), "not valid yet"),
            (with(json!({"nbf": "soon"})), "`nbf`"),
            (with(json!({"scope": "openid"})), "no scope"),
            (with(json!({"scope": "read admin"})), "no scope"),
            (with(json!({"scope": null})), "no scope"),
            (stranger, "signature"),
            (format!("{first}.{forged}.{signature}"), "signature"),
            (format!("{message}."), "signature"),
            (provider.sign(&json!({"alg": "EdDSA", "kid": "two"}), &claims()), "not known"),
            (provider.sign(&json!({"alg": "EdDSA", "kid": "shared"}), &claims()), "not known"),
            (provider.sign(&json!({"alg": "RS256", "kid": "one"}), &claims()), "algorithm"),
            (provider.sign(&json!({"alg": "HS256", "kid": "one"}), &claims()), "algorithm"),
            (provider.sign(&json!({"alg": "none", "kid": "one"}), &claims()), "header"),
            ("a.b.c".to_owned(), "header"),
            (format!("{}.x.y", "a".repeat(20_000)), "too long"),
        ];
        for (text, want) in rows {
            let refused = provider.tokens.identify(&text, NOW).unwrap_err();
            let said = refused.to_string();
            assert!(said.contains(want), "{said}, expected {want}");
            assert!(!said.contains(&text), "{said}");
        }
    }

    #[tokio::test]
    async fn scopes_come_from_the_claim_that_is_named() {
        for (claim, claims_of, want) in [
            ("realm_access.roles", json!({"realm_access": {"roles": ["a", "octet:write"]}}), Some("write")),
            ("https://x.y/roles", json!({"https://x.y/roles": ["octet:admin"]}), Some("admin")),
            ("roles", json!({"roles": "octet:read,octet:write"}), Some("read,write")),
            ("roles", json!({"roles": 7}), None),
            ("roles", json!({}), None),
        ] {
            let provider = Provider::new(claim).await;
            let found = provider.tokens.scopes(&claims_of).map(|scopes| scopes.to_string());
            assert_eq!(found.as_deref(), want, "{claim} of {claims_of}");
        }
    }

    #[test]
    fn keys_come_over_https_or_from_here() {
        for (url, want) in [
            ("https://a/b", true),
            ("http://127.0.0.1:9/b", true),
            ("http://[::1]/b", true),
            ("http://a/b", false),
            ("ftp://a", false),
            ("file:///etc/passwd", false),
            ("", false),
        ] {
            assert_eq!(may_ask(url), want, "{url}");
        }
    }
}
