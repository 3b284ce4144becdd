//! The store's end where the source's host cannot dial: one worker for each item whose duty names
//! the source's address. It dials, says whose data it wants, waits for the source, and receives.
//!
//! Only who dials is different: from the source's hello on it is `target`'s session.

use super::{Host, target};
use crate::roles::session::{FrameReader, FrameWriter, SessionError};
use leeward_model::{ItemId, Problem};
use leeward_wire::{
    data::{DataMessage, Role},
    message::{ItemDuty, TargetDuty},
};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

/// How long the source's hello is waited for before it is dialled anew. Its machine may be off:
/// nothing is wrong then.
const SOURCE_WAIT: Duration = Duration::from_secs(10);
/// Pause after the first failure; it doubles with each further one.
const BACKOFF: Duration = Duration::from_millis(250);
/// The longest pause.
const BACKOFF_MAX: Duration = Duration::from_secs(4);
/// A session that ends sooner than this counts as a failure, so that none is dialled in a circle.
const SESSION_SHORT: Duration = Duration::from_secs(1);

/// Why a dialled session came to nothing.
#[derive(Debug, thiserror::Error)]
enum ReceiveError {
    #[error("could not connect to the source's host")]
    Dial(#[from] std::io::Error),
    #[error("the session to the source's host failed")]
    Session(#[from] SessionError),
    #[error("the source's host refused: {0}")]
    Refused(Box<Problem>),
}

/// How a dialled session ended.
enum Ended {
    /// The source did not come in time.
    NobodyCame,
    /// It came, and its session is over.
    Served,
}

/// Dials for the item's data as long as its duty says so.
pub async fn run(host: Arc<Host>, item: ItemId, mut work: watch::Receiver<Option<ItemDuty>>) {
    let mut failures = 0;
    loop {
        let Some(duty) = work.borrow_and_update().clone() else { return };
        let Some((target, address)) = wanted(&duty) else {
            if work.changed().await.is_err() {
                return;
            }
            failures = 0;
            continue;
        };
        let begun = Instant::now();
        let outcome = tokio::select! {
            outcome = receive(&host, item, &target, &address) => outcome,
            () = is_other(&mut work, &target) => {
                target::connected(&host.board, item, false);
                failures = 0;
                continue;
            }
        };
        match outcome {
            Ok(Ended::NobodyCame) => failures = 0,
            Ok(Ended::Served) if begun.elapsed() >= SESSION_SHORT => failures = 0,
            Ok(Ended::Served) => failures += 1,
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%item, %address, cause, "{error}");
                }
            }
        }
        if failures > 0 {
            let pause = BACKOFF * 2_u32.saturating_pow(failures.min(8) - 1);
            tokio::select! {
                () = sleep(pause.min(BACKOFF_MAX)) => {}
                () = is_other(&mut work, &target) => failures = 0,
            }
        }
    }
}

/// The duty's part for this worker, when it has one.
fn wanted(duty: &ItemDuty) -> Option<(TargetDuty, String)> {
    let target = duty.target.clone().filter(|target| target.receive && !target.delete)?;
    let address = target.source_address.clone()?;
    Some((target, address))
}

/// Waits until another source, branch or way is wanted, or none.
async fn is_other(work: &mut watch::Receiver<Option<ItemDuty>>, now: &TargetDuty) {
    let way = |target: &TargetDuty| {
        (target.source_host, target.source_address.clone(), target.branch, target.fence)
    };
    loop {
        let ended = work.changed().await.is_err();
        let next = work.borrow_and_update().as_ref().and_then(wanted);
        if ended || next.is_none_or(|(next, _)| way(&next) != way(now)) {
            // Seen again at the top of the worker's loop.
            work.mark_changed();
            return;
        }
    }
}

async fn receive(
    host: &Arc<Host>,
    item: ItemId,
    duty: &TargetDuty,
    address: &str,
) -> Result<Ended, ReceiveError> {
    let stream = host.dialer.dial(address).await?;
    let (read, write) = tokio::io::split(stream);
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let hello = host.hello(item, Role::DialerReceives, duty.branch.epoch, duty.branch);
    writer.message(&DataMessage::Hello(hello)).await?;
    let Ok(came) = timeout(SOURCE_WAIT, reader.message(SOURCE_WAIT * 2)).await else {
        writer.close().await;
        return Ok(Ended::NobodyCame);
    };
    match came? {
        DataMessage::Hello(hello) if hello.role == Role::DialerReceives => {
            // The other end's certificate says that it is a host of this installation; which one
            // may send is the duty's word.
            let source = duty.source_host;
            target::serve(Arc::clone(host), source, hello, reader, writer).await;
            Ok(Ended::Served)
        }
        DataMessage::Refused(problem) => Err(ReceiveError::Refused(Box::new(problem))),
        _ => Err(SessionError::OutOfTurn("something else than its hello").into()),
    }
}
