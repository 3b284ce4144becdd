//! The one canonical spelling of every id that is given out, and the frame of every resource.

use crate::{fabrics::ContainerView, items::ItemView, vaults::VaultView};
use leeward_model::{FabricId, JobId, PointId, UnixMillis};
use serde_json::{Value, json};

/// The prefix of all resource types.
const NAMESPACE: &str = "Microsoft.RecoveryServices";

/// Writes the ids of one vault's resources.
#[derive(Clone, Debug)]
pub(super) struct Ids(String);

impl Ids {
    /// Those of `vault`.
    pub fn of(vault: &VaultView) -> Ids {
        let key = &vault.key;
        Ids(format!(
            "/subscriptions/{}/resourceGroups/{}/providers/{NAMESPACE}/vaults/{}",
            key.subscription, key.resource_group, key.name
        ))
    }
    /// The vault's own.
    pub fn vault(&self) -> &str {
        &self.0
    }
    /// An object directly below the vault.
    pub fn below(&self, kind: &str, name: &str) -> String {
        format!("{}/{kind}/{name}", self.0)
    }
    /// A fabric.
    pub fn fabric(&self, name: &str) -> String {
        self.below("replicationFabrics", name)
    }
    /// A fabric's host.
    pub fn host(&self, fabric: &str, host: &str) -> String {
        format!("{}/replicationRecoveryServicesProviders/{host}", self.fabric(fabric))
    }
    /// A container.
    pub fn container(&self, fabric: &str, container: &str) -> String {
        format!("{}/replicationProtectionContainers/{container}", self.fabric(fabric))
    }
    /// The container of the fabric with this id and name.
    pub fn container_of(&self, id: FabricId, fabric: &str) -> String {
        self.container(fabric, &container_name(id))
    }
    /// A machine.
    pub fn machine(&self, container: &ContainerView, machine: uuid::Uuid) -> String {
        let container = self.container(&container.fabric_name, &container.name);
        format!("{container}/replicationProtectableItems/{machine}")
    }
    /// A protected item.
    pub fn item(&self, item: &ItemView) -> String {
        self.item_named(item.source_fabric, &item.source_fabric_name, &item.name)
    }
    /// A protected item by its source fabric's id and name and its own name.
    pub fn item_named(&self, fabric: FabricId, fabric_name: &str, item: &str) -> String {
        let container = self.container_of(fabric, fabric_name);
        format!("{container}/replicationProtectedItems/{item}")
    }
    /// A recovery point.
    pub fn point(&self, item: &ItemView, point: PointId) -> String {
        format!("{}/recoveryPoints/{point}", self.item(item))
    }
    /// A policy.
    pub fn policy(&self, name: &str) -> String {
        self.below("replicationPolicies", name)
    }
    /// A container mapping.
    pub fn mapping(&self, fabric: FabricId, fabric_name: &str, mapping: &str) -> String {
        let container = self.container_of(fabric, fabric_name);
        format!("{container}/replicationProtectionContainerMappings/{mapping}")
    }
    /// A recovery plan.
    pub fn plan(&self, name: &str) -> String {
        self.below("replicationRecoveryPlans", name)
    }
    /// A job.
    pub fn job(&self, job: JobId) -> String {
        self.below("replicationJobs", &job.to_string())
    }
}

/// Name of the container of a fabric.
pub(super) fn container_name(fabric: FabricId) -> String {
    format!("cloud_{fabric}")
}

/// Frames a resource: `id`, and from it `name` and `type`, around its properties.
pub(super) fn resource(id: &str, properties: Value) -> Value {
    let mut segments = id.rsplit('/');
    let name = segments.next().unwrap_or_default();
    json!({ "id": id, "name": name, "type": type_of(id), "properties": properties })
}

/// The type of the resource with this id: every second segment after the provider.
fn type_of(id: &str) -> String {
    let mut segments = id.split('/').skip_while(|segment| *segment != NAMESPACE).skip(1);
    let mut out = NAMESPACE.to_owned();
    while let Some(kind) = segments.next() {
        out.push('/');
        out.push_str(kind);
        segments.next();
    }
    out
}

/// A time as the contract writes it; none for a time that no calendar has.
pub(super) fn time(at: UnixMillis) -> Option<String> {
    jiff::Timestamp::from_millisecond(at.0).ok().map(|time| time.to_string())
}

/// As [`time`], of a time that may be missing.
pub(super) fn time_or_null(at: Option<UnixMillis>) -> Value {
    at.and_then(time).map_or(Value::Null, Value::String)
}

/// Reads a time in ISO 8601.
pub(super) fn read_time(text: &str) -> Option<UnixMillis> {
    let stamp: jiff::Timestamp = match text.parse() {
        Ok(stamp) => stamp,
        // Clients also send it without a zone, or with a blank for the T: then it is UTC.
        Err(_) => {
            format!("{}Z", text.trim().trim_end_matches('Z').replace(' ', "T")).parse().ok()?
        }
    };
    Some(UnixMillis(stamp.as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_type_follow_from_the_id() {
        let id = "/subscriptions/s/resourceGroups/g/providers/Microsoft.RecoveryServices/vaults/v\
                  /replicationFabrics/f/replicationProtectionContainers/c";

        let frame = resource(id, json!({"a": 1}));

        assert_eq!(frame["name"], "c");
        assert_eq!(
            frame["type"],
            "Microsoft.RecoveryServices/vaults/replicationFabrics/replicationProtectionContainers"
        );
        assert_eq!(frame["properties"]["a"], 1);
    }

    #[test]
    fn times_are_written_and_read_in_iso_8601() {
        assert_eq!(time(UnixMillis(0)).unwrap(), "1970-01-01T00:00:00Z");
        for text in ["1970-01-01T00:00:01.5Z", "1970-01-01T00:00:01.5", "1970-01-01 00:00:01.5"] {
            assert_eq!(read_time(text), Some(UnixMillis(1500)), "{text}");
        }
        assert_eq!(read_time("yesterday"), None);
        assert_eq!(time(UnixMillis(i64::MAX)), None);
    }
}
