//! `leeward export`: serves one recovery point's disks over NBD until it is ended.
//!
//! A process of its own that depends on no other role: it reads the store's files and the key
//! file, and listens on a unix socket. A machine may run on what it serves.

pub mod boot_set;
mod watched;

use crate::store::place::PlaceOptions;
use boot_set::{Place, Recorder};
use leeward_model::{ItemId, PointId};
use leeward_nbd::server::{Limits, Server};
use leeward_replica::{PointExport, ReadCounts, View};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::UnixListener;
use watched::{Gate, Watched, fetch_ahead};

/// How long requests in flight may take at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// How often what was read first is saved.
const NOTE: Duration = Duration::from_secs(2);
/// How often the log tells how many reads were answered from memory.
const TELL: Duration = Duration::from_secs(300);

/// What to serve and where.
#[derive(Clone, Debug, clap::Args)]
pub struct ExportOptions {
    /// The replica store: a folder, s3://BUCKET/PREFIX or az://CONTAINER/PREFIX.
    #[arg(long)]
    pub store: String,
    /// File with the key of a store that does not keep it itself.
    #[arg(long)]
    pub key_file: Option<PathBuf>,
    /// The item's id.
    #[arg(long)]
    pub item: ItemId,
    /// The recovery point's id.
    #[arg(long)]
    pub point: PointId,
    /// Unix socket to listen on, at most 107 bytes; disk N is the export disk-N.
    #[arg(long)]
    pub socket: PathBuf,
    /// File with what the item's machine read first in its last test: fetched ahead, while nothing
    /// is asked for. A missing or damaged one is ignored.
    #[arg(long, value_name = "FILE")]
    pub boot_set: Option<PathBuf>,
    /// Note there what the machine reads first this time.
    #[arg(long, requires = "boot_set")]
    pub record_boot_set: bool,
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the store, the key, the point or the socket cannot be used.
pub async fn run(options: ExportOptions) -> anyhow::Result<()> {
    let opened = options.clone();
    let view = tokio::task::spawn_blocking(move || open(&opened)).await??;
    let view = Arc::new(view);
    let boot_set = options.boot_set.as_deref().map(|path| boot_set::load(path, options.item));
    let boot_set = boot_set.unwrap_or_default();
    let recorder = options.record_boot_set.then(|| Arc::new(Recorder::default()));
    let gate = Arc::new(Gate::default());
    let mut server = Server::new(Limits::default());
    for disk in view.disks().to_vec() {
        let export = PointExport::new(Arc::clone(&view), disk.number)?;
        let export = Watched::new(export, disk.number, Arc::clone(&gate), recorder.clone());
        let name = crate::roles::host::instances::export_name(disk.number);
        server.add(&name, "a disk of a recovery point", Arc::new(export))?;
    }
    let listener = listen(&options.socket)?;
    let running = server.start(listener);
    tracing::info!(point = %options.point, socket = %options.socket.display(), "serving");
    let fetching = tokio::spawn(fetch(Arc::clone(&view), gate, boot_set.clone()));
    tokio::select! {
        () = crate::roles::ended() => {}
        () = look_after(&options, &view, recorder.as_deref(), &boot_set) => {}
    }
    fetching.abort();
    running.shutdown(DRAIN).await;
    note(&options, recorder.as_deref(), &boot_set);
    tell_reads(&view);
    Ok(())
}

/// Fetches the boot set ahead.
async fn fetch(view: Arc<View>, gate: Arc<Gate>, boot_set: Vec<Place>) {
    if boot_set.is_empty() {
        return;
    }
    let (begun, extents) = (Instant::now(), boot_set.len());
    let fetched = fetch_ahead(view, gate, boot_set).await;
    let ms = begun.elapsed().as_millis() as u64;
    tracing::info!(extents, fetched, ms, "the boot set is decoded");
}

/// Notes what is read, and tells how often it was decoded already; for ever.
async fn look_after(
    options: &ExportOptions,
    view: &View,
    recorder: Option<&Recorder>,
    before: &[Place],
) {
    let mut told = (Instant::now(), view.reads());
    loop {
        tokio::time::sleep(NOTE).await;
        note(options, recorder, before);
        if told.0.elapsed() > TELL && told.1 != view.reads() {
            tell_reads(view);
            told = (Instant::now(), view.reads());
        }
    }
}

/// Saves what was noted since the last time. An export may be killed at any moment.
fn note(options: &ExportOptions, recorder: Option<&Recorder>, before: &[Place]) {
    let Some((recorder, path)) = recorder.zip(options.boot_set.as_deref()) else { return };
    if let Some(places) = recorder.unsaved(before)
        && let Err(error) = boot_set::save(path, options.item, &places)
    {
        tracing::warn!(path = %path.display(), %error, "the boot set could not be saved");
    }
}

fn tell_reads(view: &View) {
    let ReadCounts { kept, ahead, decoded } = view.reads();
    let hit_percent = view.reads().hit_percent();
    tracing::info!(kept, ahead, decoded, hit_percent, "extents read");
}

fn open(options: &ExportOptions) -> anyhow::Result<View> {
    let mut place = PlaceOptions::from(options.store.clone());
    place.key_file.clone_from(&options.key_file);
    let store = place.open()?;
    let mut reader = store.point_read(options.item)?;
    let record = reader.point(options.point)?;
    let record = record.ok_or_else(|| anyhow::anyhow!("there is no point {}", options.point))?;
    Ok(reader.view(&record)?)
}

/// Listens on `path`, in place of a socket that an ended process left there.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}
