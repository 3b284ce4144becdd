//! Single requests to an object store, each tried until it is answered or patience ends. Whole
//! blobs and their parts are `object.rs`'s and `appender.rs`'s.

use super::{
    super::{Put, StorageError},
    lease::Held,
    retry::{Patience, Trouble, given_up, judge, pause},
};
use bytes::Bytes;
use object_store::{
    Error, GetOptions, GetRange, MultipartId, ObjectMeta, ObjectStore, ObjectStoreExt as _,
    PutMode, PutPayload,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use std::{
    collections::BTreeMap,
    future::Future,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::time::{Instant, sleep, timeout};

/// What a store of objects has to be able to do.
pub trait Backing: ObjectStore + MultipartStore {}

impl<T: ObjectStore + MultipartStore> Backing for T {}

/// What is directly in a folder: objects with their lengths, and folders, by last part of the name.
#[derive(Debug, Default)]
pub(super) struct Listed {
    pub(super) objects: Vec<(String, u64)>,
    pub(super) folders: Vec<String>,
}

/// An object as the store describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) len: u64,
    /// Milliseconds since 1970 by the store's clock.
    pub(super) written_ms: i64,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Requests {
    backing: Arc<dyn Backing>,
    /// What operators know the place by: `s3://bucket/prefix`.
    place: String,
    prefix: String,
    /// The leases that this process took, by their locks.
    held: Mutex<BTreeMap<String, Arc<Held>>>,
}

pub(super) fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these locks guard is valid after every single statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Requests {
    pub(super) fn new(backing: Arc<dyn Backing>, place: String, prefix: String) -> Requests {
        Requests { backing, place, prefix, held: Mutex::default() }
    }

    /// The name under which operators find an object.
    pub(super) fn shown(&self, name: &str) -> String {
        if name.is_empty() { self.place.clone() } else { format!("{}/{name}", self.place) }
    }

    /// From now on nothing is written unless this lease of `lock` is held.
    pub(super) fn hold(&self, lock: &str, held: Arc<Held>) {
        guard(&self.held).insert(lock.to_owned(), held);
    }

    /// Takes out a lease of `lock` that was lost: its holder may ask for the lock again.
    pub(super) fn lost(&self, lock: &str) -> Option<Arc<Held>> {
        let mut held = guard(&self.held);
        let lost = held.get(lock).is_some_and(|held| !held.is_held());
        if lost { held.remove(lock) } else { None }
    }

    /// The lease of `lock` was given back in order: it is no condition any more.
    pub(super) fn let_go(&self, lock: &str) {
        guard(&self.held).remove(lock);
    }

    fn key(&self, name: &str) -> Path {
        Path::from(format!("{}/{name}", self.prefix))
    }

    fn check_held(&self, name: &str) -> Result<(), Trouble> {
        let lost = guard(&self.held).values().any(|held| !held.is_held());
        let error = || StorageError::LeaseLost { name: self.shown(name) };
        if lost { Err(Trouble::Final(error())) } else { Ok(()) }
    }

    async fn retry<T, F>(
        &self,
        action: &'static str,
        name: &str,
        patience: Patience,
        mut work: impl FnMut(u32) -> F,
    ) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, Trouble>>,
    {
        let begun = Instant::now();
        let mut tries = 0;
        loop {
            tries += 1;
            let why = match timeout(patience.attempt, work(tries)).await {
                Ok(Ok(done)) => return Ok(done),
                Ok(Err(Trouble::Final(error))) => return Err(error),
                Ok(Err(Trouble::Passing(why))) => why,
                Err(_) => format!("no answer in {} s", patience.attempt.as_secs()),
            };
            let pause = pause(tries);
            if begun.elapsed() + pause > patience.deadline {
                return Err(given_up(action, &self.shown(name), tries, &why));
            }
            tracing::debug!(action, name, tries, why, "the object store will be asked again");
            sleep(pause).await;
        }
    }

    /// What an object is; [`StorageError::Absent`] without one.
    pub(super) async fn head(&self, name: &str) -> Result<Head, StorageError> {
        self.retry("look at", name, Patience::FULL, |_| self.head_once(name)).await
    }

    async fn head_once(&self, name: &str) -> Result<Head, Trouble> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        let got = self.backing.get_opts(&self.key(name), options).await;
        let got = got.map_err(|error| judge("look at", &self.shown(name), &error))?;
        let ObjectMeta { size, last_modified, .. } = got.meta;
        Ok(Head { len: size, written_ms: last_modified.timestamp_millis() })
    }

    /// An object's bytes, or those of `range` that it has.
    pub(super) async fn get(
        &self,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<Bytes, StorageError> {
        self.retry("read", name, Patience::FULL, |_| self.get_once(name, range.clone())).await
    }

    async fn get_once(&self, name: &str, range: Option<Range<u64>>) -> Result<Bytes, Trouble> {
        let shown = self.shown(name);
        let judged = |error: Error| judge("read", &shown, &error);
        let options =
            GetOptions { range: range.clone().map(GetRange::Bounded), ..GetOptions::default() };
        let got = self.backing.get_opts(&self.key(name), options).await.map_err(judged)?;
        let (found, len) = (got.range.clone(), got.meta.size);
        let asked = range.map_or(0..len, |range| range.start..range.end.min(len));
        let bytes = got.bytes().await.map_err(judged)?;
        // A body that ends early is an answer that was lost on its way.
        if found != asked || bytes.len() as u64 != asked.end - asked.start {
            let why = format!("{} of bytes {found:?} came, asked {asked:?}", bytes.len());
            return Err(Trouble::Passing(why));
        }
        Ok(bytes)
    }

    /// Puts an object if there is none.
    ///
    /// An answer that is lost may have been a yes, and a request may arrive twice: then the answer
    /// that comes is about our own object. Equal bytes are ours; whoever puts what somebody else
    /// may put too makes its bytes unlike theirs with a nonce.
    pub(super) async fn put_new(
        &self,
        name: &str,
        bytes: Bytes,
        patience: Patience,
    ) -> Result<Put, StorageError> {
        let once = |_| self.put_once(name, bytes.clone());
        self.retry("put", name, patience, once).await
    }

    async fn put_once(&self, name: &str, bytes: Bytes) -> Result<Put, Trouble> {
        self.check_held(name)?;
        let payload = PutPayload::from_bytes(bytes.clone());
        let put = self.backing.put_opts(&self.key(name), payload, PutMode::Create.into()).await;
        match put {
            Ok(_) => return Ok(Put::Created),
            Err(Error::AlreadyExists { .. }) => {}
            Err(error) => return Err(judge("put", &self.shown(name), &error)),
        }
        // Two puts at once are answered like one that is too late: only the object itself tells.
        match self.get_once(name, None).await {
            Ok(found) if found == bytes => Ok(Put::Created),
            Ok(_) => Ok(Put::Exists),
            Err(Trouble::Final(StorageError::Absent { .. })) => {
                Err(Trouble::Passing("refused for an object that is not there".into()))
            }
            Err(trouble) => Err(trouble),
        }
    }

    /// Puts an object in the place of one that only this process writes. No lease is asked for.
    pub(super) async fn put_over(
        &self,
        name: &str,
        bytes: Bytes,
        patience: Patience,
    ) -> Result<(), StorageError> {
        let once = |_| async {
            let payload = PutPayload::from_bytes(bytes.clone());
            let (key, mode) = (self.key(name), PutMode::Overwrite.into());
            let put = self.backing.put_opts(&key, payload, mode).await;
            put.map(drop).map_err(|error| judge("put", &self.shown(name), &error))
        };
        self.retry("put", name, patience, once).await
    }

    /// Deletes an object; absent is fine.
    pub(super) async fn delete(&self, name: &str, patience: Patience) -> Result<(), StorageError> {
        let once = |_| async {
            self.check_held(name)?;
            let deleted = self.backing.delete(&self.key(name)).await;
            deleted.map_err(|error| judge("delete", &self.shown(name), &error))
        };
        match self.retry("delete", name, patience, once).await {
            Err(StorageError::Absent { .. }) => Ok(()),
            deleted => deleted,
        }
    }

    /// Everything directly in `folder`.
    pub(super) async fn list(&self, folder: &str) -> Result<Listed, StorageError> {
        let key = self.key(folder);
        let once = |_| async {
            let listed = self.backing.list_with_delimiter(Some(&key)).await;
            listed.map_err(|error| judge("list", &self.shown(folder), &error))
        };
        let found = match self.retry("list", folder, Patience::FULL, once).await {
            Err(StorageError::Absent { .. }) => return Ok(Listed::default()),
            found => found?,
        };
        let last = |path: &Path| path.filename().unwrap_or_default().to_owned();
        // Some servers list a folder in itself, as an empty object.
        let objects = found.objects.iter().filter(|meta| meta.location != key);
        let objects = objects.map(|meta| (last(&meta.location), meta.size));
        let folders = found.common_prefixes.iter().filter(|folder| **folder != key).map(last);
        Ok(Listed { objects: objects.collect(), folders: folders.collect() })
    }

    /// Begins an object that is put in several parts; it is there when it is completed.
    pub(super) async fn begin_upload(&self, name: &str) -> Result<MultipartId, StorageError> {
        let once = |_| async {
            self.check_held(name)?;
            let begun = self.backing.create_multipart(&self.key(name)).await;
            begun.map_err(|error| judge("begin to put", &self.shown(name), &error))
        };
        self.retry("begin to put", name, Patience::FULL, once).await
    }

    pub(super) async fn upload_part(
        &self,
        name: &str,
        upload: &MultipartId,
        index: usize,
        bytes: Bytes,
    ) -> Result<PartId, StorageError> {
        let once = |_| async {
            self.check_held(name)?;
            let payload = PutPayload::from_bytes(bytes.clone());
            let put = self.backing.put_part(&self.key(name), upload, index, payload).await;
            put.map_err(|error| judge("put a part of", &self.shown(name), &error))
        };
        self.retry("put a part of", name, Patience::FULL, once).await
    }

    /// Makes the object of its parts; `len` are all their bytes.
    pub(super) async fn complete_upload(
        &self,
        name: &str,
        upload: &MultipartId,
        parts: &[PartId],
        len: u64,
        patience: Patience,
    ) -> Result<(), StorageError> {
        let once = |_| async move {
            self.check_held(name)?;
            let (key, parts) = (self.key(name), parts.to_vec());
            let done = self.backing.complete_multipart(&key, upload, parts).await;
            let Err(error) = done else { return Ok(()) };
            // After a lost answer, or a second request, the upload is gone and the object is there.
            if self.head_once(name).await.is_ok_and(|head| head.len == len) {
                return Ok(());
            }
            Err(judge("complete", &self.shown(name), &error))
        };
        self.retry("complete", name, patience, once).await
    }

    /// Gives up an object that was begun. What is left of it costs room until the bucket's own
    /// rule takes it away.
    pub(super) async fn abort_upload(&self, name: &str, upload: &MultipartId) {
        let once = |_| async {
            let ended = self.backing.abort_multipart(&self.key(name), upload).await;
            ended.map_err(|error| judge("give up", &self.shown(name), &error))
        };
        if let Err(error) = self.retry("give up", name, Patience::SHORT, once).await {
            tracing::debug!(name, %error, "parts of an unfinished object may be left");
        }
    }
}
