//! What a change makes of an endpoint: versions, routes, settings. The databases keep what comes out of it.

use crate::service::store::{
    ENDPOINT_VERSIONS_MAX, Endpoint, EndpointChange, EndpointSettings, EndpointVersion, Route, SettingsPatch,
    Version,
};

/// What is written of an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Written {
    pub(super) versions: Vec<EndpointVersion>,
    pub(super) default_version: Version,
    pub(super) routes: Vec<Route>,
    pub(super) settings: EndpointSettings,
}

/// What `change` makes of an endpoint, of which `last` is the highest version number ever given.
///
/// # Errors
/// Why it cannot be, for people.
pub(super) fn change(
    before: Option<&Endpoint>,
    last: u32,
    change: &EndpointChange,
) -> Result<Written, String> {
    let mut versions = before.map_or_else(Vec::new, |b| b.versions.clone());
    let mut routes = before.map_or_else(Vec::new, |b| b.routes.clone());
    let mut default_version = before.map(|b| b.default_version);
    if let Some((artifact, model)) = &change.add {
        let version = Version(last + 1);
        let (artifact, model) = (*artifact, model.clone());
        // Read with the artifact, once the version is written.
        versions.push(EndpointVersion { version, artifact, artifact_precision: None, model });
        // An endpoint that is new has nobody else to answer.
        let weight = if routes.is_empty() { 100 } else { change.weight.unwrap_or(100) };
        if weight > 100 {
            return Err(format!("`weight` is {weight}, it must be 0 to 100"));
        }
        routes = make_room(&routes, 100 - weight);
        if weight > 0 {
            routes.push(Route { version, weight });
        }
    } else if change.weight.is_some() {
        return Err(
            "`weight` is that of a version that is added: use `routes` for those that are there".to_owned()
        );
    }
    if let Some(asked) = &change.routes {
        if change.weight.is_some() {
            return Err("give either `weight` or `routes`".to_owned());
        }
        routes = check_routes(asked, &versions)?;
    }
    if versions.is_empty() {
        return Err("there is no such endpoint: give `model` or `artifact` to make it".to_owned());
    }
    default_version = largest(&routes, default_version);
    let default_version = default_version.unwrap_or(versions[versions.len() - 1].version);
    if change.add.is_some() {
        let before = before.map(|b| b.default_version).filter(|&v| v != default_version);
        trim(&mut versions, &mut routes, default_version, before);
    }
    let settings = patched(before.map(|b| &b.settings), &change.settings)?;
    Ok(Written { versions, default_version, routes, settings })
}

impl Endpoint {
    /// Percent of the requests that name no version.
    #[must_use]
    pub fn weight(&self, version: Version) -> u32 {
        weight(&self.routes, version)
    }

    /// The routes when `version` gets no requests any more: the others share them as before; where there are no
    /// others, `way_back` gets all.
    #[must_use]
    pub fn routes_without(&self, version: Version, way_back: Option<Version>) -> Option<Vec<Route>> {
        let others: Vec<Route> = self.routes.iter().copied().filter(|r| r.version != version).collect();
        if others.is_empty() {
            return Some(vec![Route { version: way_back?, weight: 100 }]);
        }
        Some(make_room(&others, 100))
    }
}

fn weight(routes: &[Route], version: Version) -> u32 {
    routes.iter().find(|r| r.version == version).map_or(0, |r| r.weight)
}

/// The routes with `percent` to share, in the proportions of before; rounded so that nothing is lost.
fn make_room(routes: &[Route], percent: u32) -> Vec<Route> {
    let total: u32 = routes.iter().map(|r| r.weight).sum();
    let (mut seen, mut given) = (0, 0);
    let share = |route: &Route| {
        seen += route.weight;
        let up_to = (seen * percent + total / 2) / total.max(1);
        let weight = up_to - given;
        given = up_to;
        Route { version: route.version, weight }
    };
    routes.iter().map(share).filter(|r| r.weight > 0).collect()
}

fn check_routes(asked: &[Route], versions: &[EndpointVersion]) -> Result<Vec<Route>, String> {
    for (index, route) in asked.iter().enumerate() {
        let version = route.version;
        if !versions.iter().any(|v| v.version == version) {
            let have: Vec<u32> = versions.iter().map(|v| v.version.0).collect();
            return Err(format!("`routes` names version {version}; the endpoint has {have:?}"));
        }
        if asked[..index].iter().any(|r| r.version == version) {
            return Err(format!("`routes` names version {version} twice"));
        }
    }
    let total: u64 = asked.iter().map(|r| u64::from(r.weight)).sum();
    if total != 100 {
        return Err(format!(
            "the weights of `routes` add up to {total}, they are percent and must add up to 100"
        ));
    }
    Ok(asked.iter().copied().filter(|r| r.weight > 0).collect())
}

/// The version with the most requests; among equals the one of before, then the newest.
fn largest(routes: &[Route], before: Option<Version>) -> Option<Version> {
    routes.iter().max_by_key(|r| (r.weight, Some(r.version) == before, r.version.0)).map(|r| r.version)
}

