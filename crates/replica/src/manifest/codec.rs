//! The bytes of manifests. What they mean is in the module above.

use super::{
    BlobId, Change, LayerRecord, Manifest, ManifestKind, MarkerPlace, PointRecord, SegmentRange,
};
use crate::fields::{Fields, put_text};
use leeward_model::{Branch, ItemId, PointKind, PointOrigin, Position, VaultId};
use leeward_wire::{
    keys::{MacKey, mac, mac_matches},
    message::ServerStamp,
};

const MAGIC: [u8; 4] = *b"LWM1";
/// What every program of ours reads.
const FIRST_VERSION: u16 = 1;
/// Written when there is a change that the first version does not have: programs that know only
/// the first refuse the manifest then, instead of missing the change.
const LAYERS_VERSION: u16 = 2;
/// What stands before the changes; no two manifests of an item have the same.
pub(crate) const HEADER_BYTES: usize = 120;
const MAC_BYTES: usize = 32;

impl Manifest {
    /// The bytes, with the MAC under `key` at their end.
    pub fn encode(&self, key: &MacKey) -> Vec<u8> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(&MAGIC);
        let newer = self.changes.iter().any(is_newer);
        let version = if newer { LAYERS_VERSION } else { FIRST_VERSION };
        out.extend_from_slice(&version.to_le_bytes());
        out.extend_from_slice(&[self.kind as u8, 0]);
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.vault.to_bytes());
        out.extend_from_slice(&self.item.to_bytes());
        out.extend_from_slice(&self.generation.to_le_bytes());
        out.extend_from_slice(&self.writer);
        out.extend_from_slice(&self.predecessor);
        out.extend_from_slice(&self.stamped_at.0.to_le_bytes());
        out.extend_from_slice(&(self.changes.len() as u32).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        for change in &self.changes {
            encode_change(change, &mut out);
        }
        let body = (out.len() - HEADER_BYTES) as u32;
        out[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&body.to_le_bytes());
        let tag = mac(key, &out);
        out.extend_from_slice(&tag);
        out
    }

    /// Reads [`Self::encode`].
    ///
    /// # Errors
    /// Says what is wrong; a wrong MAC is found before anything else is believed.
    pub fn decode(bytes: &[u8], key: &MacKey) -> Result<Manifest, String> {
        let (signed, tag) =
            bytes.split_last_chunk::<MAC_BYTES>().ok_or("it is shorter than its MAC")?;
        if !mac_matches(key, signed, tag) {
            return Err("its MAC does not fit".into());
        }
        let mut fields = Fields(signed);
        let version = fields.array::<4>().filter(|magic| *magic == MAGIC).and(fields.u16());
        match version {
            Some(version @ FIRST_VERSION..=LAYERS_VERSION) => {
                let manifest = decode_fields(&mut fields);
                // A change that its version does not have was not written by us.
                let fits = |manifest: &Manifest| {
                    version == LAYERS_VERSION || !manifest.changes.iter().any(is_newer)
                };
                manifest.filter(fits).ok_or_else(|| "its fields do not fit".into())
            }
            Some(version) => {
                Err(format!("it has version {version}, this program reads up to {LAYERS_VERSION}"))
            }
            None => Err("it is no manifest".into()),
        }
    }
}

/// Whether the first version does not have a change.
fn is_newer(change: &Change) -> bool {
    match change {
        Change::SegmentCommitted(range) => !range.is_whole(),
        Change::LayerAdded(_)
        | Change::LayerDropped(_)
        | Change::BlobDropped(..)
        | Change::MarkerMoved(..) => true,
        Change::BranchOpened(_)
        | Change::FenceRaised(_)
        | Change::PointAdded(_)
        | Change::PointRemoved(_)
        | Change::SegmentDropped(_)
        | Change::BranchRetired(_)
        | Change::HeadReached(_) => false,
    }
}

fn decode_fields(fields: &mut Fields<'_>) -> Option<Manifest> {
    let kind = match fields.u8()? {
        0 => ManifestKind::Delta,
        1 => ManifestKind::Checkpoint,
        _ => return None,
    };
    if fields.u8()? != 0 {
        return None;
    }
    let mut manifest = Manifest {
        kind,
        number: fields.u64()?,
        vault: VaultId::from_bytes(fields.array()?),
        item: ItemId::from_bytes(fields.array()?),
        generation: fields.u64()?,
        writer: fields.array()?,
        predecessor: fields.array()?,
        stamped_at: fields.time()?,
        changes: Vec::new(),
    };
    let (count, body) = (fields.u32()?, fields.u32()?);
    if body as usize != fields.0.len() {
        return None;
    }
    for _ in 0..count {
        manifest.changes.push(decode_change(fields)?);
    }
    fields.0.is_empty().then_some(manifest)
}

