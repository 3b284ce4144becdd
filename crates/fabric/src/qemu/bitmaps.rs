//! Which dirty bitmaps of ours a QEMU has, what they prove, and what becomes of them.
//!
//! Pure: answers are lists of transaction actions. A bitmap's name says from where on it records.

use super::blocks::{Bitmap, bitmap_action, format_node, merge_action};
use leeward_model::{DiskFormat, DiskNumber, Lsn, Position, TimelineId};
use serde_json::{Value, json};

/// Granularity of the bitmaps, in bytes: the extent, the unit of hashing and sealing.
const GRANULARITY_BYTES: u32 = 65_536;
/// The bitmap that records since a cut that is not committed yet.
pub(crate) const OPEN: &str = "lw-open";
/// A standing copy of the point's bitmap, for a live read; never needed again.
pub(crate) const LIVE: &str = "lw-live";
const POINT_PREFIX: &str = "lw-pt-";
/// The place that no point has: a bitmap of this name proves nothing until the next commit.
const NOWHERE: Position = Position { timeline: TimelineId::from_u128(0), lsn: Lsn(0) };

/// Name of the bitmap that records everything since the point at `position`.
pub(crate) fn point_bitmap(position: Position) -> String {
    format!("{POINT_PREFIX}{:032x}-{}", position.timeline.as_u128(), position.lsn)
}

/// The place that a bitmap's name tells.
pub(crate) fn place_of(name: &str) -> Option<Position> {
    let (timeline, lsn) = name.strip_prefix(POINT_PREFIX)?.split_once('-')?;
    if timeline.len() != 32 {
        return None;
    }
    let timeline = TimelineId::from_u128(u128::from_str_radix(timeline, 16).ok()?);
    Some(Position { timeline, lsn: Lsn(lsn.parse().ok()?) })
}

/// Whether a bitmap belongs to the change map.
pub(crate) fn is_ours(name: &str) -> bool {
    name == OPEN || name == LIVE || name.starts_with(POINT_PREFIX)
}

/// A captured disk and its bitmaps.
#[derive(Clone, Debug)]
pub(crate) struct DiskBitmaps {
    pub disk: DiskNumber,
    pub format: DiskFormat,
    /// Every bitmap of the disk's format node, ours or not.
    pub bitmaps: Vec<Bitmap>,
}

impl DiskBitmaps {
    fn names(&self) -> Vec<String> {
        let ours = self.bitmaps.iter().filter(|bitmap| is_ours(&bitmap.name));
        ours.map(|bitmap| bitmap.name.clone()).collect()
    }

    pub fn has(&self, name: &str) -> bool {
        self.bitmaps.iter().any(|bitmap| bitmap.name == name)
    }

    /// The bitmap that records since the newest commit that we know of, and from where on.
    pub fn oldest_point(&self) -> Option<(&Bitmap, Position)> {
        let points = self.bitmaps.iter();
        let points = points.filter_map(|bitmap| Some((bitmap, place_of(&bitmap.name)?)));
        points.min_by_key(|(_, place)| place.lsn)
    }

    fn add(&self, name: &str) -> Value {
        let persistent = self.format == DiskFormat::Qcow2;
        json!({"type": "block-dirty-bitmap-add",
               "data": {"node": format_node(self.disk), "name": name, "persistent": persistent,
                        "granularity": GRANULARITY_BYTES}})
    }

    /// Why this disk's bitmaps do not cover everything since `base`; none when they do.
    fn gap_since(&self, base: Position) -> Option<String> {
        let disk = self.disk;
        if self.bitmaps.iter().any(|bitmap| is_ours(&bitmap.name) && bitmap.inconsistent) {
            return Some(format!("a change map of disk {disk} was not closed cleanly"));
        }
        let covers = |place: Position| place.timeline == base.timeline && place.lsn <= base.lsn;
        let mut places = self.bitmaps.iter().filter_map(|bitmap| place_of(&bitmap.name));
        match places.any(covers) {
            true => None,
            false => Some(format!("disk {disk} has no change map since the newest point")),
        }
    }
}

