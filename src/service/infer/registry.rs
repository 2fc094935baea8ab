//! Which endpoints are in memory. Follows the catalog: loads what is new off the request path, swaps without
//! dropping a request, lets go of what is gone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crate::engine::exec::Options;
use crate::service::infer::batcher::Batcher;
use crate::service::infer::served::{Files, How, Served, Ticket};
use crate::service::infer::shadow::Picker;
use crate::service::infer::{Error, Limits};
use crate::service::metrics::Protocol;
use crate::service::metrics::process::Metrics;
use crate::service::store::blobs::{self, Blobs};
use crate::service::store::{
    self, Catalog, Endpoint, EndpointSettings, EndpointVersion, Page, Route, Version, Wanted,
};

/// The endpoints in memory.
pub struct Registry {
    catalog: Arc<dyn Catalog>,
    blobs: Blobs,
    batcher: Arc<Batcher>,
    metrics: Arc<Metrics>,
    options: Options,
    // Loads and warms up; apart from the threads that answer.
    loader: Arc<rayon::ThreadPool>,
    // Bytes of packed weights; 0 is no limit.
    memory_bytes: u64,
    // Counts loads and requests: what has the lowest number was not used for the longest.
    uses: AtomicU64,
    entries: RwLock<HashMap<String, Arc<Entry>>>,
    // Whether the catalog was read once: an endpoint that is not among the entries does not exist.
    read: AtomicBool,
    unloaded: RwLock<HashSet<String>>,
    // One follower at a time; loads are slow and must not run twice.
    following: tokio::sync::Mutex<()>,
}

/// One endpoint as it is served now.
#[derive(Clone)]
pub struct Entry {
    /// What the catalog says.
    pub endpoint: Endpoint,
    /// What became of each version.
    pub versions: BTreeMap<u32, State>,
    // Spreads the requests over the routes; stays the same when the endpoint changes.
    picker: Arc<Picker>,
}

/// How long a version that cannot be loaded is left alone: a look at the catalog comes every few seconds where several
/// processes share it.
pub const RETRY: Duration = Duration::from_secs(60);

/// What became of one version of an endpoint.
#[derive(Clone)]
pub enum State {
    /// Answers requests.
    Ready(Arc<Served>),
    /// Is being loaded.
    Loading,
    /// Cannot be loaded: why, and since when. Tried again after [`RETRY`], and where the endpoint changes.
    Failed(String, Instant),
    /// Was taken out of memory by `/v2/repository/models/NAME/unload`.
    Unloaded,
    /// Made room for others; the next request loads it again.
    Evicted,
}

impl Registry {
    /// An empty registry. Sessions run with `options` and are loaded by the threads of `loader`. Where packed weights take
    /// more than `memory_bytes` (0 is no limit), the least recently used versions make room.
    #[must_use]
    pub fn new(
        catalog: Arc<dyn Catalog>,
        blobs: Blobs,
        batcher: Arc<Batcher>,
        metrics: Arc<Metrics>,
        options: Options,
        loader: Arc<rayon::ThreadPool>,
        memory_bytes: u64,
    ) -> Arc<Registry> {
        Arc::new(Registry {
            catalog,
            blobs,
            batcher,
            metrics,
            options,
            loader,
            memory_bytes,
            uses: AtomicU64::new(0),
            entries: RwLock::default(),
            read: AtomicBool::new(false),
            unloaded: RwLock::default(),
            following: tokio::sync::Mutex::default(),
        })
    }

    /// What runs the requests.
    #[must_use]
    pub fn batcher(&self) -> &Arc<Batcher> {
        &self.batcher
    }

    /// A version of an endpoint that answers requests; the default version where none is named.
    ///
    /// # Errors
    /// [`Error::UnknownEndpoint`], [`Error::UnknownVersion`], [`Error::NotReady`].
    pub fn find(&self, name: &str, version: Option<&str>) -> Result<Arc<Served>, Error> {
        let (entry, number) = self.entry(name, version)?;
        Registry::ready(&entry, name, number)
    }

