//! Going on without the store: while it is away, or slower than the points come, the machine is
//! cut at its interval all the same, and each delta waits in the spool until it is forwarded.
//!
//! A cut whose delta waits is closed as abandoned: the change map keeps everything that was written
//! since the newest point of the *store*. So the spool may be lost at any moment, and the next cut
//! finds again what it held. When the spool is full, changes are noted by the map alone.

mod cut;

use super::{
    Goes, Key, Open, SourceError, SourceWork, SourceWorker,
    copy::changed,
    cycle::{CutTime, OFF_LOOK},
    forward::{Forward, Forwarded},
};
use crate::{
    roles::host::{
        data_link::DataLink,
        spool::{Spool, delta::SpoolSeal, head::SpoolOwner, room::NoRoom},
    },
    sealing::KeyedHasher,
};
use cut::{Cutting, Failed, write_cut};
use leeward_capture::{AheadHashes, ChangeSource, CutEnd, DiskFolder, HashFiles};
use leeward_model::{Bandwidth, Code, MachineSpec};
use leeward_wire::message::{CapturePhase, SpoolSeen};
use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// What is sent while the machine is cut.
enum Side {
    /// Nothing is; the session, if there is one.
    Rests(Option<Box<DataLink>>),
    Runs(Pin<Box<dyn Future<Output = Forwarded> + Send>>),
    Ended(Forwarded),
}

impl Side {
    /// Goes on with it; returns when it has ended.
    async fn go_on(&mut self) {
        if let Side::Runs(running) = self {
            let ended = running.await;
            *self = Side::Ended(ended);
            return;
        }
        std::future::pending().await
    }
}

/// Does `work`, and goes on with `side` meanwhile.
async fn beside<T>(side: &mut Side, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        tokio::select! {
            done = &mut work => return done,
            () = side.go_on() => {}
        }
    }
}

/// Why nothing is cut although it is time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MapOnly {
    /// There was no room in the spool while so many bytes of it were taken; however many, when
    /// the file system had none.
    NoRoom { taken: u64 },
    /// A disk is not what it was at the store's newest point: only a cut that is sent at once knows
    /// what to do about it.
    OtherDisks,
}

/// A machine that is cut ahead of its store.
pub(super) struct Ahead {
    source: Box<dyn ChangeSource>,
    hashes: Arc<AheadHashes>,
    hasher: Arc<KeyedHasher>,
    spec: MachineSpec,
    pub(super) key: Key,
    seal: SpoolSeal,
    owner: SpoolOwner,
    side: Side,
    last_cut: Option<Instant>,
    /// Points that were cut to wait.
    made: u64,
    why: Why,
    bandwidth: Bandwidth,
    map_only: Option<MapOnly>,
    sent: Arc<AtomicU64>,
    /// How long it is until the first session is tried.
    pause: Duration,
}

impl Ahead {
    /// Takes up another limit: what runs is interrupted, which costs nothing that was committed.
    pub(super) fn bandwidth_set(&mut self, bandwidth: &Bandwidth) {
        if self.bandwidth != *bandwidth {
            self.bandwidth = bandwidth.clone();
            self.side = Side::Rests(None);
        }
    }
}

/// Why the deltas go to the spool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The store cannot be reached.
    Away,
    /// It is there, and too slow.
    Slow,
}

impl SourceWorker {
    /// The spool, when deltas of this session may wait there.
    fn spool_usable(&self) -> Option<Arc<Spool>> {
        let open = self.open.as_ref()?;
        let known = open.goes == Goes::Out && open.mapped && open.link.newest_point.is_some();
        let compares = self.comparing || self.needed.as_ref().is_some_and(|(k, _)| *k == open.key);
        self.spool.clone().filter(|spool| known && !compares && spool.room().is_on())
    }

