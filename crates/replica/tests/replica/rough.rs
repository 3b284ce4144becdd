//! A store of objects in memory behind a bad road: answers that fail, are lost, come twice, end
//! early or never come, lists that lag, and a server that is away for a day. Faults come from a
//! seed; time is that of the runtime that asks.

use async_trait::async_trait;
use bytes::Bytes;
use futures_core::{Stream, stream::BoxStream};
use leeward_replica::storage::Seeded;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartId,
    MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result,
    memory::InMemory,
    multipart::{MultipartStore, PartId},
    path::Path,
};
use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::Instant;

/// How bad the road is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Road {
    /// Share of requests that meet a fault, in percent.
    pub faults: u64,
    /// Whether the server overwrites what was to be created.
    pub overwrites: bool,
}

/// What happens to one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mishap {
    Unavailable,
    Throttled,
    LostAnswer,
    Twice,
    CutBody,
    NoAnswer,
}

/// See the module.
#[derive(Debug)]
pub struct RoughObjects {
    inner: Arc<InMemory>,
    road: Road,
    seeded: Mutex<Seeded>,
    /// Until when nothing answers.
    away: Mutex<Option<Instant>>,
    leaving: Mutex<Option<Duration>>,
    calm: AtomicBool,
    /// How often each mishap happened.
    pub mishaps: Mutex<BTreeMap<Mishap, u64>>,
}

impl fmt::Display for RoughObjects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a bad road")
    }
}

impl RoughObjects {
    pub fn new(inner: Arc<InMemory>, road: Road, seed: u64) -> Arc<RoughObjects> {
        Arc::new(RoughObjects {
            inner,
            road,
            seeded: Mutex::new(Seeded::new(seed)),
            away: Mutex::default(),
            leaving: Mutex::default(),
            calm: AtomicBool::new(false),
            mishaps: Mutex::default(),
        })
    }

    /// From the next request on nothing answers for so long.
    pub fn leave_for(&self, time: Duration) {
        *self.leaving.lock().unwrap() = Some(time);
    }

    /// From now on nothing goes wrong any more.
    pub fn calm_down(&self) {
        self.calm.store(true, Ordering::SeqCst);
    }

    fn error(text: &str) -> Error {
        Error::Generic { store: "rough", source: text.into() }
    }

    fn check_there(&self) -> Result<()> {
        let mut away = self.away.lock().unwrap();
        if let Some(time) = self.leaving.lock().unwrap().take() {
            *away = Some(Instant::now() + time);
        }
        match *away {
            Some(until) if Instant::now() < until => Err(Self::error("connection refused")),
            _ => Ok(()),
        }
    }

    async fn mishap(&self) -> Result<Option<Mishap>> {
        self.check_there()?;
        let (draw, kind) = {
            let mut seeded = self.seeded.lock().unwrap();
            (seeded.below(100), seeded.below(16))
        };
        if draw >= self.road.faults || self.calm.load(Ordering::SeqCst) {
            return Ok(None);
        }
        let mishap = match kind {
            0..4 => Mishap::Unavailable,
            4..6 => Mishap::Throttled,
            6..10 => Mishap::LostAnswer,
            10..13 => Mishap::Twice,
            13..15 => Mishap::CutBody,
            _ => Mishap::NoAnswer,
        };
        *self.mishaps.lock().unwrap().entry(mishap).or_default() += 1;
        match mishap {
            Mishap::Unavailable => Err(Self::error(
                "Server returned non-2xx status code: 503 Service Unavailable: SlowDown",
            )),
            Mishap::Throttled => {
                Err(Self::error("Server returned non-2xx status code: 429 Too Many Requests: "))
            }
            Mishap::NoAnswer => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Err(Self::error("operation timed out"))
            }
            Mishap::LostAnswer | Mishap::Twice | Mishap::CutBody => Ok(Some(mishap)),
        }
    }

    /// Does `work` once, or twice, or without an answer.
    async fn through<T, F: Future<Output = Result<T>>>(&self, work: impl Fn() -> F) -> Result<T> {
        let mishap = self.mishap().await?;
        let done = work().await;
        match mishap {
            Some(Mishap::LostAnswer) => Err(Self::error("connection closed before the answer")),
            Some(Mishap::Twice) => work().await,
            _ => done,
        }
    }
}

/// A body of one piece.
struct Body(Option<Bytes>);

impl Stream for Body {
    type Item = Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Ok))
    }
}

#[async_trait]
impl ObjectStore for RoughObjects {
    async fn put_opts(&self, at: &Path, body: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let mut opts = opts;
        if self.road.overwrites {
            opts.mode = PutMode::Overwrite;
        }
        self.through(|| self.inner.put_opts(at, body.clone(), opts.clone())).await
    }

    async fn put_multipart_opts(
        &self,
        at: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(at, opts).await
    }

    async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
        let mishap = self.mishap().await?;
        let mut got = self.inner.get_opts(at, options.clone()).await?;
        match mishap {
            Some(Mishap::LostAnswer) => return Err(Self::error("connection closed")),
            Some(Mishap::CutBody) if !options.head => {
                let (range, meta, attributes) =
                    (got.range.clone(), got.meta.clone(), got.attributes.clone());
                let extensions = got.extensions.clone();
                let bytes = got.bytes().await?;
                let cut = bytes.slice(..bytes.len() / 2);
                let payload = GetResultPayload::Stream(Box::pin(Body(Some(cut))));
                got = GetResult { payload, meta, range, attributes, extensions };
            }
            _ => {}
        }
        Ok(got)
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        // A stream cannot wait here: the request fails or it goes through.
        let draw = self.seeded.lock().unwrap().below(100);
        let bad = draw < self.road.faults && !self.calm.load(Ordering::SeqCst);
        match self.check_there() {
            Ok(()) if !bad => self.inner.delete_stream(locations),
            _ => Box::pin(Failed(Some(Self::error("connection reset")))),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let mut listed = self.through(|| self.inner.list_with_delimiter(prefix)).await?;
        // As some servers do.
        if let (Some(prefix), Some(one)) = (prefix, listed.objects.first().cloned()) {
            listed.objects.push(ObjectMeta { location: prefix.clone(), size: 0, ..one });
        }
        Ok(listed)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A stream of one error.
struct Failed(Option<Error>);

impl Stream for Failed {
    type Item = Result<Path>;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(self.0.take().map(Err))
    }
}

#[async_trait]
impl MultipartStore for RoughObjects {
    async fn create_multipart(&self, at: &Path) -> Result<MultipartId> {
        self.through(|| self.inner.create_multipart(at)).await
    }

    async fn put_part(
        &self,
        at: &Path,
        id: &MultipartId,
        index: usize,
        body: PutPayload,
    ) -> Result<PartId> {
        self.through(|| self.inner.put_part(at, id, index, body.clone())).await
    }

    async fn complete_multipart(
        &self,
        at: &Path,
        id: &MultipartId,
        parts: Vec<PartId>,
    ) -> Result<PutResult> {
        self.through(|| self.inner.complete_multipart(at, id, parts.clone())).await
    }

    async fn abort_multipart(&self, at: &Path, id: &MultipartId) -> Result<()> {
        self.through(|| self.inner.abort_multipart(at, id)).await
    }
}
