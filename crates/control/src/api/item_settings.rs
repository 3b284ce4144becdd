//! PATCH of a protected item: what is set of the machines that are made of it, by the contract's
//! field names; and the sizes that a machine can be given.

use super::{
    Below,
    envelope::{Answer, Refusal},
    ids::{Ids, resource},
    items::find,
    networks::object_id,
    request::{Fields, list, name_in_id},
};
use crate::{
    ControlError,
    items::{Change, ItemView, NicUpdate, SettingsUpdate, TargetView},
    jobs::{InstantJob, Scenario, TargetKind},
    networks::Resource,
};
use leeward_model::{NicSpec, Site};
use serde_json::{Value, json};
use std::net::Ipv4Addr;

/// Processors that a size of the list may have.
const SIZE_CPUS: [u32; 5] = [1, 2, 4, 8, 16];
/// Memory that a size of the list may have, in MiB.
const SIZE_MEMORY_MIB: [u32; 8] = [512, 1024, 2048, 4096, 8192, 16_384, 32_768, 65_536];
/// Most network cards of a machine.
const NICS_MAX: u32 = 8;
/// Most disks of a machine beside its first one.
const DATA_DISKS_MAX: u32 = 15;

/// A size's name: any pair of figures is one, not only those of the list.
fn size_name(cpus: u32, memory_mib: u32) -> String {
    format!("{cpus}cpu-{memory_mib}mib")
}

fn size_of(name: &str) -> Option<(u32, u32)> {
    let name = name.to_ascii_lowercase();
    let (cpus, memory) = name.split_once("cpu-")?;
    Some((cpus.parse().ok()?, memory.strip_suffix("mib")?.parse().ok()?))
}

/// A field that may be set, cleared by an empty text, or left as it is.
fn change<'a>(fields: Fields<'a>, name: &str) -> Result<Change<&'a str>, ControlError> {
    match fields.raw(name) {
        None => Ok(Change::Keep),
        Some(Value::String(text)) if text.is_empty() => Ok(Change::Clear),
        Some(_) => Ok(fields.text(name)?.map_or(Change::Keep, Change::Set)),
    }
}

fn map<T, U>(
    change: Change<T>,
    read: impl FnOnce(T) -> Result<U, ControlError>,
) -> Result<Change<U>, ControlError> {
    Ok(match change {
        Change::Keep => Change::Keep,
        Change::Clear => Change::Clear,
        Change::Set(value) => Change::Set(read(value)?),
    })
}

fn network(fields: Fields<'_>, name: &str) -> Result<Change<String>, ControlError> {
    map(change(fields, name)?, |text| network_name(text, name))
}

/// The network that a field names by id or name.
pub(super) fn network_name(text: &str, field: &str) -> Result<String, ControlError> {
    let name = name_in_id(text, "replicationNetworks");
    let name = name.ok_or_else(|| {
        ControlError::bad_request(format!("{field} {text} names none of the replicationNetworks"))
    })?;
    Ok(Resource::Network.find(name)?.to_owned())
}

fn address(fields: Fields<'_>, name: &str) -> Result<Change<Ipv4Addr>, ControlError> {
    map(change(fields, name)?, |text| {
        text.parse().map_err(|_| {
            ControlError::bad_request(format!("{name} {text} is not an address like 10.0.2.50"))
        })
    })
}

fn figure(fields: Fields<'_>, name: &str) -> Result<Change<u32>, ControlError> {
    match change(fields, name) {
        Ok(Change::Keep) => return Ok(Change::Keep),
        Ok(Change::Clear) => return Ok(Change::Clear),
        _ => {}
    }
    let figure = fields.number(name)?.unwrap_or_default();
    // Out of bounds or broken figures become one that is out of bounds.
    let whole = figure.fract() == 0.0 && figure <= f64::from(u32::MAX);
    Ok(Change::Set(if whole { figure as u32 } else { 0 }))
}

/// What is said of one card: its own fields, then those of its first, or primary, address.
fn nic(fields: Fields<'_>) -> Result<NicUpdate, ControlError> {
    let mac = fields.required("nicId")?.to_owned();
    let mut update = NicUpdate { mac: Some(mac), ..NicUpdate::default() };
    for field in ["recoveryVMNetworkId", "leewardNetworkId"] {
        match network(fields, field)? {
            Change::Keep => {}
            said => update.network = said,
        }
    }
    if fields.text("selectionType")?.is_some_and(|word| word.eq_ignore_ascii_case("NotSelected")) {
        // The machine keeps its card: what was not selected leads nowhere.
        update.network = Change::Set(Resource::Network.find("isolated")?.to_owned());
    }
    let configs = list(fields, "ipConfigs")?;
    let mut chosen = configs.first();
    for config in &configs {
        if config.flag("isPrimary")? == Some(true) {
            chosen = Some(config);
        }
    }
    if let Some(config) = chosen {
        update.address = address(*config, "recoveryStaticIPAddress")?;
        update.test_address = address(*config, "tfoStaticIPAddress")?;
    }
    Ok(update)
}

