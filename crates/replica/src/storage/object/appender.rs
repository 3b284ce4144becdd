//! A blob that is being appended to, in a store that only takes whole objects.
//!
//! What is flushed becomes an immutable *part* of its own: `NAME.parts/OFFSET`, created if absent.
//! When the blob is finished it is put once more, whole, as `NAME`, and its parts are deleted. A
//! reader takes the whole if there is one, so a crash anywhere between leaves a readable blob.

use super::{
    super::{Appender, Put, StorageError},
    engine::Engine,
    requests::{Requests, guard},
    retry::Patience,
};
use bytes::Bytes;
use object_store::{MultipartId, multipart::PartId};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
};

/// Folder of the parts of a blob: its name and this. No blob's name ends so.
pub(super) const PARTS: &str = ".parts";
/// Bytes of a part of a whole object that is put in several; up to here it is put at once. All
/// stores take 5 MiB and more, and some want all but the last alike.
const UPLOAD_PART_BYTES: usize = 8 << 20;
/// Most bytes that wait for a flush; beyond, they are flushed early. One segment at its usual
/// length, so that one that is never flushed in between is put only once.
const UNFLUSHED_BYTES_MAX: usize = 40 << 20;

/// Name of the part of `blob` that begins at `offset`.
pub(super) fn part_name(blob: &str, offset: u64) -> String {
    format!("{blob}{PARTS}/{offset:016}")
}

/// Names that are being appended to in this process.
pub(super) type Writing = Arc<Mutex<HashSet<String>>>;

/// The whole object, as far as it is under way.
enum Whole {
    /// Nothing was sent yet.
    Waiting,
    /// Parts of it are there; nobody can see them.
    Begun { upload: MultipartId, parts: Vec<PartId> },
    /// It failed, and the blob stays in its parts.
    GivenUp,
    /// It is there.
    Done,
}

/// See the module.
pub(super) struct ObjectAppender {
    engine: Arc<Engine>,
    requests: Arc<Requests>,
    writing: Writing,
    name: String,
    /// Bytes that were appended.
    total: u64,
    /// What is not in a part of the blob yet.
    unflushed: Vec<u8>,
    /// Offsets of the parts.
    parts: Vec<u64>,
    /// What was not sent for the whole yet.
    tail: Vec<u8>,
    whole: Whole,
    poisoned: bool,
}

impl ObjectAppender {
    pub(super) fn new(
        engine: Arc<Engine>,
        requests: Arc<Requests>,
        writing: Writing,
        name: &str,
    ) -> ObjectAppender {
        ObjectAppender {
            engine,
            requests,
            writing,
            name: name.to_owned(),
            total: 0,
            unflushed: Vec::new(),
            parts: Vec::new(),
            tail: Vec::new(),
            whole: Whole::Waiting,
            poisoned: false,
        }
    }

    fn check(&self) -> Result<(), StorageError> {
        let done = matches!(self.whole, Whole::Done);
        if self.poisoned || done {
            return Err(StorageError::Poisoned { name: self.requests.shown(&self.name) });
        }
        Ok(())
    }

    /// Puts what is not flushed as the next part.
    fn flush(&mut self) -> Result<(), StorageError> {
        if self.unflushed.is_empty() {
            return Ok(());
        }
        let offset = self.total - self.unflushed.len() as u64;
        let (name, bytes) =
            (part_name(&self.name, offset), Bytes::copy_from_slice(&self.unflushed));
        let requests = self.requests.clone();
        let shown = requests.shown(&name);
        let put =
            self.engine.run(async move { requests.put_new(&name, bytes, Patience::FULL).await });
        let put = match put.unwrap_or_else(|| Err(ended(&shown))) {
            Ok(Put::Created) => Ok(()),
            Ok(Put::Exists) => Err(StorageError::Exists { name: shown }),
            Err(error) => Err(error),
        };
        self.poisoned = put.is_err();
        put?;
        self.parts.push(offset);
        self.unflushed.clear();
        Ok(())
    }

    /// Sends what is long enough for the whole object. A failure only means that the blob stays in
    /// its parts.
    fn send(&mut self) {
        while self.tail.len() > UPLOAD_PART_BYTES {
            let rest = self.tail.split_off(UPLOAD_PART_BYTES);
            let bytes = Bytes::from(std::mem::replace(&mut self.tail, rest));
            if let Err(error) = self.send_part(bytes) {
                self.give_up(&error);
            }
        }
    }

