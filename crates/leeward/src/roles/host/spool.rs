//! The spool of one item: deltas that were cut and sealed while their store could not take them,
//! in order, each a recovery point with its own time.
//!
//! Losing it, whole or in part, at any moment, loses nothing: the source's change map lets go only
//! of what the store itself committed, so whatever a lost delta said is found again by reading what
//! is dirty. It therefore decides nothing about the truth: what does not fit, is not whole or is
//! for somebody else is dropped. Does not cut and does not send.

pub mod delta;
pub mod head;
pub mod room;

use delta::{DeltaNote, DeltaReader, DeltaWriter, SpoolError, SpoolSeal, UnusableError};
use head::{Asked, Head, SpoolOwner};
use leeward_capture::Folder;
use leeward_model::{Marker, Position, UnixMillis};
use leeward_wire::message::ServerStamp;
use room::SpoolRoom;
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// A delta that waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Waits {
    number: u64,
    bytes: u64,
}

#[derive(Default)]
struct State {
    head: Option<Head>,
    waiting: VecDeque<Waits>,
    next: u64,
}

/// What waits, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpoolFigures {
    /// How many points.
    pub points: u64,
    /// Bytes that they take.
    pub bytes: u64,
}

/// See the module. All calls block on files.
pub struct Spool {
    folder: Arc<dyn Folder>,
    room: SpoolRoom,
    state: Mutex<State>,
}

fn name_of(number: u64) -> String {
    format!("delta-{number:012}")
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix("delta-")?.parse().ok()
}

impl Spool {
    /// The spool in `folder`, as an earlier process left it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn load(folder: Arc<dyn Folder>, room: SpoolRoom) -> io::Result<Spool> {
        let head = Head::load(&*folder)?;
        let names = folder.names()?;
        let mut numbers: Vec<u64> = names.iter().filter_map(|name| number_of(name)).collect();
        numbers.sort_unstable();
        let first = head.as_ref().map_or(1, |head| head.first);
        let next = numbers.last().map_or(first, |last| first.max(last + 1));
        let mut state = State { head, waiting: VecDeque::new(), next };
        for number in numbers {
            let follows = first + state.waiting.len() as u64;
            if state.head.is_none() || number != follows {
                folder.remove(&name_of(number))?;
                continue;
            }
            let file = folder.open(&name_of(number))?.ok_or(io::ErrorKind::NotFound)?;
            let bytes = file.len()?;
            room.count(bytes);
            state.waiting.push_back(Waits { number, bytes });
        }
        Ok(Spool { folder, room, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The room that it shares with the others of its host.
    pub fn room(&self) -> &SpoolRoom {
        &self.room
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.state().waiting.is_empty()
    }

    /// What waits.
    pub fn figures(&self) -> SpoolFigures {
        let state = self.state();
        let bytes = state.waiting.iter().map(|waits| waits.bytes).sum();
        SpoolFigures { points: state.waiting.len() as u64, bytes }
    }

    /// Drops whatever waits.
    ///
    /// # Errors
    /// Those of the file system; what stays is dropped when it is loaded or cleared again.
    pub fn clear(&self) -> io::Result<()> {
        let mut state = self.state();
        if let Some(head) = &state.head {
            // First of all it is said that nothing waits: files that come back do not count.
            let mut head = Head { first: state.next, asked: None, ..head.clone() };
            head.store(&*self.folder)?;
            state.head = Some(head);
        }
        while let Some(waits) = state.waiting.pop_front() {
            self.room.give(waits.bytes);
            self.folder.remove(&name_of(waits.number))?;
        }
        Ok(())
    }

    /// Begins a new chain on top of where the target is, or of where it may be instead: its first
    /// delta must be right on top of both. What waited is dropped.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn begin(
        &self,
        owner: SpoolOwner,
        confirmed: Position,
        or: Option<Position>,
    ) -> io::Result<()> {
        self.clear()?;
        let mut state = self.state();
        let generation = state.head.as_ref().map_or(0, |head| head.generation);
        let asked = or.map(|at| Asked { at, whole: false });
        let chain = uuid::Uuid::new_v4();
        let (first, next) = (state.next, state.next);
        let mut head = Head { generation, chain, owner, first, confirmed, asked };
        head.store(&*self.folder)?;
        (state.head, state.next) = (Some(head), next);
        Ok(())
    }

    /// Begins to write the next delta. Dropped without [`Self::add`], it leaves a file that counts
    /// for nothing and is written over.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn write(&self, seal: &SpoolSeal, now: UnixMillis) -> Result<DeltaWriter, SpoolError> {
        let name = name_of(self.state().next);
        DeltaWriter::new(&*self.folder, &name, seal, self.room.clone(), now)
    }