fn update(properties: Fields<'_>) -> Result<SettingsUpdate, ControlError> {
    let details = properties.object("providerSpecificDetails")?;
    let mut update = SettingsUpdate {
        site: site(properties)?,
        machine: properties.text("recoveryAzureVMName")?.map(str::to_owned),
        test_network: network(properties, "selectedTfoAzureNetworkId")?,
        ..SettingsUpdate::default()
    };
    for fields in [details, properties] {
        for field in ["targetVmName", "leewardTargetName"] {
            let named = fields.text(field)?.map(str::to_owned);
            update.machine = update.machine.or(named);
        }
    }
    let size = match change(properties, "recoveryAzureVMSize")? {
        Change::Keep => change(details, "targetVmSize")?,
        size => size,
    };
    match size {
        Change::Keep => {}
        Change::Clear => (update.cpus, update.memory_mib) = (Change::Clear, Change::Clear),
        Change::Set(name) => {
            let wrong = || {
                let like = size_name(2, 4096);
                ControlError::bad_request(format!("{name} is not a size like {like}"))
            };
            let (cpus, memory_mib) = size_of(name).ok_or_else(wrong)?;
            (update.cpus, update.memory_mib) = (Change::Set(cpus), Change::Set(memory_mib));
        }
    }
    for (field, setting) in [
        ("leewardTargetCpus", &mut update.cpus),
        ("leewardTargetMemoryMib", &mut update.memory_mib),
    ] {
        match figure(properties, field)? {
            Change::Keep => {}
            said => *setting = said,
        }
    }
    // The network of the whole machine first, or of the card that is named: single cards follow.
    let whole = network(properties, "selectedRecoveryAzureNetworkId")?;
    let mac = properties.text("selectedSourceNicId")?.map(str::to_owned);
    if whole != Change::Keep {
        update.nics.push(NicUpdate { mac, network: whole, ..NicUpdate::default() });
    }
    let cards = list(properties, "vmNics")?.into_iter().map(nic);
    update.nics.extend(cards.collect::<Result<Vec<_>, _>>()?);
    Ok(update)
}

/// The site whose machines are meant.
fn site(properties: Fields<'_>) -> Result<Option<Site>, ControlError> {
    let Some(word) = properties.text("leewardSite")? else { return Ok(None) };
    let sites = [Site::Primary, Site::Recovery];
    let named = |site: &Site| super::item_view::site(*site).eq_ignore_ascii_case(word);
    sites.into_iter().find(named).map(Some).ok_or_else(|| {
        ControlError::bad_request(format!("leewardSite {word} is not one of Primary, Recovery"))
    })
}

/// PATCH: checked and kept at once; the next machine that is made is made so.
pub(super) async fn patch(below: &Below<'_>) -> Result<Answer, Refusal> {
    let item = find(below).await?;
    let control = below.control();
    if let Err(error) = control.item_set(item.id, update(below.call.properties()?)?).await {
        return Err(super::items::refused(below, &item, error).await);
    }
    let instant = InstantJob {
        scenario: Scenario::UpdateVmProperties,
        target_kind: TargetKind::ProtectionEntity,
        target_id: item.id.to_string(),
        target_name: item.name.clone(),
    };
    let job = control.job_note(below.vault.id, instant).await?;
    Ok(below.accepted(below.ids.item(&item), job))
}

/// The network cards in the contract's words: as they are, and as they will be.
pub(super) fn nics_view(ids: &Ids, item: &ItemView) -> Vec<Value> {
    let target = &item.target;
    let fabric = fabric_of(item, target.site);
    let tests = target.settings.test_network.as_deref().unwrap_or("isolated");
    let card = |(now, then): &(NicSpec, NicSpec)| {
        let same = |mac: &str| mac.eq_ignore_ascii_case(&now.mac);
        let set = target.settings.nics.iter().find(|nic| same(&nic.mac));
        let fixed = then.address.map(|address| address.to_string());
        let test = set.and_then(|set| set.test_address).or(then.address);
        json!({
            "nicId": now.mac,
            "vMNetworkName": now.network,
            "recoveryVMNetworkId": object_id(ids, Resource::Network, fabric, &then.network),
            "tfoVMNetworkId": object_id(ids, Resource::Network, fabric, tests),
            "selectionType": match set {
                Some(_) => "SelectedByUser",
                None => "SelectedByDefault",
            },
            "ipConfigs": [{
                "name": "ipConfig1",
                "isPrimary": true,
                "staticIPAddress": now.address.map(|address| address.to_string()),
                "ipAddressType": if fixed.is_some() { "Static" } else { "Dynamic" },
                "isSeletedForFailover": true,
                "recoveryStaticIPAddress": fixed,
                "tfoStaticIPAddress": test.map(|address| address.to_string()),
            }],
        })
    };
    target.nics.iter().map(card).collect()
}

