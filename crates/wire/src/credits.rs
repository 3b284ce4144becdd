//! The window of a data session: how many bytes of records may be on their way and not durable.
//! Both ends keep it; neither waits here, the session does.

use crate::{data::Ack, record::RECORD_BYTES_MAX};
use leeward_model::Lsn;
use std::collections::VecDeque;
use thiserror::Error;

/// The smallest window. Two of the largest records: with less, one record could never be sent.
pub const CREDIT_BYTES_MIN: u64 = 2 * RECORD_BYTES_MAX as u64;
/// The largest window, 1 GiB: the sender keeps that much in memory.
pub const CREDIT_BYTES_MAX: u64 = 1 << 30;

/// The peer broke the rules of the window; the session ends.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CreditError {
    /// A window outside the bounds.
    #[error("a window of {bytes} bytes is outside {CREDIT_BYTES_MIN} to {CREDIT_BYTES_MAX}")]
    Window {
        /// The window.
        bytes: u64,
    },
    /// What was durable is no longer said to be.
    #[error("record {before} was durable, now the peer says {now}")]
    Backwards {
        /// As acknowledged before.
        before: Lsn,
        /// As acknowledged now.
        now: Lsn,
    },
    /// A record was acknowledged that was never sent.
    #[error("record {acked} was acknowledged, the last one sent is {sent}")]
    NeverSent {
        /// As acknowledged.
        acked: Lsn,
        /// The last one sent.
        sent: Lsn,
    },
    /// The peer sent more than its window.
    #[error("{in_flight} bytes are not durable yet, the window is {window}")]
    Overrun {
        /// Bytes received and not durable.
        in_flight: u64,
        /// The largest window that the peer may still believe in.
        window: u64,
    },
    /// The peer left out a record or sent one twice.
    #[error("record {found} came where {expected} had to")]
    Sequence {
        /// The LSN that had to come.
        expected: Lsn,
        /// The one that came.
        found: Lsn,
    },
}

fn check_window(bytes: u64) -> Result<u64, CreditError> {
    if (CREDIT_BYTES_MIN..=CREDIT_BYTES_MAX).contains(&bytes) {
        Ok(bytes)
    } else {
        Err(CreditError::Window { bytes })
    }
}

/// Records that are on their way: their places and lengths, oldest first.
#[derive(Debug)]
struct InFlight {
    records: VecDeque<(Lsn, u64)>,
    bytes: u64,
    last: Lsn,
    durable: Lsn,
}

impl InFlight {
    fn after(durable: Lsn) -> InFlight {
        InFlight { records: VecDeque::new(), bytes: 0, last: durable, durable }
    }

    fn add(&mut self, lsn: Lsn, len: u64) {
        self.records.push_back((lsn, len));
        self.bytes += len;
        self.last = lsn;
    }

    /// Takes out what is durable now and returns its bytes.
    fn release(&mut self, durable: Lsn) -> u64 {
        let mut released = 0;
        while let Some((_, len)) = self.records.pop_front_if(|(lsn, _)| *lsn <= durable) {
            released += len;
        }
        self.bytes -= released;
        self.durable = durable;
        released
    }
}

/// The sender's side.
#[derive(Debug)]
pub struct SendWindow {
    window: u64,
    in_flight: InFlight,
}

impl SendWindow {
    /// The window of a new session; `durable` is the position that it goes on from, the LSN before
    /// the first that will be sent.
    ///
    /// # Errors
    /// [`CreditError::Window`].
    pub fn new(credit_bytes: u64, durable: Lsn) -> Result<SendWindow, CreditError> {
        let window = check_window(credit_bytes)?;
        Ok(SendWindow { window, in_flight: InFlight::after(durable) })
    }

    /// Whether a record of `len` bytes, header and tag among them, may be sent now.
    pub fn can_send(&self, len: usize) -> bool {
        self.in_flight.bytes.saturating_add(len as u64) <= self.window
    }

    /// Notes that a record was sent.
    ///
    /// # Panics
    /// When [`Self::can_send`] says no, or `lsn` does not follow the last one.
    pub fn sent(&mut self, lsn: Lsn, len: usize) {
        assert!(self.can_send(len), "the window is asked before a record is sent");
        assert_eq!(lsn, self.in_flight.last.next(), "records are sent in the order of their LSNs");
        self.in_flight.add(lsn, len as u64);
    }

    /// Takes an acknowledgement; returns how many bytes became durable by it. The window may
    /// shrink below what is on its way: then nothing is sent until enough is durable.
    ///
    /// # Errors
    /// [`CreditError::Window`], [`CreditError::Backwards`], [`CreditError::NeverSent`]; the window
    /// is unchanged then.
    pub fn acked(&mut self, ack: Ack) -> Result<u64, CreditError> {
        let Ack { durable_lsn, credit_bytes } = ack;
        let window = check_window(credit_bytes)?;
        let InFlight { durable, last, .. } = self.in_flight;
        if durable_lsn < durable {
            return Err(CreditError::Backwards { before: durable, now: durable_lsn });
        }
        if durable_lsn > last {
            return Err(CreditError::NeverSent { acked: durable_lsn, sent: last });
        }
        self.window = window;
        Ok(self.in_flight.release(durable_lsn))
    }

    /// Bytes on their way.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight.bytes
    }

    /// Every record up to here is durable.
    pub fn durable_lsn(&self) -> Lsn {
        self.in_flight.durable
    }

    /// The last record sent; the durable one before the first.
    pub fn last_sent(&self) -> Lsn {
        self.in_flight.last
    }
}

/// The store's side: holds the sender to its window.
#[derive(Debug)]
pub struct ReceiveWindow {
    window: u64,
    in_flight: InFlight,
}

impl ReceiveWindow {
    /// The window that was granted in the welcome, for a session that goes on from `durable`.
    ///
    /// # Panics
    /// When the window is outside the bounds: it is ours.
    pub fn new(credit_bytes: u64, durable: Lsn) -> ReceiveWindow {
        let window = check_window(credit_bytes).expect("we grant what we allow");
        ReceiveWindow { window, in_flight: InFlight::after(durable) }
    }

    /// Notes that a record came in.
    ///
    /// # Errors
    /// [`CreditError::Overrun`], [`CreditError::Sequence`].
    pub fn received(&mut self, lsn: Lsn, len: usize) -> Result<(), CreditError> {
        let expected = self.in_flight.last.next();
        if lsn != expected {
            return Err(CreditError::Sequence { expected, found: lsn });
        }
        let in_flight = self.in_flight.bytes + len as u64;
        if in_flight > self.window {
            return Err(CreditError::Overrun { in_flight, window: self.window });
        }
        self.in_flight.add(lsn, len as u64);
        Ok(())
    }

    /// Notes that every record up to `lsn` is durable, and returns the acknowledgement to send.
    ///
    /// # Panics
    /// When `lsn` goes back or beyond what came in: durability is ours to know.
    pub fn durable(&mut self, lsn: Lsn) -> Ack {
        let InFlight { durable, last, .. } = self.in_flight;
        assert!((durable..=last).contains(&lsn), "{lsn} is not within {durable} to {last}");
        self.in_flight.release(lsn);
        Ack { durable_lsn: lsn, credit_bytes: self.window }
    }

    /// The last record that came in.
    pub fn last_received(&self) -> Lsn {
        self.in_flight.last
    }
}