    fn send_part(&mut self, bytes: Bytes) -> Result<(), StorageError> {
        let (requests, name) = (self.requests.clone(), self.name.clone());
        let begun = match &self.whole {
            Whole::Begun { upload, parts } => Some((upload.clone(), parts.len())),
            Whole::Waiting | Whole::GivenUp | Whole::Done => None,
        };
        let sent = self.engine.run(async move {
            let (upload, index) = match begun {
                Some(begun) => begun,
                None => (requests.begin_upload(&name).await?, 0),
            };
            let part = requests.upload_part(&name, &upload, index, bytes).await;
            Ok((upload, part))
        });
        let (upload, part) = sent.unwrap_or_else(|| Err(ended(&self.name)))?;
        if !matches!(self.whole, Whole::Begun { .. }) {
            self.whole = Whole::Begun { upload, parts: Vec::new() };
        }
        if let Whole::Begun { parts, .. } = &mut self.whole {
            parts.push(part?);
        }
        Ok(())
    }

    fn give_up(&mut self, error: &StorageError) {
        tracing::warn!(blob = self.name, %error, "a blob stays in its parts");
        self.abort();
        self.tail = Vec::new();
    }

    fn abort(&mut self) {
        let whole = std::mem::replace(&mut self.whole, Whole::GivenUp);
        if let Whole::Begun { upload, .. } = whole {
            let (requests, name) = (self.requests.clone(), self.name.clone());
            self.engine.run(async move { requests.abort_upload(&name, &upload).await });
        }
    }

    /// Puts the blob whole and deletes its parts.
    fn make_whole(&mut self, patience: Patience) -> Result<(), StorageError> {
        let bytes = Bytes::from(std::mem::take(&mut self.tail));
        let (requests, name, len) = (self.requests.clone(), self.name.clone(), self.total);
        match &self.whole {
            Whole::Waiting => {
                let put =
                    self.engine.run(async move { requests.put_new(&name, bytes, patience).await });
                if put.unwrap_or_else(|| Err(ended(&self.name)))? == Put::Exists {
                    return Err(StorageError::Exists { name: self.requests.shown(&self.name) });
                }
            }
            Whole::Begun { upload, parts } => {
                let (upload, mut parts) = (upload.clone(), parts.clone());
                let done = self.engine.run(async move {
                    let last = requests.upload_part(&name, &upload, parts.len(), bytes).await?;
                    parts.push(last);
                    requests.complete_upload(&name, &upload, &parts, len, patience).await
                });
                done.unwrap_or_else(|| Err(ended(&self.name)))?;
            }
            Whole::GivenUp | Whole::Done => return Ok(()),
        }
        self.whole = Whole::Done;
        let (requests, blob) = (self.requests.clone(), self.name.clone());
        let parts = std::mem::take(&mut self.parts);
        self.engine.run(async move {
            for offset in parts {
                let part = part_name(&blob, offset);
                if let Err(error) = requests.delete(&part, Patience::SHORT).await {
                    tracing::debug!(part, %error, "a part of a whole blob is left");
                    return;
                }
            }
        });
        Ok(())
    }
}

/// The error of a request whose task ended before it was answered.
pub(super) fn ended(name: &str) -> StorageError {
    let source = std::io::Error::other("the request's task ended");
    StorageError::Io { action: "finish the request on", name: name.to_owned(), source }
}

impl Appender for ObjectAppender {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.check()?;
        self.total += bytes.len() as u64;
        self.unflushed.extend_from_slice(bytes);
        if !matches!(self.whole, Whole::GivenUp) {
            self.tail.extend_from_slice(bytes);
            self.send();
        }
        if self.unflushed.len() > UNFLUSHED_BYTES_MAX { self.flush() } else { Ok(()) }
    }

    fn sync_data(&mut self) -> Result<(), StorageError> {
        self.check()?;
        self.flush()
    }

    fn finish(&mut self) -> Result<(), StorageError> {
        self.check()?;
        if self.total == 0 {
            return Ok(());
        }
        match self.make_whole(Patience::FULL) {
            Ok(()) if matches!(self.whole, Whole::Done) => Ok(()),
            Ok(()) => self.flush(),
            Err(error) => {
                self.give_up(&error);
                self.flush()
            }
        }
    }
}

impl Drop for ObjectAppender {
    /// What was flushed is durable already: this only makes one object of it, if that is quick.
    fn drop(&mut self) {
        let flushed = !self.parts.is_empty() && !self.poisoned;
        if flushed
            && matches!(self.whole, Whole::Waiting | Whole::Begun { .. })
            && let Err(error) = self.make_whole(Patience::SHORT)
        {
            tracing::debug!(blob = self.name, %error, "a blob stays in its parts");
        }
        self.abort();
        guard(&self.writing).remove(&self.name);
    }
}
