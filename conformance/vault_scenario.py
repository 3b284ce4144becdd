"""Drives everything of a vault that needs no machine with the official SDKs.

The vault must not have protected items. Prints one line a step; ends with 1 at the first mismatch.
"""

import sys

from azure.mgmt.recoveryservices import models as vault_models
from azure.mgmt.recoveryservicessiterecovery import models

import sdk
from sdk import holds, refused, same, step


def vault_is_made(server):
    group, vault = server.scope
    body = vault_models.Vault(
        location="here",
        sku=vault_models.Sku(name="RS0", tier="Standard"),
        properties=vault_models.VaultProperties(),
        tags={"made-by": "conformance"},
    )
    made = server.wait(server.vaults.vaults.begin_create_or_update(group, vault, body), "vault")
    same(made.id, server.vault_id, "the vault's id")
    same(made.properties.provisioning_state, "Succeeded", "provisioningState")
    again = server.wait(server.vaults.vaults.begin_create_or_update(group, vault, body), "again")
    same(again.id, made.id, "the id after a second PUT")
    patch = vault_models.PatchVault(tags={"made-by": "someone"})
    patched = server.wait(server.vaults.vaults.begin_update(group, vault, patch), "vault patch")
    same(patched.tags, {"made-by": "someone"}, "the tags after a PATCH")
    same(patched.location, "here", "the location after a PATCH")
    names = [one.name for one in server.vaults.vaults.list_by_resource_group(group)]
    holds(vault in names, "the resource group's list names the vault")
    names = [one.name for one in server.vaults.vaults.list_by_subscription_id()]
    holds(vault in names, "the subscription's list names the vault")
    step("vault: make, make again, change, list")


def lists_are_empty(server):
    client = server.site_recovery
    for name, operations in [
        ("protected items", client.replication_protected_items),
        ("network mappings", client.replication_network_mappings),
        (
            "storage classification mappings",
            client.replication_storage_classification_mappings,
        ),
        ("vCenters", client.replicationv_centers),
        ("recovery plans", client.replication_recovery_plans),
    ]:
        same(list(operations.list(*server.scope)), [], f"the list of {name}")
    step("lists of what the vault has not are empty")


def settings_are_honest(server):
    client = server.site_recovery
    alerts = list(client.replication_alert_settings.list(*server.scope))
    same([one.name for one in alerts], ["defaultAlertSetting"], "the alert settings")
    same(alerts[0].properties.send_to_owners, "DoNotSend", "sendToOwners")
    loud = models.ConfigureAlertRequest(
        properties=models.ConfigureAlertRequestProperties(
            send_to_owners="Send", custom_email_addresses=["someone@example.org"], locale="en_US"
        )
    )
    refused(
        lambda: client.replication_alert_settings.create(
            *server.scope, "defaultAlertSetting", loud
        ),
        501,
        "LW-0102",
        "mail about alerts",
    )
    setting = client.replication_vault_setting.get(*server.scope, "default")
    same(setting.name, "default", "the vault setting")
    health = client.replication_vault_health.get(*server.scope)
    same(health.properties.protected_items_health.resource_count, 0, "items in the health")
    refreshed = server.wait(client.replication_vault_health.begin_refresh(*server.scope), "health")
    same(refreshed.properties.protected_items_health.resource_count, 0, "items after refresh")
    step("alert settings, vault settings, health")


