//! Which paths there are: the served table, the matcher, and what each needs of the caller.
//!
//! Paths are matched without regard to case, as the contract wants. What the contract has and
//! Leeward will not is in `wont`.

use super::{access::Action, wont};
use std::sync::LazyLock;

/// HTTP methods that the contract uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Method {
    Get,
    Put,
    Patch,
    Post,
    Delete,
}

impl Method {
    /// The method of a request, when the contract uses it.
    pub fn of(method: &axum::http::Method) -> Option<Method> {
        match method.as_str() {
            "GET" => Some(Method::Get),
            "PUT" => Some(Method::Put),
            "PATCH" => Some(Method::Patch),
            "POST" => Some(Method::Post),
            "DELETE" => Some(Method::Delete),
            _ => None,
        }
    }
    /// As it stands in a request.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Post => "POST",
            Method::Delete => "DELETE",
        }
    }
}

/// What is done on a served path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Operation {
    VaultGet,
    VaultPut,
    VaultPatch,
    VaultDelete,
    VaultListSubscription,
    VaultListGroup,
    CertificatePut,
    FabricList,
    FabricGet,
    FabricPut,
    FabricRemove,
    HostListVault,
    HostList,
    HostGet,
    HostRefresh,
    HostRemove,
    ContainerListVault,
    ContainerList,
    ContainerGet,
    MachineList,
    MachineGet,
    PolicyList,
    PolicyGet,
    PolicyPut,
    PolicyPatch,
    PolicyDelete,
    MappingListVault,
    MappingList,
    MappingGet,
    MappingPut,
    MappingRemove,
    ItemListVault,
    ItemList,
    ItemGet,
    ItemEnable,
    ItemPurge,
    ItemDisable,
    ItemTestFailover,
    ItemTestCleanup,
    ItemFailover,
    ItemFailoverCancel,
    ItemChangePoint,
    ItemCommit,
    ItemResync,
    ItemPlannedFailover,
    ItemReprotect,
    SwitchProtection,
    PointList,
    PointGet,
    PointPicture,
    PlanList,
    PlanGet,
    PlanPut,
    PlanPatch,
    PlanDelete,
    PlanTestFailover,
    PlanTestCleanup,
    PlanPlannedFailover,
    PlanFailover,
    PlanCommit,
    PlanCancel,
    PlanReprotect,
    JobList,
    JobGet,
    JobCancel,
    JobResume,
    JobRestart,
    EventList,
    EventGet,
    AlertList,
    AlertGet,
    AlertPut,
    SettingList,
    SettingGet,
    HealthGet,
    HealthRefresh,
    EmptyList,
    EmptyGet,
    StatusGet,
    ProviderOperations,
    NameAvailable,
    IdentityRemove,
    ExtendedGet,
    ExtendedPut,
    UsageList,
    ReplicationUsageList,
    SystemsGet,
    SettingPut,
    FabricCheck,
    FabricRenew,
    FabricReassociate,
    HostPut,
    ContainerPut,
    ContainerRemove,
    MachineDiscover,
    MappingPatch,
    ItemPatch,
    ItemSizes,
    ItemAddDisks,
    ItemRemoveDisks,
    ItemResolveHealth,
    ItemUpdateAgent,
    ItemReinstallAgent,
    JobExport,
    VcenterPut,
    NetworkList,
    NetworkGet,
    NetworkMappingList,
    NetworkMappingGet,
    NetworkMappingPut,
    NetworkMappingPatch,
    NetworkMappingRemove,
    StorageList,
    StorageGet,
    StorageMappingList,
    StorageMappingGet,
    StorageMappingPut,
    StorageMappingRemove,
    AuditLogList,
    AuditLogVerify,
    MetricsGet,
    ReadinessGet,
}

use Action::{Admit, Configure, ManageVaults, Operate, Read};
use Method::{Delete, Get, Patch, Post, Put};
use Operation as Op;

