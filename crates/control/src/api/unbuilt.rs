//! What the contract has and Leeward does not serve yet, transcribed: each answers "not yet".

use super::routes::Method::{self, Delete, Get, Patch, Post, Put};
use Need::{Must, Should, Wont};

/// How much the project wants an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Leeward will have it.
    Must,
    /// Users of the interface expect it.
    Should,
    /// It belongs to another product.
    Wont,
}

/// Method, path (abbreviated as in `routes`) and need of each operation.
#[rustfmt::skip]
pub(super) const ROWS: &[(Method, &str, Need)] = &[
    (Post, "F/reassociateGateway", Must),
    (Get, "F/replicationNetworks/{}/replicationNetworkMappings", Must),
    (Delete, "F/replicationNetworks/{}/replicationNetworkMappings/{}", Must),
    (Get, "F/replicationNetworks/{}/replicationNetworkMappings/{}", Must),
    (Patch, "F/replicationNetworks/{}/replicationNetworkMappings/{}", Must),
    (Put, "F/replicationNetworks/{}/replicationNetworkMappings/{}", Must),
    (Patch, "I", Must),
    (Post, "C/discoverProtectableItem", Must),
    (Get, "/providers/Microsoft.RecoveryServices/operations", Should),
    (Get, "G/operations", Should),
    (Post, "G/locations/{}/checkNameAvailability", Should),
    (Delete, "V/registeredIdentities/{}", Should),
    (Post, "F/checkConsistency", Should),
    (Post, "F/renewCertificate", Should),
    (Post, "V/replicationJobs/export", Should),
    (Post, "I/addDisks", Should),
    (Post, "I/reinstallMobilityService", Should),
    (Post, "I/removeDisks", Should),
    (Post, "I/resolveHealthErrors", Should),
    (Post, "I/updateMobilityService", Should),
    (Patch, "C/replicationProtectionContainerMappings/{}", Should),
    (Put, "C", Should),
    (Post, "C/remove", Should),
    (Put, "F/replicationRecoveryServicesProviders/{}", Should),
    (Get,
     "F/replicationStorageClassifications/{}\
      /replicationStorageClassificationMappings", Should),
    (Delete,
     "F/replicationStorageClassifications/{}\
      /replicationStorageClassificationMappings/{}", Should),
    (Get,
     "F/replicationStorageClassifications/{}\
      /replicationStorageClassificationMappings/{}", Should),
    (Put,
     "F/replicationStorageClassifications/{}\
      /replicationStorageClassificationMappings/{}", Should),
    (Get, "V/replicationUsages", Should),
    (Put, "V/replicationVaultSettings/{}", Should),
    (Delete, "F/replicationvCenters/{}", Should),
    (Patch, "F/replicationvCenters/{}", Should),
    (Put, "F/replicationvCenters/{}", Should),
    (Get, "V/replicationSupportedOperatingSystems", Should),
    (Get, "I/targetComputeSizes", Should),
    (Get, "V/usages", Should),
    (Get, "V/extendedInformation/vaultExtendedInfo", Should),
    (Patch, "V/extendedInformation/vaultExtendedInfo", Should),
    (Put, "V/extendedInformation/vaultExtendedInfo", Should),
    (Get, "C/replicationProtectionClusters/{}/recoveryPoints/{}", Wont),
    (Get, "C/replicationProtectionClusters/{}/recoveryPoints", Wont),
    (Get, "S/locations/{}/deletedVaults", Wont),
    (Get, "S/locations/{}/deletedVaults/{}", Wont),
    (Get, "S/locations/{}/deletedVaults/{}/operations/{}", Wont),
    (Post, "S/locations/{}/deletedVaults/{}/undelete", Wont),
    (Get, "C/replicationMigrationItems/{}/migrationRecoveryPoints", Wont),
    (Get, "C/replicationMigrationItems/{}/migrationRecoveryPoints/{}", Wont),
    (Get, "V/privateLinkResources", Wont),
    (Get, "V/privateLinkResources/{}", Wont),
    (Post, "S/locations/{}/capabilities", Wont),
    (Get,
     "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.Compute\
      /virtualMachines/{}/providers/Microsoft.RecoveryServices\
      /replicationEligibilityResults", Wont),
    (Get,
     "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.Compute\
      /virtualMachines/{}/providers/Microsoft.RecoveryServices\
      /replicationEligibilityResults/default", Wont),
    (Post, "F/migratetoaad", Wont),
    (Post, "F/removeInfra", Wont),
    (Get, "C/replicationMigrationItems", Wont),
    (Delete, "C/replicationMigrationItems/{}", Wont),
    (Get, "C/replicationMigrationItems/{}", Wont),
    (Patch, "C/replicationMigrationItems/{}", Wont),
    (Put, "C/replicationMigrationItems/{}", Wont),
    (Post, "C/replicationMigrationItems/{}/migrate", Wont),
    (Post, "C/replicationMigrationItems/{}/pauseReplication", Wont),
    (Post, "C/replicationMigrationItems/{}/resumeReplication", Wont),
    (Post, "C/replicationMigrationItems/{}/resync", Wont),
    (Post, "C/replicationMigrationItems/{}/testMigrate", Wont),
    (Post, "C/replicationMigrationItems/{}/testMigrateCleanup", Wont),
    (Get, "V/replicationMigrationItems", Wont),
    (Post, "I/switchProvider", Wont),
    (Post, "I/updateAppliance", Wont),
    (Get, "C/replicationProtectionClusters", Wont),
    (Delete, "C/replicationProtectionClusters/{}", Wont),
    (Get, "C/replicationProtectionClusters/{}", Wont),
    (Put, "C/replicationProtectionClusters/{}", Wont),
    (Post, "C/replicationProtectionClusters/{}/applyRecoveryPoint", Wont),
    (Post, "C/replicationProtectionClusters/{}/failoverCommit", Wont),
    (Get, "C/replicationProtectionClusters/{}/operationResults/{}", Wont),
    (Post, "C/replicationProtectionClusters/{}/repairReplication", Wont),
    (Post, "C/replicationProtectionClusters/{}/testFailover", Wont),
    (Post, "C/replicationProtectionClusters/{}/testFailoverCleanup", Wont),
    (Post, "C/replicationProtectionClusters/{}/unplannedFailover", Wont),
    (Get, "V/replicationProtectionClusters", Wont),
    (Post, "C/switchClusterProtection", Wont),
    (Get, "V/replicationProtectionIntents", Wont),
    (Get, "V/replicationProtectionIntents/{}", Wont),
    (Put, "V/replicationProtectionIntents/{}", Wont),
];
