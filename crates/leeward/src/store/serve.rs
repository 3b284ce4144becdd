//! `leeward store serve`: one disk of a point over NBD, read-only. The point is pinned meanwhile,
//! so that a server that lets points go leaves it alone.

use super::{Failure, blocking, file_problem, find, place::PlaceOptions, print, problem};
use crate::roles::host::clock::wall_now;
use leeward_model::{Code, DiskEntry};
use leeward_nbd::server::{Export, Limits, RunningServer, Server};
use leeward_replica::{Pin, PointExport, PointReader, View};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::net::UnixListener;

/// How long requests in flight may take at the end.
const DRAIN: Duration = Duration::from_secs(10);

/// Which disk of which point.
#[derive(Clone, Debug, clap::Args)]
pub struct DiskOptions {
    #[command(flatten)]
    pub place: PlaceOptions,
    /// The item: its machine's name, or its id.
    #[arg(long, value_name = "NAME")]
    pub item: String,
    /// The point: its id, its name, or latest.
    #[arg(long, value_name = "POINT")]
    pub point: String,
    /// The disk: its id, its serial number, or its number.
    #[arg(long, value_name = "ID")]
    pub disk: String,
}

/// What to serve, and where.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeOptions {
    #[command(flatten)]
    disk: DiskOptions,
    /// Unix socket to listen on, at most 107 bytes.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
}

/// A disk of a point, open and pinned.
pub(super) struct OpenDisk {
    pub(super) view: Arc<View>,
    pub(super) disk: DiskEntry,
    reader: PointReader,
    pin: Option<Pin>,
}

impl OpenDisk {
    /// Finds, pins and opens the disk; `why` stands in the pin.
    ///
    /// # Errors
    /// What keeps it closed. A store that cannot be written is served without a pin, and says so.
    pub(super) fn open(options: &DiskOptions, why: &str) -> Result<OpenDisk, Failure> {
        let store = options.place.open()?;
        let mut known = find::lean_item(&options.place, &store, &options.item)?;
        let point = known.point(&options.point)?;
        let who = format!("leeward store, process {}", std::process::id());
        let pin = match known.reader.pin(point.id, &who, why, wall_now()) {
            Ok(pin) => Some(pin),
            Err(error) => {
                tracing::warn!(%error, "the point is not pinned: keep a server from expiring it");
                None
            }
        };
        let view = known.view(&point)?;
        let disk = find::disk(view.disks(), &options.disk)?;
        Ok(OpenDisk { view: Arc::new(view), disk, reader: known.reader, pin })
    }

    /// The disk as an export.
    ///
    /// # Errors
    /// Never for a disk of the view.
    pub(super) fn export(&self) -> Result<PointExport, Failure> {
        PointExport::new(Arc::clone(&self.view), self.disk.number)
            .map_err(|error| Box::new(error.problem(format!("disk {}", self.disk.id))))
    }
}

impl Drop for OpenDisk {
    fn drop(&mut self) {
        if let Some(pin) = self.pin.take()
            && let Err(error) = self.reader.unpin(pin.id)
        {
            tracing::warn!(pin = %pin.id, %error, "the pin stays: `leeward store stats` shows it");
        }
    }
}

/// Serves `export` under the empty name on a fresh socket.
///
/// # Errors
/// When the socket cannot be made.
pub(super) fn listen(export: Arc<dyn Export>, socket: &Path) -> Result<RunningServer, Failure> {
    let what = || format!("socket {}", socket.display());
    if socket.exists() {
        return Err(problem(Code::NAME_TAKEN, what(), "it exists; remove it if nobody uses it"));
    }
    let mut server = Server::new(Limits::default());
    let added = server.add("", "a disk of a recovery point", export);
    added.map_err(|error| problem(Code::INTERNAL, "the disk cannot be served", error))?;
    let listener = UnixListener::bind(socket).map_err(|error| file_problem(what(), &error))?;
    Ok(server.start(listener))
}

pub(super) async fn run(options: ServeOptions) -> Result<(), Failure> {
    let socket = options.socket.clone();
    let open = blocking(move || OpenDisk::open(&options.disk, "served")).await?;
    let running = listen(Arc::new(open.export()?), &socket)?;
    print(&format!(
        "serving disk {} ({} bytes), read-only: nbd+unix:///?socket={}\n",
        open.disk.id,
        open.disk.size,
        socket.display()
    ));
    crate::roles::ended().await;
    running.shutdown(DRAIN).await;
    let _ = std::fs::remove_file(&socket);
    blocking(move || {
        drop(open);
        Ok(())
    })
    .await
}
