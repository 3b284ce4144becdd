//! The writer's lock in a store that has none: a numbered lease object that its holder renews.
//!
//! Whoever wants the lock creates the next number, if absent; a holder that finds a higher number
//! than its own, or could not renew in time, writes nothing more. The newest number always stays,
//! marked as let go: so a holder that was cut off and comes back finds that it is over. A lease
//! alone cannot stop a request that is on its way; two writers still cannot both commit, because
//! manifests are created if absent.

use super::{
    super::{Put, StorageError, StoreLock},
    appender::ended,
    engine::Engine,
    requests::{Requests, guard},
    retry::Patience,
};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};
use uuid::Uuid;

/// When a lease is renewed, given up and taken away.
#[derive(Clone, Copy, Debug)]
pub struct LeaseTimes {
    /// Between two renewals.
    pub renew: Duration,
    /// After so long without one its holder writes nothing more. Below `stale` by more than one
    /// request takes.
    pub lost: Duration,
    /// After so long without one, by the store's clock, it may be taken.
    pub stale: Duration,
}

impl LeaseTimes {
    /// Five minutes are the project's rule for a store whose owner is silent.
    pub const USUAL: LeaseTimes = LeaseTimes {
        renew: Duration::from_secs(60),
        lost: Duration::from_secs(220),
        stale: Duration::from_secs(300),
    };
}

/// Whether a lease may be taken from a holder that may still be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takeover {
    /// Only when it was not renewed for long enough.
    WhenStale,
    /// Now: a person says that the holder is gone.
    Forced,
    /// Now, if it was this holder's own: whoever names it sees to it that there is one process of
    /// it at most. Else as when stale.
    Own(Uuid),
}

impl Takeover {
    fn holder(self) -> Option<Uuid> {
        match self {
            Takeover::Own(holder) => Some(holder),
            Takeover::WhenStale | Takeover::Forced => None,
        }
    }
}

/// What a lease object says.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Note {
    /// Drawn for this lease: two holders never write the same bytes.
    nonce: String,
    host: String,
    pid: u32,
    renewals: u64,
    let_go: bool,
    /// Which role's folder its process has for itself, if it is a role's.
    #[serde(default)]
    holder: Option<Uuid>,
}

/// A lease as its holder knows it.
#[derive(Debug)]
pub(super) struct Held {
    number: u64,
    lost_after: Duration,
    over: AtomicBool,
    renewed: Mutex<Instant>,
}

impl Held {
    /// Whether its holder may write.
    pub(super) fn is_held(&self) -> bool {
        let fresh = guard(&self.renewed).elapsed() < self.lost_after;
        fresh && !self.over.load(Ordering::Acquire)
    }

    /// Whether it is still the newest; once it is not, it is over for good.
    async fn check(&self, requests: &Requests, folder: &str) -> Result<bool, StorageError> {
        if self.over.load(Ordering::Acquire) {
            return Ok(false);
        }
        let newest = newest(requests, folder).await? == Some(self.number);
        if !newest {
            self.over.store(true, Ordering::Release);
        }
        Ok(newest)
    }
}

fn object(folder: &str, number: u64) -> String {
    format!("{folder}/{number:016}")
}

/// The newest lease; `None` before the first.
async fn newest(requests: &Requests, folder: &str) -> Result<Option<u64>, StorageError> {
    let listed = requests.list(folder).await?;
    Ok(listed.objects.iter().filter_map(|(name, _)| name.parse().ok()).max())
}

/// Now by the store's clock, in milliseconds since 1970.
async fn store_time(requests: &Requests, folder: &str) -> Result<i64, StorageError> {
    let name = format!("{folder}/clock-{}", Uuid::new_v4());
    requests.put_over(&name, Bytes::from_static(b"now"), Patience::FULL).await?;
    let head = requests.head(&name).await;
    // Left behind it is only a few bytes of litter.
    let _ = requests.delete(&name, Patience::SHORT).await;
    Ok(head?.written_ms)
}

/// Refuses when somebody holds lease `number` and may not be pushed aside.
async fn check_free(
    requests: &Requests,
    folder: &str,
    number: u64,
    (stale, own): (Duration, Option<Uuid>),
) -> Result<(), StorageError> {
    let name = object(folder, number);
    let note = requests.get(&name, None).await?;
    // What cannot be read was written by nobody of ours, and its age still counts.
    let note: Note = serde_json::from_slice(&note).unwrap_or_default();
    if note.let_go || (own.is_some() && note.holder == own) {
        return Ok(());
    }
    let written = requests.head(&name).await?.written_ms;
    let age = store_time(requests, folder).await?.saturating_sub(written).max(0) as u64;
    let left = stale.saturating_sub(Duration::from_millis(age)).as_secs() + 1;
    if age < stale.as_millis() as u64 {
        let (host, pid) = (&note.host, note.pid);
        let holder = format!(
            "process {pid} on {host}, last heard of {} s ago; without a sign of it the lock is \
             free in {left} s",
            age / 1000
        );
        return Err(StorageError::Locked { name: requests.shown(folder), holder });
    }
    Ok(())
}