fn fabric_of(item: &ItemView, site: Site) -> &str {
    match site {
        Site::Primary => &item.source_fabric_name,
        Site::Recovery => &item.target_fabric_name,
    }
}

/// The machine that the next failover would make.
pub(super) fn target_view(ids: &Ids, item: &ItemView) -> Value {
    let TargetView { site, machine, settings, size, .. } = &item.target;
    let network = settings.test_network.as_deref();
    let fabric = fabric_of(item, *site);
    json!({
        "site": super::item_view::site(*site),
        "name": machine,
        "size": size.map(|(memory_mib, cpus)| size_name(cpus, memory_mib)),
        "memoryMib": size.map(|(memory_mib, _)| memory_mib),
        "cpus": size.map(|(_, cpus)| cpus),
        "memoryIsSet": settings.memory_mib.is_some(),
        "cpusAreSet": settings.cpus.is_some(),
        "testNetworkId": network.map(|name| object_id(ids, Resource::Network, fabric, name)),
    })
}

/// GET of the sizes that the machine can be given: its own, and usual ones.
pub(super) async fn sizes(below: &Below<'_>) -> Result<Answer, Refusal> {
    let item = find(below).await?;
    let grid = SIZE_CPUS.into_iter().flat_map(|cpus| SIZE_MEMORY_MIB.map(|memory| (cpus, memory)));
    let own = item.target.size.map(|(memory_mib, cpus)| (cpus, memory_mib));
    let mut sizes: Vec<(u32, u32)> = own.into_iter().chain(grid).collect();
    sizes.sort_unstable();
    sizes.dedup();
    let view = |(cpus, memory_mib): (u32, u32)| {
        let name = size_name(cpus, memory_mib);
        let id = format!("{}/targetComputeSizes/{name}", below.ids.item(&item));
        resource(
            &id,
            json!({
                "name": name,
                "friendlyName": format!("{cpus} processors, {memory_mib} MiB"),
                "cpuCoresCount": cpus,
                "vCpusAvailable": cpus,
                "memoryInGB": f64::from(memory_mib) / 1024.0,
                "maxDataDiskCount": DATA_DISKS_MAX,
                "maxNicsCount": NICS_MAX,
                "errors": [],
                "hyperVGenerations": ["1"],
            }),
        )
    };
    below.page(sizes.into_iter().map(view).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-050 to F-053: the contract's fields and ours lead to the same settings.
    #[test]
    fn a_patch_is_read_by_the_contracts_names() {
        let body = json!({
            "recoveryAzureVMName": "web01-dr", "recoveryAzureVMSize": "2cpu-512mib",
            "selectedRecoveryAzureNetworkId": "/x/replicationNetworks/isolated",
            "selectedTfoAzureNetworkId": "user",
            "vmNics": [{"nicId": "52:54:00:00:00:01", "ipConfigs": [
                {"ipConfigName": "b"},
                {"ipConfigName": "a", "isPrimary": true, "recoveryStaticIPAddress": "10.0.2.50",
                 "tfoStaticIPAddress": ""}]}]});

        let update = update(Fields::new(&body)).unwrap();

        assert_eq!(update.machine.as_deref(), Some("web01-dr"));
        assert_eq!((update.cpus, update.memory_mib), (Change::Set(2), Change::Set(512)));
        assert_eq!(update.test_network, Change::Set("user".into()));
        assert_eq!(update.nics[0].mac, None);
        assert_eq!(update.nics[0].network, Change::Set("isolated".into()));
        assert_eq!(update.nics[1].mac.as_deref(), Some("52:54:00:00:00:01"));
        assert_eq!(update.nics[1].address, Change::Set(Ipv4Addr::new(10, 0, 2, 50)));
        assert_eq!(update.nics[1].test_address, Change::Clear);
    }

    #[test]
    fn what_cannot_be_read_is_refused_and_what_is_absent_is_kept() {
        let nothing = update(Fields::new(&json!({"licenseType": "NotSpecified"}))).unwrap();
        assert_eq!(nothing, SettingsUpdate::default());
        for body in [
            json!({"recoveryAzureVMSize": "large"}),
            json!({"recoveryAzureVMName": 7}),
            json!({"selectedTfoAzureNetworkId": "/a/network"}),
            json!({"selectedRecoveryAzureNetworkId": "lan"}),
            json!({"vmNics": {}}),
            json!({"vmNics": [{}]}),
            json!({"vmNics": [{"nicId": "a", "ipConfigs": [{"recoveryStaticIPAddress": "x"}]}]}),
            json!({"leewardTargetMemoryMib": "much"}),
            json!({"leewardSite": "Moon"}),
        ] {
            assert!(update(Fields::new(&body)).is_err(), "{body}");
        }
        let half = json!({"leewardTargetCpus": 1.5});
        assert_eq!(update(Fields::new(&half)).unwrap().cpus, Change::Set(0), "out of bounds");
    }
}
