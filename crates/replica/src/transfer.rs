//! An item's part of a store as one file, to be carried to another store: offline seeding.
//!
//! Segments travel as they lie, sealed; the data keys go along, wrapped for a secret that travels
//! another way. Kept work, pins, evidence and images of displays stay behind. Both ends take a
//! stream and know no files. Byte by byte: `docs/formats/export.md`.

mod import;

pub use import::Imported;

use crate::{
    ItemReader, RecipientKind, RecipientSecret, StoreError,
    key_blobs::VERSIONS_MAX,
    keyring::{KeyOwner, KeyStamp},
    manifest::{Change, Manifest, ManifestKind},
    random::draw,
    segments::read_index,
    storage::StorageError,
};
use leeward_model::{ItemId, PointId, Position, SegmentId, UnixMillis, VaultId};
use leeward_wire::keys::{MacKey, mac};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
};
use uuid::Uuid;

const MAGIC: [u8; 4] = *b"LWXP";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 80;
/// Largest manifest and largest description in bytes: as a checkpoint's.
const PART_BYTES_MAX: u32 = 64 << 20;

/// Told how many of how many bytes of segments are done.
pub type TransferProgress<'a> = &'a mut dyn FnMut(u64, u64);

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exported {
    /// The export's id.
    pub export: Uuid,
    /// Listed points, all of them.
    pub points: u64,
    /// Segments.
    pub segments: u64,
    /// Bytes of these.
    pub bytes: u64,
}

/// What an export says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct About {
    label: Option<String>,
    exported_at: UnixMillis,
    since: Option<(PointId, Position)>,
    segments: Vec<SegmentId>,
}

/// The first bytes of an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Header {
    keys: u16,
    export: [u8; 16],
    owner: KeyOwner,
    manifest: u32,
    about: u32,
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6..8].copy_from_slice(&self.keys.to_le_bytes());
        out[8..24].copy_from_slice(&self.export);
        out[24..40].copy_from_slice(self.owner.store.as_bytes());
        out[40..56].copy_from_slice(&self.owner.vault.to_bytes());
        out[56..72].copy_from_slice(&self.owner.item.to_bytes());
        out[72..76].copy_from_slice(&self.manifest.to_le_bytes());
        out[76..80].copy_from_slice(&self.about.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Header, String> {
        let mut fields = crate::fields::Fields(bytes);
        let whole = "the array has all fields";
        if fields.array::<4>().expect(whole) != MAGIC {
            return Err("it is no export of an item".into());
        }
        let version = fields.u16().expect(whole);
        if version != VERSION {
            return Err(format!("it has version {version}; this program reads {VERSION}"));
        }
        let header = Header {
            keys: fields.u16().expect(whole),
            export: fields.array().expect(whole),
            owner: KeyOwner {
                store: Uuid::from_bytes(fields.array().expect(whole)),
                vault: VaultId::from_bytes(fields.array().expect(whole)),
                item: ItemId::from_bytes(fields.array().expect(whole)),
            },
            manifest: fields.u32().expect(whole),
            about: fields.u32().expect(whole),
        };
        let counted = (1..=VERSIONS_MAX).contains(&u32::from(header.keys));
        if !counted || header.manifest > PART_BYTES_MAX || header.about > PART_BYTES_MAX {
            return Err("its parts are larger than those of any export".into());
        }
        Ok(header)
    }
}

/// The MAC of everything before the segments.
fn head_mac(key: &MacKey, head: &blake3::Hasher) -> [u8; 32] {
    mac(key, &[b"leeward export head\0".as_slice(), head.finalize().as_bytes()].concat())
}

/// The MAC of a segment in one export.
fn segment_mac(key: &MacKey, export: &[u8; 16], segment: SegmentId, bytes: &[u8]) -> [u8; 32] {
    let hash = blake3::hash(bytes);
    let parts: [&[u8]; 4] =
        [b"leeward export segment\0", export, &segment.to_bytes(), hash.as_bytes()];
    mac(key, &parts.concat())
}

/// The error of the stream.
fn stream_error(action: &'static str, source: io::Error) -> StoreError {
    StorageError::Io { action, name: "the exported item".into(), source }.into()
}