def policies_live(server):
    client = server.site_recovery.replication_policies
    scope = server.scope
    forward = models.InMageRcmPolicyCreationInput(
        recovery_point_history_in_minutes=1440,
        crash_consistent_frequency_in_minutes=5,
        app_consistent_frequency_in_minutes=0,
        enable_multi_vm_sync="true",
    )
    backward = models.InMageRcmFailbackPolicyCreationInput(
        crash_consistent_frequency_in_minutes=10, app_consistent_frequency_in_minutes=0
    )
    replica = models.HyperVReplicaBluePolicyInput(
        replication_frequency_in_seconds=30, recovery_points=4
    )
    for name, given in [("c-rcm", forward), ("c-back", backward), ("c-kvm", replica)]:
        body = models.CreatePolicyInput(
            properties=models.CreatePolicyInputProperties(provider_specific_input=given)
        )
        made = server.wait(client.begin_create(*scope, name, body), f"policy {name}")
        same(made.name, name, "the policy's name")
        shown = client.get(*scope, name).properties.provider_specific_details
        same(shown.instance_type, given.instance_type, f"instanceType of {name}")
        for field, value in given.items():
            same(shown[field], value, f"{field} of {name}")
    kvm = client.get(*scope, "c-kvm").properties.provider_specific_details
    same(kvm["leewardPointIntervalSeconds"], 30.0, "leewardPointIntervalSeconds")
    same(kvm["leewardRetentionSeconds"], 4 * 3600, "leewardRetentionSeconds")

    forward.recovery_point_history_in_minutes = 2880
    change = models.UpdatePolicyInput(
        properties=models.UpdatePolicyInputProperties(replication_provider_settings=forward)
    )
    server.wait(client.begin_update(*scope, "c-rcm", change), "policy update")
    shown = client.get(*scope, "c-rcm").properties.provider_specific_details
    same(shown.recovery_point_history_in_minutes, 2880, "the changed history")
    names = {one.name for one in client.list(*scope)}
    holds({"c-rcm", "c-back", "c-kvm"} <= names, "the list names all policies")
    bad = models.CreatePolicyInput(
        properties=models.CreatePolicyInputProperties(
            provider_specific_input=models.HyperVReplicaBluePolicyInput(
                replication_frequency_in_seconds=100_000
            )
        )
    )
    refused(
        lambda: client.begin_create(*scope, "c-bad", bad), 400, "LW-0101", "an impossible policy"
    )
    for name in ["c-rcm", "c-back", "c-kvm"]:
        server.wait(client.begin_delete(*scope, name), f"delete of policy {name}")
        refused(lambda: client.get(*scope, name), 404, "LW-0103", f"the deleted policy {name}")
    step("policies: make, show, change, list, refuse, delete")


def fabrics_live(server):
    client = server.site_recovery
    scope = server.scope
    fabrics = client.replication_fabrics
    site = models.FabricCreationInput(properties=models.FabricCreationInputProperties())
    made = server.wait(fabrics.begin_create(*scope, "c-site", site), "fabric")
    same(made.id, f"{server.vault_id}/replicationFabrics/c-site", "the fabric's id")
    same(made.properties.custom_details.instance_type, "HyperVSite", "the fabric's type")
    shown = fabrics.get(*scope, "C-SITE")
    same(shown.id, made.id, "the id when asked in another spelling")
    containers = list(
        client.replication_protection_containers.list_by_replication_fabrics(*scope, "c-site")
    )
    same(len(containers), 1, "the number of containers")
    container = containers[0]
    same(container.name, f"cloud_{made.properties.internal_identifier}", "the container's name")
    machines = client.replication_protectable_items
    found = list(
        machines.list_by_replication_protection_containers(*scope, "c-site", container.name)
    )
    same(found, [], "machines of an empty site")
    providers = client.replication_recovery_services_providers
    found = list(providers.list_by_replication_fabrics(*scope, "c-site"))
    same(found, [], "hosts of an empty site")

    certificate = vault_models.CertificateRequest(
        properties={"authType": "AAD", "leewardFabric": "c-site", "leewardValidMinutes": 5}
    )
    answer = server.vaults.vault_certificates.create(*scope, "c-host", certificate)
    key = answer.properties["leewardRegistrationKey"]
    holds(key.startswith("lwk1.") and key.count(".") == 2, "the registration key has its form")
    again = server.vaults.vault_certificates.create(*scope, "c-host", certificate)
    holds(again.properties["leewardRegistrationKey"] != key, "each key is another one")

    server.wait(fabrics.begin_delete(*scope, "c-site"), "fabric remove")
    refused(lambda: fabrics.get(*scope, "c-site"), 404, "LW-0103", "the removed fabric")
    step("fabrics: make, container, registration key, remove")


