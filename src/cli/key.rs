//! `octet key`: makes, lists and revokes API keys, in the database that the settings name.

use std::time::Duration;

use octet::app::{database, process};
use octet::service::keys::Token;
use octet::service::store::{Key as Record, KeyId, Name, NewKey, Scopes, Timestamp};

use crate::cli::serve::{Where, runtime, start_error, tell_of_new_database};
use crate::cli::{Error, print};

/// Arguments of `octet key`.
#[derive(clap::Args)]
pub(crate) struct Key {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    place: Where,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Makes a key. It is printed once, on a line of its own on standard output, and kept nowhere.
    Create {
        /// What people call it: 1 to 128 of A-Z a-z 0-9 . _ -.
        #[arg(long)]
        name: Name,
        /// What it may do: one or more of read, infer, write and admin, with commas between them.
        #[arg(long, value_name = "SCOPES")]
        scope: Scopes,
        /// How long it is taken: 90d, 12h, 30m or 45s; without it until it is revoked.
        #[arg(long, value_name = "TIME", value_parser = duration)]
        expires: Option<Duration>,
        /// Requests a second that it is good for, 1 to 1000000; without it as many as come.
        #[arg(long, value_name = "REQUESTS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
        rate: Option<u32>,
        /// Bytes of models and datasets that it may have stored at a time; without it as many as there is room for.
        #[arg(long, value_name = "BYTES")]
        quota: Option<u64>,
    },
    /// Lists all keys, without their secrets.
    List,
    /// Takes a key back. Servers refuse it within two seconds.
    Revoke {
        /// Its id: the part between `octet_` and the next `_`.
        id: KeyId,
    },
}

impl Key {
    /// Does it, beside a server that runs or without one.
    pub(crate) fn run(self) -> Result<(), Error> {
        let settings = self.place.settings()?;
        runtime()?.block_on(async {
            let catalog = match &self.command {
                // Before the first start too: a server that others reach does not start without keys.
                Command::Create { .. } => {
                    let missing = database::missing_database(&settings);
                    let catalog = database::open_catalog(&settings).await.map_err(start_error)?;
                    tell_of_new_database(missing);
                    catalog
                }
                Command::List | Command::Revoke { .. } => {
                    database::open_existing_catalog(&settings).await.map_err(start_error)?
                }
            };
            let failed = |error: octet::service::store::Error| start_error(error.into());
            match self.command {
                Command::Create { name, scope, expires, rate, quota } => {
                    let token = Token::new().map_err(|e| Error::Work(format!("random numbers: {e}")))?;
                    let (id, sha256) = (token.id(), token.sha256());
                    let new = NewKey { id, name, sha256, scopes: scope, rate, quota, lifetime: expires };
                    let key = catalog.create_key(new).await.map_err(failed)?;
                    eprintln!("Key `{}` ({}) may {}. It is shown only now:", key.name, key.id, key.scopes);
                    print(&format!("{}\n", token.reveal()))
                }
                Command::List => print(&listing(&catalog.keys().await.map_err(failed)?, process::now())),
                Command::Revoke { id } => {
                    let key = catalog.revoke_key(id).await.map_err(failed)?;
                    eprintln!("Key `{}` ({id}) is revoked", key.name);
                    Ok(())
                }
            }
        })
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    let rule = || "must be a whole number from 1 and d, h, m or s: 90d".to_owned();
    let unit = text.chars().next_back().ok_or_else(rule)?;
    let seconds = match unit {
        'd' => 86_400,
        'h' => 3_600,
        'm' => 60,
        's' => 1,
        _ => return Err(rule()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| rule())?;
    // A century: what lasts longer was meant otherwise.
    let total = number.checked_mul(seconds).filter(|total| (1..=36_525 * 86_400).contains(total));
    total.map(Duration::from_secs).ok_or_else(rule)
}

fn listing(keys: &[Record], now: Timestamp) -> String {
    let head = ["ID", "NAME", "SCOPES", "RATE", "QUOTA", "CREATED", "STATE"].map(str::to_owned);
    let rows = keys.iter().map(|key| {
        let state = match (key.revoked_at, key.expires_at) {
            (Some(at), _) => format!("revoked {at}"),
            (None, Some(at)) if at <= now => format!("expired {at}"),
            (None, Some(at)) => format!("until {at}"),
            (None, None) => "in force".to_owned(),
        };
        let rate = key.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate}/s"));
        let [id, name] = [key.id.to_string(), key.name.to_string()];
        let quota = key.quota.map_or_else(|| "-".to_owned(), |bytes| format!("{bytes} B"));
        [id, name, key.scopes.to_string(), rate, quota, key.created_at.to_string(), state]
    });
    let rows: Vec<_> = std::iter::once(head).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let line = |row: &[String; 7]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_a_unit() {
        for (text, seconds) in [("1s", 1), ("30m", 1_800), ("12h", 43_200), ("90d", 7_776_000)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)));
        }
        for text in ["", "d", "0d", "-1d", "1.5h", "90", "90w", "9ö", "99999999999999999999d", "40000d"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