/// Why the bitmaps of `disks` do not cover everything since `base`; none when they do.
pub(crate) fn gap(disks: &[DiskBitmaps], base: Option<Position>) -> Option<String> {
    let Some(base) = base else { return Some("there is no recovery point yet".into()) };
    disks.iter().find_map(|disk| disk.gap_since(base))
}

/// Merges everything that is recorded into each disk's oldest bitmap, which records on.
pub(crate) fn merge_all(disks: &[DiskBitmaps]) -> Vec<Value> {
    let mut actions = Vec::new();
    for disk in disks {
        let Some((target, _)) = disk.oldest_point() else { continue };
        let target = target.name.clone();
        let mut others = disk.names();
        others.retain(|name| *name != target);
        let mut sources = others.clone();
        sources.retain(|name| name != LIVE);
        actions.push(bitmap_action("enable", disk.disk, &target));
        if !sources.is_empty() {
            actions.push(merge_action(disk.disk, &target, &sources));
        }
        let remove = |name: &String| bitmap_action("remove", disk.disk, name);
        actions.extend(others.iter().map(remove));
    }
    actions
}

/// Removes the whole change map.
pub(crate) fn remove_all(disks: &[DiskBitmaps]) -> Vec<Value> {
    let remove = |disk: &DiskBitmaps| {
        let number = disk.disk;
        disk.names().into_iter().map(move |name| bitmap_action("remove", number, &name))
    };
    disks.iter().flat_map(remove).collect()
}

/// Adds a change map that records from now on and proves nothing yet.
pub(crate) fn add_fresh(disks: &[DiskBitmaps]) -> Vec<Value> {
    disks.iter().map(|disk| disk.add(&point_bitmap(NOWHERE))).collect()
}

/// Starts the bitmaps that record since the cut.
pub(crate) fn add_open(disks: &[DiskBitmaps]) -> Vec<Value> {
    disks.iter().map(|disk| disk.add(OPEN)).collect()
}

/// Lets the bitmaps that the cut names stand still.
pub(crate) fn disable_points(disks: &[DiskBitmaps]) -> Vec<Value> {
    let disable = |disk: &DiskBitmaps| {
        let (bitmap, _) = disk.oldest_point()?;
        Some(bitmap_action("disable", disk.disk, &bitmap.name))
    };
    disks.iter().filter_map(disable).collect()
}

/// Makes a standing copy of everything that is recorded.
pub(crate) fn copy_for_reading(disks: &[DiskBitmaps]) -> Vec<Value> {
    let mut actions = Vec::new();
    for disk in disks {
        let mut add = disk.add(LIVE);
        add["data"]["persistent"] = false.into();
        add["data"]["disabled"] = true.into();
        let mut sources = disk.names();
        sources.retain(|name| name != LIVE);
        if disk.has(LIVE) {
            actions.push(bitmap_action("remove", disk.disk, LIVE));
        }
        actions.push(add);
        actions.push(merge_action(disk.disk, LIVE, &sources));
    }
    actions
}

