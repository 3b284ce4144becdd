//! `leeward store serve`: one disk of a point over NBD, read-only or with an overlay of its own.
//! The point is pinned meanwhile, so that a server that lets points go leaves it alone, and the
//! store has a note of who serves it: a machine may run from it that no job knows.

use super::{
    Failure, blocking, file_problem, find, overlay::Overlay, place::PlaceOptions, print, problem,
    record,
};
use crate::roles::host::clock::wall_now;
use leeward_model::{Code, DiskEntry};
use leeward_nbd::server::{Export, Limits, RunningServer, Server};
use leeward_replica::{Pin, PointExport, PointReader, Served, ServedAs, View};
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
    /// Takes writes, into an overlay of this process: the point does not change, and what was
    /// written is gone at the end. Noted in the store, and shown by its config server.
    #[arg(long)]
    writable: bool,
    /// Folder for the overlay's file, which takes as much as is written [default: the system's
    /// folder for temporary files].
    #[arg(long, value_name = "FOLDER", requires = "writable")]
    overlay_in: Option<PathBuf>,
    /// Serves for writing also from a store that takes no note of it, as one that cannot be
    /// written. Nobody else sees that a machine may run from it.
    #[arg(long, requires = "writable")]
    i_know_nobody_is_told: bool,
}

/// A disk of a point, open and pinned.
pub(super) struct OpenDisk {
    pub(super) view: Arc<View>,
    pub(super) disk: DiskEntry,
    reader: PointReader,
    pin: Option<Pin>,
    served: Option<Served>,
}

/// What becomes of a store that takes no note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unnoted {
    /// It is used all the same, with a warning.
    GoesOn,
    /// It is not.
    Refused,
}

impl OpenDisk {
    /// Finds and pins the disk, notes what it is for, and opens it; `why` stands in the pin.
    ///
    /// # Errors
    /// What keeps it closed. A store that cannot be written is served without a pin, and says so.
    pub(super) fn open(
        options: &DiskOptions,
        why: &str,
        served_as: ServedAs,
        unnoted: Unnoted,
    ) -> Result<OpenDisk, Failure> {
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
        let reader = known.reader;
        let mut open = OpenDisk { view: Arc::new(view), disk, reader, pin, served: None };
        match record::begin(&open.reader, point.id, open.disk.number, served_as) {
            Ok(served) => open.served = Some(served),
            Err(error) if unnoted == Unnoted::GoesOn => {
                tracing::warn!(%error, "the store has no note of this");
            }
            Err(error) => {
                let what = format!("point {} is not served for writing", point.id);
                let cause = format!(
                    "the store takes no note of it ({error}), so nobody would see that a machine \
                     may run from it; --i-know-nobody-is-told serves it all the same"
                );
                return Err(problem(Code::NOT_POSSIBLE_NOW, what, cause));
            }
        }
        Ok(open)
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
        if let Some(served) = self.served.take()
            && let Err(error) = self.reader.serve_ends(&served, wall_now(), "it was ended")
        {
            tracing::warn!(note = %served.id, %error, "the store still has it as served");
        }
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
    let overlay_in = options.overlay_in.clone().unwrap_or_else(std::env::temp_dir);
    let writable = options.writable;
    let (served_as, unnoted) = match (writable, options.i_know_nobody_is_told) {
        (false, _) => (ServedAs::ReadOnly, Unnoted::GoesOn),
        (true, true) => (ServedAs::Writable, Unnoted::GoesOn),
        (true, false) => (ServedAs::Writable, Unnoted::Refused),
    };
    let open =
        blocking(move || OpenDisk::open(&options.disk, "served", served_as, unnoted)).await?;
    let running = match writable {
        false => listen(Arc::new(open.export()?), &socket)?,
        true => listen(Arc::new(Overlay::new(open.export()?, &overlay_in)?), &socket)?,
    };
    let how = if writable { "writable, until it ends" } else { "read-only" };
    print(&format!(
        "serving disk {} ({} bytes), {how}: nbd+unix:///?socket={}\n",
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