def networks_are_mapped(server):
    client = server.site_recovery
    scope = server.scope
    site = models.FabricCreationInput(properties=models.FabricCreationInputProperties())
    server.wait(client.replication_fabrics.begin_create(*scope, "c-net", site), "fabric")
    networks = list(client.replication_networks.list_by_replication_fabrics(*scope, "c-net"))
    same({one.name for one in networks}, {"user", "isolated"}, "the networks of a site")
    everywhere = list(client.replication_networks.list(*scope))
    target = next(one for one in everywhere if "/c-net/" not in one.id and one.name == "isolated")
    recovery = target.id.split("/replicationFabrics/")[1].split("/")[0]
    mappings = client.replication_network_mappings
    body = models.CreateNetworkMappingInput(
        properties=models.CreateNetworkMappingInputProperties(
            recovery_fabric_name=recovery,
            recovery_network_id=target.id,
            fabric_specific_details=models.VmmToVmmCreateNetworkMappingInput(),
        )
    )
    place = (*scope, "c-net", "user", "c-map")
    made = server.wait(mappings.begin_create(*place, body), "network mapping")
    same(made.properties.recovery_network_id, target.id, "where the mapping leads")
    same(made.properties.primary_network_friendly_name, "user", "what is mapped")
    refused(
        lambda: mappings.begin_create(*scope, "c-net", "user", "c-other", body),
        409,
        "LW-0108",
        "a second mapping of a network to a site",
    )
    change = models.UpdateNetworkMappingInput(
        properties=models.UpdateNetworkMappingInputProperties(recovery_network_id="user")
    )
    changed = server.wait(mappings.begin_update(*place, change), "network mapping update")
    same(changed.properties.recovery_network_friendly_name, "user", "the changed mapping")
    listed = list(mappings.list_by_replication_networks(*scope, "c-net", "user"))
    same([one.name for one in listed], ["c-map"], "the mappings of a network")
    server.wait(mappings.begin_delete(*place), "network mapping delete")
    refused(lambda: mappings.get(*place), 404, "LW-0103", "the deleted mapping")

    classes = client.replication_storage_classifications
    stores = list(classes.list_by_replication_fabrics(*scope, "c-net"))
    same([one.name for one in stores], ["replica-store"], "the storage of a site")
    storage = client.replication_storage_classification_mappings
    body = models.StorageClassificationMappingInput(
        properties=models.StorageMappingInputProperties(
            target_storage_classification_id=next(
                one.id for one in classes.list(*scope) if "/c-net/" not in one.id
            )
        )
    )
    place = (*scope, "c-net", "replica-store", "c-map")
    made = server.wait(storage.begin_create(*place, body), "storage mapping")
    same(made.name, "c-map", "the storage mapping")
    server.wait(storage.begin_delete(*place), "storage mapping delete")
    server.wait(client.replication_fabrics.begin_delete(*scope, "c-net"), "fabric remove")
    step("networks and storage: list, map, change, refuse, remove")


