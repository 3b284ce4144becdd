//! The last data of a machine that was shut down, over a link that is away when they are sent, in
//! simulated time: for a while, for longer than anybody waits, or for a reason that does not pass.

use super::*;
use leeward_fabric::memory::OnShutdown;
use leeward_model::{PointId, PointKind};
use leeward_wire::message::ShutdownOutcome;
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::Notify,
};

/// What the guest writes before it is shut down, in bytes: less than is compared instead.
const WRITTEN: u64 = 1 << 20;
/// A cut link is noticed at once; what is tried again, and how often it is looked for, adds this.
const SOON: Duration = Duration::from_secs(3);

/// Why nobody can be dialled.
type Refusal = fn() -> io::Error;

/// Breaks the connections of a way after so many more bytes, and refuses new ones from then on.
#[derive(Default)]
pub struct Cut {
    /// Bytes until then, if it is to come.
    left: Mutex<Option<u64>>,
    refusal: Mutex<Option<Refusal>>,
    /// What new connections will be refused with.
    then: Mutex<Option<Refusal>>,
    came: Notify,
}

impl Cut {
    fn after(&self, bytes: u64, refusal: Refusal) {
        *self.then.lock().unwrap() = Some(refusal);
        *self.left.lock().unwrap() = Some(bytes);
    }

    /// Only says so when so many more bytes have come.
    fn told_after(&self, bytes: u64) {
        *self.left.lock().unwrap() = Some(bytes);
    }

    fn mend(&self) {
        *self.refusal.lock().unwrap() = None;
    }

    /// Whether a connection can be made.
    pub fn dial(&self) -> io::Result<()> {
        let refusal = *self.refusal.lock().unwrap();
        refusal.map_or(Ok(()), |refusal| Err(refusal()))
    }

    /// The receiving end of a connection.
    pub fn over<R: AsyncRead + Unpin>(self: Arc<Cut>, inner: R) -> CutRead<R> {
        CutRead { inner, cut: self }
    }
}

/// See [`Cut::over`].
pub struct CutRead<R> {
    inner: R,
    cut: Arc<Cut>,
}

impl<R: AsyncRead + Unpin> AsyncRead for CutRead<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        std::task::ready!(Pin::new(&mut self.inner).poll_read(context, buffer))?;
        let read = (buffer.filled().len() - before) as u64;
        let mut left = self.cut.left.lock().unwrap();
        match *left {
            Some(some) if some <= read => {
                *left = None;
                self.cut.came.notify_one();
                let refusal = self.cut.then.lock().unwrap().take();
                *self.cut.refusal.lock().unwrap() = refusal;
                Poll::Ready(refusal.map_or(Ok(()), |_| Err(io::ErrorKind::ConnectionReset.into())))
            }
            Some(some) => {
                *left = Some(some - read);
                Poll::Ready(Ok(()))
            }
            None => Poll::Ready(Ok(())),
        }
    }
}

fn away_for_now() -> io::Error {
    io::ErrorKind::ConnectionRefused.into()
}

/// The store's host shows a certificate of another installation.
fn of_strangers() -> io::Error {
    let unknown = rustls::CertificateError::UnknownIssuer;
    io::Error::other(rustls::Error::InvalidCertificate(unknown))
}

fn machine() -> MachineRef {
    MachineRef::Owned(NAME.into())
}

fn off(job: JobId, needs_point: bool) -> SourceRun {
    SourceRun::ShutDown { job, timeout_ms: 60_000, power_off: false, copy: false, needs_point }
}

/// What came of the shutdown that `by` asked for, once something has.
fn outcome(by: JobId) -> impl Fn(&Host) -> Option<Result<Option<PointId>, String>> {
    move |host| match host.board.source_seen(ITEM)?.shutdown? {
        (job, ShutdownOutcome::Done { point }) if job == by => Some(Ok(point)),
        (job, ShutdownOutcome::Failed { problem }) if job == by => Some(Err(problem.code)),
        _ => None,
    }
}

