//! Sends what waits in a spool to its store, oldest first, each delta as the point that it was cut
//! as. Runs beside the cuts; knows nothing of the machine.
//!
//! Every record is opened and sealed anew, in segments of the session: what lies in the spool was
//! sealed for the spool alone, so no number of a segment ever stands for two plaintexts.

use super::{RETRY, SourceWork, copy::Uncommitted};
use crate::roles::host::{
    Host,
    data_link::{DataLink, LinkError, StoreEnd},
    spool::{
        Spool,
        delta::{DeltaNote, DeltaOpener, DeltaReader, Next, UnusableError, Waiting},
        head::{Asked, SpoolOwner},
    },
};
use leeward_capture::{HashError, HashFiles, Trust};
use leeward_model::{Code, Lsn, Marker, Position, Problem};
use leeward_wire::data::Commit;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Duration;

/// What is forwarded, and where to.
#[derive(Clone)]
pub(super) struct Forward {
    pub(super) host: Arc<Host>,
    pub(super) work: SourceWork,
    pub(super) spool: Arc<Spool>,
    pub(super) hashes: Arc<HashFiles>,
    pub(super) owner: SpoolOwner,
    /// Bytes of blocks that were sent, before compression.
    pub(super) sent: Arc<AtomicU64>,
    /// How long it waits before it opens a session of its own.
    pub(super) pause: Duration,
}

/// How forwarding ended.
pub(super) enum Forwarded {
    /// Nothing waits any more; the session goes on.
    Drained(Box<DataLink>),
    /// What waits cannot be used: it does not build on what the store has, or is damaged.
    Unusable(String),
}

