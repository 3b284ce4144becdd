//! Comparing source and target: when it has become necessary, and what it waits for.

use super::{Goes, SourceError, SourceWork, SourceWorker};
use leeward_model::{Code, Problem};
use leeward_wire::message::CapturePhase;
use std::time::Duration;
use tokio::time::Instant;

/// How long a store may take to answer when it is only looked for.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

impl SourceWorker {
    /// Whether the next attempt waits for its time, or for a person.
    pub(super) async fn is_held(&mut self, work: &SourceWork) -> bool {
        let now = Instant::now();
        if self.pace.probe_is_due(now)
            && let Some(address) = &work.duty.target_address
        {
            let dialled = tokio::time::timeout(PROBE_TIMEOUT, self.host.dialer.dial(address));
            self.pace.probed(matches!(dialled.await, Ok(Ok(_))), Instant::now());
        }
        self.pace.session_seen(self.host.board.sessions(), now);
        if self.host.lobby.is_waited_at(self.item) {
            self.pace.store_came(now);
        }
        let held = self.pace.is_held(now);
        if held {
            self.show(|seen| seen.phase = CapturePhase::Paused);
        }
        held
    }

    /// Notes that source and target have to be compared.
    pub(super) fn needs(&mut self, work: &SourceWork, reason: String) {
        self.show(|seen| seen.resync_reason = Some(reason.clone()));
        self.needed = Some((Self::key(work), reason));
    }

    /// Whether a comparison was asked for and is not done.
    fn is_asked(&self, work: &SourceWork) -> bool {
        work.duty.resync > self.state.resync_done
    }

    /// Number of the resync that is asked for and trusts no hash that was taken before; 0 for none.
    pub(super) fn reread_wanted(&self, work: &SourceWork) -> u64 {
        match work.duty.resync_full > self.state.resync_done {
            true => work.duty.resync_full,
            false => 0,
        }
    }

    /// Whether the session that is open rests on hashes that a resync shall not trust.
    pub(super) fn distrusts(&self, work: &SourceWork) -> bool {
        let wanted = self.reread_wanted(work);
        wanted > 0 && self.open.as_ref().is_some_and(|open| open.reread_for != wanted)
    }

    /// Whether the session that is open has to read everything; with the reason to be shown, if
    /// none is yet.
    pub(super) fn comparison(&self, work: &SourceWork) -> Option<Option<String>> {
        let open = self.open.as_ref()?;
        if self.is_asked(work) {
            return Some(Some("asked for".to_owned()));
        }
        let needed = self.needed.as_ref().filter(|(key, _)| *key == open.key);
        let whole = needed.is_some() || !open.mapped || open.link.newest_point.is_none();
        whole.then(|| needed.map(|(_, reason)| reason.clone()))
    }

    /// Whether a comparison that is known to be necessary may not begin. Then nothing is held
    /// open for it: the change map needs nobody, and the store may be gone before it may begin.
    pub(super) fn waits(&mut self, work: &SourceWork) -> bool {
        if work.duty.resync_allowed || self.is_asked(work) {
            return false;
        }
        let key = Self::key(work);
        let Some((_, reason)) = self.needed.clone().filter(|(of, _)| *of == key) else {
            return false;
        };
        self.open = None;
        let name = &work.duty.machine;
        let what = format!(
            "the comparison of {name} with its replica waits for its window, or for a resync by \
             hand"
        );
        let now = "no points are made; changes are noted and recovery points are kept".to_owned();
        let problem = Problem { now, ..Code::RESYNC_NEEDED.because(what, reason) };
        self.show(|seen| {
            seen.phase = CapturePhase::Paused;
            seen.problem = Some(problem);
        });
        true
    }

    /// Whether more changed since the last point than a delta may carry (F-152): then source and
    /// target are to be compared.
    pub(super) async fn exceeds(&mut self, work: &SourceWork) -> Result<bool, SourceError> {
        let Some(open) = self.open.as_mut().filter(|open| open.goes == Goes::Out && open.mapped)
        else {
            return Ok(false);
        };
        let percent = work.duty.resync_threshold_percent;
        let total: u64 = open.source.disks().iter().map(|disk| disk.size).sum();
        let dirty = open.source.dirty_bytes().await?;
        if u128::from(dirty) * 100 <= u128::from(total) * u128::from(percent) {
            return Ok(false);
        }
        let reason = format!(
            "{dirty} bytes changed since the last point, more than {percent} % of the {total} \
             bytes of the disks"
        );
        tracing::info!(item = %self.item, "{reason}");
        self.needs(work, reason);
        Ok(true)
    }
}