    fn ready(entry: &Entry, name: &str, number: u32) -> Result<Arc<Served>, Error> {
        match entry.versions.get(&number) {
            Some(State::Ready(served)) => Ok(Arc::clone(served)),
            state => Err(Error::NotReady {
                name: name.to_owned(),
                version: number,
                reason: state.map_or_else(|| "it is being loaded".to_owned(), State::reason),
            }),
        }
    }

    /// A request begins: at the version it names, else at one that the routes of the endpoint choose. Waits for one that
    /// has made room for others.
    ///
    /// # Errors
    /// As [`Registry::find`].
    pub async fn admit(
        self: &Arc<Registry>,
        name: &str,
        version: Option<&str>,
        protocol: Protocol,
    ) -> Result<Ticket, Error> {
        let (entry, number) = self.entry(name, version)?;
        let routed = if version.is_none() { entry.route() } else { None };
        let served = match routed {
            Some(served) => served,
            None if matches!(entry.versions.get(&number), Some(State::Evicted)) => {
                self.load_again(name, number).await?
            }
            None => Registry::ready(&entry, name, number)?,
        };
        served.use_number(self.uses.fetch_add(1, Ordering::Relaxed));
        let compared = entry.endpoint.settings.shadow.map_or(0.0, |shadow| shadow.fraction);
        Ok(Ticket::new(served, Arc::clone(&self.batcher), protocol, compared))
    }

    async fn load_again(self: &Arc<Registry>, name: &str, number: u32) -> Result<Arc<Served>, Error> {
        let (this, name) = (Arc::clone(self), name.to_owned());
        to_its_end(async move { this.load_evicted(&name, number).await }).await
    }

    async fn load_evicted(&self, name: &str, number: u32) -> Result<Arc<Served>, Error> {
        let _one = self.following.lock().await;
        let (entry, _) = self.entry(name, None)?;
        if matches!(entry.versions.get(&number), Some(State::Evicted)) {
            let mut entry = Entry::clone(&entry);
            if let Some(source) = entry.endpoint.versions.iter().find(|v| v.version.0 == number).cloned() {
                let state = self.load_or_say(&entry.endpoint, &source).await;
                entry.versions.insert(number, state);
                self.configure(&entry);
                self.set(entry);
                self.make_room(Some((name, number)));
            }
        }
        let (entry, _) = self.entry(name, None)?;
        Registry::ready(&entry, name, number)
    }

    /// Takes the least recently used versions out of memory until the others fit; never `kept`, nor the default of an
    /// endpoint that is required.
    fn make_room(&self, kept: Option<(&str, u32)>) {
        if self.memory_bytes == 0 {
            return;
        }
        let mut loaded = Vec::new();
        for entry in self.all() {
            for (&version, state) in &entry.versions {
                let State::Ready(served) = state else { continue };
                loaded.push((
                    served.last_use(),
                    entry.endpoint.name.to_string(),
                    version,
                    Arc::clone(served),
                ));
            }
        }
        let mut total: u64 = loaded.iter().map(|(.., served)| served.weight_bytes).sum();
        loaded.sort_by(|a, b| (a.0, &a.1, a.2).cmp(&(b.0, &b.1, b.2)));
        for (_, name, version, served) in loaded {
            if total <= self.memory_bytes {
                return;
            }
            let Ok((entry, _)) = self.entry(&name, None) else { continue };
            let required =
                entry.endpoint.settings.required == Some(true) && entry.endpoint.default_version.0 == version;
            if kept == Some((&name, version)) || required {
                continue;
            }
            let mut entry = Entry::clone(&entry);
            entry.versions.insert(version, State::Evicted);
            self.set(entry);
            total -= served.weight_bytes;
            tracing::info!(endpoint = %name, version, "Endpoint {name} version {version} makes room for others");
        }
    }

