//! The reading of an item's stored bytes that nobody asked for: a few segments at a time, for ever.
//! Every record is opened, and every extent of the newest point put together and compared with the
//! hash that the source took of it. What the newest point cannot read is named to the source, which
//! still has these bytes and sends them again (`source/audit.rs`).
//!
//! It holds no writer up: it has a reader of its own.

use super::{Host, notes, site_store::SiteStore};
use crate::{audit_pace::Allowance, folder};
use leeward_model::{Code, ItemId, Problem, SegmentId};
use leeward_replica::{Damage, ItemReader, Scrubbed, StoreError, View};
use leeward_wire::{
    audit::{AuditSeen, DAMAGED_MAX},
    message::{HostNote, ItemDuty, NoteKind, Stage},
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};
use tokio::time::Instant;

/// The most that is saved up, in bytes: two segments, so that one of full size can be read at once.
const ALLOWANCE_MAX: u64 = 64 << 20;
/// How often the state is kept on disk in the middle of a round.
const KEEP_EVERY: Duration = Duration::from_secs(60);
/// How often damage of another process's doing is looked at again.
const LOOK_EVERY: Duration = Duration::from_secs(4);

/// Where the audit is, kept over restarts: lost, a round begins anew.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    /// The last segment that was read in the round under way.
    after: Option<SegmentId>,
    /// Whether that round found something.
    found: bool,
    seen: AuditSeen,
}

/// The audit of one item's part of the store.
pub struct StoreAudit {
    item: ItemId,
    file: PathBuf,
    kept: Kept,
    reader: Option<ItemReader>,
    allowance: Allowance,
    last: Option<Instant>,
    written: Option<Instant>,
    /// Damage that was told of: it is found again in every round as long as a point needs it.
    told: BTreeSet<(String, Option<(u64, u64)>)>,
}

impl StoreAudit {
    /// Takes up the audit of `item` where it was.
    pub fn new(host: &Host, item: ItemId) -> StoreAudit {
        let file = host.item_folder(item).join("store-audit.json");
        let bytes = std::fs::read(&file).unwrap_or_default();
        let kept = serde_json::from_slice(&bytes).unwrap_or_default();
        let (reader, allowance, told) = (None, Allowance::default(), BTreeSet::new());
        StoreAudit { item, file, kept, reader, allowance, last: None, written: None, told }
    }

    /// Reads a part, unless it is not time yet or a machine is being made from a point here.
    pub async fn part(&mut self, host: &Host, store: &Arc<SiteStore>, duty: &ItemDuty) {
        let in_use = |stage| matches!(stage, Stage::Overlay | Stage::Prepared | Stage::Running);
        let busy = duty.instances.iter().any(|instance| in_use(instance.stage));
        let due = self.last.is_none_or(|last| last.elapsed() >= LOOK_EVERY);
        if host.audit.bytes_per_second == 0 || busy || !due {
            return;
        }
        let passed = self.last.map_or(LOOK_EVERY, |last| last.elapsed());
        self.last = Some(Instant::now());
        let allowed = self.allowance.grow(host.audit, passed, ALLOWANCE_MAX);
        match self.read(store, allowed).await {
            Ok(read) => self.found(host, store, duty, read),
            Err(StoreError::NoItem { .. }) => return,
            Err(error) => {
                self.reader = None;
                tracing::warn!(item = %self.item, %error, "the audit of the store goes on later");
            }
        }
        let seen = self.kept.seen.clone();
        host.board.target(self.item, |board| {
            if let Some(board) = board {
                board.audit = Some(seen);
            }
        });
        if self.written.is_none_or(|at| at.elapsed() >= KEEP_EVERY) {
            self.keep();
        }
    }

    fn keep(&mut self) {
        let parent = self.file.parent().map_or(Ok(()), std::fs::create_dir_all);
        let bytes = serde_json::to_vec_pretty(&self.kept).map_err(std::io::Error::other);
        let kept = parent.and(bytes).and_then(|bytes| folder::write_whole(&self.file, &bytes));
        match kept {
            Ok(()) => self.written = Some(Instant::now()),
            Err(error) => {
                tracing::warn!(item = %self.item, %error, "could not keep where the audit is");
            }
        }
    }

    /// Reads segments as far as is allowed, off the async threads.
    async fn read(&mut self, store: &Arc<SiteStore>, allowed: u64) -> Result<Read, StoreError> {
        let (store, item) = (Arc::clone(store), self.item);
        let (reader, after) = (self.reader.take(), self.kept.after);
        let work = move || -> Result<(ItemReader, Read), StoreError> {
            let mut reader = match reader {
                Some(reader) => reader,
                None => store.reader(item)?,
            };
            reader.refresh()?;
            let read = read_some(&mut reader, after, allowed)?;
            Ok((reader, read))
        };
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.unwrap_or_else(|error| Err(StoreError::Stale { why: error.to_string() }));
        let (reader, read) = done?;
        self.reader = Some(reader);
        Ok(read)
    }

