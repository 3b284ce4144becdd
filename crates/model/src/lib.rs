//! The nouns of Leeward: ids, units, machines, recovery points, permits, protection states.
//!
//! No I/O, no async, no clock, no randomness: everything here is a value. What a thing means in
//! the field's words stands in `docs/glossary.md`.

mod bandwidth;
mod change;
mod codes;
mod ids;
mod machine;
mod machine_changes;
mod permit;
mod point;
mod policy;
mod protection;
mod table;
mod units;

pub use bandwidth::{
    BANDWIDTH_MIN, BANDWIDTH_WINDOWS_MAX, Bandwidth, BandwidthWindow, Days, NoBandwidth,
};
pub use change::{Change, ChangeBatch, ExtentHash, Marker};
pub use codes::{CODES, Code, Problem};
pub use ids::{
    FabricId, HostId, InstanceId, ItemId, JobId, LayerId, PointId, SegmentId, TimelineId, VaultId,
};
pub use machine::{
    CPUS_MAX, DiscoveredMachine, DiskFormat, DiskSpec, DiskUse, Firmware, MACHINE_NAME_BYTES_MAX,
    MEMORY_MIB_MAX, MEMORY_MIB_MIN, MachineSpec, MachineState, NETWORKS, NicSpec, Probe,
    machine_name_fits, nic_address_fits,
};
pub use machine_changes::{Figure, MachineChanges, NicChange};
pub use permit::{PermitTerms, StartPermit};
pub use point::{
    Branch, DiskEntry, Evidence, PointInfo, PointKind, PointOrigin, Position, Verification,
};
pub use policy::{
    NoWindow, POINT_INTERVAL_MAX, POINT_INTERVAL_MIN, Policy, RESYNC_THRESHOLD_PERCENT,
    ResyncWindow,
};
pub use protection::{
    Commit, Direction, Event, FailoverOrigin, Fence, Illegal, PointChoice, ProtectedItem,
    Protection, Site, SourceState, TestState,
};
pub use table::protection_table;
pub use units::{
    BLOCK_BYTES, BLOCKS_PER_EXTENT, BlockMask, DiskNumber, EXTENT_BYTES, Epoch, ExtentNumber, Lsn,
    UnixMillis,
};
