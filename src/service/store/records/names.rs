//! What names a record: names and versions that a user gives, digests of bytes, ids made here. Each has one spelling.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a name, id, digest or cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: {rule}")]
pub struct BadText {
    /// What was given, at most 200 characters of it.
    pub text: String,
    /// What it should be, with its article: `a name`.
    pub what: &'static str,
    /// What it has to look like.
    pub rule: &'static str,
}

pub(super) fn bad(text: &str, what: &'static str, rule: &'static str) -> BadText {
    BadText { text: text.chars().take(200).collect(), what, rule }
}

/// Serializes a type as its `Display` and reads it back with its `FromStr`.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(super) use serde_as_text;

/// The name of a model, dataset or endpoint, chosen by the user.
///
/// 1 to 128 characters of `A-Z a-z 0-9 . _ -`, the first a letter or digit: safe in a path, a URL, a
/// metric label and a log line without quoting.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Name, BadText> {
        let fits = text.len() <= 128
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !fits {
            return Err(bad(
                text,
                "a name",
                "1 to 128 characters of A-Z a-z 0-9 . _ -, the first a letter or digit",
            ));
        }
        Ok(Name(text.to_owned()))
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
serde_as_text!(Name);

/// Counts the uploads under a name, or the changes of an endpoint: 1, 2, 3 … A number is never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u32);

impl FromStr for Version {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Version, BadText> {
        let digits = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
        match text.parse() {
            Ok(number) if digits => Ok(Version(number)),
            _ => Err(bad(text, "a version", "a whole number from 1, without leading zeros")),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One version of one name: `resnet18@3`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pinned {
    /// The name.
    pub name: Name,
    /// The version.
    pub version: Version,
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.version)
    }
}

/// A name and perhaps a version; without it, the newest. Written `resnet18` or `resnet18@3`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Wanted {
    /// The name.
    pub name: Name,
    /// The version; `None` is the newest that is not deleted.
    pub version: Option<Version>,
}

impl From<Pinned> for Wanted {
    fn from(pinned: Pinned) -> Wanted {
        Wanted { name: pinned.name, version: Some(pinned.version) }
    }
}

impl From<Name> for Wanted {
    fn from(name: Name) -> Wanted {
        Wanted { name, version: None }
    }
}

impl FromStr for Wanted {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Wanted, BadText> {
        match text.split_once('@') {
            None => Ok(Wanted { name: text.parse()?, version: None }),
            Some((name, version)) => Ok(Wanted { name: name.parse()?, version: Some(version.parse()?) }),
        }
    }
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            None => self.name.fmt(f),
            Some(version) => write!(f, "{}@{version}", self.name),
        }
    }
}
serde_as_text!(Wanted);

/// SHA-256 of some bytes. Shown as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for Digest {
    type Err = BadText;
    fn from_str(text: &str) -> Result<Digest, BadText> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)
            .map_err(|_| bad(text, "a SHA-256 digest", "64 hexadecimal digits"))?;
        Ok(Digest(bytes))
    }
}
serde_as_text!(Digest);

/// An id made here: a prefix and a UUID version 7, so ids of one process sort by age.
macro_rules! id {
    ($(#[$doc:meta])* $type:ident, $prefix:literal, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(uuid::Uuid);

        impl $type {
            /// A new one.
            #[must_use]
            #[expect(clippy::new_without_default, reason = "a default id would not be the same twice")]
            pub fn new() -> $type {
                $type(uuid::Uuid::now_v7())
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "_{}"), self.0.simple())
            }
        }

        impl FromStr for $type {
            type Err = BadText;
            fn from_str(text: &str) -> Result<$type, BadText> {
                let digits = text.strip_prefix(concat!($prefix, "_"));
                // `try_parse` also takes hyphens, braces and upper case: one spelling is enough.
                match digits.map(uuid::Uuid::try_parse) {
                    Some(Ok(uuid)) if $type(uuid).to_string() == text => Ok($type(uuid)),
                    _ => Err(bad(text, $what, concat!($prefix, "_ and 32 lower-case hexadecimal digits"))),
                }
            }
        }
        serde_as_text!($type);
    };
}

id!(
    /// Names a model version.
    ModelId, "model", "a model id"
);
id!(
    /// Names a dataset version.
    DatasetId, "data", "a dataset id"
);
id!(
    /// Names a job.
    JobId, "job", "a job id"
);
id!(
    /// Names an artifact.
    ArtifactId, "art", "an artifact id"
);
id!(
    /// Names the hold of somebody who writes a blob.
    HoldId, "hold", "the id of a hold"
);
id!(
    /// Names a line of the audit log.
    AuditId, "audit", "the id of an audit line"
);
id!(
    /// Names an upload that comes in parts.
    UploadId, "upload", "the id of an upload"
);

/// Names an API key: 16 lower-case hexadecimal digits, which are no secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub [u8; 8]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for KeyId {
    type Err = BadText;
    fn from_str(text: &str) -> Result<KeyId, BadText> {
        let mut bytes = [0; 8];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) if KeyId(bytes).to_string() == text => Ok(KeyId(bytes)),
            _ => Err(bad(text, "the id of a key", "16 lower-case hexadecimal digits")),
        }
    }
}
serde_as_text!(KeyId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_everywhere() {
        let long = "a".repeat(128);
        for text in ["a", "9", "ResNet-18_v1.5", &long] {
            assert_eq!(text.parse::<Name>().unwrap().as_str(), text);
        }
        let longer = "a".repeat(129);
        for text in ["", ".", "..", "-a", "_a", "a b", "a/b", "a@1", "ä", "a\n", &longer] {
            assert!(text.parse::<Name>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn ids_versions_and_digests_have_one_spelling() {
        let id = JobId::new();
        assert_eq!(id.to_string().parse(), Ok(id));
        let text = id.to_string();
        assert!(text.to_uppercase().parse::<JobId>().is_err());
        assert!(text.replace("job_", "art_").parse::<JobId>().is_err());
        for text in ["0", "01", "+1", "-1", "", "4294967296", "1.0"] {
            assert!(text.parse::<Version>().is_err(), "{text:?}");
        }
        assert_eq!("m@7".parse::<Wanted>().unwrap().version, Some(Version(7)));
        for text in ["m@", "@1", "m@1@2"] {
            assert!(text.parse::<Wanted>().is_err(), "{text:?}");
        }
        let digest = Digest([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("ab".parse::<Digest>().is_err());
        assert_eq!("00ff00ff00ff00ff".parse::<KeyId>().unwrap().to_string(), "00ff00ff00ff00ff");
        for text in ["", "00", "00FF00FF00FF00FF", "00ff00ff00ff00ff00"] {
            assert!(text.parse::<KeyId>().is_err(), "{text:?}");
        }
    }
}
