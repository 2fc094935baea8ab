//! Removes blobs that no record refers to, and copies that take too much room. Knows no records but asks the catalog.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::{MutexGuard, PoisonError};

use super::blobs::{Blobs, Error, failed, names};
use super::{Catalog, Digest};

impl Blobs {
    /// Tries again to remove what was being read when it was discarded, and what was written for rows that never came.
    ///
    /// # Errors
    /// As [`Blobs::discard`].
    pub async fn discard_doomed(&self, catalog: &dyn Catalog) -> Result<u64, Error> {
        let doomed = std::mem::take(&mut *self.doomed());
        self.discard(catalog, &doomed.into_iter().collect::<Vec<_>>()).await
    }

    fn doomed(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.shared.doomed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes those of `digests` that no record refers to. One that somebody has pinned, or that could not be removed,
    /// goes later, with [`Blobs::discard_doomed`].
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Remote`] or [`Error::Catalog`], after all were tried.
    pub async fn discard(&self, catalog: &dyn Catalog, digests: &[Digest]) -> Result<u64, Error> {
        self.discard_each(catalog, digests.iter().copied()).await
    }

    async fn discard_each(
        &self,
        catalog: &dyn Catalog,
        digests: impl Iterator<Item = Digest>,
    ) -> Result<u64, Error> {
        let mut removed = 0;
        let mut fault = None;
        for digest in digests {
            match self.discard_one(catalog, digest).await {
                Ok(gone) => removed += u64::from(gone),
                Err(error) => {
                    self.doomed().insert(digest);
                    fault.get_or_insert(error);
                }
            }
        }
        fault.map_or(Ok(removed), Err)
    }

    async fn discard_one(&self, catalog: &dyn Catalog, digest: Digest) -> Result<bool, Error> {
        let Some(mut removed) = self.discard_local(catalog, digest).await? else { return Ok(false) };
        if let Some(remote) = &self.shared.remote {
            let gone = remote.remove(digest).await?;
            if !gone && !catalog.blob_referenced(digest).await? {
                // Somebody holds it, but may yet let go of it.
                self.doomed().insert(digest);
            }
            removed |= gone;
        }
        Ok(removed)
    }

    /// Removes the local file; `None` where it is needed.
    async fn discard_local(&self, catalog: &dyn Catalog, digest: Digest) -> Result<Option<bool>, Error> {
        // Under the gate nothing is renamed into place or pinned, so a blob without a pin and without
        // a row cannot get a row before it is gone: whoever makes a row holds a pin.
        let _gate = self.shared.gate.lock().await;
        if catalog.blob_referenced(digest).await? {
            return Ok(None);
        }
        if self.pinned(digest) {
            self.doomed().insert(digest);
            return Ok(None);
        }
        self.unlink(digest).await.map(Some)
    }

    /// To be called under the gate.
    async fn unlink(&self, digest: Digest) -> Result<bool, Error> {
        let path = self.path(digest);
        match tokio::fs::remove_file(&path).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(source) => Err(failed("removing", &path, source)),
        }
    }

    /// Removes every blob that no record refers to, here and in the shared store: those of uploads and jobs that were
    /// cut off between the file and the row. Before each it asks whether to go on. Of a catalog that knows of nothing it
    /// takes no word: more likely its database was lost, and what lies here is what can be saved.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Remote`] or [`Error::Catalog`], after all were tried.
    pub async fn sweep(&self, catalog: &dyn Catalog, goes_on: impl Fn() -> bool) -> Result<u64, Error> {
        let mut all = self.local()?;
        if let Some(remote) = &self.shared.remote {
            all.extend(remote.list().await?);
            all.sort_unstable();
            all.dedup();
        }
        let census = catalog.census().await?;
        if census.float_bytes + census.int8_bytes + census.dataset_bytes == 0 && census.jobs == [0; 6] {
            if !all.is_empty() {
                let (blobs, folder) = (all.len(), self.shared.root.join("blobs"));
                tracing::warn!(
                    blobs,
                    "The database knows of no models, data or jobs, but there are {blobs} files (`{}`): they are left. \
                     If the database was lost, restore it; if they are of no use, remove them",
                    folder.display()
                );
            }
            return Ok(0);
        }
        self.discard_each(catalog, all.into_iter().take_while(|_| goes_on())).await
    }

