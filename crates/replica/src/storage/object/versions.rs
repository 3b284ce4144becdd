//! What a bucket with versions still has of objects that were deleted or overwritten, and bringing
//! that back.
//!
//! A deletion there only puts a marker in front of an object, and a put that asks for no condition
//! puts a newer version in front. Neither can be told from our own deletions here: which of them
//! are losses, its caller says by a time. Leases and other blobs are all alike here.

use super::{
    super::check_name,
    asked::{AskError, Bucket, failed, run},
    connect::ObjectPlace,
};
use leeward_model::UnixMillis;
use object_store::{ObjectStore as _, PutMode, PutPayload};
use serde::Deserialize;
use std::collections::BTreeMap;

/// What an object was from a time on.
#[derive(Clone, Debug)]
struct State {
    since: UnixMillis,
    latest: bool,
    /// Of a version or of a deletion's marker.
    id: String,
    /// None: it was deleted.
    bytes: Option<u64>,
}

/// Every state that the bucket still has of the objects of a place.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// By name; oldest first.
    objects: BTreeMap<String, Vec<State>>,
}

/// An object that is not any more what it was at some time.
#[derive(Clone, Debug)]
pub struct Lost {
    /// The blob, or a part of it.
    pub name: String,
    /// Its bytes then.
    pub bytes: u64,
    /// When it was deleted or overwritten first, by the bucket's clock.
    pub since: UnixMillis,
    /// Whether it is there, as something else.
    pub overwritten: bool,
    version: String,
    /// What is in front of it, when that is nothing but deletions.
    markers: Option<Vec<String>>,
}

impl History {
    /// The objects that are not there, with the time of their deletion.
    pub fn deleted(&self) -> impl Iterator<Item = (&str, UnixMillis)> {
        self.objects.iter().filter_map(|(name, states)| {
            let newest = states.last()?;
            let was = states.iter().any(|state| state.bytes.is_some());
            (was && newest.bytes.is_none()).then_some((name.as_str(), newest.since))
        })
    }

    /// The objects that are there.
    pub fn present(&self) -> impl Iterator<Item = &str> {
        let there = |states: &Vec<State>| states.last().is_some_and(|state| state.bytes.is_some());
        self.objects.iter().filter(move |(_, states)| there(states)).map(|(name, _)| name.as_str())
    }

    /// The objects that were there at a time, by the bucket's clock, and are not what they were.
    /// Such clocks have whole seconds: what happened within the second of `at` counts as before.
    pub fn lost_since(&self, at: UnixMillis) -> Vec<Lost> {
        self.objects.iter().filter_map(|(name, states)| lost(name, states, at)).collect()
    }

    fn add(&mut self, name: &str, state: State) {
        self.objects.entry(name.to_owned()).or_default().push(state);
    }

    fn sort(&mut self) {
        for states in self.objects.values_mut() {
            // Within a second a deletion came after what it deleted.
            states.sort_by_key(|state| (state.since, state.latest, state.bytes.is_none()));
        }
    }
}

