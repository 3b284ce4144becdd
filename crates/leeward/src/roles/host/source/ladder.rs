//! When a worker tries again what failed: the ladder of pauses, and what ends a pause early. Pure:
//! the time is an argument, nothing here waits.

use std::time::Duration;
use tokio::time::Instant;

/// Pauses after the first failures of a comparison, in minutes; the last one is repeated.
const PAUSES: [u64; 6] = [1, 2, 4, 8, 10, 30];
/// After a change of the duty or a new link the other end may still be coming up: it has this
/// long before a failure counts.
const SETTLING: Duration = Duration::from_secs(10);

/// How often a store that is dialled is looked for during a pause for the link's sake.
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// Pauses after a second and further sessions that brought nothing: the first, and the longest, by
/// which a store that has space again is found.
const BARREN_FIRST: Duration = Duration::from_secs(2);
const BARREN_MAX: Duration = Duration::from_secs(10);

/// How long to wait after how many failures in a row (F-156).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ladder {
    failures: usize,
}

impl Ladder {
    /// Notes a failure; returns the pause before the next attempt.
    pub fn failed(&mut self) -> Duration {
        let minutes = PAUSES[self.failures.min(PAUSES.len() - 1)];
        self.failures = self.failures.saturating_add(1);
        Duration::from_secs(60 * minutes)
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Sessions in a row that ended before anything was committed: a store that takes sessions and
/// refuses data, because it has no space, is not asked many times a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Barren {
    sessions: u32,
}

impl Barren {
    /// Notes the loss of a session; returns the pause before the next one. After one that was of
    /// use there is none: most breaks are short.
    pub fn lost(&mut self) -> Duration {
        let pause = match self.sessions {
            0 => Duration::ZERO,
            more => BARREN_FIRST.saturating_mul(1 << (more - 1).min(8)).min(BARREN_MAX),
        };
        self.sessions = self.sessions.saturating_add(1);
        pause
    }
}

/// What a failure means for the next attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may work soon: as for a delta, or because the other end is only coming up.
    Soon,
    /// A comparison failed because the store could not be reached.
    Link,
    /// A comparison failed for another reason that may pass: no space, a disk's error.
    Comparing,
    /// The same again cannot work before somebody changes something (F-155).
    Final,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hold {
    /// Until then, or until the store dials.
    Link(Instant),
    Until(Instant),
    Duty,
}

/// The pace of one worker's attempts.
#[derive(Debug, Default)]
pub struct Pace {
    ladder: Ladder,
    hold: Option<Hold>,
    /// The newest session to the config server when it was last looked at.
    session: u64,
    /// Until then failures do not count.
    settled: Option<Instant>,
    /// When the store was looked for last in this pause.
    probed: Option<Instant>,
    /// It was not there then: a link that only breaks again and again is no link that returned.
    away: bool,
}

impl Pace {
    /// The duty is another one now: whatever failed is tried at once.
    pub fn duty_changed(&mut self, now: Instant) {
        self.hold = None;
        self.began(now);
    }

    /// Looks at the number of the newest session to the config server: with a new one the link
    /// is back, and what failed for the link's sake is tried at once.
    pub fn session_seen(&mut self, session: u64, now: Instant) {
        if self.session != session {
            self.session = session;
            if self.hold != Some(Hold::Duty) {
                self.hold = None;
                self.began(now);
            }
        }
    }

    /// The store has dialled and waits: what failed for the link's sake is tried at once.
    pub fn store_came(&mut self, now: Instant) {
        if matches!(self.hold, Some(Hold::Link(_))) {
            self.hold = None;
            self.began(now);
        }
    }

    /// Whether the store that this end dials is to be looked for. A look is no attempt.
    pub fn probe_is_due(&self, now: Instant) -> bool {
        let waits = matches!(self.hold, Some(Hold::Link(at)) if now < at);
        waits && self.probed.is_none_or(|probed| now >= probed + PROBE_EVERY)
    }

    /// Notes whether the store was there. One that was away and is back ends the pause.
    pub fn probed(&mut self, there: bool, now: Instant) {
        self.probed = Some(now);
        if there && std::mem::take(&mut self.away) {
            self.store_came(now);
        }
        self.away |= !there;
    }