    /// An endpoint, and the number of the version that is meant.
    ///
    /// # Errors
    /// [`Error::UnknownEndpoint`], [`Error::UnknownVersion`], [`Error::Starting`].
    pub fn entry(&self, name: &str, version: Option<&str>) -> Result<(Arc<Entry>, u32), Error> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let unknown = || match self.read.load(Ordering::Relaxed) {
            true => Error::UnknownEndpoint { name: name.to_owned() },
            false => Error::Starting,
        };
        let entry = entries.get(name).ok_or_else(unknown)?;
        let number = match version {
            None => entry.endpoint.default_version.0,
            // Triton takes leading zeros in a version; so do we, here.
            Some(text) => match text.parse::<u32>() {
                Ok(number) if entry.versions.contains_key(&number) => number,
                _ => {
                    return Err(Error::UnknownVersion {
                        name: name.to_owned(),
                        version: text.to_owned(),
                        served: entry.versions.keys().copied().collect(),
                    });
                }
            },
        };
        Ok((Arc::clone(entry), number))
    }

    /// The endpoints that are required and do not answer.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let answers = |entry: &Entry| {
            matches!(
                entry.versions.get(&entry.endpoint.default_version.0),
                Some(State::Ready(_) | State::Evicted)
            )
        };
        let required = |entry: &Entry| entry.endpoint.settings.required == Some(true);
        entries.values().filter(|e| required(e) && !answers(e)).map(|e| e.endpoint.name.to_string()).collect()
    }

    /// All endpoints, by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Entry>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = entries.values().cloned().collect();
        all.sort_by(|a, b| a.endpoint.name.cmp(&b.endpoint.name));
        all
    }

    /// Takes an endpoint out of memory until [`Registry::reload`]; the catalog keeps it.
    ///
    /// # Errors
    /// [`Error::UnknownEndpoint`].
    pub fn unload(&self, name: &str) -> Result<(), Error> {
        let (entry, _) = self.entry(name, None)?;
        self.unloaded.write().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
        self.set(Entry::clone(&entry));
        Ok(())
    }

    /// Loads an endpoint that was unloaded or could not be loaded.
    ///
    /// # Errors
    /// As [`Registry::follow`].
    pub async fn reload(self: &Arc<Registry>, name: &str) -> Result<(), store::Error> {
        self.unloaded.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        if let Ok((entry, _)) = self.entry(name, None) {
            let mut entry = Entry::clone(&entry);
            // Asked for, a failure is no reason to wait.
            entry.versions.retain(|_, state| !matches!(state, State::Failed(..)));
            self.set(entry);
        }
        self.follow().await
    }

    /// Follows the catalog until the process ends.
    pub async fn keep_following(self: Arc<Registry>) {
        let mut changes = self.catalog.endpoint_changes();
        loop {
            // A change that comes while we look is seen by the next `changed`.
            changes.borrow_and_update();
            if let Err(error) = self.follow().await {
                tracing::error!(%error, "The endpoints could not be read: {error}");
            }
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Makes memory what the catalog says, now.
    ///
    /// # Errors
    /// Where the catalog does not answer. A version that cannot be loaded is [`State::Failed`] and no error.
    pub async fn follow(self: &Arc<Registry>) -> Result<(), store::Error> {
        let this = Arc::clone(self);
        to_its_end(async move { this.follow_all().await }).await
    }

    async fn follow_all(&self) -> Result<(), store::Error> {
        let _one = self.following.lock().await;
        let mut names = HashSet::new();
        let mut page = Page::first(Page::LIMIT_MAX);
        loop {
            let slice = self.catalog.endpoints(&page).await?;
            for endpoint in slice.items {
                names.insert(endpoint.name.to_string());
                self.follow_one(endpoint).await;
            }
            match slice.next {
                Some(next) => page.after = Some(next),
                None => break,
            }
        }
        self.entries.write().unwrap_or_else(PoisonError::into_inner).retain(|name, _| names.contains(name));
        self.unloaded.write().unwrap_or_else(PoisonError::into_inner).retain(|name| names.contains(name));
        self.read.store(true, Ordering::Relaxed);
        self.make_room(None);
        Ok(())
    }

    async fn follow_one(&self, endpoint: Endpoint) {
        let name = endpoint.name.to_string();
        let before = self.entry(&name, None).ok().map(|(entry, _)| entry);
        let unloaded = self.unloaded.read().unwrap_or_else(PoisonError::into_inner).contains(&name);
        let same = before.as_ref().is_some_and(|before| before.endpoint.revision == endpoint.revision);
        let mut versions = BTreeMap::new();
        let mut to_load = Vec::new();
        for source in &endpoint.versions {
            let kept = before.as_ref().and_then(|b| b.versions.get(&source.version.0)).cloned();
            let state = match kept {
                _ if unloaded => State::Unloaded,
                Some(State::Ready(served))
                    if served.source == *source && served.live.is_some() == collects(&endpoint, source) =>
                {
                    State::Ready(served)
                }
                // It answers until it is there once more, loaded as the settings have it now.
                Some(State::Ready(served)) => {
                    to_load.push(source.clone());
                    State::Ready(served)
                }
                Some(State::Evicted) => State::Evicted,
                Some(State::Failed(reason, since)) if same && since.elapsed() < RETRY => {
                    State::Failed(reason, since)
                }
                _ => {
                    to_load.push(source.clone());
                    State::Loading
                }
            };
            versions.insert(source.version.0, state);
        }
        // What answered before goes on answering while the new version loads.
        let picker = before.as_ref().map_or_else(Arc::default, |b| Arc::clone(&b.picker));
        let mut entry = Entry { endpoint: endpoint.clone(), versions, picker };
        let mut meanwhile = entry.clone();
        if let Some(before) = &before {
            let old = before.endpoint.default_version;
            if let (Some(State::Ready(served)), false) = (before.versions.get(&old.0), to_load.is_empty()) {
                meanwhile.endpoint.default_version = old;
                meanwhile.endpoint.routes.clone_from(&before.endpoint.routes);
                meanwhile.versions.entry(old.0).or_insert_with(|| State::Ready(Arc::clone(served)));
            }
        }
        if !to_load.is_empty() {
            self.set(meanwhile);
        }
        for source in to_load {
            let state = self.load_or_say(&endpoint, &source).await;
            let slot = entry.versions.entry(source.version.0).or_insert(State::Loading);
            // One that answers is better than none.
            if !matches!((&*slot, &state), (State::Ready(_), State::Failed(..))) {
                *slot = state;
            }
        }
        self.configure(&entry);
        self.set(entry);
    }

    /// Loads a version; where that cannot be, says so in the log.
    async fn load_or_say(&self, endpoint: &Endpoint, source: &EndpointVersion) -> State {
        match self.load(endpoint, source).await {
            Ok(served) => {
                served.use_number(self.uses.fetch_add(1, Ordering::Relaxed));
                State::Ready(Arc::new(served))
            }
            Err(reason) => {
                let (name, version) = (&endpoint.name, source.version);
                tracing::warn!(endpoint = %name, %version, %reason, "Endpoint {name} version {version} cannot be loaded: {reason}");
                State::Failed(reason, Instant::now())
            }
        }
    }

    /// Hands the settings of an endpoint to its versions.
    fn configure(&self, entry: &Entry) {
        let limits = lane_limits(&entry.endpoint.settings, self.batcher.limits());
        for (version, state) in &entry.versions {
            if let State::Ready(served) = state {
                served.configure(&limits, entry.endpoint.weight(Version(*version)));
            }
        }
    }

    async fn load(&self, endpoint: &Endpoint, source: &EndpointVersion) -> Result<Served, String> {
        let model =
            self.catalog.model(&Wanted::from(source.model.clone())).await.map_err(|e| e.to_string())?;
        let float = self.pin(model.sha256).await?;
        let artifact = match source.artifact {
            None => None,
            Some(id) => Some(self.catalog.artifact(id).await.map_err(|e| e.to_string())?),
        };
        let int8 = match &artifact {
            None => None,
            Some(artifact) => Some(self.pin(artifact.sha256).await?),
        };
        let statistics = match artifact.as_ref().and_then(|artifact| artifact.statistics) {
            None => None,
            Some(digest) => Some(self.pin(digest).await?),
        };
        let (name, source) = (endpoint.name.clone(), source.clone());
        let how = How {
            options: self.options.clone(),
            limits: lane_limits(&endpoint.settings, self.batcher.limits()),
            warm_up: endpoint.settings.warm_up.unwrap_or(1),
            statistics_of: collects(endpoint, &source).then_some(model.sha256.0),
        };
        let metrics = Arc::clone(&self.metrics);
        let (tell, loaded) = tokio::sync::oneshot::channel();
        self.loader.spawn(move || {
            // A bit that has fallen over would give other answers and say nothing.
            let damaged =
                [Some(&float), int8.as_ref()].into_iter().flatten().find_map(|pin| pin.check().err());
            if let Some(damaged) = damaged {
                let _ = tell.send(Err(damaged.to_string()));
                return;
            }
            let statistics = statistics.as_ref().map(blobs::Pin::path);
            let files = match &int8 {
                Some(int8) => Files { main: int8.path(), twin: Some(float.path()), statistics },
                None => Files { main: float.path(), twin: None, statistics },
            };
            let served =
                catch_unwind(AssertUnwindSafe(|| Served::load(&name, &source, &files, &how, &metrics)));
            // A panic drops the sender unused; nobody may be left to hear.
            if let Ok(served) = served {
                let _ = tell.send(served);
            }
        });
        let served =
            loaded.await.map_err(|_| "the engine stopped unexpectedly while loading".to_owned())??;
        if let Some(artifact) = &artifact {
            served.show_accuracy(&artifact.accuracy);
        }
        let (name, version, load_ms) = (&served.name, served.source.version, served.load_time.as_millis());
        let weight_bytes = served.weight_bytes;
        tracing::info!(endpoint = %name, %version, load_ms, weight_bytes, "Endpoint {name} version {version} is ready");
        Ok(served)
    }

    async fn pin(&self, digest: store::Digest) -> Result<blobs::Pin, String> {
        self.blobs.pin(digest).await.map_err(|e| e.to_string())
    }

    /// Serves an entry from now on; what was unloaded meanwhile stays so.
    fn set(&self, mut entry: Entry) {
        let name = entry.endpoint.name.to_string();
        // Held until the entry is in its place: who unloads after that finds it there.
        let unloaded = self.unloaded.read().unwrap_or_else(PoisonError::into_inner);
        if unloaded.contains(&name) {
            entry.versions.values_mut().for_each(|state| *state = State::Unloaded);
        }
        self.entries.write().unwrap_or_else(PoisonError::into_inner).insert(name, Arc::new(entry));
    }
}

/// Does work that goes on when nobody waits for it any more: a client that has gone must not cost the next one the same
/// load again.
async fn to_its_end<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    match tokio::spawn(work).await {
        Ok(done) => done,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime stops, and with it whoever waits.
            Err(_) => std::future::pending().await,
        },
    }
}