fn put_position(out: &mut Vec<u8>, place: &Position) {
    out.extend_from_slice(&place.timeline.to_bytes());
    out.extend_from_slice(&place.lsn.0.to_le_bytes());
}

fn position(fields: &mut Fields<'_>) -> Option<Position> {
    Some(Position { timeline: fields.timeline()?, lsn: fields.lsn()? })
}

/// Appends one change, as a manifest has it.
pub(crate) fn encode_change(change: &Change, out: &mut Vec<u8>) {
    match change {
        Change::BranchOpened(branch) => {
            out.push(1);
            out.extend_from_slice(&branch.timeline.to_bytes());
            out.extend_from_slice(&branch.epoch.0.to_le_bytes());
            out.push(branch.parent.is_some().into());
            if let Some(parent) = &branch.parent {
                put_position(out, parent);
            }
        }
        Change::SegmentCommitted(range) => encode_range(range, out),
        Change::FenceRaised(epoch) => {
            out.push(3);
            out.extend_from_slice(&epoch.0.to_le_bytes());
        }
        Change::PointAdded(point) => {
            out.push(4);
            encode_point(point, out);
        }
        Change::PointRemoved(point) => {
            out.push(5);
            out.extend_from_slice(&point.to_bytes());
        }
        Change::SegmentDropped(segment) => {
            out.push(6);
            out.extend_from_slice(&segment.to_bytes());
        }
        Change::BranchRetired(timeline) => {
            out.push(7);
            out.extend_from_slice(&timeline.to_bytes());
        }
        Change::HeadReached(place) => {
            out.push(8);
            put_position(out, place);
        }
        Change::LayerAdded(layer) => encode_layer(layer, out),
        Change::LayerDropped(layer) => {
            out.push(10);
            out.extend_from_slice(&layer.to_bytes());
        }
        Change::BlobDropped(blob, at) => {
            let (kind, id) = match blob {
                BlobId::Segment(id) => (0, id.to_bytes()),
                BlobId::Layer(id) => (1, id.to_bytes()),
            };
            out.extend_from_slice(&[11, kind]);
            out.extend_from_slice(&id);
            out.extend_from_slice(&at.0.to_le_bytes());
        }
        Change::MarkerMoved(point, marker) => {
            out.push(13);
            out.extend_from_slice(&point.to_bytes());
            put_marker(out, marker);
        }
    }
}

fn encode_layer(layer: &LayerRecord, out: &mut Vec<u8>) {
    out.push(9);
    out.extend_from_slice(&layer.layer.to_bytes());
    out.extend_from_slice(&layer.timeline.to_bytes());
    for number in [layer.first.0, layer.last.0, layer.bytes] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&layer.head_bytes.to_le_bytes());
    out.extend_from_slice(&layer.records.to_le_bytes());
}

fn encode_range(range: &SegmentRange, out: &mut Vec<u8>) {
    out.push(if range.is_whole() { 2 } else { 12 });
    out.extend_from_slice(&range.segment.to_bytes());
    out.extend_from_slice(&range.timeline.to_bytes());
    for number in [range.first.0, range.last.0, range.bytes] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    if !range.is_whole() {
        out.extend_from_slice(&range.records.to_le_bytes());
    }
}

fn put_marker(out: &mut Vec<u8>, marker: &MarkerPlace) {
    out.extend_from_slice(&marker.segment.to_bytes());
    out.extend_from_slice(&marker.offset.to_le_bytes());
    out.extend_from_slice(&marker.len.to_le_bytes());
}

fn marker(fields: &mut Fields<'_>) -> Option<MarkerPlace> {
    Some(MarkerPlace { segment: fields.segment()?, offset: fields.u64()?, len: fields.u32()? })
}

/// A range without its number of records: all of them.
fn range(fields: &mut Fields<'_>) -> Option<SegmentRange> {
    let mut range = SegmentRange {
        segment: fields.segment()?,
        timeline: fields.timeline()?,
        first: fields.lsn()?,
        last: fields.lsn()?,
        bytes: fields.u64()?,
        records: 0,
    };
    range.records = range.last.0.checked_sub(range.first.0)?.checked_add(1)?;
    Some(range)
}