    fn began(&mut self, now: Instant) {
        self.ladder.reset();
        self.settled = Some(now + SETTLING);
    }

    /// Whether the next attempt has to wait.
    pub fn is_held(&self, now: Instant) -> bool {
        match self.hold {
            Some(Hold::Link(at) | Hold::Until(at)) => now < at,
            Some(Hold::Duty) => true,
            None => false,
        }
    }

    /// Notes a failure.
    pub fn failed(&mut self, failure: Failure, now: Instant) {
        let settled = self.settled.is_none_or(|at| now >= at);
        (self.probed, self.away) = (None, false);
        self.hold = match failure {
            Failure::Final => Some(Hold::Duty),
            Failure::Link if settled => Some(Hold::Link(now + self.ladder.failed())),
            Failure::Comparing if settled => Some(Hold::Until(now + self.ladder.failed())),
            Failure::Link | Failure::Comparing | Failure::Soon => None,
        };
    }

    /// Notes that a point was made, or that the machine went off: the next failure is the first.
    pub fn succeeded(&mut self) {
        self.ladder.reset();
        self.hold = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// F-156.
    #[test]
    fn pauses_grow_to_half_an_hour_and_a_success_begins_anew() {
        let mut ladder = Ladder::default();
        let pauses: Vec<_> = (0..8).map(|_| ladder.failed().as_secs() / 60).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 10, 30, 30, 30]);

        ladder.reset();

        assert_eq!(ladder.failed(), MINUTE);
    }

    /// F-156.
    #[test]
    fn an_attempt_waits_for_its_rung_or_for_the_link() {
        let begun = Instant::now();
        let mut pace = Pace::default();
        for minutes in [1, 2, 4] {
            pace.failed(Failure::Comparing, begun);
            assert!(pace.is_held(begun + minutes * MINUTE - Duration::from_millis(1)));
            assert!(!pace.is_held(begun + minutes * MINUTE));
        }

        pace.session_seen(1, begun);
        assert!(!pace.is_held(begun), "the link is back");
        pace.failed(Failure::Comparing, begun);
        assert!(!pace.is_held(begun), "the other end is still coming up");
        pace.failed(Failure::Comparing, begun + SETTLING);
        assert!(pace.is_held(begun + MINUTE));
        assert!(!pace.is_held(begun + SETTLING + MINUTE), "the ladder began anew");
        pace.succeeded();
        assert!(!pace.is_held(begun));
    }

    /// F-156.
    #[test]
    fn a_store_that_dials_ends_a_pause_for_the_link_and_no_other() {
        let begun = Instant::now();
        for (failure, ends) in [(Failure::Link, true), (Failure::Comparing, false)] {
            let mut pace = Pace::default();
            pace.failed(failure, begun);
            assert!(pace.is_held(begun));

            pace.store_came(begun);

            assert_eq!(pace.is_held(begun), !ends, "{failure:?}");
        }
    }

    /// F-156.
    #[test]
    fn a_store_that_was_away_and_answers_again_ends_a_pause_for_the_link() {
        let mut now = Instant::now();
        let mut pace = Pace::default();
        let look = |pace: &mut Pace, now: &mut Instant, there| {
            assert!(pace.probe_is_due(*now));
            pace.probed(there, *now);
            assert!(!pace.probe_is_due(*now), "once in a while");
            *now += PROBE_EVERY;
            pace.is_held(*now)
        };
        pace.failed(Failure::Link, now);

        assert!(look(&mut pace, &mut now, true), "a link that broke may break again");
        assert!(look(&mut pace, &mut now, false));
        assert!(!look(&mut pace, &mut now, true), "it is back");

        for failure in [Failure::Comparing, Failure::Final] {
            pace.failed(failure, now + SETTLING);
            assert!(!pace.probe_is_due(now + SETTLING), "{failure:?}");
        }
    }

    /// F-155.
    #[test]
    fn what_cannot_work_waits_for_another_duty_alone() {
        let begun = Instant::now();
        let mut pace = Pace::default();
        pace.failed(Failure::Final, begun);

        pace.session_seen(1, begun);
        pace.store_came(begun);
        assert!(pace.is_held(begun + 1000 * MINUTE));

        pace.duty_changed(begun);
        assert!(!pace.is_held(begun));
    }
}