    /// Goes on without the store, if that is possible from here; says whether it is.
    pub(super) async fn go_ahead(&mut self, work: &SourceWork, why: Why) -> bool {
        let Some(spool) = self.spool_usable() else { return false };
        let Some(open) = self.open.take() else { return false };
        let Open { link, source, hashes, spec, key, last_cut, .. } = open;
        let seal = link.spool_seal();
        let owner = SpoolOwner {
            item: self.item,
            epoch: work.epoch,
            branch: work.duty.branch,
            target: work.duty.target_host,
            key_version: seal.header.key_version,
        };
        let (hasher, base) = (Arc::clone(&link.hasher), link.base);
        let folder = self.spool_folder();
        let (begun, of) = (Arc::clone(&spool), owner.clone());
        let begin = move || begin(&begun, of, base, hashes, DiskFolder::new(folder));
        let hashes = match tokio::task::spawn_blocking(begin).await {
            Ok(Ok(hashes)) => Arc::new(hashes),
            Ok(Err(error)) => {
                tracing::warn!(item = %self.item, %error, "there is no spool: changes are noted");
                return false;
            }
            Err(_) => return false,
        };
        tracing::info!(item = %self.item, ?why, "points wait in the spool");
        let side = Side::Rests(Some(Box::new(link)).filter(|_| why == Why::Slow));
        let (made, map_only, sent) = (0, None, Arc::default());
        let pause = match why {
            Why::Away => self.barren.lost(),
            Why::Slow => Duration::ZERO,
        };
        self.ahead = Some(Ahead {
            source,
            hashes,
            hasher,
            spec,
            key,
            seal,
            owner,
            side,
            last_cut,
            made,
            why,
            bandwidth: work.duty.bandwidth.clone(),
            map_only,
            sent,
            pause,
        });
        true
    }