/// Reads [`encode_change`].
pub(crate) fn decode_change(fields: &mut Fields<'_>) -> Option<Change> {
    Some(match fields.u8()? {
        1 => {
            let (timeline, epoch) = (fields.timeline()?, fields.epoch()?);
            let parent = match fields.u8()? {
                0 => None,
                1 => Some(position(fields)?),
                _ => return None,
            };
            Change::BranchOpened(Branch { timeline, parent, epoch })
        }
        2 => Change::SegmentCommitted(range(fields)?),
        3 => Change::FenceRaised(fields.epoch()?),
        4 => Change::PointAdded(decode_point(fields)?),
        5 => Change::PointRemoved(fields.point()?),
        6 => Change::SegmentDropped(fields.segment()?),
        7 => Change::BranchRetired(fields.timeline()?),
        8 => Change::HeadReached(position(fields)?),
        9 => Change::LayerAdded(LayerRecord {
            layer: fields.layer()?,
            timeline: fields.timeline()?,
            first: fields.lsn()?,
            last: fields.lsn()?,
            bytes: fields.u64()?,
            head_bytes: fields.u32()?,
            records: fields.u64()?,
        }),
        10 => Change::LayerDropped(fields.layer()?),
        11 => {
            let blob = match fields.u8()? {
                0 => BlobId::Segment(fields.segment()?),
                1 => BlobId::Layer(fields.layer()?),
                _ => return None,
            };
            Change::BlobDropped(blob, fields.time()?)
        }
        12 => {
            let range = range(fields)?;
            let records = fields.u64().filter(|records| *records != range.records)?;
            Change::SegmentCommitted(SegmentRange { records, ..range })
        }
        13 => Change::MarkerMoved(fields.point()?, marker(fields)?),
        _ => return None,
    })
}

fn kind_code(kind: PointKind) -> u8 {
    match kind {
        PointKind::CrashConsistent => 0,
        PointKind::Final => 1,
        PointKind::ApplicationConsistent => 2,
    }
}

fn origin_code(origin: &PointOrigin) -> u8 {
    match origin {
        PointOrigin::Replicated => 0,
        PointOrigin::BeforeChange => 1,
        PointOrigin::Divergent => 2,
    }
}

/// Appends a point, as a manifest has it.
pub(crate) fn encode_point(point: &PointRecord, out: &mut Vec<u8>) {
    out.extend_from_slice(&point.id.to_bytes());
    put_position(out, &point.position);
    out.extend_from_slice(&[kind_code(point.kind), origin_code(&point.origin)]);
    for time in [point.cut_at.0, point.received_at.0, point.clock_offset_ms] {
        out.extend_from_slice(&time.to_le_bytes());
    }
    put_marker(out, &point.marker);
    out.push(point.cut_server.is_some().into());
    if let Some(stamp) = &point.cut_server {
        out.extend_from_slice(&stamp.ms.to_le_bytes());
        out.extend_from_slice(&stamp.wall.0.to_le_bytes());
        put_text(out, &stamp.boot);
    }
    put_text(out, &point.name);
}

/// Reads [`encode_point`].
pub(crate) fn decode_point(fields: &mut Fields<'_>) -> Option<PointRecord> {
    let (id, position) = (fields.point()?, position(fields)?);
    let kind = match fields.u8()? {
        0 => PointKind::CrashConsistent,
        1 => PointKind::Final,
        2 => PointKind::ApplicationConsistent,
        _ => return None,
    };
    let origin = match fields.u8()? {
        0 => PointOrigin::Replicated,
        1 => PointOrigin::BeforeChange,
        2 => PointOrigin::Divergent,
        _ => return None,
    };
    let (cut_at, received_at, clock_offset_ms) = (fields.time()?, fields.time()?, fields.i64()?);
    let marker = marker(fields)?;
    let cut_server = match fields.u8()? {
        0 => None,
        1 => {
            let (ms, wall) = (fields.u64()?, fields.time()?);
            Some(ServerStamp { boot: fields.text()?, ms, wall })
        }
        _ => return None,
    };
    let name = fields.text()?;
    Some(PointRecord {
        id,
        position,
        kind,
        origin,
        name,
        cut_at,
        received_at,
        clock_offset_ms,
        cut_server,
        marker,
    })
}
