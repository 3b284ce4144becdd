//! Start permits: what a host must hold to start a protected machine. Signing is not done here.

use crate::{Epoch, HostId, ItemId, TimelineId};
use serde::{Deserialize, Serialize};

/// What a permit allows: restarts of one machine, by one host, within one boot of that host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PermitTerms {
    /// The protected item.
    pub item: ItemId,
    /// The timeline that the machine's writes belong to.
    pub timeline: TimelineId,
    /// The epoch in which it may write.
    pub epoch: Epoch,
    /// Name of the machine on the host: the owner's machine, or an instance's id.
    pub machine: String,
    /// The host.
    pub host: HostId,
    /// The host's boot (`/proc/sys/kernel/random/boot_id`).
    pub host_boot: String,
}

impl PermitTerms {
    /// The bytes that the config server signs: a label, then each field with its length.
    pub fn to_signed_bytes(&self) -> Vec<u8> {
        let mut out = b"leeward start permit v1".to_vec();
        let mut field = |bytes: &[u8]| {
            out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
            out.extend_from_slice(bytes);
        };
        field(&self.item.to_bytes());
        field(&self.timeline.to_bytes());
        field(&self.epoch.0.to_le_bytes());
        field(self.machine.as_bytes());
        field(&self.host.to_bytes());
        field(self.host_boot.as_bytes());
        out
    }
}

/// A signed permit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartPermit {
    /// What it allows.
    pub terms: PermitTerms,
    /// Ed25519 signature of [`PermitTerms::to_signed_bytes`], in hexadecimal, 128 digits.
    pub signature: String,
}