    /// Lets a delta wait whose last change was added, after `lay` has read it: from then on it may
    /// be sent any moment.
    ///
    /// # Errors
    /// When it could not be made whole and durable, or `lay` failed: it does not wait then.
    ///
    /// # Panics
    /// Without [`Self::begin`].
    pub fn add(
        &self,
        writer: DeltaWriter,
        marker: &Marker,
        cut_server: Option<ServerStamp>,
        lay: impl FnOnce(DeltaReader) -> Result<(), UnusableError>,
    ) -> Result<(), SpoolError> {
        let (number, chain) = {
            let state = self.state();
            let head = state.head.as_ref().expect("a chain was begun");
            (state.next, head.chain)
        };
        let bytes = writer.finish(marker, (chain, number), cut_server)?;
        let durable = self.folder.sync().map_err(SpoolError::from);
        let laid = durable.and_then(|()| self.open(number).and_then(lay).map_err(SpoolError::Lost));
        if laid.is_err() {
            self.room.give(bytes);
        }
        laid?;
        let mut state = self.state();
        state.next = number + 1;
        state.waiting.push_back(Waits { number, bytes });
        Ok(())
    }

    /// Drops the file of a delta that did not come to its end.
    pub fn drop_unfinished(&self) {
        // What stays of it counts for nothing.
        let _ = self.folder.remove(&name_of(self.state().next));
    }

    /// Reads the first delta that waits; none when nothing does.
    ///
    /// # Errors
    /// When it cannot be used: then nothing that waits can.
    pub fn first(&self) -> Result<Option<DeltaReader>, UnusableError> {
        let number = self.state().waiting.front().map(|waits| waits.number);
        number.map(|number| self.open(number)).transpose()
    }

    /// Reads every delta that waits, in order.
    ///
    /// # Errors
    /// As [`Self::first`].
    pub fn each(
        &self,
        mut each: impl FnMut(DeltaReader) -> Result<(), UnusableError>,
    ) -> Result<(), UnusableError> {
        let numbers: Vec<_> = self.state().waiting.iter().map(|waits| waits.number).collect();
        numbers.into_iter().try_for_each(|number| each(self.open(number)?))
    }

    fn open(&self, number: u64) -> Result<DeltaReader, UnusableError> {
        let file = self.folder.open(&name_of(number))?;
        DeltaReader::open(file.ok_or(UnusableError::Damaged("its file is gone"))?)
    }

    /// Whether `note` is that of the first delta that waits.
    pub fn is_first(&self, note: &DeltaNote) -> bool {
        let state = self.state();
        let chain = state.head.as_ref().map(|head| head.chain);
        let number = state.waiting.front().map(|waits| waits.number);
        chain == Some(note.chain) && number == Some(note.number)
    }

    /// Whether what waits builds on `at`, where the target of `owner` is; what the target turns out
    /// to have is let go of.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn meets(&self, owner: &SpoolOwner, at: Position) -> io::Result<bool> {
        let state = self.state();
        let Some(head) = state.head.as_ref().filter(|head| head.owner == *owner) else {
            return Ok(false);
        };
        match head.asked {
            Some(Asked { at: asked, whole }) if asked == at => {
                drop(state);
                self.committed(Asked { at, whole })?;
                Ok(true)
            }
            _ => Ok(head.confirmed == at),
        }
    }

    /// Notes, before the target is asked, what it may have committed from now on.
    ///
    /// # Errors
    /// Those of the file system: then it must not be asked.
    pub fn asks(&self, asked: Asked) -> io::Result<()> {
        let mut state = self.state();
        let Some(head) = &state.head else { return Err(io::ErrorKind::NotFound.into()) };
        let mut head = Head { asked: Some(asked), ..head.clone() };
        head.store(&*self.folder)?;
        state.head = Some(head);
        Ok(())
    }

    /// Notes that the target did commit it, and lets go of what it has.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn committed(&self, Asked { at, whole }: Asked) -> io::Result<()> {
        let mut state = self.state();
        let Some(head) = &state.head else { return Err(io::ErrorKind::NotFound.into()) };
        let done = state.waiting.front().filter(|_| whole).copied();
        let first = done.map_or(head.first, |done| done.number + 1);
        let mut head = Head { first, confirmed: at, asked: None, ..head.clone() };
        head.store(&*self.folder)?;
        state.head = Some(head);
        if let Some(done) = done {
            state.waiting.pop_front();
            self.room.give(done.bytes);
            self.folder.remove(&name_of(done.number))?;
        }
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // What it took is counted again by who loads it.
        self.room.give(self.figures().bytes);
    }
}

#[cfg(test)]
mod tests;