/// Renames the bitmaps that record since the cut to where it was committed; drops the older ones.
/// Nothing when no disk has one.
pub(crate) fn commit(disks: &[DiskBitmaps], position: Position) -> Vec<Value> {
    let fresh = point_bitmap(position);
    let mut actions = Vec::new();
    for disk in disks.iter().filter(|disk| disk.has(OPEN)) {
        let number = disk.disk;
        let mut older = disk.names();
        older.retain(|name| *name != OPEN && *name != fresh);
        if disk.has(&fresh) {
            actions.push(bitmap_action("clear", number, &fresh));
            actions.push(bitmap_action("enable", number, &fresh));
        } else {
            actions.push(disk.add(&fresh));
        }
        actions.push(merge_action(number, &fresh, &[OPEN.into()]));
        actions.push(bitmap_action("remove", number, OPEN));
        actions.extend(older.iter().map(|name| bitmap_action("remove", number, name)));
    }
    actions
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMELINE: TimelineId = TimelineId::from_u128(0xabc);

    fn at(lsn: u64) -> Position {
        Position { timeline: TIMELINE, lsn: Lsn(lsn) }
    }

    fn disk(number: u16, names: &[&str]) -> DiskBitmaps {
        let bitmap = |name: &&str| Bitmap { name: (*name).into(), bytes: 0, inconsistent: false };
        let bitmaps = names.iter().map(bitmap).collect();
        DiskBitmaps { disk: DiskNumber(number), format: DiskFormat::Raw, bitmaps }
    }

    fn point(lsn: u64) -> String {
        point_bitmap(at(lsn))
    }

    fn kinds(actions: &[Value]) -> Vec<(String, String)> {
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let name = |data: &Value| match &data["name"] {
            Value::Null => text(&data["target"]),
            name => text(name),
        };
        let kind = |action: &Value| {
            let kind = text(&action["type"]).replace("block-dirty-bitmap-", "");
            (kind, name(&action["data"]))
        };
        actions.iter().map(kind).collect()
    }

    proptest! {
        #[test]
        fn a_bitmap_name_is_read_back(timeline: u128, lsn: u64) {
            let place = Position { timeline: TimelineId::from_u128(timeline), lsn: Lsn(lsn) };
            prop_assert_eq!(place_of(&point_bitmap(place)), Some(place));
        }

        #[test]
        fn arbitrary_names_never_panic(name: String) {
            let _ = place_of(&name);
            let _ = place_of(&format!("lw-pt-{name}"));
        }
    }

    #[test]
    fn the_change_map_counts_only_from_the_base_or_before_it_on_its_timeline_and_on_every_disk() {
        let other = point_bitmap(Position { timeline: TimelineId::from_u128(1), lsn: Lsn(5) });
        let with = |first: &[&str], second: &[&str]| [disk(0, first), disk(1, second)];
        let base = Some(at(5));

        assert_eq!(gap(&with(&[&point(5)], &[&point(4), OPEN]), base), None);
        assert!(gap(&with(&[&point(5)], &[&point(6)]), base).is_some(), "it starts too late");
        assert!(gap(&with(&[&point(5)], &[&other]), base).is_some(), "another timeline");
        assert!(gap(&with(&[&point(5)], &[OPEN]), base).is_some(), "only since the cut");
        assert!(gap(&with(&[&point(5)], &[]), base).is_some(), "nothing");
        assert!(gap(&with(&[&point(5)], &[&point(5)]), None).is_some(), "no base");
        let mut broken = with(&[&point(5)], &[&point(5)]);
        broken[1].bitmaps[0].inconsistent = true;
        assert!(gap(&broken, base).is_some(), "inconsistent");
    }

    #[test]
    fn a_fresh_change_map_never_proves_anything() {
        let fresh = [disk(0, &[&point_bitmap(NOWHERE)])];

        assert!(gap(&fresh, Some(at(0))).is_some());
        assert!(gap(&fresh, Some(at(u64::MAX))).is_some());
    }

    #[test]
    fn an_abandoned_cut_is_merged_into_the_point_it_started_from() {
        let actions = kinds(&merge_all(&[disk(0, &["foreign", OPEN, &point(5), LIVE])]));

        let expected = [
            ("enable".into(), point(5)),
            ("merge".into(), point(5)),
            ("remove".into(), OPEN.into()),
            ("remove".into(), LIVE.into()),
        ];
        assert_eq!(actions, expected);
    }

    #[test]
    fn a_committed_cut_leaves_only_what_was_recorded_since() {
        let actions = kinds(&commit(&[disk(0, &["foreign", OPEN, &point(5)])], at(9)));

        let expected = [
            ("add".into(), point(9)),
            ("merge".into(), point(9)),
            ("remove".into(), OPEN.into()),
            ("remove".into(), point(5)),
        ];
        assert_eq!(actions, expected);
        assert_eq!(commit(&[disk(0, &[&point(5)])], at(9)).len(), 0, "nothing was open");
    }
}
