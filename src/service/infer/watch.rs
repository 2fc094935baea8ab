//! Takes requests away from a version that does not keep its rule: too little agreement with float, or too many faults.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::service::infer::registry::{Entry, Registry, State};
use crate::service::infer::shadow;
use crate::service::store::{Catalog, EndpointChange, Error, Expect, Name, Rollback, Version};

/// How often the versions are judged.
const EVERY: Duration = Duration::from_secs(1);
/// Faults are judged over so many looks.
const LOOKS: usize = 60;

/// Judges the versions of all endpoints.
pub struct Watch {
    registry: Arc<Registry>,
    catalog: Arc<dyn Catalog>,
    // Answered and failed requests at the last looks.
    looks: HashMap<(String, u32), VecDeque<(u64, u64)>>,
    // Versions that have lost their requests: never the way back for another.
    fallen: HashSet<(String, u32)>,
}

/// What a version has done of late.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    shadow: shadow::Figures,
    answered: u64,
    failed: u64,
}

impl Watch {
    /// Over the endpoints of a registry; changes are made in the catalog.
    #[must_use]
    pub fn new(registry: Arc<Registry>, catalog: Arc<dyn Catalog>) -> Watch {
        Watch { registry, catalog, looks: HashMap::new(), fallen: HashSet::new() }
    }

    /// Judges once a second, until the process ends.
    pub async fn run(mut self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let mut seen = HashSet::new();
        for entry in self.registry.all() {
            let name = entry.endpoint.name.clone();
            let mut fault = None;
            for (&version, state) in &entry.versions {
                let State::Ready(served) = state else { continue };
                seen.insert((name.to_string(), version));
                let now = served.outcomes();
                let looks = self.looks.entry((name.to_string(), version)).or_default();
                let before = looks.front().copied().unwrap_or_default();
                looks.push_back(now);
                if looks.len() > LOOKS {
                    looks.pop_front();
                }
                // Fewer than before: it was loaded anew.
                let (answered, failed) = (now.0.saturating_sub(before.0), now.1.saturating_sub(before.1));
                let figures = served.comparer.as_ref().map(|c| c.figures()).unwrap_or_default();
                let recent = Recent { shadow: figures, answered, failed };
                let judged = entry.endpoint.weight(Version(version)) > 0;
                if let (true, Some(rule)) = (judged && fault.is_none(), &entry.endpoint.settings.rollback) {
                    fault = judge(rule, &recent).map(|reason| (Version(version), reason));
                }
            }
            if let Some((version, reason)) = fault {
                self.take_back(&entry, &name, version, reason).await;
            }
        }
        self.looks.retain(|key, _| seen.contains(key));
        self.fallen.retain(|key| seen.contains(key));
    }

    async fn take_back(&mut self, entry: &Entry, name: &Name, version: Version, reason: String) {
        let ready = |version: u32| matches!(entry.versions.get(&version), Some(State::Ready(_)));
        let sound =
            |v: Version| v != version && ready(v.0) && !self.fallen.contains(&(name.to_string(), v.0));
        let way_back = entry.endpoint.versions.iter().rev().map(|v| v.version).find(|&v| sound(v));
        let Some(routes) = entry.endpoint.routes_without(version, way_back) else {
            // Said once, not each second.
            if self.fallen.insert((name.to_string(), version.0)) {
                tracing::error!(endpoint = %name, %version, %reason, "Endpoint {name} version {version} does not keep its rule and no other version can answer: {reason}");
            }
            return;
        };
        let reason = format!("version {version}: {reason}");
        let change = EndpointChange {
            routes: Some(routes),
            by: "rollback".into(),
            reason: Some(reason.clone()),
            ..EndpointChange::default()
        };
        let expect = Expect::Revision(entry.endpoint.revision);
        match self.catalog.change_endpoint(name, change, expect).await {
            Ok(_) => {
                self.fallen.insert((name.to_string(), version.0));
                if let Some(State::Ready(served)) = entry.versions.get(&version.0) {
                    served.rolled_back();
                }
                tracing::error!(endpoint = %name, %version, %reason, "Endpoint {name} was rolled back: {reason}");
                if let Err(error) = self.registry.follow().await {
                    tracing::error!(%error, "The endpoints could not be read: {error}");
                }
            }
            // Somebody was faster; the next look sees what they have made of it.
            Err(Error::RevisionMismatch { .. }) => {}
            Err(error) => {
                tracing::error!(endpoint = %name, %error, "Endpoint {name} could not be rolled back: {error}");
            }
        }
    }
}

/// Why a version does not keep the rule; `None` where it does, or there is too little to judge by.
fn judge(rule: &Rollback, recent: &Recent) -> Option<String> {
    let enough = u64::from(rule.min_requests);
    let Recent { shadow, answered, failed } = recent;
    // The recent figures hold so many samples at most.
    let compared_enough = enough.min(shadow::RECENT as u64);
    if let Some(least) = rule.min_agreement
        && shadow.recent as u64 >= compared_enough
        && shadow.agreement < least
    {
        let (share, count) = (shadow.agreement, shadow.recent);
        return Some(format!(
            "{share:.4} of the last {count} compared samples agree with float, the rule asks for {least}"
        ));
    }
    let requests = answered + failed;
    if let Some(most) = rule.max_error_ratio
        && requests >= enough
        && *failed as f64 > most * requests as f64
    {
        return Some(format!(
            "{failed} of the last {requests} requests ended in a fault of the server or were not answered in its time, the rule \
             allows a share of {most}"
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_judged_by_enough_requests_only() {
        let rule = Rollback { min_agreement: Some(0.98), max_error_ratio: Some(0.05), min_requests: 100 };
        let recent = |recent, agreement, answered, failed| Recent {
            shadow: shadow::Figures { recent, agreement, ..shadow::Figures::default() },
            answered,
            failed,
        };
        assert_eq!(judge(&rule, &recent(99, 0.5, 0, 0)), None);
        assert!(judge(&rule, &recent(100, 0.97, 0, 0)).unwrap().contains("agree with float"));
        assert_eq!(judge(&rule, &recent(100, 0.98, 95, 5)), None);
        assert!(judge(&rule, &recent(0, 0.0, 94, 6)).unwrap().contains("6 of the last 100"));
        let agreement_only = Rollback { max_error_ratio: None, ..rule };
        assert_eq!(judge(&agreement_only, &recent(0, 0.0, 0, 1000)), None);
    }
}
