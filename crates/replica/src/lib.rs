//! The replica store: sealed segments, recovery points, disk images at a point, retention.
//!
//! Acknowledged data are durable, and nothing is visible before its manifest. The store never looks
//! inside a payload except to read a marker or to build a [`View`]. It opens no connection, reads
//! no clock, and knows neither machines that run nor the control plane. Byte by byte:
//! `docs/formats/store.md`.

mod audit;
mod collect;
mod configuration;
mod deletes;
mod error;
mod evidence;
mod export;
mod fields;
mod folder;
mod generations;
mod hint;
mod identity;
mod item;
mod kept;
mod key_blobs;
mod keyring;
mod kits;
mod layers;
mod losses;
pub mod manifest;
mod manifest_log;
#[cfg(feature = "testing")]
pub mod model;
mod outline;
mod pins;
mod point_reader;
mod random;
mod reader;
mod rekey;
mod repair;
mod retention;
mod rewrite;
mod segments;
mod served;
pub mod storage;
mod store;
mod thinning;
mod transfer;
mod upkeep;
mod view;

pub use audit::{Audit, AuditProgress, Damage, DiskPart, Scrubbed};
pub use configuration::{CONFIGURATION_BYTES_MAX, ConfigurationStamp};
pub use error::StoreError;
pub use evidence::TestOutcome;
pub use export::PointExport;
pub use generations::Generation;
pub use identity::StoreIdentity;
#[cfg(feature = "testing")]
pub use item::Mutation;
pub use item::{ItemStore, PointReceipt};
pub use kept::{KeptFile, KeptRecord};
pub use keyring::{ItemKeys, KeyOwner, RecipientKind, RecipientSecret};
pub use kits::KitTest;
pub use losses::{Losses, deletions, lost_since};
pub use manifest::PointRecord;
pub use pins::{Pin, Unpinned};
pub use point_reader::PointReader;
pub use random::{Random, SystemRandom};
pub use reader::{ItemReader, PointPage, Space};
pub use rekey::{NewKeys, Rekey, RekeyReport};
pub use repair::{CopyOf, DamagedSegment, GoodRecords, RepairPlan};
pub use retention::{Expired, Expiring, Retention};
pub use served::{ServeEnded, Served, ServedAs, ServingProcess};
pub use store::{Destroyed, Store, Unlock};
pub use thinning::{
    Candidate, CutClock, CutTime, Thinning, ThinningError, ThinningStep, Worth, thinned_out,
};
pub use transfer::{Exported, Imported, TransferProgress};
pub use upkeep::Upkeep;
pub use view::{EXTENTS_AHEAD_MAX, ReadCounts, Run, RunKind, View};