fn lost(name: &str, states: &[State], at: UnixMillis) -> Option<Lost> {
    let then = states.iter().rposition(|state| state.since <= at)?;
    let (was, after) = (&states[then], &states[then + 1..]);
    let (bytes, first) = (was.bytes?, after.first()?);
    let overwritten = after.last()?.bytes.is_some();
    let all_markers = after.iter().all(|state| state.bytes.is_none());
    let markers = all_markers.then(|| after.iter().map(|state| state.id.clone()).collect());
    let (name, version) = (name.to_owned(), was.id.clone());
    Some(Lost { name, bytes, since: first.since, overwritten, version, markers })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Page {
    #[serde(default)]
    is_truncated: bool,
    next_key_marker: Option<String>,
    next_version_id_marker: Option<String>,
    #[serde(default)]
    version: Vec<Listed>,
    #[serde(default)]
    delete_marker: Vec<Listed>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Listed {
    key: String,
    version_id: String,
    is_latest: bool,
    last_modified: String,
    size: Option<u64>,
}

impl ObjectPlace {
    /// Asks for all states that the bucket still has of all objects of this place: a request for
    /// each thousand of them.
    ///
    /// # Errors
    /// See [`AskError`]. Some servers and some keys cannot ask.
    pub fn history(&self) -> Result<History, AskError> {
        run(self, "list old versions", |bucket| async move { history(&bucket).await })
    }

    /// Makes objects again what they were; returns how many. Nothing is taken away but the marks
    /// of deletions, so it may be repeated.
    ///
    /// # Errors
    /// See [`AskError`]; those before it in the list are back.
    pub fn bring_back(&self, lost: Vec<Lost>) -> Result<usize, AskError> {
        run(self, "bring objects back", |bucket| async move {
            for lost in &lost {
                bring_back(&bucket, lost).await?;
            }
            Ok(lost.len())
        })
    }
}

const LIST: &str = "list old versions";

async fn history(bucket: &Bucket) -> Result<History, AskError> {
    let prefix = bucket.prefix();
    let mut history = History::default();
    let (mut key, mut version) = (String::new(), String::new());
    loop {
        let mut query = vec![("versions", ""), ("prefix", prefix.as_str())];
        if !key.is_empty() {
            query.extend([("key-marker", key.as_str()), ("version-id-marker", version.as_str())]);
        }
        let page = bucket.ask(LIST, "GET", "", &query, &[]).await?.good(LIST)?;
        let page = quick_xml::de::from_reader(page.as_ref());
        let page: Page = page.map_err(|error| failed(LIST, error))?;
        let versions = page.version.into_iter().map(|listed| (true, listed));
        for (is_version, listed) in
            versions.chain(page.delete_marker.into_iter().map(|listed| (false, listed)))
        {
            let Some(name) = listed.key.strip_prefix(&prefix) else { continue };
            // Nothing of ours: left alone.
            if check_name(name).is_err() {
                continue;
            }
            let since: jiff::Timestamp =
                listed.last_modified.parse().map_err(|error| failed(LIST, error))?;
            let bytes = is_version.then_some(listed.size.unwrap_or(0));
            let since = UnixMillis(since.as_millisecond());
            let (latest, id) = (listed.is_latest, listed.version_id);
            history.add(name, State { since, latest, id, bytes });
        }
        let next = page.next_key_marker.filter(|_| page.is_truncated);
        match next {
            Some(next) if next != key || page.next_version_id_marker.as_ref() != Some(&version) => {
                (key, version) = (next, page.next_version_id_marker.unwrap_or_default());
            }
            _ => break,
        }
    }
    history.sort();
    Ok(history)
}

async fn bring_back(bucket: &Bucket, lost: &Lost) -> Result<(), AskError> {
    if let Some(markers) = &lost.markers {
        let action = "take back a deletion";
        for marker in markers {
            let query = [("versionId", marker.as_str())];
            bucket.ask(action, "DELETE", &lost.name, &query, &[]).await?.good(action)?;
        }
        return Ok(());
    }
    let query = [("versionId", lost.version.as_str())];
    let action = "read an old version";
    let bytes = bucket.ask(action, "GET", &lost.name, &query, &[]).await?.good(action)?;
    if bytes.len() as u64 != lost.bytes {
        return Err(failed(action, format!("{} has {} bytes only", lost.name, bytes.len())));
    }
    let (key, mode) = (bucket.key(&lost.name), PutMode::Overwrite.into());
    let put = bucket.s3.put_opts(&key, PutPayload::from_bytes(bytes), mode).await;
    put.map(drop).map_err(|error| failed("put an old version in front again", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(since: i64, id: &str, bytes: Option<u64>) -> State {
        State { since: UnixMillis(since), latest: false, id: id.into(), bytes }
    }

    fn history(states: &[(&str, State)]) -> History {
        let mut history = History::default();
        states.iter().for_each(|(name, state)| history.add(name, state.clone()));
        history.sort();
        history
    }

    #[test]
    fn what_was_there_at_a_time_is_told_from_what_was_gone_or_came_later() {
        let history = history(&[
            ("kept", state(1, "k", Some(1))),
            ("gone-before", state(1, "g", Some(1))),
            ("gone-before", state(4, "gm", None)),
            ("deleted", state(2, "d", Some(7))),
            ("deleted", state(6, "dm1", None)),
            ("deleted", state(7, "dm2", None)),
            ("overwritten", state(2, "o", Some(3))),
            ("overwritten", state(6, "o2", Some(9))),
            ("later", state(6, "l", Some(1))),
            ("later", state(7, "lm", None)),
        ]);

        let lost = history.lost_since(UnixMillis(5));

        let [deleted, overwritten] = &lost[..] else { panic!("{lost:?}") };
        assert_eq!((deleted.name.as_str(), deleted.bytes, deleted.since.0), ("deleted", 7, 6));
        assert_eq!(deleted.markers.as_deref().unwrap(), ["dm1", "dm2"]);
        assert!(!deleted.overwritten && overwritten.overwritten);
        assert_eq!((overwritten.version.as_str(), &overwritten.markers), ("o", &None));
        let deleted: Vec<_> = history.deleted().map(|(name, _)| name).collect();
        assert_eq!(deleted, ["deleted", "gone-before", "later"]);
        assert_eq!(history.present().collect::<Vec<_>>(), ["kept", "overwritten"]);
    }

    #[test]
    fn a_deletion_within_the_second_of_its_object_counts_as_after_it() {
        let history = history(&[("a", state(2, "am", None)), ("a", state(2, "a", Some(1)))]);

        assert!(history.lost_since(UnixMillis(2)).is_empty());
        assert_eq!(history.deleted().count(), 1);
    }

    #[test]
    fn a_list_of_versions_is_read_in_either_order() {
        let text = "<?xml version=\"1.0\"?><ListVersionsResult><Name>b</Name><IsTruncated>false\
                    </IsTruncated><Version><Key>a</Key><VersionId>1</VersionId><IsLatest>false\
                    </IsLatest><LastModified>2026-11-22T05:00:00.000Z</LastModified><Size>3</Size>\
                    </Version><DeleteMarker><Key>a</Key><VersionId>2</VersionId><IsLatest>true\
                    </IsLatest><LastModified>2026-11-22T05:00:01.000Z</LastModified>\
                    </DeleteMarker><Version><Key>b</Key><VersionId>3</VersionId><IsLatest>true\
                    </IsLatest><LastModified>2026-11-22T05:00:00.000Z</LastModified><Size>0</Size>\
                    </Version></ListVersionsResult>";

        let page: Page = quick_xml::de::from_str(text).unwrap();

        assert_eq!((page.version.len(), page.delete_marker.len()), (2, 1));
        assert_eq!(page.version[0].size, Some(3));
        assert!(page.delete_marker[0].is_latest && !page.is_truncated);
    }
}