def catalogues_answer(server):
    client = server.site_recovery
    scope = server.scope
    names = [one.name for one in client.operations.list(server.scope[0])]
    holds(any(name.endswith("/unplannedFailover/action") for name in names), "failover is listed")
    systems = client.supported_operating_systems.get(*scope)
    holds(systems.properties.supported_os_list, "there are supported operating systems")
    usage = next(iter(server.vaults.replication_usages.list(*scope)))
    same(usage.protected_item_count, 0, "protected items in the usage")
    usages = {one.name.value: one.current_value for one in server.vaults.usages.list_by_vaults(*scope)}
    same(usages["ProtectedItems"], 0, "the usage of protected items")
    info = server.vaults.vault_extended_info.get(*scope)
    same(info.properties.algorithm, "None", "the vault's algorithm")
    check = vault_models.CheckNameAvailabilityParameters(
        type="Microsoft.RecoveryServices/Vaults", name=scope[1]
    )
    answer = server.vaults.recovery_services.check_name_availability(scope[0], "here", check)
    same(answer.name_available, False, "whether the vault's name is free")
    exported = models.JobQueryParameter(job_status="Succeeded", job_output_type="Json")
    job = server.wait(client.replication_jobs.begin_export(*scope, exported), "job export")
    details = job.properties.custom_details
    same(details.instance_type, "ExportJobDetails", "the export's details")
    holds("/replicationJobs?" in details.blob_uri, "the export leads to the list of jobs")
    setting = models.VaultSettingCreationInput(
        properties=models.VaultSettingCreationInputProperties(
            vmware_to_azure_provider_type="Vmware"
        )
    )
    refused(
        lambda: client.replication_vault_setting.begin_create(*scope, "default", setting),
        409,
        "LW-0112",
        "a setting of agents",
    )
    step("catalogues: operations, systems, usages, names, export")


def jobs_and_events_tell(server):
    client = server.site_recovery
    scope = server.scope
    jobs = list(client.replication_jobs.list(*scope))
    scenarios = {one.properties.scenario_name for one in jobs}
    holds(
        {"CreateSite", "DeleteSite", "AddProtectionProfile"} <= scenarios,
        f"the jobs name what was done: {scenarios}",
    )
    job = client.replication_jobs.get(*scope, jobs[0].name)
    same(job.properties.state, "Succeeded", "the state of a job that is over")
    filter_text = "JobStatus eq 'Succeeded' and ( JobName eq 'CreateSite' or JobName eq 'None' )"
    found = list(client.replication_jobs.list(*scope, filter=filter_text))
    same({one.properties.scenario_name for one in found}, {"CreateSite"}, "the filtered jobs")
    refused(
        lambda: list(client.replication_jobs.list(*scope, filter="Colour eq 'red'")),
        400,
        "LW-0101",
        "an unknown filter",
    )
    list(client.replication_events.list(*scope))
    step("jobs and events: list, get, filter")


def refusals_have_their_class(server):
    client = server.site_recovery
    scope = server.scope
    refused(
        lambda: client.replication_fabrics.get(*scope, "nowhere"), 404, "LW-0103", "no such fabric"
    )
    stranger = server.with_token("wrong")
    refused(lambda: list(stranger.replication_fabrics.list(*scope)), 401, "LW-0106", "a stranger")
    refused(
        lambda: client.replication_recovery_plans.begin_failover_commit(*scope, "plan"),
        404,
        "LW-0103",
        "the commit of a recovery plan that does not exist",
    )
    azure = models.FabricCreationInput(
        properties=models.FabricCreationInputProperties(
            custom_details=models.AzureFabricCreationInput(location="here")
        )
    )
    refused(
        lambda: client.replication_fabrics.begin_create(*scope, "c-azure", azure),
        501,
        "LW-0102",
        "a fabric of another kind",
    )
    step("refusals: 400, 401, 404, 501")


def vault_is_deleted(server):
    server.wait(server.vaults.vaults.begin_delete(*server.scope), "vault delete")
    refused(lambda: server.vaults.vaults.get(*server.scope), 404, "LW-0103", "the deleted vault")
    step("vault: delete")


def run(server, options):
    vault_is_made(server)
    lists_are_empty(server)
    settings_are_honest(server)
    policies_live(server)
    fabrics_live(server)
    networks_are_mapped(server)
    catalogues_answer(server)
    jobs_and_events_tell(server)
    refusals_have_their_class(server)
    if not options.keep_vault:
        vault_is_deleted(server)


def extend(parser):
    parser.add_argument("--keep-vault", action="store_true", help="do not delete the vault")


if __name__ == "__main__":
    sys.exit(sdk.main(__doc__, extend, run))