    /// Cuts points that wait, and forwards them, until the store has all of them.
    pub(super) async fn points_ahead(
        &mut self,
        work: &SourceWork,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<(), SourceError> {
        let interval = Duration::from_millis(work.duty.point_interval_ms);
        loop {
            if changed(work, changes) {
                return Err(SourceError::Changed);
            }
            if self.take_side(work).await? {
                return Ok(());
            }
            let (Some(ahead), Some(spool)) = (self.ahead.as_mut(), self.spool.as_ref()) else {
                return Ok(());
            };
            // With no more room than before, the same delta would be read in vain once more.
            if let Some(MapOnly::NoRoom { taken }) = ahead.map_only
                && spool.room().is_roomy()
                && spool.room().used() < taken
            {
                ahead.map_only = None;
            }
            let due = ahead.last_cut.map_or_else(Instant::now, |last| last + interval);
            if ahead.map_only.is_none() && Instant::now() >= due {
                self.cut_ahead(work).await?;
                continue;
            }
            let wake = due.max(Instant::now() + Duration::from_millis(1));
            let wake = wake.min(Instant::now() + OFF_LOOK);
            tokio::select! {
                () = tokio::time::sleep_until(wake) => {}
                () = ahead.side.go_on() => {}
                _ = changes.changed() => return Err(SourceError::Changed),
            }
            if self.went_off(work).await? {
                self.ahead = None;
                return Ok(());
            }
        }
    }

    /// Starts what is to be sent, and takes what came of it; says whether this mode is over.
    async fn take_side(&mut self, work: &SourceWork) -> Result<bool, SourceError> {
        let (Some(ahead), Some(spool)) = (self.ahead.as_mut(), self.spool.clone()) else {
            return Ok(true);
        };
        self.state.sent_bytes += ahead.sent.swap(0, Ordering::Relaxed);
        let empty = spool.is_empty();
        let side = std::mem::replace(&mut ahead.side, Side::Rests(None));
        match side {
            Side::Ended(Forwarded::Unusable(reason)) => {
                tracing::warn!(item = %self.item, %reason, "what waits in the spool is dropped");
                self.ahead = None;
                self.spool_clear().await;
                return Ok(true);
            }
            Side::Ended(Forwarded::Drained(link)) if empty => {
                self.back_to(link);
                return Ok(true);
            }
            Side::Ended(Forwarded::Drained(link)) => ahead.side = Side::Rests(Some(link)),
            Side::Rests(Some(link)) if empty && ahead.map_only.is_some() => {
                self.back_to(link);
                return Ok(true);
            }
            side => ahead.side = side,
        }
        // Also with nothing to send: that the store is back is found out by a session.
        if let Side::Rests(link) = &mut ahead.side
            && (!empty || link.is_none())
        {
            let link = link.take().map(|link| *link);
            let forward = Forward {
                host: Arc::clone(&self.host),
                work: work.clone(),
                spool,
                hashes: Arc::clone(ahead.hashes.hashes()),
                owner: ahead.owner.clone(),
                sent: Arc::clone(&ahead.sent),
                pause: std::mem::take(&mut ahead.pause),
            };
            ahead.side = Side::Runs(Box::pin(forward.run(link)));
        }
        self.show_ahead();
        Ok(false)
    }

    /// The store has everything that waited: from now on cuts are sent at once.
    fn back_to(&mut self, link: Box<DataLink>) {
        let Some(ahead) = self.ahead.take() else { return };
        let Ahead { source, hashes, spec, key, last_cut, made, .. } = ahead;
        tracing::info!(item = %self.item, points = made, "the store has what waited in the spool");
        let (hashes, goes, mapped) = (Arc::clone(hashes.hashes()), Goes::Out, true);
        self.map_is_older = made > 0;
        // What trusts nothing opens another session.
        let (link, reread_for) = (*link, 0);
        #[rustfmt::skip]
        let open = Open { link, source, hashes, spec, key, goes, mapped, reread_for, last_cut };
        self.open = Some(open);
        self.show(|seen| {
            (seen.phase, seen.spool) = (CapturePhase::Delta, None);
            // What was wrong with the store is over with the next point.
            seen.problem.take_if(|problem| problem.code == Code::SPOOL_FULL.code);
        });
    }

    fn show_ahead(&self) {
        let (Some(ahead), Some(spool)) = (&self.ahead, &self.spool) else { return };
        let figures = spool.figures();
        let (points, bytes, room_bytes) = (figures.points, figures.bytes, spool.room().cap());
        let map_only = ahead.map_only.is_some();
        let seen_spool = SpoolSeen { points, bytes, room_bytes, map_only };
        let (sent, why) = (self.state.sent_bytes, ahead.why);
        let full = matches!(ahead.map_only, Some(MapOnly::NoRoom { .. })).then(|| {
            let name = &self.host.name;
            Code::SPOOL_FULL.problem(format!("the spool of host {name} has no room left"))
        });
        self.show(|seen| {
            (seen.spool, seen.sent_bytes) = (Some(seen_spool), sent);
            seen.phase = match why {
                Why::Away => CapturePhase::Paused,
                Why::Slow => CapturePhase::Delta,
            };
            match full {
                Some(_) => seen.problem = full,
                None => {
                    seen.problem.take_if(|problem| problem.code == Code::SPOOL_FULL.code);
                }
            }
        });
    }

    /// Cuts one point and lets it wait. What goes wrong with it costs this point and nothing else.
    async fn cut_ahead(&mut self, work: &SourceWork) -> Result<(), SourceError> {
        let Some(ahead) = self.ahead.as_mut() else { return Ok(()) };
        let mut side = std::mem::replace(&mut ahead.side, Side::Rests(None));
        let outcome = beside(&mut side, self.cut_beside()).await;
        let Some(ahead) = self.ahead.as_mut() else { return Ok(()) };
        ahead.side = side;
        match outcome {
            Ok(()) => ahead.made += 1,
            Err(Failed::NoRoom(error)) => {
                let taken = match error {
                    NoRoom::Cap(_) => self.spool.as_ref().map_or(0, |spool| spool.room().used()),
                    NoRoom::Reserve => u64::MAX,
                };
                ahead.map_only = Some(MapOnly::NoRoom { taken });
                let code = Code::SPOOL_FULL.code;
                let item = self.item;
                tracing::warn!(%item, code, %error, "the spool is full: changes are noted");
            }
            Err(Failed::OtherDisks) => ahead.map_only = Some(MapOnly::OtherDisks),
            Err(Failed::Gone(error)) => return Err(error),
            Err(Failed::Once(error)) => {
                let problem = error.problem(&self.host, work);
                let (item, cause) = (self.item, &problem.cause);
                tracing::warn!(%item, %cause, "a point that was to wait could not be cut");
            }
        }
        Ok(())
    }

    async fn cut_beside(&mut self) -> Result<(), Failed> {
        let (Some(ahead), Some(spool)) = (self.ahead.as_mut(), self.spool.clone()) else {
            return Ok(());
        };
        let time = CutTime::now(&self.host, Goes::Out);
        ahead.last_cut = Some(time.begun);
        let cut = ahead.source.cut().await.map_err(Failed::of_cut)?;
        let cutting = Cutting {
            spool: Arc::clone(&spool),
            disks: ahead.source.disks(),
            hashes: Arc::clone(&ahead.hashes),
            hasher: Arc::clone(&ahead.hasher),
            seal: ahead.seal.clone(),
            spec: ahead.spec.clone(),
        };
        let result = write_cut(self.host.sealing.clone(), cutting, cut, &time).await;
        // Also of one that waits now: the map keeps what the store does not have.
        let closed = ahead.source.close_cut(CutEnd::Abandoned).await;
        if result.is_err() {
            let spool = Arc::clone(&spool);
            let _ = tokio::task::spawn_blocking(move || spool.drop_unfinished()).await;
        }
        result?;
        closed.map_err(Failed::of_cut)
    }

    /// Drops whatever waits: it is of no use any more, or never was.
    pub(super) async fn spool_clear(&mut self) {
        let Some(spool) = self.spool.clone().filter(|spool| !spool.is_empty()) else { return };
        self.show(|seen| seen.spool = None);
        let cleared = tokio::task::spawn_blocking(move || spool.clear()).await;
        if let Ok(Err(error)) = cleared {
            tracing::warn!(item = %self.item, %error, "the spool could not be cleared");
        }
    }

    /// Sends what an earlier process, or an earlier session, left in the spool.
    pub(super) async fn forward_left(
        &mut self,
        work: &SourceWork,
        changes: &mut watch::Receiver<Option<SourceWork>>,
    ) -> Result<(), SourceError> {
        let Some(spool) = self.spool.clone().filter(|spool| !spool.is_empty()) else {
            return Ok(());
        };
        let Some(open) = self.open.as_mut() else { return Ok(()) };
        let forward = Forward {
            host: Arc::clone(&self.host),
            work: work.clone(),
            spool,
            hashes: Arc::clone(&open.hashes),
            owner: SpoolOwner {
                item: self.item,
                epoch: work.epoch,
                branch: work.duty.branch,
                target: work.duty.target_host,
                key_version: open.link.key_version(),
            },
            sent: Arc::default(),
            pause: Duration::ZERO,
        };
        let sent = tokio::select! {
            sent = forward.all(&mut open.link) => sent,
            _ = changes.changed() => {
                // It stands in the middle of a delta.
                self.open = None;
                return Err(SourceError::Changed);
            }
        };
        self.state.sent_bytes += forward.sent.load(Ordering::Relaxed);
        self.map_is_older = true;
        match sent {
            Ok(()) => Ok(()),
            Err(super::forward::Stop::Link(error)) => Err(error.into()),
            Err(stop) => {
                tracing::warn!(item = %self.item, %stop, "what waits in the spool is dropped");
                self.open = None;
                self.spool_clear().await;
                Ok(())
            }
        }
    }
}

fn begin(
    spool: &Spool,
    owner: SpoolOwner,
    base: leeward_model::Position,
    hashes: Arc<HashFiles>,
    folder: DiskFolder,
) -> Result<AheadHashes, String> {
    let ahead = AheadHashes::new(hashes, Arc::new(folder));
    let hashes = Arc::clone(ahead.hashes());
    let doubt = hashes.doubt(|disk, extent| ahead.put_unknown(disk, extent));
    let or = doubt.map_err(|error| error.to_string())?.map(|doubt| doubt.next);
    spool.begin(owner, base, or).map_err(|error| error.to_string())?;
    Ok(ahead)
}
