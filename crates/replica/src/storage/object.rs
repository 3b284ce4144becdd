//! Blobs as objects of S3 or Azure Blob, or of anything else that `object_store` speaks to.
//!
//! Blobs that are put whole are one object. A blob that is appended to is a row of parts while it
//! is open, and one object when it is finished: see `appender`. The store is only used if it
//! enforces create-if-absent. What the environment says about servers and keys is `connect`'s.

mod appender;
mod asked;
mod connect;
mod content_md5;
mod engine;
mod lease;
mod lock_proof;
mod pages;
mod requests;
mod retry;
mod versions;

pub use asked::AskError;
pub use connect::{ConnectError, ObjectPlace};
pub use lease::{LeaseTimes, Takeover};
pub use lock_proof::{Keeps, LockError, LockProof};
#[cfg(feature = "testing")]
pub use requests::Backing;
pub use versions::{History, Lost};

use super::{Appender, BlobStore, Put, StorageError, StoreLock, check_name};
use appender::{ObjectAppender, PARTS, Writing, ended, part_name};
use bytes::Bytes;
use engine::{Engine, Pace};
use pages::{PAGE_BYTES, Pages};
use requests::{Requests, guard};
use retry::Patience;
use std::{
    collections::{BTreeMap, HashMap},
    io,
    sync::{Arc, Mutex},
};
use uuid::Uuid;

/// Most bytes that one request reads: it has to come through within one try.
const READ_BYTES_MAX: u64 = 8 << 20;
/// Requests of a read ahead that are under way at once.
const AHEAD_AT_ONCE: usize = 16;
/// Most bytes that a read ahead leaves in memory.
const AHEAD_BYTES_MAX: usize = 32 << 20;

/// In which form a blob is there.
#[derive(Clone, Debug)]
enum Form {
    /// One object of so many bytes, which never change.
    Whole(u64),
    /// Parts by their offset, without a gap, with their lengths. There may be more by now.
    Parts(Vec<(u64, u64)>),
}

