//! `leeward export`: serves one recovery point's disks over NBD until it is ended.
//!
//! A process of its own that depends on no other role: it reads the store's files and the key
//! file, and listens on a unix socket. A machine may run on what it serves.

use crate::store::place::PlaceOptions;
use leeward_model::{ItemId, PointId};
use leeward_nbd::server::{Limits, Server};
use leeward_replica::{PointExport, View};
use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::net::UnixListener;

/// How long requests in flight may take at the end.
const DRAIN: Duration = Duration::from_secs(10);

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
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When the store, the key, the point or the socket cannot be used.
pub async fn run(options: ExportOptions) -> anyhow::Result<()> {
    let opened = options.clone();
    let view = tokio::task::spawn_blocking(move || open(&opened)).await??;
    let view = Arc::new(view);
    let mut server = Server::new(Limits::default());
    for disk in view.disks().to_vec() {
        let export = PointExport::new(Arc::clone(&view), disk.number)?;
        let name = crate::roles::host::instances::export_name(disk.number);
        server.add(&name, "a disk of a recovery point", Arc::new(export))?;
    }
    let listener = listen(&options.socket)?;
    let running = server.start(listener);
    tracing::info!(point = %options.point, socket = %options.socket.display(), "serving");
    crate::roles::ended().await;
    running.shutdown(DRAIN).await;
    Ok(())
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