impl ItemReader {
    /// Writes the item, as this reader knows it, and returns the secret that opens what was
    /// written; it is kept nowhere. With `since`, only segments that a store which has that point
    /// does not have.
    ///
    /// # Errors
    /// [`StoreError::NoPoint`]; [`StoreError::Damaged`], also when a point expired meanwhile and
    /// its data are gone: refresh and begin again; [`StoreError::Storage`], also for the stream.
    pub fn export(
        &self,
        since: Option<PointId>,
        now: UnixMillis,
        out: &mut dyn Write,
        progress: TransferProgress<'_>,
    ) -> Result<(Exported, RecipientSecret), StoreError> {
        let (folder, state) = (&self.folder, self.state());
        let random = folder.random.as_ref();
        let known = |point| {
            let record = state.point(point).ok_or(StoreError::NoPoint { point })?;
            Ok::<_, StoreError>((point, record.position))
        };
        let since = since.map(known).transpose()?;
        let behind = since.map(|(_, place)| state.chain(place)).unwrap_or_default();
        let has = |range: &&crate::manifest::SegmentRange| {
            behind.iter().any(|at| at.timeline == range.timeline && range.last <= at.lsn)
        };
        let ranges: Vec<_> = state.segments.values().filter(|range| !has(range)).collect();
        let secret = RecipientSecret::draw(RecipientKind::Recovery, random);
        let export: [u8; 16] = draw(random);
        let about = About {
            label: self.label()?,
            exported_at: now,
            since,
            segments: ranges.iter().map(|range| range.segment).collect(),
        };
        self.write_head(export, &about, &secret, now, out)?;
        let total: u64 = ranges.iter().map(|range| range.bytes).sum();
        let mut done = 0;
        for range in &ranges {
            // Proves that the segment holds exactly its range before it goes out.
            read_index(folder, range)?;
            let path = folder.segment_path(range.segment);
            let len = usize::try_from(range.bytes).expect("segments fit in memory");
            let bytes = folder.blobs.read_at(&path, 0, len)?;
            if bytes.len() != len {
                return Err(StoreError::damaged(&path, "it ends early"));
            }
            let tag = segment_mac(&folder.manifest_key, &export, range.segment, &bytes);
            let io = |error| stream_error("write", error);
            out.write_all(&range.bytes.to_le_bytes()).map_err(io)?;
            out.write_all(&bytes).map_err(io)?;
            out.write_all(&tag).map_err(io)?;
            done += range.bytes;
            progress(done, total);
        }
        out.flush().map_err(|error| stream_error("write", error))?;
        let exported = Exported {
            export: Uuid::from_bytes(export),
            points: state.points.len() as u64,
            segments: ranges.len() as u64,
            bytes: total,
        };
        Ok((exported, secret))
    }

    /// Writes everything before the segments.
    fn write_head(
        &self,
        export: [u8; 16],
        about: &About,
        secret: &RecipientSecret,
        now: UnixMillis,
        out: &mut dyn Write,
    ) -> Result<(), StoreError> {
        let (folder, random) = (&self.folder, self.folder.random.as_ref());
        let needed: BTreeSet<u32> = folder.keys.numbers().into_iter().collect();
        let mut keys = Vec::new();
        for version in needed {
            let Some(plain) = folder.keys.keys(version) else { continue };
            let stamp = KeyStamp { version, generation: 1 };
            let blob = plain.wrap(&folder.owner, stamp, &[secret.public()], random);
            keys.push(blob);
        }
        let manifest = Manifest {
            kind: ManifestKind::Checkpoint,
            number: 1,
            vault: folder.owner.vault,
            item: folder.owner.item,
            generation: folder.generation,
            writer: export,
            predecessor: [0; 32],
            stamped_at: now,
            changes: self.state().as_changes().into_iter().filter(travels).collect(),
        };
        let manifest = manifest.encode(&folder.manifest_key);
        let about = serde_json::to_vec(about).expect("the description is plain JSON");
        let count = |len: usize| {
            u32::try_from(len).ok().filter(|len| *len <= PART_BYTES_MAX).ok_or_else(|| {
                StoreError::refused("an export", "the item has more points than fit in one")
            })
        };
        let header = Header {
            keys: keys.len() as u16,
            export,
            owner: folder.owner,
            manifest: count(manifest.len())?,
            about: count(about.len())?,
        };
        let mut head = header.encode().to_vec();
        for blob in keys {
            head.extend_from_slice(&(blob.len() as u16).to_le_bytes());
            head.extend_from_slice(&blob);
        }
        head.extend_from_slice(&manifest);
        head.extend_from_slice(&about);
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head);
        head.extend_from_slice(&head_mac(&folder.manifest_key, &hasher));
        out.write_all(&head).map_err(|error| stream_error("write", error))
    }
}

/// Whether a change of the state means something in another store. What only says how this store
/// keeps its data does not.
fn travels(change: &Change) -> bool {
    matches!(
        change,
        Change::BranchOpened(_)
            | Change::HeadReached(_)
            | Change::BranchRetired(_)
            | Change::SegmentCommitted(_)
            | Change::FenceRaised(_)
            | Change::PointAdded(_)
    )
}

/// Reads exactly `len` bytes, without trusting `len` for memory.
fn read_exact(input: &mut dyn Read, len: u64) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    let read = input.take(len).read_to_end(&mut bytes);
    read.map_err(|error| stream_error("read", error))?;
    if bytes.len() as u64 == len { Ok(bytes) } else { Err(damaged("it ends early")) }
}

fn damaged(why: impl ToString) -> StoreError {
    StoreError::damaged("the exported item", why)
}
