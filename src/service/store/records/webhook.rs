//! The message about the end of a job.

use std::str::FromStr;
use std::time::Duration;

use super::job::Job;
use super::names::{BadText, bad};

/// How far the message about the end of a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Webhook {
    /// Where it stands.
    pub state: WebhookState,
    /// Attempts that were begun.
    pub attempts: u32,
    /// Status of the last answer; `None` where there was none.
    pub last_status: Option<u16>,
}

/// Whether the end of a job was told to whom its webhook names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookState {
    /// An attempt is due, or will be.
    Pending,
    /// It was told.
    Delivered,
    /// It was tried often enough.
    GivenUp,
}

impl WebhookState {
    /// Every state.
    pub const ALL: [WebhookState; 3] =
        [WebhookState::Pending, WebhookState::Delivered, WebhookState::GivenUp];

    /// As shown in the API and the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            WebhookState::Pending => "pending",
            WebhookState::Delivered => "delivered",
            WebhookState::GivenUp => "given_up",
        }
    }
}

impl FromStr for WebhookState {
    type Err = BadText;
    fn from_str(text: &str) -> Result<WebhookState, BadText> {
        WebhookState::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| bad(text, "a webhook state", "pending, delivered or given_up"))
    }
}

/// One attempt to tell the end of a job.
#[derive(Clone, Debug)]
pub struct WebhookClaim {
    /// The job, which has ended.
    pub job: Job,
    /// Which attempt this is, from 1.
    pub attempt: u32,
}

/// What came of an attempt to tell the end of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookOutcome {
    /// It was told.
    Delivered,
    /// It was not; the next attempt is due after so long.
    Retry(Duration),
    /// It was not, and there will be no further attempt.
    GivenUp,
}