struct Story {
    home: End,
    away: End,
    duty: SourceDuty,
}

impl Story {
    /// The machine is replicated and has written; the link breaks in the middle of its last data.
    async fn cut(refusal: Refusal) -> Story {
        let story = Story::wrote().await;
        story.away.way.cut.after(WRITTEN / 2, refusal);
        story
    }

    /// The machine is replicated and has written.
    async fn wrote() -> Story {
        let (home, away, duty) = replicating().await;
        away.machines.set_on_shutdown(&machine(), OnShutdown::After(Duration::from_secs(4)));
        // No other point is due before the machine is off.
        let duty = SourceDuty { point_interval_ms: 3_600_000, ..duty };
        away.assign(1, Some(duty.clone()), None);
        home.seen(newest).await;
        let written = &noise(WRITTEN as usize + 1)[1..];
        away.machines.guest_write(&machine(), DISK, 0, written).unwrap();
        Story { home, away, duty }
    }

    fn asks(&self, generation: u64, run: SourceRun) {
        let duty = SourceDuty { run, ..self.duty.clone() };
        self.away.assign(generation, Some(duty), None);
    }

    /// The final point holds what the machine has, of which no more was read than had to be.
    async fn is_whole(&self, point: PointId, read_before: u64) {
        let at = |host: &Host| newest(host).filter(|newest| newest.point == point);
        let newest = self.home.seen(at).await;
        assert_eq!(newest.kind, PointKind::Final);
        assert!(self.home.stored(newest.position) == self.away.content(), "data are missing");
        assert_eq!(self.away.state().await, MachineState::Off);
        let read = self.away.machines.disks(&machine()).unwrap().bytes_read() - read_before;
        assert!(read < SIZE, "{read} bytes were read for {WRITTEN} that it had written");
    }

    fn read(&self) -> u64 {
        self.away.machines.disks(&machine()).unwrap().bytes_read()
    }
}

/// F-086, F-079: nobody is asked, and all of it arrives.
#[tokio::test(start_paused = true)]
async fn a_link_that_is_cut_under_the_last_data_delays_them_and_that_is_all() {
    for (job, needs, seconds) in
        [(1, true, 1.5), (2, true, 20.0), (3, false, 1.5), (4, false, 20.0)]
    {
        let story = Story::cut(away_for_now).await;
        let (job, before) = (JobId::from_u128(job), story.read());
        story.asks(3, off(job, needs));
        story.away.way.cut.came.notified().await;
        tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
        assert_eq!(outcome(job)(&story.away.host), None, "{seconds} s");
        let problem = story.away.host.board.source_seen(ITEM).unwrap().problem;
        assert_eq!(problem.unwrap().code, Code::TARGET_AWAY.code);

        story.away.way.cut.mend();

        let point = story.away.seen_within(SOON, outcome(job)).await;
        story.is_whole(point.unwrap().expect("it was sent"), before).await;
    }
}

/// F-086: a failover that can do without the last data does not wait for ever; one that cannot
/// asks, and goes on from what the machine's process still knows.
#[tokio::test(start_paused = true)]
async fn a_link_that_stays_away_is_told_in_time_and_what_is_missing_is_sent_when_asked_again() {
    let story = Story::cut(away_for_now).await;
    let cut = Instant::now();
    let (first, second) = (JobId::from_u128(1), JobId::from_u128(2));
    let before = story.read();
    story.asks(3, off(first, true));
    let told = story.away.seen_within(Duration::from_secs(300), outcome(first)).await;
    assert_eq!(told, Err(Code::TARGET_AWAY.code.into()));
    assert!((100..140).contains(&cut.elapsed().as_secs()), "{:?}", cut.elapsed());
    assert_ne!(story.away.state().await, MachineState::Off, "its process knows what is missing");

    story.away.way.cut.mend();
    story.asks(4, off(second, true));

    let point = story.away.seen_within(SOON, outcome(second)).await;
    story.is_whole(point.unwrap().expect("it was sent"), before).await;

    let story = Story::cut(away_for_now).await;
    let cut = Instant::now();
    story.asks(3, off(first, false));
    let told = story.away.seen(outcome(first)).await;
    assert_eq!(told, Ok(None), "it goes on without them");
    assert!((30..50).contains(&cut.elapsed().as_secs()), "{:?}", cut.elapsed());
    assert_eq!(story.away.state().await, MachineState::Off);
}