    /// Removes local copies of what another process has removed, and of what was not used for the longest where they take
    /// more than they may.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::Catalog`].
    pub async fn sweep_copies(&self, catalog: &dyn Catalog) -> Result<u64, Error> {
        let mut removed = 0;
        let mut copies = Vec::new();
        for digest in self.local()? {
            match self.discard_local(catalog, digest).await? {
                Some(gone) => removed += u64::from(gone),
                None => {
                    let used = self.uses().1.get(&digest).copied().unwrap_or(0);
                    let bytes =
                        tokio::fs::metadata(self.path(digest)).await.map_or(0, |metadata| metadata.len());
                    copies.push((used, digest, bytes));
                }
            }
        }
        let mut total: u64 = copies.iter().map(|copy| copy.2).sum();
        copies.sort_unstable();
        for (_, digest, bytes) in copies {
            if self.shared.cache_bytes == 0 || total <= self.shared.cache_bytes {
                break;
            }
            let _gate = self.shared.gate.lock().await;
            if !self.pinned(digest) && self.unlink(digest).await? {
                total -= bytes;
                removed += 1;
            }
        }
        let mut uses = self.uses();
        uses.1.retain(|digest, _| self.path(*digest).exists());
        Ok(removed)
    }

    fn uses(&self) -> MutexGuard<'_, (u64, HashMap<Digest, u64>)> {
        self.shared.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The blobs that have a file here.
    fn local(&self) -> Result<Vec<Digest>, Error> {
        let blobs = self.shared.root.join("blobs");
        let mut digests = Vec::new();
        for folder in names(&blobs)? {
            let files = names(&blobs.join(&folder))?;
            digests.extend(files.iter().filter_map(|rest| format!("{folder}{rest}").parse::<Digest>().ok()));
        }
        Ok(digests)
    }

    fn pinned(&self, digest: Digest) -> bool {
        self.shared.pins.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&digest)
    }
}

#[cfg(test)]
mod tests {
    use super::super::blobs::tests::{kept, two};
    use super::super::sql::tests::{Scratch, new_model};
    use super::*;

    #[tokio::test]
    async fn only_what_nobody_needs_is_removed() {
        let scratch = Scratch::new().await;
        let catalog = &*scratch.catalog;
        let blobs = Blobs::open(scratch.folder.path()).unwrap();
        let pin = blobs.put(b"model").await.unwrap();
        let digest = pin.digest();
        assert_eq!(blobs.discard(catalog, &[digest]).await.unwrap(), 0, "it is pinned");
        catalog.create_model(new_model("m", digest)).await.unwrap();
        drop(pin);
        assert_eq!(blobs.sweep(catalog, || true).await.unwrap(), 0, "it has a row");
        let orphan = blobs.put(b"orphan").await.unwrap().digest();
        assert_eq!(blobs.sweep(catalog, || true).await.unwrap(), 1);
        assert!(matches!(blobs.pin(orphan).await, Err(Error::Missing { .. })));
        let digests = catalog.delete_model(&"m".parse().unwrap(), None).await.unwrap();
        assert_eq!(blobs.discard(catalog, &digests).await.unwrap(), 1);
        assert_eq!(kept(scratch.folder.path()), 0);
        assert_eq!(blobs.discard(catalog, &digests).await.unwrap(), 0, "again does no harm");
    }

