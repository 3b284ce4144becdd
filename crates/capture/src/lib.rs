//! The source's side of replication: what changed on a machine's disks, and what of it to send.
//!
//! Knows no hypervisor (a fabric implements [`ChangeSource`]), no wire and no store. Doubles for
//! tests stand behind the feature `testing`.

mod ahead;
mod audit;
mod folder;
mod hash_file;
mod pass;
mod pending;
mod record;
mod share;
mod source;
mod workers;

#[cfg(any(test, feature = "testing"))]
mod crash_folder;
#[cfg(any(test, feature = "testing"))]
mod memory;
#[cfg(any(test, feature = "testing"))]
mod mutations;

pub use ahead::{AheadHashes, Doubt, KnownExtents};
pub use audit::audit_extents;
pub use folder::{DiskFolder, Folder, FolderFile};
pub use hash_file::{HashError, HashFiles, Rebuild, Trust};
pub use pass::{
    Found, Pass, PassBatch, PassDepth, PassError, PassFinish, PassInput, PassKind, PassProgress,
    ProgressCallback,
};
pub use record::{Hasher, RECORD_BYTES, Record};
pub use share::{Pool, Share, Taken};
pub use source::{
    Attached, BlockingRead, ByteRange, CaptureError, ChangeSource, Cut, CutEnd, DiskReader,
    LiveRead, Retry,
};
pub use workers::{BATCH_BYTES, BATCHES_OWN, Lane, MEMORY_BYTES, Workers};

#[cfg(any(test, feature = "testing"))]
pub use crash_folder::CrashFolder;
#[cfg(any(test, feature = "testing"))]
pub use memory::MemoryMachine;
#[cfg(any(test, feature = "testing"))]
pub use mutations::{MutantSource, Mutation};
#[cfg(any(test, feature = "testing"))]
pub use record::TestHasher;