/// F-155: what cannot pass is told at once, and the same is then sent when it is mended.
#[tokio::test(start_paused = true)]
async fn a_certificate_that_is_not_accepted_is_told_at_once() {
    for needs in [true, false] {
        let story = Story::cut(of_strangers).await;
        let (first, second) = (JobId::from_u128(1), JobId::from_u128(2));
        let before = story.read();
        story.asks(3, off(first, needs));
        story.away.way.cut.came.notified().await;
        let cut = Instant::now();

        let told = story.away.seen(outcome(first)).await;

        assert!(cut.elapsed() < Duration::from_secs(1), "{:?}", cut.elapsed());
        assert_eq!(told, if needs { Err(Code::WRONG_CA.code.into()) } else { Ok(None) });
        if needs {
            story.away.way.cut.mend();
            story.asks(4, off(second, true));
            let point = story.away.seen_within(SOON, outcome(second)).await;
            story.is_whole(point.unwrap().expect("it was sent"), before).await;
        }
    }
}

/// F-079: a cancel between two tries is heard at once, and the guest goes on where it was.
#[tokio::test(start_paused = true)]
async fn a_cancel_while_the_last_data_are_tried_lets_the_machine_run_again_at_once() {
    let story = Story::cut(away_for_now).await;
    let job = JobId::from_u128(1);
    story.asks(3, off(job, true));
    story.away.way.cut.came.notified().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    let cancelled = Instant::now();

    let permit = story.away.permit(NAME, "boot");
    story.asks(4, SourceRun::Replicate { permit, start: Some(job) });

    let started = |host: &Host| host.board.source_seen(ITEM)?.started;
    let (by, outcome) = story.away.seen(started).await;
    assert_eq!((by, outcome), (job, Ok(())));
    assert!(cancelled.elapsed() < Duration::from_millis(100), "{:?}", cancelled.elapsed());
    assert_eq!(story.away.state().await, MachineState::Running);
    // Also what it had written before.
    let before = newest(&story.home.host).unwrap();
    story.away.way.cut.mend();
    let after = story.home.seen(|host| newest(host).filter(|n| n.point != before.point)).await;
    assert!(story.home.stored(after.position) == story.away.content());
}

/// F-086: a request that comes while the last data of the former one are sent has their point.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_made_anew_meanwhile_does_not_begin_anew() {
    let story = Story::cut(away_for_now).await;
    let (first, second) = (JobId::from_u128(1), JobId::from_u128(2));
    let before = story.read();
    story.asks(3, off(first, true));
    story.away.way.cut.came.notified().await;
    tokio::time::sleep(Duration::from_secs(10)).await;
    story.asks(4, off(second, true));
    tokio::time::sleep(Duration::from_secs(10)).await;

    story.away.way.cut.mend();

    let point = story.away.seen_within(SOON, outcome(second)).await;
    story.is_whole(point.unwrap().expect("it was sent"), before).await;
}

/// F-086: also one that comes in the middle of a try that works.
#[tokio::test(start_paused = true)]
async fn a_request_that_is_made_anew_while_the_last_data_are_sent_has_their_point() {
    let story = Story::wrote().await;
    let (first, second) = (JobId::from_u128(1), JobId::from_u128(2));
    let before = story.read();
    story.away.way.cut.told_after(WRITTEN / 2);
    story.asks(3, off(first, true));
    story.away.way.cut.came.notified().await;
    assert_eq!(outcome(first)(&story.away.host), None, "they are on their way");

    story.asks(4, off(second, true));

    let point = story.away.seen_within(SOON, outcome(second)).await;
    story.is_whole(point.unwrap().expect("it was sent"), before).await;
}