/// Whether the requests of a version add to statistics.
fn collects(endpoint: &Endpoint, source: &EndpointVersion) -> bool {
    endpoint.settings.shadow.is_some_and(|shadow| shadow.statistics) && source.artifact.is_some()
}

/// What the endpoint says, and the server where it does not.
fn lane_limits(settings: &EndpointSettings, server: &Limits) -> Limits {
    let size = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let batching = settings.batching;
    Limits {
        queue_max: settings.queue_limit.map_or(server.queue_max, size),
        batch_samples_max: batching.and_then(|b| b.max).map_or(server.batch_samples_max, size),
        batch_delay: batching
            .and_then(|b| b.delay_us)
            .map_or(server.batch_delay, |us| Duration::from_micros(us.into())),
        runs_max: settings.concurrency.map_or(server.runs_max, size),
    }
}

impl State {
    /// As Triton names it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            State::Ready(_) => "READY",
            State::Loading => "LOADING",
            State::Failed(..) | State::Unloaded | State::Evicted => "UNAVAILABLE",
        }
    }

    /// Why it does not answer; empty where it does.
    #[must_use]
    pub fn reason(&self) -> String {
        match self {
            State::Ready(_) => String::new(),
            State::Loading => "it is being loaded".to_owned(),
            State::Failed(reason, _) => reason.clone(),
            State::Unloaded => "unloaded".to_owned(),
            State::Evicted => "it made room for others; the next request loads it again".to_owned(),
        }
    }
}