    /// Takes in what was read, and tells of what was found.
    fn found(&mut self, host: &Host, store: &SiteStore, duty: &ItemDuty, read: Read) {
        self.allowance.spend(read.bytes);
        let kept = &mut self.kept;
        (kept.after, kept.seen.done_bytes, kept.seen.total_bytes) =
            (read.after, read.done, read.total);
        let mut damaged: BTreeSet<_> = store.damaged(self.item).into_iter().collect();
        let had = damaged.len();
        damaged.extend(&read.unreadable);
        while damaged.len() > DAMAGED_MAX {
            damaged.pop_last();
        }
        let (grew, left) = (damaged.len() > had, damaged.len());
        store.damaged_set(self.item, damaged);
        let news: Vec<&Damage> = read
            .damages
            .iter()
            .filter(|damage| self.told.insert((damage.blob.clone(), damage.bytes)))
            .collect();
        let kept = &mut self.kept;
        kept.found |= !read.damages.is_empty() || !read.unreadable.is_empty();
        if !news.is_empty() || grew {
            kept.seen.differences += news.len().max(usize::from(grew)) as u64;
            let problem = problem(&duty.name, &read, left);
            let text = format!("{}: {}: {}", problem.code, problem.what, problem.cause);
            kept.seen.problem = Some(problem);
            self.written = None;
            note(host, self.item, duty, NoteKind::AuditFound, text);
        }
        if read.is_round_end {
            let kept = &mut self.kept;
            kept.seen.round_ended_at = Some(host.wall.now());
            if !std::mem::take(&mut kept.found) && kept.seen.problem.take().is_some() {
                let text = format!("all that is stored of {} can be read again", duty.name);
                self.written = None;
                note(host, self.item, duty, NoteKind::AuditRepaired, text);
            }
        }
    }
}

/// What one part of the audit came to.
#[derive(Default)]
struct Read {
    bytes: u64,
    damages: Vec<Damage>,
    unreadable: BTreeSet<(leeward_model::DiskNumber, leeward_model::ExtentNumber)>,
    /// The last segment; none at the end of a round.
    after: Option<SegmentId>,
    done: u64,
    total: u64,
    is_round_end: bool,
}

fn read_some(
    reader: &mut ItemReader,
    after: Option<SegmentId>,
    allowed: u64,
) -> Result<Read, StoreError> {
    let parts = reader.scrub_parts();
    let total = parts.iter().map(|(_, bytes)| bytes).sum();
    let begin = parts.partition_point(|(segment, _)| Some(*segment) <= after);
    let done = parts[..begin].iter().map(|(_, bytes)| bytes).sum();
    let mut read = Read { after, done, total, ..Read::default() };
    if parts.is_empty() {
        return Ok(read);
    }
    let newest = reader.newest_point().map(|point| point.position);
    let head = match newest.map(|place| View::open(reader, place)).transpose() {
        // Its index is damaged, as the tail of a segment that is not sealed yet: no point that
        // needs it can be opened, and nothing of it can be told apart.
        Err(StoreError::Damaged { blob, why }) => {
            let (bytes, part, points) = (None, None, Vec::new());
            read.damages.push(Damage { blob, bytes, why, part, points });
            None
        }
        head => head?,
    };
    for (segment, bytes) in &parts[begin..] {
        // One that is larger than anything that is saved up is read all the same.
        let alone = read.bytes == 0 && allowed >= ALLOWANCE_MAX;
        if read.bytes + bytes > allowed && !alone {
            return Ok(read);
        }
        let Scrubbed { bytes: looked, damages, unreadable } =
            reader.scrub_segment(*segment, head.as_ref())?;
        read.bytes += looked.max(*bytes);
        read.done += bytes;
        read.after = Some(*segment);
        read.damages.extend(damages);
        read.unreadable.extend(unreadable);
    }
    (read.after, read.done, read.is_round_end) = (None, 0, true);
    Ok(read)
}

fn problem(name: &str, read: &Read, left: usize) -> Problem {
    let first = read.damages.first().map(|damage| {
        let at = damage.bytes.map(|(at, _)| format!(" at byte {at}")).unwrap_or_default();
        format!("the first is {}{at}: {}", damage.blob, damage.why)
    });
    let count = read.damages.len();
    let what = format!("{count} parts of the replica of {name} are damaged at rest");
    let first = first.unwrap_or_else(|| "an extent is not what its source read".to_owned());
    let now = match left {
        0 => "the newest recovery point does not need them; earlier ones may",
        _ => {
            "the newest recovery point needs some: the source sends these again if it runs, and \
             points from then on are whole; no damaged byte is served"
        }
    };
    Problem { now: now.to_owned(), ..Code::STORE_DAMAGED.because(what, first) }
}

fn note(host: &Host, item: ItemId, duty: &ItemDuty, kind: NoteKind, text: String) {
    let (id, at, object) = (uuid::Uuid::new_v4(), host.wall.now(), duty.name.clone());
    let note = HostNote { id, at, kind, item: Some(item), object, text };
    if let Err(error) = notes::note_add(&host.folder, &note) {
        tracing::warn!(%item, %error, "could not note what the audit found");
    }
}