    #[tokio::test]
    async fn a_catalog_that_knows_nothing_removes_nothing() {
        let scratch = Scratch::new().await;
        let catalog = &*scratch.catalog;
        let blobs = Blobs::open(scratch.folder.path()).unwrap();
        let digest = blobs.put(b"what is left of a server whose database was lost").await.unwrap().digest();
        blobs.doomed().clear();
        assert_eq!(blobs.sweep(catalog, || true).await.unwrap(), 0);
        catalog.create_model(new_model("m", Digest([7; 32]))).await.unwrap();
        assert_eq!(blobs.sweep(catalog, || true).await.unwrap(), 1);
        assert!(!blobs.holds(digest).await.unwrap());
    }

    #[tokio::test]
    async fn what_gets_no_row_goes_with_its_pin() {
        let scratch = Scratch::new().await;
        let catalog = &*scratch.catalog;
        let blobs = Blobs::open(scratch.folder.path()).unwrap();
        let refused = blobs.put(b"refused").await.unwrap();
        let model = blobs.put(b"model").await.unwrap();
        assert_eq!(blobs.discard_doomed(catalog).await.unwrap(), 0, "a row may come yet");
        catalog.create_model(new_model("m", model.digest())).await.unwrap();
        let reader = blobs.pin(refused.digest()).await.unwrap();
        drop((refused, model));
        assert_eq!(blobs.discard_doomed(catalog).await.unwrap(), 0, "somebody reads it");
        drop(reader);
        assert_eq!(blobs.discard_doomed(catalog).await.unwrap(), 1);
        assert_eq!(kept(scratch.folder.path()), 1);
    }

    #[tokio::test]
    async fn nobody_removes_what_another_is_about_to_refer_to() {
        let scratch = Scratch::new().await;
        let catalog = &*scratch.catalog;
        let (a, b) = two(&scratch, 0).await;
        let pin = a.put(b"model").await.unwrap();
        let digest = pin.digest();
        assert_eq!(b.sweep(catalog, || true).await.unwrap(), 0, "it is held");
        catalog.create_model(new_model("m", digest)).await.unwrap();
        drop(pin);
        // The hold is released by a task.
        assert!(!catalog.begin_removal(digest, std::time::Duration::from_secs(9)).await.unwrap());
        assert_eq!(b.sweep(catalog, || true).await.unwrap(), 0, "it has a row");
        assert_eq!(b.read(digest, 99).await.unwrap(), b"model");
        let digests = catalog.delete_model(&"m".parse().unwrap(), None).await.unwrap();
        let mut removed = a.discard(catalog, &digests).await.unwrap();
        for _ in 0..100 {
            if removed > 0 {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            removed = a.discard_doomed(catalog).await.unwrap();
        }
        assert_eq!(removed, 1);
        assert_eq!(b.sweep_copies(catalog).await.unwrap(), 1, "the copy goes too");
        assert!(!a.holds(digest).await.unwrap() && !b.holds(digest).await.unwrap());
    }

    #[tokio::test]
    async fn copies_that_were_not_used_for_the_longest_make_room() {
        let scratch = Scratch::new().await;
        let catalog = &*scratch.catalog;
        let (a, b) = two(&scratch, 25).await;
        let mut digests = Vec::new();
        for (number, bytes) in [[1; 10], [2; 10], [3; 10]].iter().enumerate() {
            let pin = a.put(bytes).await.unwrap();
            catalog.create_model(new_model(&format!("m{number}"), pin.digest())).await.unwrap();
            digests.push(pin.digest());
            drop(b.pin(pin.digest()).await.unwrap());
        }
        drop(b.pin(digests[0]).await.unwrap());
        assert_eq!(b.sweep_copies(catalog).await.unwrap(), 1);
        let here: Vec<bool> = digests.iter().map(|digest| b.path(*digest).exists()).collect();
        assert_eq!(here, [true, false, true]);
        assert_eq!(b.read(digests[1], 99).await.unwrap(), [2; 10], "and comes again");
    }
}