impl Form {
    fn len(&self) -> u64 {
        match self {
            Form::Whole(len) => *len,
            Form::Parts(parts) => parts.last().map_or(0, |(offset, len)| offset + len),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct ObjectBlobs {
    engine: Arc<Engine>,
    requests: Arc<Requests>,
    writing: Writing,
    forms: Mutex<HashMap<String, Form>>,
    pages: Mutex<Pages>,
    /// Whole blobs that were read ahead of their reader, who takes them out.
    ahead: Mutex<HashMap<String, Bytes>>,
    times: LeaseTimes,
    takeover: Takeover,
}

impl ObjectBlobs {
    /// Opens a place for writing, and proves that it enforces create-if-absent.
    ///
    /// # Errors
    /// [`StorageError::NotEnforced`] when it does not; [`StorageError::Io`].
    pub fn open(place: &ObjectPlace, takeover: Takeover) -> Result<ObjectBlobs, StorageError> {
        let mut blobs = ObjectBlobs::open_reading(place)?;
        blobs.takeover = takeover;
        blobs.probe()?;
        Ok(blobs)
    }

    /// Opens a place without writing anything there, for readers.
    ///
    /// # Errors
    /// [`StorageError::Io`] when the environment does not say how to reach it.
    pub fn open_reading(place: &ObjectPlace) -> Result<ObjectBlobs, StorageError> {
        let backing = place.connect().map_err(|error| StorageError::Io {
            action: "reach",
            name: place.to_string(),
            source: io::Error::new(io::ErrorKind::InvalidInput, error.to_string()),
        })?;
        let requests = Requests::new(backing, place.to_string(), place.prefix().to_owned());
        ObjectBlobs::new(requests, Pace::Real, LeaseTimes::USUAL)
    }

    /// A store over something in memory, with or without a clock that jumps to the next timer.
    ///
    /// # Errors
    /// As [`Self::open`].
    #[cfg(feature = "testing")]
    pub fn over(
        backing: Arc<dyn Backing>,
        simulated_time: bool,
        times: LeaseTimes,
        takeover: Takeover,
    ) -> Result<ObjectBlobs, StorageError> {
        let requests = Requests::new(backing, "memory://test".into(), "test".into());
        let pace = if simulated_time { Pace::Simulated } else { Pace::Real };
        let mut blobs = ObjectBlobs::new(requests, pace, times)?;
        blobs.takeover = takeover;
        blobs.probe()?;
        Ok(blobs)
    }

    fn new(requests: Requests, pace: Pace, times: LeaseTimes) -> Result<ObjectBlobs, StorageError> {
        let engine = Engine::start(pace).map_err(|source| {
            let (action, name) = ("start the requests to", requests.shown(""));
            StorageError::Io { action, name, source }
        })?;
        Ok(ObjectBlobs {
            engine: Arc::new(engine),
            requests: Arc::new(requests),
            writing: Writing::default(),
            forms: Mutex::default(),
            pages: Mutex::default(),
            ahead: Mutex::default(),
            times,
            takeover: Takeover::WhenStale,
        })
    }

    fn probe(&self) -> Result<(), StorageError> {
        let name = format!("probe-{}", Uuid::new_v4());
        let not_enforced = || StorageError::NotEnforced { name: self.requests.shown("") };
        let unsupported = |error: StorageError| match error {
            StorageError::Io { source, .. } if source.kind() == io::ErrorKind::Unsupported => {
                not_enforced()
            }
            other => other,
        };
        let first = self.put_new(&name, b"create-if-absent").map_err(unsupported)?;
        let second = self.put_new(&name, b"again").map_err(unsupported);
        // Who may put and not delete can still keep a store; the probe is a few bytes.
        if let Err(error) = self.delete(&name) {
            tracing::warn!(%error, "a probe object is left");
        }
        match (first, second?) {
            (Put::Created, Put::Exists) => Ok(()),
            _ => Err(not_enforced()),
        }
    }

    /// Runs a request to its end on the thread for them.
    fn run<T, F>(
        &self,
        name: &str,
        work: impl FnOnce(Arc<Requests>, String) -> F,
    ) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StorageError>> + Send + 'static,
    {
        let done = self.engine.run(work(self.requests.clone(), name.to_owned()));
        done.unwrap_or_else(|| Err(ended(&self.requests.shown(name))))
    }

    fn checked(&self, name: &str) -> Result<(), StorageError> {
        check_name(name)?;
        let reserved = name.split('/').any(|part| part.ends_with(PARTS));
        if reserved { Err(StorageError::Name { name: name.to_owned() }) } else { Ok(()) }
    }

    /// Asks in which form a blob is there now; `None` without one.
    fn look(&self, name: &str) -> Result<Option<Form>, StorageError> {
        let form = self.run(name, |requests, name| async move { look(&requests, &name).await })?;
        let mut forms = guard(&self.forms);
        match &form {
            Some(form) => forms.insert(name.to_owned(), form.clone()),
            None => forms.remove(name),
        };
        Ok(form)
    }

    /// The form that serves a read up to `end`.
    fn form(&self, name: &str, end: u64) -> Result<Form, StorageError> {
        let known = guard(&self.forms).get(name).cloned();
        let known = known.filter(|form| matches!(form, Form::Whole(_)) || form.len() >= end);
        let absent = || StorageError::Absent { name: self.requests.shown(name) };
        match known {
            Some(form) => Ok(form),
            None => self.look(name)?.ok_or_else(absent),
        }
    }

    fn forget(&self, name: &str) {
        guard(&self.forms).remove(name);
        guard(&self.pages).forget(name);
        guard(&self.ahead).remove(name);
    }

    fn fetch(&self, object: &str, from: u64, end: u64) -> Result<Bytes, StorageError> {
        self.run(
            object,
            |requests, object| async move { requests.get(&object, Some(from..end)).await },
        )
    }

    /// Reads `from..end` of one object that has so many bytes.
    fn read_object(&self, object: &str, from: u64, end: u64) -> Result<Vec<u8>, StorageError> {
        let mut bytes = Vec::with_capacity((end - from) as usize);
        let mut at = from;
        while at < end {
            let next = end.min(at + READ_BYTES_MAX);
            bytes.extend_from_slice(&self.fetch(object, at, next)?);
            at = next;
        }
        Ok(bytes)
    }

    /// Reads `from..end` of a whole blob of `len` bytes through the pages in memory.
    fn read_paged(
        &self,
        name: &str,
        from: u64,
        end: u64,
        len: u64,
    ) -> Result<Vec<u8>, StorageError> {
        let mut bytes = Vec::with_capacity((end - from) as usize);
        let mut at = from;
        while at < end {
            let number = at / PAGE_BYTES;
            let begin = number * PAGE_BYTES;
            let known = guard(&self.pages).get(name, number);
            let page = match known {
                Some(page) => page,
                None => {
                    let page = self.fetch(name, begin, len.min(begin + PAGE_BYTES))?;
                    guard(&self.pages).put(name, number, page.clone());
                    page
                }
            };
            let until = end.min(begin + PAGE_BYTES);
            bytes.extend_from_slice(&page[(at - begin) as usize..(until - begin) as usize]);
            at = until;
        }
        Ok(bytes)
    }

    fn read_form(
        &self,
        name: &str,
        form: &Form,
        from: u64,
        end: u64,
    ) -> Result<Vec<u8>, StorageError> {
        let parts = match form {
            Form::Whole(len) if end - from <= PAGE_BYTES => {
                return self.read_paged(name, from, end, *len);
            }
            Form::Whole(_) => return self.read_object(name, from, end),
            Form::Parts(parts) => parts,
        };
        let mut bytes = Vec::with_capacity((end - from) as usize);
        for (offset, len) in parts {
            let (begin, until) = (from.max(*offset), end.min(offset + len));
            if begin < until {
                let part = part_name(name, *offset);
                bytes.extend(self.read_object(&part, begin - offset, until - offset)?);
            }
        }
        Ok(bytes)
    }
}

/// In which form a blob is there.
async fn look(requests: &Requests, name: &str) -> Result<Option<Form>, StorageError> {
    // Twice: between the two questions its writer may have made one object of the parts.
    for _ in 0..2 {
        match requests.head(name).await {
            Ok(head) => return Ok(Some(Form::Whole(head.len))),
            Err(StorageError::Absent { .. }) => {}
            Err(error) => return Err(error),
        }
        match parts_of(requests, name).await? {
            None => return Ok(None),
            Some(parts) if parts.is_empty() => {}
            Some(parts) => return Ok(Some(Form::Parts(parts))),
        }
    }
    Ok(None)
}

/// The parts of a blob from its beginning to the first gap. The list only saves questions: a part
/// that it leaves out is asked for.
/// `None` when nothing is listed at all.
async fn parts_of(
    requests: &Requests,
    name: &str,
) -> Result<Option<Vec<(u64, u64)>>, StorageError> {
    let listed = requests.list(&format!("{name}{PARTS}")).await?;
    let lens = listed.objects.iter().filter_map(|(name, len)| Some((name.parse().ok()?, *len)));
    let lens: BTreeMap<u64, u64> = lens.collect();
    if lens.is_empty() {
        return Ok(None);
    }
    let (mut parts, mut at) = (Vec::new(), 0);
    loop {
        let len = match lens.get(&at) {
            Some(len) => *len,
            None => match requests.head(&part_name(name, at)).await {
                Ok(head) => head.len,
                Err(StorageError::Absent { .. }) => return Ok(Some(parts)),
                Err(error) => return Err(error),
            },
        };
        if len == 0 {
            return Ok(Some(parts));
        }
        parts.push((at, len));
        at += len;
    }
}

impl BlobStore for ObjectBlobs {
    fn create_new(&self, name: &str) -> Result<Box<dyn Appender>, StorageError> {
        self.checked(name)?;
        let exists = || StorageError::Exists { name: self.requests.shown(name) };
        if self.look(name)?.is_some() || !guard(&self.writing).insert(name.to_owned()) {
            return Err(exists());
        }
        let (engine, requests) = (self.engine.clone(), self.requests.clone());
        Ok(Box::new(ObjectAppender::new(engine, requests, self.writing.clone(), name)))
    }

    fn put_new(&self, name: &str, bytes: &[u8]) -> Result<Put, StorageError> {
        self.checked(name)?;
        if guard(&self.writing).contains(name) {
            return Ok(Put::Exists);
        }
        let bytes = Bytes::copy_from_slice(bytes);
        self.run(name, |requests, name| async move {
            requests.put_new(&name, bytes, Patience::FULL).await
        })
    }

    fn read_at(&self, name: &str, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
        self.checked(name)?;
        let wanted = offset.saturating_add(len as u64);
        let read = || {
            let form = self.form(name, wanted)?;
            let end = wanted.min(form.len());
            if offset >= end { Ok(Vec::new()) } else { self.read_form(name, &form, offset, end) }
        };
        match read() {
            // Its parts became one object since they were asked for.
            Err(StorageError::Absent { .. }) => {
                self.forget(name);
                read()
            }
            read => read,
        }
    }

    fn read_whole(&self, name: &str, max: usize) -> Result<Vec<u8>, StorageError> {
        self.checked(name)?;
        if let Some(bytes) = guard(&self.ahead).remove(name) {
            return Ok(bytes[..bytes.len().min(max)].to_vec());
        }
        // Without a range: an empty object has none.
        let read = self.run(name, |requests, name| async move { requests.get(&name, None).await });
        read.map(|bytes| bytes[..bytes.len().min(max)].to_vec())
    }

    fn read_ahead(&self, names: &[String]) {
        let requests = self.requests.clone();
        let names = names.to_vec();
        let fetched = self.engine.run(async move {
            let mut fetched = Vec::new();
            let mut bytes = 0;
            for some in names.chunks(AHEAD_AT_ONCE) {
                let mut tasks = tokio::task::JoinSet::new();
                for name in some.iter().cloned() {
                    let requests = requests.clone();
                    tasks.spawn(
                        async move { requests.get(&name, None).await.map(|got| (name, got)) },
                    );
                }
                while let Some(done) = tasks.join_next().await {
                    // Whoever needs it asks for it again, and hears why it cannot be read.
                    let Ok(Ok((name, got))) = done else { continue };
                    bytes += got.len();
                    fetched.push((name, got));
                }
                if bytes > AHEAD_BYTES_MAX {
                    break;
                }
            }
            fetched
        });
        let mut ahead = guard(&self.ahead);
        ahead.clear();
        ahead.extend(fetched.unwrap_or_default());
    }

    fn len(&self, name: &str) -> Result<Option<u64>, StorageError> {
        self.checked(name)?;
        Ok(self.look(name)?.map(|form| form.len()))
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StorageError> {
        if !folder.is_empty() {
            self.checked(folder)?;
        }
        let listed =
            self.run(folder, |requests, folder| async move { requests.list(&folder).await })?;
        let objects = listed.objects.into_iter().map(|(name, _)| name);
        // Parts are listed as their blob.
        let folders = listed.folders.into_iter();
        let folders = folders.map(|name| name.strip_suffix(PARTS).unwrap_or(&name).to_owned());
        let mut names: Vec<String> = objects.chain(folders).collect();
        names.retain(|name| check_name(name).is_ok());
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn delete(&self, name: &str) -> Result<(), StorageError> {
        self.checked(name)?;
        self.forget(name);
        self.run(name, |requests, name| async move {
            let folder = format!("{name}{PARTS}");
            let mut parts = requests.list(&folder).await?.objects;
            // From the first on: without that one the blob is gone, whatever is left.
            parts.sort();
            for (part, _) in parts {
                requests.delete(&format!("{folder}/{part}"), Patience::FULL).await?;
            }
            requests.delete(&name, Patience::FULL).await
        })
    }

    /// An object's name is durable with its bytes.
    fn sync_dir(&self, _folder: &str) -> Result<(), StorageError> {
        Ok(())
    }

    fn lock(&self, name: &str) -> Result<StoreLock, StorageError> {
        self.checked(name)?;
        lease::take(&self.engine, &self.requests, name, self.times, self.takeover)
    }

    fn free_bytes(&self) -> Result<Option<u64>, StorageError> {
        Ok(None)
    }
}