/// The served paths. `V`, `F`, `C` and `I` at the front stand for a vault, a fabric, its container
/// and a protected item in it; `S` and `G` for a subscription's and a resource group's vaults.
#[rustfmt::skip]
const SERVED: &[(Method, &str, Op, Action)] = &[
    (Get,    "V", Op::VaultGet, Read),
    (Put,    "V", Op::VaultPut, ManageVaults),
    (Patch,  "V", Op::VaultPatch, ManageVaults),
    (Delete, "V", Op::VaultDelete, ManageVaults),
    (Get,    "S/vaults", Op::VaultListSubscription, Read),
    (Get,    "G/vaults", Op::VaultListGroup, Read),
    (Put,    "V/certificates/{certificate}", Op::CertificatePut, Admit),
    (Get,    "V/replicationFabrics", Op::FabricList, Read),
    (Get,    "F", Op::FabricGet, Read),
    (Put,    "F", Op::FabricPut, Configure),
    (Delete, "F", Op::FabricRemove, Configure),
    (Post,   "F/remove", Op::FabricRemove, Configure),
    (Get,    "V/replicationRecoveryServicesProviders", Op::HostListVault, Read),
    (Get,    "F/replicationRecoveryServicesProviders", Op::HostList, Read),
    (Get,    "F/replicationRecoveryServicesProviders/{host}", Op::HostGet, Read),
    (Delete, "F/replicationRecoveryServicesProviders/{host}", Op::HostRemove, Configure),
    (Post,   "F/replicationRecoveryServicesProviders/{host}/remove", Op::HostRemove, Configure),
    (Post,   "F/replicationRecoveryServicesProviders/{host}/refreshProvider", Op::HostRefresh,
             Operate),
    (Get,    "V/replicationProtectionContainers", Op::ContainerListVault, Read),
    (Get,    "F/replicationProtectionContainers", Op::ContainerList, Read),
    (Get,    "C", Op::ContainerGet, Read),
    (Get,    "C/replicationProtectableItems", Op::MachineList, Read),
    (Get,    "C/replicationProtectableItems/{machine}", Op::MachineGet, Read),
    (Get,    "V/replicationPolicies", Op::PolicyList, Read),
    (Get,    "V/replicationPolicies/{policy}", Op::PolicyGet, Read),
    (Put,    "V/replicationPolicies/{policy}", Op::PolicyPut, Configure),
    (Patch,  "V/replicationPolicies/{policy}", Op::PolicyPatch, Configure),
    (Delete, "V/replicationPolicies/{policy}", Op::PolicyDelete, Configure),
    (Get,    "V/replicationProtectionContainerMappings", Op::MappingListVault, Read),
    (Get,    "C/replicationProtectionContainerMappings", Op::MappingList, Read),
    (Get,    "C/replicationProtectionContainerMappings/{mapping}", Op::MappingGet, Read),
    (Put,    "C/replicationProtectionContainerMappings/{mapping}", Op::MappingPut, Configure),
    (Delete, "C/replicationProtectionContainerMappings/{mapping}", Op::MappingRemove, Configure),
    (Post,   "C/replicationProtectionContainerMappings/{mapping}/remove", Op::MappingRemove,
             Configure),
    (Get,    "V/replicationProtectedItems", Op::ItemListVault, Read),
    (Get,    "C/replicationProtectedItems", Op::ItemList, Read),
    (Get,    "I", Op::ItemGet, Read),
    (Put,    "I", Op::ItemEnable, Configure),
    (Delete, "I", Op::ItemPurge, Configure),
    (Post,   "I/remove", Op::ItemDisable, Configure),
    (Post,   "I/testFailover", Op::ItemTestFailover, Operate),
    (Post,   "I/testFailoverCleanup", Op::ItemTestCleanup, Operate),
    (Post,   "I/unplannedFailover", Op::ItemFailover, Operate),
    (Post,   "I/failoverCancel", Op::ItemFailoverCancel, Operate),
    (Post,   "I/applyRecoveryPoint", Op::ItemChangePoint, Operate),
    (Post,   "I/failoverCommit", Op::ItemCommit, Operate),
    (Post,   "I/repairReplication", Op::ItemResync, Operate),
    (Post,   "I/plannedFailover", Op::ItemPlannedFailover, Operate),
    (Post,   "I/reProtect", Op::ItemReprotect, Operate),
    (Post,   "C/switchprotection", Op::SwitchProtection, Operate),
    (Get,    "I/recoveryPoints", Op::PointList, Read),
    (Get,    "I/recoveryPoints/{point}", Op::PointGet, Read),
    (Get,    "I/recoveryPoints/{point}/leewardPicture", Op::PointPicture, Read),
    (Get,    "V/replicationRecoveryPlans", Op::PlanList, Read),
    (Get,    "V/replicationRecoveryPlans/{plan}", Op::PlanGet, Read),
    (Put,    "V/replicationRecoveryPlans/{plan}", Op::PlanPut, Configure),
    (Patch,  "V/replicationRecoveryPlans/{plan}", Op::PlanPatch, Configure),
    (Delete, "V/replicationRecoveryPlans/{plan}", Op::PlanDelete, Configure),
    (Post,   "V/replicationRecoveryPlans/{plan}/testFailover", Op::PlanTestFailover, Operate),
    (Post,   "V/replicationRecoveryPlans/{plan}/testFailoverCleanup", Op::PlanTestCleanup,
             Operate),
    (Post,   "V/replicationRecoveryPlans/{plan}/plannedFailover", Op::PlanPlannedFailover,
             Operate),
    (Post,   "V/replicationRecoveryPlans/{plan}/unplannedFailover", Op::PlanFailover, Operate),
    (Post,   "V/replicationRecoveryPlans/{plan}/failoverCommit", Op::PlanCommit, Operate),
    (Post,   "V/replicationRecoveryPlans/{plan}/failoverCancel", Op::PlanCancel, Operate),
    (Post,   "V/replicationRecoveryPlans/{plan}/reProtect", Op::PlanReprotect, Operate),
    (Get,    "V/replicationJobs", Op::JobList, Read),
    (Get,    "V/replicationJobs/{job}", Op::JobGet, Read),
    (Post,   "V/replicationJobs/{job}/cancel", Op::JobCancel, Operate),
    (Post,   "V/replicationJobs/{job}/resume", Op::JobResume, Operate),
    (Post,   "V/replicationJobs/{job}/restart", Op::JobRestart, Operate),
    (Get,    "V/replicationEvents", Op::EventList, Read),
    (Get,    "V/replicationEvents/{event}", Op::EventGet, Read),
    (Get,    "V/replicationAlertSettings", Op::AlertList, Read),
    (Get,    "V/replicationAlertSettings/{alert}", Op::AlertGet, Read),
    (Put,    "V/replicationAlertSettings/{alert}", Op::AlertPut, Configure),
    (Get,    "V/replicationVaultSettings", Op::SettingList, Read),
    (Get,    "V/replicationVaultSettings/{setting}", Op::SettingGet, Read),
    (Get,    "V/replicationVaultHealth", Op::HealthGet, Read),
    (Post,   "V/replicationVaultHealth/default/refresh", Op::HealthRefresh, Read),
    (Get,    "/providers/Microsoft.RecoveryServices/operations", Op::ProviderOperations, Read),
    (Get,    "G/operations", Op::ProviderOperations, Read),
    (Post,   "G/locations/{location}/checkNameAvailability", Op::NameAvailable, Read),
    (Delete, "V/registeredIdentities/{identity}", Op::IdentityRemove, Configure),
    (Get,    "V/extendedInformation/vaultExtendedInfo", Op::ExtendedGet, Read),
    (Put,    "V/extendedInformation/vaultExtendedInfo", Op::ExtendedPut, ManageVaults),
    (Patch,  "V/extendedInformation/vaultExtendedInfo", Op::ExtendedPut, ManageVaults),
    (Get,    "V/usages", Op::UsageList, Read),
    (Get,    "V/replicationUsages", Op::ReplicationUsageList, Read),
    (Get,    "V/replicationSupportedOperatingSystems", Op::SystemsGet, Read),
    (Put,    "V/replicationVaultSettings/{setting}", Op::SettingPut, Configure),
    (Post,   "F/checkConsistency", Op::FabricCheck, Operate),
    (Post,   "F/renewCertificate", Op::FabricRenew, Configure),
    (Post,   "F/reassociateGateway", Op::FabricReassociate, Configure),
    (Put,    "F/replicationRecoveryServicesProviders/{host}", Op::HostPut, Admit),
    (Put,    "C", Op::ContainerPut, Configure),
    (Post,   "C/remove", Op::ContainerRemove, Configure),
    (Post,   "C/discoverProtectableItem", Op::MachineDiscover, Configure),
    (Patch,  "C/replicationProtectionContainerMappings/{mapping}", Op::MappingPatch, Configure),
    (Patch,  "I", Op::ItemPatch, Configure),
    (Get,    "I/targetComputeSizes", Op::ItemSizes, Read),
    (Post,   "I/addDisks", Op::ItemAddDisks, Configure),
    (Post,   "I/removeDisks", Op::ItemRemoveDisks, Configure),
    (Post,   "I/resolveHealthErrors", Op::ItemResolveHealth, Operate),
    (Post,   "I/updateMobilityService", Op::ItemUpdateAgent, Operate),
    (Post,   "I/reinstallMobilityService", Op::ItemReinstallAgent, Operate),
    (Post,   "V/replicationJobs/export", Op::JobExport, Operate),
    (Put,    "F/replicationvCenters/{object}", Op::VcenterPut, Configure),
    (Patch,  "F/replicationvCenters/{object}", Op::EmptyGet, Configure),
    (Delete, "F/replicationvCenters/{object}", Op::EmptyGet, Configure),
    (Get,    "V/replicationNetworks", Op::NetworkList, Read),
    (Get,    "F/replicationNetworks", Op::NetworkList, Read),
    (Get,    "F/replicationNetworks/{object}", Op::NetworkGet, Read),
    (Get,    "V/replicationNetworkMappings", Op::NetworkMappingList, Read),
    (Get,    "F/replicationNetworks/{object}/replicationNetworkMappings", Op::NetworkMappingList,
             Read),
    (Get,    "F/replicationNetworks/{object}/replicationNetworkMappings/{mapping}",
             Op::NetworkMappingGet, Read),
    (Put,    "F/replicationNetworks/{object}/replicationNetworkMappings/{mapping}",
             Op::NetworkMappingPut, Configure),
    (Patch,  "F/replicationNetworks/{object}/replicationNetworkMappings/{mapping}",
             Op::NetworkMappingPatch, Configure),
    (Delete, "F/replicationNetworks/{object}/replicationNetworkMappings/{mapping}",
             Op::NetworkMappingRemove, Configure),
    (Get,    "F/replicationLogicalNetworks", Op::EmptyList, Read),
    (Get,    "F/replicationLogicalNetworks/{object}", Op::EmptyGet, Read),
    (Get,    "V/replicationStorageClassifications", Op::StorageList, Read),
    (Get,    "F/replicationStorageClassifications", Op::StorageList, Read),
    (Get,    "F/replicationStorageClassifications/{object}", Op::StorageGet, Read),
    (Get,    "V/replicationStorageClassificationMappings", Op::StorageMappingList, Read),
    (Get,    "F/replicationStorageClassifications/{object}\
              /replicationStorageClassificationMappings", Op::StorageMappingList, Read),
    (Get,    "F/replicationStorageClassifications/{object}\
              /replicationStorageClassificationMappings/{mapping}", Op::StorageMappingGet, Read),
    (Put,    "F/replicationStorageClassifications/{object}\
              /replicationStorageClassificationMappings/{mapping}", Op::StorageMappingPut,
             Configure),
    (Delete, "F/replicationStorageClassifications/{object}\
              /replicationStorageClassificationMappings/{mapping}", Op::StorageMappingRemove,
             Configure),
    (Get,    "V/replicationvCenters", Op::EmptyList, Read),
    (Get,    "F/replicationvCenters", Op::EmptyList, Read),
    (Get,    "F/replicationvCenters/{object}", Op::EmptyGet, Read),
    (Get,    "V/replicationAppliances", Op::EmptyList, Read),
    (Get,    "V/replicationOperationStatus/{job}", Op::StatusGet, Read),
];

