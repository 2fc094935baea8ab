//! TLS of both ports: certificates from files, which are read again when they change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How often the files are looked at.
const POLL: Duration = Duration::from_secs(2);

/// A client that connects must have come to an agreement by then.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);

/// Files in PEM.
#[derive(Clone, Debug)]
pub struct Files {
    /// The certificate of the server, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Authorities of clients: then each must show a certificate.
    pub client_ca: Option<PathBuf>,
}

/// Why the files cannot be used. Holds nothing of what stands in them.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One cannot be read.
    #[error("reading `{path}`: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// One does not hold what it should.
    #[error("`{path}`: {reason}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// They do not belong together.
    #[error("`{certificate}` and `{key}`: {source}")]
    Pair {
        /// The certificate.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// What both ports speak. New connections get the newest certificate, old ones keep theirs.
pub struct Tls {
    files: Files,
    now: RwLock<Loaded>,
}

struct Loaded {
    /// As it was read, to know when it changes.
    read: Contents,
    config: Arc<ServerConfig>,
}

#[derive(PartialEq, Eq)]
struct Contents {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// [`Error`].
    pub fn open(files: Files) -> Result<Tls, Error> {
        let read = contents(&files)?;
        let config = Arc::new(configure(&files, &read)?);
        Ok(Tls { files, now: RwLock::new(Loaded { read, config }) })
    }

    /// Agrees with a client on the keys of a connection.
    ///
    /// # Errors
    /// What went wrong, also where it takes too long.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let config = Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner).config);
        let handshake = TlsAcceptor::from(config).accept(stream);
        tokio::time::timeout(HANDSHAKE_TIME, handshake).await.unwrap_or_else(|late| Err(late.into()))
    }

    /// Looks at the files again and again. What cannot be used is told, and what was used before stays.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(POLL).await;
            let tls = Arc::clone(&self);
            let said = match tokio::task::spawn_blocking(move || tls.refresh()).await {
                Ok(Ok(false)) => String::new(),
                Ok(Ok(true)) => {
                    tracing::info!("The certificate has changed: new connections get the new one");
                    String::new()
                }
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            // Once, not every two seconds. One of two files may simply not be there yet.
            if !said.is_empty() && said != told {
                tracing::warn!(error = said, "The files of TLS have changed and cannot be used: {said}");
            }
            told = said;
        }
    }

    /// Whether there was something new.
    fn refresh(&self) -> Result<bool, Error> {
        let read = contents(&self.files)?;
        if read == self.now.read().unwrap_or_else(PoisonError::into_inner).read {
            return Ok(false);
        }
        let config = Arc::new(configure(&self.files, &read)?);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Loaded { read, config };
        Ok(true)
    }
}

fn contents(files: &Files) -> Result<Contents, Error> {
    let read =
        |path: &Path| std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source });
    Ok(Contents {
        certificate: read(&files.certificate)?,
        key: read(&files.key)?,
        client_ca: files.client_ca.as_deref().map(read).transpose()?,
    })
}

fn configure(files: &Files, contents: &Contents) -> Result<ServerConfig, Error> {
    let pair =
        |source| Error::Pair { certificate: files.certificate.clone(), key: files.key.clone(), source };
    let chain = certificates(&files.certificate, &contents.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(&contents.key).map_err(|_| Error::Bad {
        path: files.key.clone(),
        // Not the error itself, which may show what it has read.
        reason: "it holds no private key in PEM".to_owned(),
    })?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(pair)?;
    let builder = match (&files.client_ca, &contents.client_ca) {
        (Some(path), Some(bytes)) => {
            let bad =
                |error: &dyn std::error::Error| Error::Bad { path: path.clone(), reason: error.to_string() };
            let mut roots = RootCertStore::empty();
            for authority in certificates(path, bytes)? {
                roots.add(authority).map_err(|error| bad(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| bad(&error))?)
        }
        _ => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(pair)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |reason: String| Error::Bad { path: path.to_owned(), reason };
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    let read = read.map_err(|error| bad(format!("it is not PEM: {error}")))?;
    if read.is_empty() { Err(bad("it holds no certificate in PEM".to_owned())) } else { Ok(read) }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What works is tried by tests/clients/keys.py with certificates of OpenSSL.
    #[test]
    fn files_that_cannot_be_used_are_named_and_not_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let check = |certificate: &[u8], key: &[u8], want: &str| {
            std::fs::write(path("c.pem"), certificate).unwrap();
            std::fs::write(path("k.pem"), key).unwrap();
            let files = Files { certificate: path("c.pem"), key: path("k.pem"), client_ca: None };
            let Err(error) = Tls::open(files) else { panic!("it was taken") };
            let text = error.to_string();
            assert!(text.contains(want) && !text.contains("c2VjcmV0"), "{text}");
        };
        let certificate = b"-----BEGIN CERTIFICATE-----\nc2VjcmV0\n-----END CERTIFICATE-----\n";
        let key = b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
        check(b"", key, "c.pem`: it holds no certificate");
        check(key, key, "c.pem`: it holds no certificate");
        check(certificate, b"c2VjcmV0", "k.pem`: it holds no private key");
        check(certificate, b"-----BEGIN PRIVATE KEY-----\nc2VjcmV0 !\n", "k.pem`: it holds no private key");
        check(certificate, key, "k.pem`: ");
        let files = Files { certificate: path("none.pem"), key: path("k.pem"), client_ca: None };
        let Err(error) = Tls::open(files) else { panic!("it was taken") };
        assert!(error.to_string().contains("reading `") && error.to_string().contains("none.pem"), "{error}");
    }
}