async fn take_next(
    requests: &Requests,
    folder: &str,
    note: &Note,
    stale: Duration,
    takeover: Takeover,
) -> Result<u64, StorageError> {
    let before = newest(requests, folder).await?;
    if let Some(number) = before
        && takeover != Takeover::Forced
    {
        check_free(requests, folder, number, (stale, takeover.holder())).await?;
    }
    let number = before.unwrap_or(0) + 1;
    let put = requests.put_new(&object(folder, number), encode(note), Patience::FULL).await?;
    if put == Put::Exists {
        let holder = "another process, which took it at this moment".to_owned();
        return Err(StorageError::Locked { name: requests.shown(folder), holder });
    }
    if let Some(before) = before {
        // The older ones say nothing any more; left behind they harm nobody.
        let _ = requests.delete(&object(folder, before), Patience::SHORT).await;
    }
    Ok(number)
}

fn encode(note: &Note) -> Bytes {
    Bytes::from(serde_json::to_vec(note).expect("a note is plain JSON"))
}

/// Takes the lock `folder` and keeps renewing it until the result is dropped.
pub(super) fn take(
    engine: &Arc<Engine>,
    requests: &Arc<Requests>,
    folder: &str,
    times: LeaseTimes,
    takeover: Takeover,
) -> Result<StoreLock, StorageError> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim().to_owned();
    let (nonce, pid) = (Uuid::new_v4().to_string(), std::process::id());
    let holder = takeover.holder();
    let note = Arc::new(Note { nonce, host, pid, renewals: 0, let_go: false, holder });
    let begun = Instant::now();
    let lost = requests.lost(folder);
    let taken = {
        let (requests, folder, note) = (requests.clone(), folder.to_owned(), note.clone());
        engine.run(async move { take_next(&requests, &folder, &note, times.stale, takeover).await })
    };
    let taken = taken.unwrap_or_else(|| Err(ended(&requests.shown(folder))));
    if let (Err(_), Some(lost)) = (&taken, lost) {
        requests.hold(folder, lost);
    }
    let number = taken?;
    let (over, renewed) = (AtomicBool::new(false), Mutex::new(begun));
    let held = Arc::new(Held { number, lost_after: times.lost, over, renewed });
    requests.hold(folder, held.clone());
    let (end, ended) = mpsc::channel();
    let (folder, engine) = (folder.to_owned(), engine.clone());
    let keeper = Keeper { engine, requests: requests.clone(), folder, note, held };
    let thread = thread::Builder::new().name("store-lease".into());
    let thread = thread.spawn(move || keeper.keep(&ended, times.renew)).map_err(|source| {
        StorageError::Io { action: "keep the lock", name: requests.shown(""), source }
    })?;
    Ok(Box::new(Lease { end: Some(end), thread: Some(thread) }))
}

/// The lock while it lives.
struct Lease {
    end: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            // It only ends in order: whoever asks next finds the lock free.
            let _ = thread.join();
        }
    }
}

struct Keeper {
    engine: Arc<Engine>,
    requests: Arc<Requests>,
    folder: String,
    note: Arc<Note>,
    held: Arc<Held>,
}

impl Keeper {
    fn keep(&self, end: &mpsc::Receiver<()>, every: Duration) {
        let mut renewals = 0;
        while matches!(end.recv_timeout(every), Err(RecvTimeoutError::Timeout)) {
            renewals += 1;
            let begun = Instant::now();
            match self.write(renewals, false) {
                Ok(true) => *guard(&self.held.renewed) = begun,
                Ok(false) => {
                    let lock = self.requests.shown(&self.folder);
                    tracing::error!(lock, "another process took the lock; nothing more is written");
                }
                Err(error) => {
                    tracing::warn!(%error, "the lock of the store could not be renewed");
                }
            }
        }
        match self.write(renewals + 1, true) {
            Ok(true) => self.requests.let_go(&self.folder),
            // Lost once, nothing is written by this store until it takes the lock again.
            Ok(false) => {}
            Err(error) => {
                tracing::warn!(%error, "the lock of the store is held until it is stale");
            }
        }
    }

    /// Writes our lease anew; false when it is not the newest any more.
    fn write(&self, renewals: u64, let_go: bool) -> Result<bool, StorageError> {
        let Note { nonce, host, pid, holder, .. } = &*self.note;
        let (nonce, host, pid, holder) = (nonce.clone(), host.clone(), *pid, *holder);
        let note = encode(&Note { nonce, host, pid, renewals, let_go, holder });
        let (requests, folder) = (self.requests.clone(), self.folder.clone());
        let held = self.held.clone();
        let written = self.engine.run(async move {
            if !held.check(&requests, &folder).await? {
                return Ok(false);
            }
            let patience = if let_go { Patience::SHORT } else { Patience::FULL };
            requests.put_over(&object(&folder, held.number), note, patience).await?;
            // Again: the put may have been under way for longer than the lease was good for.
            if let_go { Ok(true) } else { held.check(&requests, &folder).await }
        });
        written.unwrap_or_else(|| Err(ended(&self.folder)))
    }
}