/// Served paths that the contract does not know.
const OWN: &[(Method, &str, Op, Action)] = &[
    (Get, "/leewardAuditLog", Op::AuditLogList, Read),
    (Get, "/leewardAuditLog/verify", Op::AuditLogVerify, Read),
    (Get, "/metrics", Op::MetricsGet, Read),
    (Get, "V/leewardReadiness", Op::ReadinessGet, Read),
];

/// The prefixes that stand for the abbreviations, longest first.
const PREFIXES: [(&str, &str); 6] = [
    ("I", "C/replicationProtectedItems/{item}"),
    ("C", "F/replicationProtectionContainers/{container}"),
    ("F", "V/replicationFabrics/{fabric}"),
    ("V", "G/vaults/{vault}"),
    (
        "G",
        "/subscriptions/{subscription}/resourceGroups/{group}\
         /providers/Microsoft.RecoveryServices",
    ),
    ("S", "/subscriptions/{subscription}/providers/Microsoft.RecoveryServices"),
];

/// Writes a table's path in full.
pub(super) fn full(path: &str) -> String {
    let mut path = path.to_owned();
    for (short, long) in PREFIXES {
        let head = path.split('/').next().unwrap_or_default();
        if head == short {
            path = format!("{long}{}", &path[short.len()..]);
        }
    }
    path
}