/// Drops versions after one was added: of those without requests all but the way back, then those with the fewest. The
/// way back is the version that was the default `before`; else the newest.
fn trim(
    versions: &mut Vec<EndpointVersion>,
    routes: &mut Vec<Route>,
    default_version: Version,
    before: Option<Version>,
) {
    let newest = versions.last().map(|v| v.version);
    let idle = |v: &&EndpointVersion| weight(routes, v.version) == 0 && Some(v.version) != newest;
    let was_default = versions.iter().filter(idle).find(|v| Some(v.version) == before);
    let way_back = was_default.or_else(|| versions.iter().rev().find(idle)).map(|v| v.version);
    versions.retain(|v| {
        weight(routes, v.version) > 0 || Some(v.version) == newest || Some(v.version) == way_back
    });
    while versions.len() > ENDPOINT_VERSIONS_MAX {
        let least = versions
            .iter()
            .filter(|v| v.version != default_version && Some(v.version) != newest)
            .min_by_key(|v| (weight(routes, v.version), v.version.0))
            .map(|v| v.version);
        let Some(least) = least else { return };
        let freed = weight(routes, least);
        versions.retain(|v| v.version != least);
        routes.retain(|r| r.version != least);
        if let Some(route) = routes.iter_mut().find(|r| r.version == default_version) {
            route.weight += freed;
        }
    }
}

