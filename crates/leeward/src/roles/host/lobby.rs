//! Where stores that dialled this host wait for the source that they want to receive from.
//!
//! One connection an item: the newest wins, because whoever dials again has given the former one
//! up. It decides nothing: who may wait is checked at the door.

use crate::roles::session::{BoxReader, BoxWriter};
use leeward_model::{Branch, Epoch, HostId, ItemId};
use leeward_wire::data::DataHello;
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What a store has to have said to be the one that a source waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The store's host.
    pub host: HostId,
    /// The epoch.
    pub epoch: Epoch,
    /// The branch.
    pub branch: Branch,
}

impl Wanted {
    /// What a hello asks for.
    pub fn of(hello: &DataHello) -> Wanted {
        Wanted { host: hello.host, epoch: hello.epoch, branch: hello.branch }
    }
}

/// A store's connection.
pub struct Guest {
    /// Reads what the store says after its hello.
    pub reader: BoxReader,
    /// Writes to the store.
    pub writer: BoxWriter,
    /// Cancelled when the same store has dialled again: this connection is dead.
    pub replaced: CancellationToken,
    /// Tells the door, when it is dropped, that nobody uses the connection any more.
    pub over: DropGuard,
}

struct Place {
    number: u64,
    wanted: Wanted,
    guest: Option<Guest>,
    replaced: CancellationToken,
}

/// The waiting connections, at most one for each item whose source this host is.
#[derive(Default)]
pub struct Lobby {
    places: Mutex<BTreeMap<ItemId, Place>>,
    numbers: std::sync::atomic::AtomicU64,
    came: Notify,
}

impl Lobby {
    fn places(&self) -> MutexGuard<'_, BTreeMap<ItemId, Place>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets a connection wait in place of an earlier one. Returns its number, and what is
    /// cancelled once nobody uses it any more.
    pub fn offer(
        &self,
        item: ItemId,
        wanted: Wanted,
        reader: BoxReader,
        writer: BoxWriter,
    ) -> (u64, CancellationToken) {
        let (replaced, over) = (CancellationToken::new(), CancellationToken::new());
        let guard = over.clone().drop_guard();
        let guest = Guest { reader, writer, replaced: replaced.clone(), over: guard };
        let number = self.numbers.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let place = Place { number, wanted, guest: Some(guest), replaced };
        let before = self.places().insert(item, place);
        if let Some(before) = before {
            before.replaced.cancel();
        }
        self.came.notify_waiters();
        (number, over)
    }

    /// Takes the connection that waits for the item, as soon as there is one that fits, but not
    /// later than after `limit`.
    pub async fn take(&self, item: ItemId, wanted: Wanted, limit: Duration) -> Option<Guest> {
        let end = Instant::now() + limit;
        loop {
            let came = self.came.notified();
            tokio::pin!(came);
            came.as_mut().enable();
            if let Some(guest) = self.take_now(item, &wanted) {
                return Some(guest);
            }
            timeout_at(end, came).await.ok()?;
        }
    }

    fn take_now(&self, item: ItemId, wanted: &Wanted) -> Option<Guest> {
        let mut places = self.places();
        places.get_mut(&item).filter(|place| place.wanted == *wanted)?.guest.take()
    }

    /// Ends the waiting of connection `number`, if it still waits.
    pub fn dismiss(&self, item: ItemId, number: u64) {
        if let Some(place) = self.places().get_mut(&item).filter(|place| place.number == number) {
            place.guest = None;
        }
    }

    /// Forgets connection `number`, which is over, unless a newer one took its place.
    pub fn forget(&self, item: ItemId, number: u64) {
        let mut places = self.places();
        if places.get(&item).is_some_and(|place| place.number == number) {
            places.remove(&item);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::session::{FrameReader, FrameWriter};
    use leeward_model::TimelineId;
    use std::sync::Arc;
    use tokio::io::{DuplexStream, duplex, split};

    const ITEM: ItemId = ItemId::from_u128(1);
    const SOON: Duration = Duration::from_secs(5);

    fn wanted(epoch: u64) -> Wanted {
        let timeline = TimelineId::from_u128(2);
        let branch = Branch { timeline, parent: None, epoch: Epoch(epoch) };
        Wanted { host: HostId::from_u128(3), epoch: Epoch(epoch), branch }
    }

    fn offer(lobby: &Lobby, epoch: u64) -> (u64, CancellationToken, DuplexStream) {
        let (near, far) = duplex(64);
        let (read, write) = split(near);
        let (reader, writer) = (FrameReader::new(read).boxed(), FrameWriter::new(write).boxed());
        let (number, over) = lobby.offer(ITEM, wanted(epoch), reader, writer);
        (number, over, far)
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_gets_the_connection_that_fits_whether_it_waits_or_not() {
        let lobby = Arc::new(Lobby::default());
        let waiting = Arc::clone(&lobby);
        let taken = tokio::spawn(async move { waiting.take(ITEM, wanted(2), SOON).await });
        tokio::task::yield_now().await;

        let (_, former, _far) = offer(&lobby, 1);
        tokio::task::yield_now().await;
        assert!(!taken.is_finished(), "it is of another epoch");
        let (_, over, _far) = offer(&lobby, 2);

        let guest = taken.await.unwrap().expect("it came in time");
        assert!(former.is_cancelled(), "the one before is closed");
        assert!(!over.is_cancelled());
        drop(guest);
        assert!(over.is_cancelled(), "the door learns that it is over");
        assert!(lobby.take(ITEM, wanted(2), SOON).await.is_none(), "it was taken once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_dials_again_ends_its_former_connection() {
        let lobby = Lobby::default();
        let (first, _, _far) = offer(&lobby, 1);
        let guest = lobby.take(ITEM, wanted(1), SOON).await.unwrap();

        let (second, over, _far) = offer(&lobby, 1);

        assert!(guest.replaced.is_cancelled());
        lobby.forget(ITEM, first);
        lobby.dismiss(ITEM, first);
        assert!(!over.is_cancelled(), "the end of the first is none of the second's business");
        lobby.dismiss(ITEM, second);
        assert!(over.is_cancelled());
        assert!(lobby.take(ITEM, wanted(1), SOON).await.is_none());
    }
}
