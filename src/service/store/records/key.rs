//! API keys, what one may do, and the record of what was done with it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::names::{AuditId, BadText, Digest, KeyId, Name, bad, serde_as_text};
use super::time::Timestamp;

/// Lets whoever has its secret do something. The secret itself is kept nowhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Key {
    /// Its id: the part of the key that is no secret.
    pub id: KeyId,
    /// What people call it. Several may have the same, as when one replaces another.
    pub name: Name,
    /// Of the bytes of the secret.
    #[serde(skip)]
    pub sha256: Digest,
    /// What it may do.
    pub scopes: Scopes,
    /// Requests a second; `None` is no limit of its own.
    pub rate: Option<u32>,
    /// Bytes of models and datasets that it may have stored; `None` is no limit of its own.
    pub quota: Option<u64>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused.
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    pub revoked_at: Option<Timestamp>,
}

/// A key to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Its id.
    pub id: KeyId,
    /// What people call it.
    pub name: Name,
    /// Of the bytes of the secret.
    pub sha256: Digest,
    /// What it may do.
    pub scopes: Scopes,
    /// Requests a second; `None` is no limit of its own.
    pub rate: Option<u32>,
    /// Bytes of models and datasets that it may have stored; `None` is no limit of its own.
    pub quota: Option<u64>,
    /// How long it is taken, from now on; `None` is until it is revoked.
    pub lifetime: Option<Duration>,
}

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// Look: lists, reports, downloads, figures, pages.
    Read,
    /// Run a model.
    Infer,
    /// Upload, start jobs, change endpoints, delete.
    Write,
    /// Everything, and load, unload, and change settings of the server.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Scope; 4] = [Scope::Read, Scope::Infer, Scope::Write, Scope::Admin];

    /// As shown in the API, the database and the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Read => "read",
            Scope::Infer => "infer",
            Scope::Write => "write",
            Scope::Admin => "admin",
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Some scopes, at least one. Written `read,write`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scopes(Vec<Scope>);

impl Scopes {
    /// Whether they allow what needs `scope`: `admin` allows everything.
    #[must_use]
    pub fn allow(&self, scope: Scope) -> bool {
        self.0.contains(&scope) || self.0.contains(&Scope::Admin)
    }
}

impl FromStr for Scopes {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Scopes, BadText> {
        let named = |name: &str| Scope::ALL.into_iter().find(|scope| scope.as_str() == name.trim());
        let scopes: Option<Vec<Scope>> = text.split(',').map(named).collect();
        let rule = "one or more of read, infer, write and admin, with commas between them";
        let mut scopes = scopes.ok_or_else(|| bad(text, "a list of scopes", rule))?;
        scopes.sort_unstable();
        scopes.dedup();
        Ok(Scopes(scopes))
    }
}

impl fmt::Display for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.0.iter().map(|scope| scope.as_str()).collect();
        f.write_str(&names.join(","))
    }
}
serde_as_text!(Scopes);

/// A request that changed something, or tried to. Holds no body and no secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewAudit {
    /// The key and its name; `None` where nobody was asked for one.
    pub key: Option<(KeyId, Name)>,
    /// The method; `gRPC` for a call.
    pub method: String,
    /// The template of the route.
    pub route: String,
    /// The path as it came, without a query.
    pub path: String,
    /// What was made, where something was.
    pub record: Option<String>,
    /// The status of the answer.
    pub outcome: String,
    /// Of the request.
    pub request_id: String,
}

/// The same, on record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditEntry {
    /// Its id; listings sort by it.
    pub id: AuditId,
    /// When it was answered.
    pub at: Timestamp,
    /// What.
    pub what: NewAudit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_are_named_and_only_admin_includes_others() {
        let scopes = |text: &str| text.parse::<Scopes>();
        assert_eq!(scopes("write, read,write").unwrap().to_string(), "read,write");
        for text in ["", "read,", "root", "READ"] {
            assert!(scopes(text).is_err(), "{text:?}");
        }
        let allowed = |text: &str| Scope::ALL.map(|scope| scopes(text).unwrap().allow(scope));
        assert_eq!(allowed("read"), [true, false, false, false]);
        assert_eq!(allowed("infer,write"), [false, true, true, false]);
        assert_eq!(allowed("admin"), [true; 4]);
    }
}