/// Method, path in full, and right of every served operation.
pub(super) fn served() -> impl Iterator<Item = (Method, String, Action)> {
    SERVED.iter().map(|(method, path, _, action)| (*method, full(path), *action))
}

enum Segment {
    Literal(String),
    Name(String),
}

/// What a path and method lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// An operation that is served, and the right that it needs.
    Served(Operation, Action),
    /// An operation of the contract that Leeward will not have.
    Wont,
}

struct Route {
    method: Method,
    segments: Vec<Segment>,
    target: Target,
}

static ROUTES: LazyLock<Vec<Route>> = LazyLock::new(|| {
    let served = SERVED
        .iter()
        .chain(OWN)
        .map(|(method, path, op, action)| (*method, *path, Target::Served(*op, *action)));
    let wont = wont::ROWS.iter().map(|(method, path)| (*method, *path, Target::Wont));
    served.chain(wont).map(|(method, path, target)| route(method, path, target)).collect()
});

fn route(method: Method, path: &str, target: Target) -> Route {
    let segments = full(path)
        .split('/')
        .skip(1)
        .map(|segment| match segment.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')) {
            Some(name) => Segment::Name(name.to_owned()),
            None => Segment::Literal(segment.to_owned()),
        })
        .collect();
    Route { method, segments, target }
}