impl Entry {
    /// The version that answers the next request that names none: one that is ready, by the routes. `None` where no
    /// route leads to one.
    fn route(&self) -> Option<Arc<Served>> {
        let ready = |route: &Route| match self.versions.get(&route.version.0) {
            Some(State::Ready(served)) => Some((route.weight, served)),
            _ => None,
        };
        let routes = self.endpoint.routes.iter();
        if let [only] = self.endpoint.routes.as_slice() {
            return ready(only).map(|(_, served)| Arc::clone(served));
        }
        let total: u32 = routes.clone().filter_map(ready).map(|(weight, _)| weight).sum();
        let mut at = self.picker.next() * f64::from(total);
        for (weight, served) in routes.filter_map(ready) {
            at -= f64::from(weight);
            if at < 0.0 {
                return Some(Arc::clone(served));
            }
        }
        None
    }

    /// The version that answers when the client names none.
    #[must_use]
    pub fn default_version(&self) -> Version {
        self.endpoint.default_version
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::service::infer::batcher::tests::batcher;
    use crate::service::store::sql::tests::{Scratch, name, new_model};
    use crate::service::store::{EndpointChange, Expect};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_load_goes_on_when_who_asked_for_it_has_gone() {
        let scratch = Scratch::new().await;
        let blobs = Blobs::open(scratch.folder.path()).unwrap();
        let pin = blobs.put(b"no model").await.unwrap();
        let model = scratch.catalog.create_model(new_model("m", pin.digest())).await.unwrap().record.pinned();
        let change = EndpointChange { add: Some((None, model)), ..EndpointChange::default() };
        scratch.catalog.change_endpoint(&name("e"), change, Expect::Any).await.unwrap();
        let loader = Arc::new(rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap());
        let (go, wait) = mpsc::channel::<()>();
        loader.spawn(move || _ = wait.recv());
        let metrics = Arc::new(Metrics::new("0", "scalar"));
        let (catalog, batcher) = (scratch.catalog.clone(), batcher(Limits::default()));
        let registry = Registry::new(catalog, blobs, batcher, metrics, Options::default(), loader, 0);
        let until = async |wanted: fn(&State) -> bool| {
            let state = || registry.entry("e", None).ok().and_then(|(e, _)| e.versions.get(&1).cloned());
            let is_so = async {
                while !state().is_some_and(|state| wanted(&state)) {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(Duration::from_secs(20), is_so).await.expect("in time");
        };
        assert!(matches!(registry.find("nobody", None), Err(Error::Starting)));
        let asked = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.follow().await }
        });
        until(|state| matches!(state, State::Loading)).await;
        asked.abort();
        assert!(asked.await.unwrap_err().is_cancelled());
        drop(go);
        // What it came to is kept: that the file is no model.
        until(|state| matches!(state, State::Failed(..))).await;
        registry.follow().await.unwrap();
        assert!(matches!(registry.find("nobody", None), Err(Error::UnknownEndpoint { .. })));
    }
}
