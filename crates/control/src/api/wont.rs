//! What the contract has and Leeward will not, transcribed: it belongs to other products. Each is
//! refused with a clear answer.

use super::routes::Method::{self, Delete, Get, Patch, Post, Put};

/// Method and path (abbreviated as in `routes`) of each operation.
#[rustfmt::skip]
pub(super) const ROWS: &[(Method, &str)] = &[
    (Get, "C/replicationProtectionClusters/{}/recoveryPoints/{}"),
    (Get, "C/replicationProtectionClusters/{}/recoveryPoints"),
    (Get, "S/locations/{}/deletedVaults"),
    (Get, "S/locations/{}/deletedVaults/{}"),
    (Get, "S/locations/{}/deletedVaults/{}/operations/{}"),
    (Post, "S/locations/{}/deletedVaults/{}/undelete"),
    (Get, "C/replicationMigrationItems/{}/migrationRecoveryPoints"),
    (Get, "C/replicationMigrationItems/{}/migrationRecoveryPoints/{}"),
    (Get, "V/privateLinkResources"),
    (Get, "V/privateLinkResources/{}"),
    (Post, "S/locations/{}/capabilities"),
    (Get,
     "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.Compute\
      /virtualMachines/{}/providers/Microsoft.RecoveryServices\
      /replicationEligibilityResults"),
    (Get,
     "/subscriptions/{}/resourceGroups/{}/providers/Microsoft.Compute\
      /virtualMachines/{}/providers/Microsoft.RecoveryServices\
      /replicationEligibilityResults/default"),
    (Post, "F/migratetoaad"),
    (Post, "F/removeInfra"),
    (Get, "C/replicationMigrationItems"),
    (Delete, "C/replicationMigrationItems/{}"),
    (Get, "C/replicationMigrationItems/{}"),
    (Patch, "C/replicationMigrationItems/{}"),
    (Put, "C/replicationMigrationItems/{}"),
    (Post, "C/replicationMigrationItems/{}/migrate"),
    (Post, "C/replicationMigrationItems/{}/pauseReplication"),
    (Post, "C/replicationMigrationItems/{}/resumeReplication"),
    (Post, "C/replicationMigrationItems/{}/resync"),
    (Post, "C/replicationMigrationItems/{}/testMigrate"),
    (Post, "C/replicationMigrationItems/{}/testMigrateCleanup"),
    (Get, "V/replicationMigrationItems"),
    (Post, "I/switchProvider"),
    (Post, "I/updateAppliance"),
    (Get, "C/replicationProtectionClusters"),
    (Delete, "C/replicationProtectionClusters/{}"),
    (Get, "C/replicationProtectionClusters/{}"),
    (Put, "C/replicationProtectionClusters/{}"),
    (Post, "C/replicationProtectionClusters/{}/applyRecoveryPoint"),
    (Post, "C/replicationProtectionClusters/{}/failoverCommit"),
    (Get, "C/replicationProtectionClusters/{}/operationResults/{}"),
    (Post, "C/replicationProtectionClusters/{}/repairReplication"),
    (Post, "C/replicationProtectionClusters/{}/testFailover"),
    (Post, "C/replicationProtectionClusters/{}/testFailoverCleanup"),
    (Post, "C/replicationProtectionClusters/{}/unplannedFailover"),
    (Get, "V/replicationProtectionClusters"),
    (Post, "C/switchClusterProtection"),
    (Get, "V/replicationProtectionIntents"),
    (Get, "V/replicationProtectionIntents/{}"),
    (Put, "V/replicationProtectionIntents/{}"),
];