/// The names that stand in a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Names(Vec<(String, String)>);

impl Names {
    /// The name at `{key}` of the path; empty when the path has none, which no object is called.
    pub fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }
    /// Whether the path asks for the result of an operation on the resource that it names.
    pub fn is_results(&self) -> bool {
        !self.get(RESULTS_KEY).is_empty()
    }
    /// The job whose result is asked for.
    pub fn results_job(&self) -> &str {
        self.get(RESULTS_KEY)
    }
    /// These names, with the job whose result is asked for.
    pub fn with_results(mut self, job: &str) -> Names {
        self.0.push((RESULTS_KEY.into(), job.into()));
        self
    }
}

/// Under which the job of `…/operationresults/{job}` is kept; no pattern can have this name.
const RESULTS_KEY: &str = "operation results";

/// What a path leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// This.
    Route(Target, Names),
    /// The path exists, with these methods only.
    OtherMethods(Vec<Method>),
    /// Nothing.
    Nothing,
}

/// Finds what `method` on a path does; `segments` are decoded. Literal beats name.
pub(super) fn find(method: Method, segments: &[String]) -> Found {
    let mut others = Vec::new();
    let mut best: Option<(usize, Target, Names)> = None;
    for route in ROUTES.iter() {
        let Some((literals, names)) = matched(route, segments) else { continue };
        if route.method != method {
            others.push(route.method);
        } else if best.as_ref().is_none_or(|(most, _, _)| literals > *most) {
            best = Some((literals, route.target, names));
        }
    }
    match best {
        Some((_, target, names)) => Found::Route(target, names),
        None if others.is_empty() => Found::Nothing,
        None => Found::OtherMethods(others),
    }
}