/// Why it did not go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum Stop {
    #[error("the replica store cannot be used")]
    Link(#[from] LinkError),
    #[error("the hash files cannot be used")]
    Hashes(#[from] HashError),
    #[error("{0}")]
    Unusable(#[from] UnusableError),
    #[error("{0}")]
    Strange(&'static str),
}

impl Forward {
    /// Forwards until nothing waits, over `link` or over sessions of its own.
    pub(super) async fn run(self, mut link: Option<DataLink>) -> Forwarded {
        let mut pause = self.pause;
        loop {
            let opened = match link.take() {
                Some(link) => Ok(link),
                None => {
                    tokio::time::sleep(pause).await;
                    DataLink::open(&self.host, &self.work, self.work.duty.branch).await
                }
            };
            pause = RETRY;
            let outcome = match opened {
                Ok(mut link) => match self.all(&mut link).await {
                    Ok(()) => return Forwarded::Drained(Box::new(link)),
                    Err(stop) => stop,
                },
                Err(error) => Stop::Link(error),
            };
            match outcome {
                Stop::Link(error) => self.show_away(&error),
                other => return Forwarded::Unusable(other.to_string()),
            }
        }
    }

    fn show_away(&self, error: &LinkError) {
        let problem = error.problem(&StoreEnd::of(&self.host, &self.work));
        self.show(Some(problem));
    }

    /// Shows what is wrong with the session, beside a spool that is full.
    fn show(&self, problem: Option<Problem>) {
        self.host.board.source(self.work.item, |seen| {
            if let Some(seen) = seen
                && seen.problem.as_ref().is_none_or(|shown| shown.code != Code::SPOOL_FULL.code)
            {
                seen.problem = problem;
            }
        });
    }

    /// Forwards until nothing waits.
    pub(super) async fn all(&self, link: &mut DataLink) -> Result<(), Stop> {
        let (spool, at) = (Arc::clone(&self.spool), link.base);
        let owner = SpoolOwner { key_version: link.key_version(), ..self.owner.clone() };
        let meets = !link.is_blank && files(move || spool.meets(&owner, at)).await?;
        if !meets {
            return Err(Stop::Strange("the store is not where the spool goes on from"));
        }
        let hashes = Arc::clone(&self.hashes);
        if let Trust::Untrusted(_) = hashing(move || hashes.reconcile(at)).await? {
            return Err(Stop::Strange("the hash files are not those of the store's place"));
        }
        loop {
            let spool = Arc::clone(&self.spool);
            match reading(move || spool.first()).await? {
                Some(reader) => self.one(link, reader).await?,
                None => return Ok(()),
            }
        }
    }

    async fn one(&self, link: &mut DataLink, reader: DeltaReader) -> Result<(), Stop> {
        let opener = DeltaOpener::new(&link.spool_seal().data_key, reader.header());
        let mut uncommitted = Uncommitted::nothing();
        let mut reader = reader;
        loop {
            let hashes = Arc::clone(&self.hashes);
            let (back, next) = reading(move || {
                let next = reader.next_part()?;
                Ok((reader, missing(&hashes, next)))
            })
            .await?;
            reader = back;
            match next? {
                Next::Changes(changes) => {
                    let found = changes.len();
                    let bytes = self.send(link, &opener, changes).await?;
                    if uncommitted.add(found, bytes) {
                        self.commit_progress(link).await?;
                        uncommitted = Uncommitted::nothing();
                    }
                }
                Next::End(end) => {
                    let marker = opener.marker(&end)?;
                    return self.commit_point(link, &marker, &end.note).await;
                }
            }
        }
    }

    async fn send(
        &self,
        link: &mut DataLink,
        opener: &DeltaOpener,
        changes: Vec<Waiting>,
    ) -> Result<u64, Stop> {
        let mut bytes = 0;
        for waiting in changes {
            let packed = opener.change(&waiting)?;
            bytes += packed.raw_len() as u64;
            self.hashes.push(waiting.disk(), waiting.extent(), &waiting.record)?;
            link.send(packed).await?;
        }
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        Ok(bytes)
    }

    /// So that a long delta that is interrupted goes on from here.
    async fn commit_progress(&self, link: &mut DataLink) -> Result<(), Stop> {
        let lsn = Lsn(link.next_lsn().0 - 1);
        let at = Position { timeline: self.owner.branch.timeline, lsn };
        let hashes = Arc::clone(&self.hashes);
        hashing(move || hashes.seal_progress(at)).await?;
        let commit = Commit { lsn, point: false, cut_server: None, final_progress: false };
        self.commit(link, commit, Asked { at, whole: false }).await
    }

    async fn commit_point(
        &self,
        link: &mut DataLink,
        marker: &Marker,
        note: &DeltaNote,
    ) -> Result<(), Stop> {
        if !self.spool.is_first(note) {
            return Err(Stop::Strange("a delta of another chain lies in the spool"));
        }
        let at = Position { timeline: self.owner.branch.timeline, lsn: link.next_lsn() };
        let (hashes, disks) = (Arc::clone(&self.hashes), &marker.disks);
        let sizes: Vec<_> = disks.iter().map(|disk| (disk.number, disk.size)).collect();
        hashing(move || hashes.seal(at, &sizes)).await?;
        let lsn = link.send_marker(marker).await?;
        let cut_server = note.cut_server.clone();
        let commit = Commit { lsn, point: true, cut_server, final_progress: false };
        self.commit(link, commit, Asked { at, whole: true }).await?;
        link.newest_point = Some((marker.point, at));
        Ok(())
    }

    /// Commits what was sent and sealed. It is noted before: an answer that is lost is found out
    /// with the next session.
    async fn commit(&self, link: &mut DataLink, commit: Commit, asked: Asked) -> Result<(), Stop> {
        let spool = Arc::clone(&self.spool);
        files(move || spool.asks(asked)).await?;
        link.commit(commit).await?;
        // Not before: a session alone does not prove that the store takes anything.
        self.show(None);
        let hashes = Arc::clone(&self.hashes);
        hashing(move || hashes.commit(asked.at)).await?;
        let spool = Arc::clone(&self.spool);
        files(move || spool.committed(asked)).await?;
        Ok(())
    }
}

/// Leaves out what the store has already: of a delta that was interrupted.
fn missing(hashes: &HashFiles, next: Next) -> Result<Next, HashError> {
    let Next::Changes(changes) = next else { return Ok(next) };
    let mut left = Vec::with_capacity(changes.len());
    for waiting in changes {
        if hashes.record(waiting.disk(), waiting.extent())? != waiting.record {
            left.push(waiting);
        }
    }
    Ok(Next::Changes(left))
}

/// Runs file work off the async threads.
async fn off<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stop> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Stop::Strange("the process is ending"))
}

async fn files<T: Send + 'static>(
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, Stop> {
    off(work).await?.map_err(|error| Stop::Unusable(error.into()))
}

async fn hashing<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, HashError> + Send + 'static,
) -> Result<T, Stop> {
    Ok(off(work).await??)
}

async fn reading<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, UnusableError> + Send + 'static,
) -> Result<T, Stop> {
    Ok(off(work).await??)
}
