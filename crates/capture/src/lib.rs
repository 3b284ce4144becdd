//! The source's side of replication: what changed on a machine's disks, and what of it to send.
//!
//! Knows no hypervisor (a fabric implements [`ChangeSource`]), no wire and no store. Doubles for
//! tests stand behind the feature `testing`.

mod folder;
mod hash_file;
mod pass;
mod pending;
mod record;
mod source;

#[cfg(any(test, feature = "testing"))]
mod crash_folder;
#[cfg(any(test, feature = "testing"))]
mod memory;
#[cfg(any(test, feature = "testing"))]
mod mutations;

pub use folder::{DiskFolder, Folder, FolderFile};
pub use hash_file::{HashError, HashFiles, Rebuild, Trust};
pub use pass::{
    Found, Pass, PassBatch, PassError, PassInput, PassKind, PassProgress, ProgressCallback,
};
pub use record::{Hasher, Record};
pub use source::{
    Attached, ByteRange, CaptureError, ChangeSource, Cut, CutEnd, DiskReader, LiveRead, Retry,
};

#[cfg(any(test, feature = "testing"))]
pub use crash_folder::CrashFolder;
#[cfg(any(test, feature = "testing"))]
pub use memory::MemoryMachine;
#[cfg(any(test, feature = "testing"))]
pub use mutations::{MutantSource, Mutation};
#[cfg(any(test, feature = "testing"))]
pub use record::TestHasher;