fn matched(route: &Route, segments: &[String]) -> Option<(usize, Names)> {
    if route.segments.len() != segments.len() {
        return None;
    }
    let mut names = Names::default();
    let mut literals = 0;
    for (pattern, segment) in route.segments.iter().zip(segments) {
        match pattern {
            Segment::Literal(text) if text.eq_ignore_ascii_case(segment) => literals += 1,
            Segment::Literal(_) => return None,
            Segment::Name(name) if !segment.is_empty() => {
                names.0.push((name.clone(), segment.clone()));
            }
            Segment::Name(_) => return None,
        }
    }
    Some((literals, names))
}

/// Splits a path into decoded segments; a slash at the end does not count.
///
/// None when an escape is broken or is not UTF-8.
pub(super) fn split(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix('/')?;
    let path = path.strip_suffix('/').unwrap_or(path);
    path.split('/').map(decode).collect()
}

/// Undoes percent escapes; none when one is broken or the result is not UTF-8.
pub(super) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        if first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            if !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
                return None;
            }
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example(path: &str) -> String {
        full(path)
            .split('/')
            .map(|segment| if segment.starts_with('{') { "x1" } else { segment })
            .collect::<Vec<_>>()
            .join("/")
    }

    fn rows() -> impl Iterator<Item = (Method, &'static str)> {
        let served = SERVED.iter().map(|(method, path, _, _)| (*method, *path));
        served.chain(wont::ROWS.iter().map(|(method, path)| (*method, *path)))
    }

    #[test]
    fn every_operation_of_the_contract_has_a_route_in_any_spelling() {
        let mut found = 0;
        for (method, path) in rows() {
            let path = example(path);
            for spelling in [path.clone(), path.to_uppercase(), format!("{path}/")] {
                let target = find(method, &split(&spelling).unwrap());
                assert!(matches!(target, Found::Route(_, _)), "{method:?} {spelling}: {target:?}");
            }
            found += 1;
        }
        // The contract has 176 rows; two paths are our own: pictures and operation status.
        assert_eq!(found, 176 + 2);
    }

    #[test]
    fn no_two_rows_are_the_same() {
        let mut all: Vec<_> =
            rows().map(|(method, path)| (method.name(), example(path).to_lowercase())).collect();
        let total = all.len();
        all.sort();
        all.dedup();

        assert_eq!(all.len(), total);
    }

    #[test]
    fn a_wrong_method_is_told_from_a_wrong_path() {
        let path = split(&example("V/replicationJobs")).unwrap();
        assert_eq!(find(Method::Delete, &path), Found::OtherMethods(vec![Method::Get]));

        let path = split("/subscriptions/x/nothing").unwrap();
        assert_eq!(find(Method::Get, &path), Found::Nothing);
    }

    #[test]
    fn names_are_decoded_and_a_word_beats_a_name() {
        let path = split(&format!("{}/web%2001", example("V/replicationFabrics"))).unwrap();
        let Found::Route(_, names) = find(Method::Get, &path) else { panic!("no route") };
        assert_eq!(names.get("fabric"), "web 01");
        assert_eq!(names.get("nothing"), "");

        let path = split(&example("V/replicationJobs/export")).unwrap();
        let Found::Route(target, _) = find(Method::Post, &path) else { panic!("no route") };
        assert_eq!(target, Target::Served(Op::JobExport, Operate));
        let path = split(&example("F/removeInfra")).unwrap();
        let Found::Route(target, _) = find(Method::Post, &path) else { panic!("no route") };
        assert_eq!(target, Target::Wont);
    }

    proptest! {
        #[test]
        fn no_path_makes_the_matcher_fail(path in "/[a-zA-Z0-9%/{}.é]{0,80}") {
            if let Some(segments) = split(&path) {
                let _ = find(Method::Get, &segments);
            }
        }
    }
}