fn patched(before: Option<&EndpointSettings>, patch: &SettingsPatch) -> Result<EndpointSettings, String> {
    let before = before.cloned().unwrap_or_default();
    let settings = EndpointSettings {
        shadow: patch.shadow.unwrap_or(before.shadow),
        rollback: patch.rollback.unwrap_or(before.rollback),
        batching: patch.batching.unwrap_or(before.batching),
        queue_limit: patch.queue_limit.unwrap_or(before.queue_limit),
        concurrency: patch.concurrency.unwrap_or(before.concurrency),
        required: patch.required.unwrap_or(before.required),
        warm_up: patch.warm_up.unwrap_or(before.warm_up),
    };
    let share = |name: &str, value: Option<f64>| match value {
        Some(x) if !(0.0..=1.0).contains(&x) => Err(format!("`{name}` is {x}, it must be 0 to 1")),
        _ => Ok(()),
    };
    let whole = |name: &str, value: Option<u32>, least: u32, most: u32| match value {
        Some(x) if !(least..=most).contains(&x) => {
            Err(format!("`{name}` is {x}, it must be {least} to {most}"))
        }
        _ => Ok(()),
    };
    share("shadow.fraction", settings.shadow.map(|s| s.fraction))?;
    share("rollback.min_agreement", settings.rollback.and_then(|r| r.min_agreement))?;
    share("rollback.max_error_ratio", settings.rollback.and_then(|r| r.max_error_ratio))?;
    whole("rollback.min_requests", settings.rollback.map(|r| r.min_requests), 1, 1_000_000)?;
    whole("batching.max", settings.batching.and_then(|b| b.max), 1, 1024)?;
    whole("batching.delay_us", settings.batching.and_then(|b| b.delay_us), 0, 1_000_000)?;
    whole("queue_limit", settings.queue_limit, 1, 100_000)?;
    whole("concurrency", settings.concurrency, 1, 1024)?;
    whole("warm_up", settings.warm_up, 1, 1000)?;
    let compares = settings.shadow.is_some_and(|s| s.fraction > 0.0);
    if settings.rollback.is_some_and(|r| r.min_agreement.is_some()) && !compares {
        return Err(
            "`rollback.min_agreement` needs `shadow.fraction` above 0: agreement comes from there".to_owned()
        );
    }
    if settings.rollback.is_some_and(|r| r.min_agreement.is_none() && r.max_error_ratio.is_none()) {
        return Err("`rollback` needs `min_agreement` or `max_error_ratio`".to_owned());
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::store::{Pinned, Rollback, Shadow, Timestamp};

    fn pinned() -> Pinned {
        Pinned { name: "m".parse().unwrap(), version: Version(1) }
    }

    fn adding(weight: Option<u32>) -> EndpointChange {
        EndpointChange { add: Some((None, pinned())), weight, ..EndpointChange::default() }
    }

    fn routed(routes: &[(u32, u32)]) -> EndpointChange {
        let routes =
            routes.iter().map(|&(version, weight)| Route { version: Version(version), weight }).collect();
        EndpointChange { routes: Some(routes), ..EndpointChange::default() }
    }

    /// Applies changes one after the other.
    fn after(changes: &[EndpointChange]) -> Result<Written, String> {
        let mut endpoint: Option<Endpoint> = None;
        let mut last = 0;
        let mut written = Err("nothing was changed".to_owned());
        for each in changes {
            let now = change(endpoint.as_ref(), last, each)?;
            last += u32::from(each.add.is_some());
            endpoint = Some(Endpoint {
                name: "e".parse().unwrap(),
                versions: now.versions.clone(),
                default_version: now.default_version,
                routes: now.routes.clone(),
                settings: now.settings.clone(),
                revision: 1,
                created_at: Timestamp(0),
                updated_at: Timestamp(0),
            });
            written = Ok(now);
        }
        written
    }

    fn shape(written: &Written) -> (Vec<u32>, u32, Vec<(u32, u32)>) {
        let versions = written.versions.iter().map(|v| v.version.0).collect();
        let routes = written.routes.iter().map(|r| (r.version.0, r.weight)).collect();
        (versions, written.default_version.0, routes)
    }

    #[test]
    fn a_canary_takes_its_share_is_promoted_and_taken_back() {
        let mut changes = vec![adding(None), adding(Some(5))];
        assert_eq!(shape(&after(&changes).unwrap()), (vec![1, 2], 1, vec![(1, 95), (2, 5)]));
        changes.push(routed(&[(2, 100)]));
        assert_eq!(shape(&after(&changes).unwrap()), (vec![1, 2], 2, vec![(2, 100)]));
        changes.push(routed(&[(1, 100), (2, 0)]));
        assert_eq!(shape(&after(&changes).unwrap()), (vec![1, 2], 1, vec![(1, 100)]));
    }

    #[test]
    fn a_swap_keeps_the_version_before() {
        assert_eq!(shape(&after(&[adding(None), adding(None)]).unwrap()), (vec![1, 2], 2, vec![(2, 100)]));
        let three = after(&[adding(None), adding(None), adding(None)]).unwrap();
        assert_eq!(shape(&three), (vec![2, 3], 3, vec![(3, 100)]));
        // Even an unborn canary stays beside the one that answers and the one before.
        let unborn = after(&[adding(None), adding(None), adding(Some(0))]).unwrap();
        assert_eq!(shape(&unborn), (vec![1, 2, 3], 2, vec![(2, 100)]));
    }

    #[test]
    fn a_canary_that_fell_is_no_way_back() {
        let changes = [adding(None), adding(Some(20)), routed(&[(1, 100)]), adding(None)];
        assert_eq!(shape(&after(&changes).unwrap()), (vec![1, 3], 3, vec![(3, 100)]));
    }

    #[test]
    fn the_least_used_goes_when_there_are_too_many() {
        let changes = [adding(None), adding(Some(20)), adding(Some(10)), adding(Some(30)), adding(Some(10))];
        let (versions, default, routes) = shape(&after(&changes).unwrap());
        assert_eq!((versions.len(), default), (ENDPOINT_VERSIONS_MAX, 1));
        assert!(!versions.contains(&3) && versions.contains(&5), "{versions:?}");
        assert_eq!(routes.iter().map(|r| r.1).sum::<u32>(), 100);
    }

    #[test]
    fn shares_always_add_up() {
        let routes: Vec<Route> =
            [33, 33, 34].iter().zip(1..).map(|(&weight, v)| Route { version: Version(v), weight }).collect();
        for percent in 0..=100 {
            assert_eq!(make_room(&routes, percent).iter().map(|r| r.weight).sum::<u32>(), percent);
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_field() {
        let one = adding(None);
        let settings = |patch| EndpointChange { settings: patch, ..EndpointChange::default() };
        let rollback = Rollback { min_agreement: Some(0.9), max_error_ratio: None, min_requests: 50 };
        for (wrong, says) in [
            (routed(&[(1, 99)]), "add up to 99"),
            (routed(&[(1, 50), (1, 50)]), "twice"),
            (routed(&[(7, 100)]), "version 7"),
            (EndpointChange { weight: Some(5), ..EndpointChange::default() }, "`weight`"),
            (
                settings(SettingsPatch {
                    shadow: Some(Some(Shadow { fraction: 1.5, statistics: false })),
                    ..SettingsPatch::default()
                }),
                "shadow.fraction",
            ),
            (
                settings(SettingsPatch { rollback: Some(Some(rollback)), ..SettingsPatch::default() }),
                "needs `shadow.fraction`",
            ),
            (
                settings(SettingsPatch { concurrency: Some(Some(0)), ..SettingsPatch::default() }),
                "concurrency",
            ),
        ] {
            let error = after(&[one.clone(), wrong]).unwrap_err();
            assert!(error.contains(says), "{error} does not say {says}");
        }
        assert!(after(&[routed(&[])]).is_err());
    }

    #[test]
    fn settings_stay_until_they_are_given_anew() {
        let patch: SettingsPatch =
            serde_json::from_str(r#"{"shadow":{"fraction":0.5},"queue_limit":9}"#).unwrap();
        let with = EndpointChange { settings: patch, ..EndpointChange::default() };
        let back: SettingsPatch = serde_json::from_str(r#"{"queue_limit":null}"#).unwrap();
        let back = EndpointChange { settings: back, ..EndpointChange::default() };
        let written = after(&[adding(None), with, adding(None), back]).unwrap();
        assert_eq!(written.settings.queue_limit, None);
        assert_eq!(written.settings.shadow, Some(Shadow { fraction: 0.5, statistics: false }));
    }
}
