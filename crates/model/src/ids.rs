//! Typed ids. A list of kinds, nothing else; ids are never derived from names.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};
use uuid::Uuid;

macro_rules! id {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// Wraps 128 bits that the caller drew or read.
            pub const fn from_u128(bits: u128) -> Self {
                Self(Uuid::from_u128(bits))
            }
            /// The id as 128 bits.
            pub const fn as_u128(self) -> u128 {
                self.0.as_u128()
            }
            /// The id as 16 bytes, big-endian: its form on disk and on the wire.
            pub const fn to_bytes(self) -> [u8; 16] {
                self.0.into_bytes()
            }
            /// Reads the form of [`Self::to_bytes`].
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }
        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }
        impl From<$name> for Uuid {
            fn from(id: $name) -> Uuid {
                id.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }
        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    )*};
}

id! {
    /// A fabric: a site with the hosts that joined it.
    FabricId
    /// A host that runs `leeward host` (or the host part of `leeward up`).
    HostId
    /// A machine made by Leeward from a recovery point: by a failover or a test failover.
    InstanceId
    /// A protected item.
    ItemId
    /// A job.
    JobId
    /// A layer of a replica store: a part of its index.
    LayerId
    /// A recovery point.
    PointId
    /// A segment of a replica store; its data key is derived from this id.
    SegmentId
    /// A timeline: a branch of one item's history.
    TimelineId
    /// A vault.
    VaultId
}
