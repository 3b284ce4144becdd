"""Drives the life of one protected machine with the official SDKs, against running hosts.

A config server runs, and a host of the named site with the named machine runs or is started by
the caller once --key-file appears. Prints one line a step; ends with 1 at the first mismatch.
"""

import os
import sys

from azure.mgmt.recoveryservices import models as vault_models
from azure.mgmt.recoveryservicessiterecovery import models

import sdk
from sdk import holds, refused, same, step


class Story:
    """What the steps share."""

    def __init__(self, server, options):
        self.server = server
        self.client = server.site_recovery
        self.items = server.site_recovery.replication_protected_items
        self.options = options
        self.container = None
        self.item = None

    @property
    def place(self):
        """Resource group, vault, fabric, container and item, as the calls want them."""
        return (*self.server.scope, self.options.fabric, self.container, self.options.item)

    def show(self):
        """The item now."""
        return self.items.get(*self.place)

    def points(self):
        """All recovery points, newest first."""
        return list(self.client.recovery_points.list_by_replication_protected_items(*self.place))

    def job_of(self, scenario):
        """The newest job of a scenario on the item, with its tasks."""
        jobs = self.client.replication_jobs
        found = [
            job
            for job in jobs.list(*self.server.scope)
            if job.properties.scenario_name == scenario
            and job.properties.target_object_name == self.options.item
        ]
        holds(found, f"there is a job {scenario}")
        return jobs.get(*self.server.scope, found[0].name)


def site_is_ready(story):
    server, options = story.server, story.options
    scope = server.scope
    body = vault_models.Vault(
        location="here",
        sku=vault_models.Sku(name="RS0", tier="Standard"),
        properties=vault_models.VaultProperties(),
    )
    server.wait(server.vaults.vaults.begin_create_or_update(*scope, body), "vault")
    site = models.FabricCreationInput(properties=models.FabricCreationInputProperties())
    fabrics = story.client.replication_fabrics
    server.wait(fabrics.begin_create(*scope, options.fabric, site), "fabric")
    step(f"vault {options.vault} and site {options.fabric}")

    request = vault_models.CertificateRequest(
        properties={"authType": "AAD", "leewardFabric": options.fabric}
    )
    answer = server.vaults.vault_certificates.create(*scope, options.fabric, request)
    key = answer.properties["leewardRegistrationKey"]
    holds(key.startswith("lwk1."), "the registration key has its form")
    if options.key_file:
        draft = options.key_file + ".new"
        with open(draft, "w", encoding="utf-8", opener=private) as file:
            file.write(key + "\n")
        os.replace(draft, options.key_file)
    step("a registration key through the certificates resource")

    containers = story.client.replication_protection_containers
    story.container = next(iter(containers.list_by_replication_fabrics(*scope, options.fabric))).name
    providers = story.client.replication_recovery_services_providers

    def connected():
        hosts = providers.list_by_replication_fabrics(*scope, options.fabric)
        return [one for one in hosts if one.properties.connection_status == "Connected"]

    server.until("a host of the site is connected", connected)
    step("a host of the site is connected")


def private(path, flags):
    """Opens a file that only its owner may read."""
    return os.open(path, flags, 0o600)


def relation_is_made(story):
    server, options, client = story.server, story.options, story.client
    scope = server.scope
    given = models.HyperVReplicaBluePolicyInput(
        replication_frequency_in_seconds=options.interval, recovery_points=4
    )
    body = models.CreatePolicyInput(
        properties=models.CreatePolicyInputProperties(provider_specific_input=given)
    )
    policies = client.replication_policies
    policy = server.wait(policies.begin_create(*scope, options.policy, body), "policy")
    mapping = models.CreateProtectionContainerMappingInput(
        properties=models.CreateProtectionContainerMappingInputProperties(
            policy_id=policy.id,
            target_protection_container_id="Microsoft Azure",
            provider_specific_input=models.ReplicationProviderSpecificContainerMappingInput(),
        )
    )
    mappings = client.replication_protection_container_mappings
    made = server.wait(
        mappings.begin_create(
            *scope, options.fabric, story.container, options.policy + "-mapping", mapping
        ),
        "mapping",
    )
    same(made.properties.policy_id, policy.id, "the mapping's policy")
    same(made.properties.state, "Paired", "the mapping's state")
    step("policy and container mapping")
    return policy


def waits_until_protected(story, what):
    """The item once it is Protected; a state that says failure ends the wait."""

    def protected():
        item = story.show()
        state = item.properties.protection_state
        holds(not state.endswith("Failed") and not state.startswith("Cancel"), f"state {state}")
        return item if state == "Protected" else None

    return story.server.until(what, protected)


def machine_is_protected(story, policy):
    server, options, client = story.server, story.options, story.client
    machines = client.replication_protectable_items

    def look():
        found = machines.list_by_replication_protection_containers(
            *server.scope, options.fabric, story.container
        )
        return next((one for one in found if one.properties.friendly_name == options.machine), None)

    machine = server.until(f"machine {options.machine} is found", look)
    same(machine.properties.protection_status, "Unprotected", "the machine before")
    same(machine.properties.protection_readiness_errors, [], "obstacles")
    request = models.EnableProtectionInput(
        properties=models.EnableProtectionInputProperties(
            policy_id=policy.id, protectable_item_id=machine.id
        )
    )
    wrong = models.EnableProtectionInput(
        properties=models.EnableProtectionInputProperties(policy_id=policy.id)
    )
    refused(
        lambda: story.items.begin_create(*story.place, wrong), 400, "LW-0101", "enable of nothing"
    )
    server.wait(story.items.begin_create(*story.place, request), "enable")

    item = waits_until_protected(story, "the item is Protected")
    details = item.properties.provider_specific_details
    same(details.instance_type, "HyperVReplica2012R2", "the item's type")
    same(
        details.initial_replication_details.initial_replication_progress_percentage,
        "100",
        "the first copy's percentage",
    )
    same(item.properties.active_location, "Primary", "activeLocation")
    same(details["leewardLiveAt"], "Primary", "leewardLiveAt")
    holds("UnplannedFailover" in item.properties.allowed_operations, "a failover is allowed")
    same(item.id, story.show().id, "the item's id")
    story.item = item
    same(story.job_of("EnableProtection").properties.state, "Succeeded", "the enable job")
    step(f"{options.item} is Protected")


def points_appear(story):
    def three():
        found = story.points()
        return found if len(found) >= 3 else None

    points = story.server.until("there are three recovery points", three)
    newest = points[0]
    one = story.client.recovery_points.get(*story.place, newest.name)
    same(one.id, newest.id, "the id of a point")
    same(one.properties.recovery_point_type, "CrashConsistent", "recoveryPointType")
    details = one.properties.provider_specific_details
    holds(details["leewardPosition"]["lsn"] > 0, "a point has its place")
    same(details["leewardOrigin"], "Replicated", "the point's origin")
    times = [point.properties.recovery_point_time for point in points]
    same(times, sorted(times, reverse=True), "the order of points")
    step(f"{len(points)} recovery points, newest first")


def target_is_set(story):
    """F-050 to F-053: name, size and address of the machine at the other site."""
    server = story.server
    details = story.show().properties.provider_specific_details
    nic = details["vmNics"][0]["nicId"]
    size = details["leewardTarget"]["memoryMib"] + 32
    name = story.options.machine + "-dr"

    def request(vm_size, address):
        config = models.IPConfigInputDetails(
            ip_config_name="ipConfig1", is_primary=True, recovery_static_ip_address=address
        )
        return models.UpdateReplicationProtectedItemInput(
            properties=models.UpdateReplicationProtectedItemInputProperties(
                recovery_azure_vm_name=name,
                recovery_azure_vm_size=vm_size,
                vm_nics=[models.VMNicInputDetails(nic_id=nic, ip_configs=[config])],
            )
        )

    listed = story.client.target_compute_sizes.list_by_replication_protected_items(*story.place)
    sizes = [one.name for one in listed]
    holds(details["leewardTarget"]["size"] in sizes, "the machine's own size is one of the list")
    wanted = f"1cpu-{size}mib"
    for bad in [request("large", "10.7.0.50"), request(wanted, "10.7.0.256")]:
        refused(
            lambda bad=bad: story.items.begin_update(*story.place, bad),
            400,
            "LW-0101",
            "an impossible setting",
        )
    poller = story.items.begin_update(*story.place, request(wanted, "10.7.0.50"))
    item = server.wait(poller, "settings")
    details = item.properties.provider_specific_details
    same(details["leewardTarget"]["name"], name, "the name at the other site")
    same(details["leewardTarget"]["size"], wanted, "the size at the other site")
    address = details["vmNics"][0]["ipConfigs"][0]["recoveryStaticIPAddress"]
    same(address, "10.7.0.50", "the address at the other site")
    step("name, size and address at the other site are set")


def test_failover_waits_and_is_cleaned_up(story):
    server = story.server
    request = models.TestFailoverInput(
        properties=models.TestFailoverInputProperties(
            failover_direction="PrimaryToRecovery",
            network_type="NoNetworkAttachAsInput",
            provider_specific_details=models.HyperVReplicaAzureTestFailoverInput(
                recovery_point_id=story.points()[0].id
            ),
        )
    )
    item = server.wait(story.items.begin_test_failover(*story.place, request), "test failover")
    same(item.properties.test_failover_state, "WaitingForCompletion", "testFailoverState")
    same(item.properties.protection_state, "Protected", "protectionState")
    holds("TestFailoverCleanup" in item.properties.allowed_operations, "cleanup is allowed")
    instances = item.properties.provider_specific_details["leewardInstances"]
    same([one["purpose"] for one in instances], ["Test"], "the test machine")
    refused(
        lambda: story.items.begin_test_failover(*story.place, request),
        409,
        "LW-0105",
        "a second test failover",
    )
    cleanup = models.TestFailoverCleanupInput(
        properties=models.TestFailoverCleanupInputProperties(comments="it booted")
    )
    item = server.wait(story.items.begin_test_failover_cleanup(*story.place, cleanup), "cleanup")
    same(item.properties.test_failover_state, "None", "testFailoverState after cleanup")
    same(item.properties.provider_specific_details["leewardInstances"], [], "machines after")
    holds(item.properties.last_successful_test_failover_time, "the test's time is kept")
    step("test failover and cleanup")


def machine_fails_over(story):
    server = story.server
    request = models.UnplannedFailoverInput(
        properties=models.UnplannedFailoverInputProperties(
            failover_direction="PrimaryToRecovery",
            source_site_operations="Required",
            provider_specific_details=models.HyperVReplicaAzureUnplannedFailoverInput(),
        )
    )
    backwards = models.UnplannedFailoverInput(
        properties=models.UnplannedFailoverInputProperties(
            failover_direction="RecoveryToPrimary",
            provider_specific_details=models.HyperVReplicaAzureUnplannedFailoverInput(),
        )
    )
    refused(
        lambda: story.items.begin_unplanned_failover(*story.place, backwards),
        400,
        "LW-0101",
        "a failover in the wrong direction",
    )
    refused(
        lambda: story.items.begin_failover_commit(*story.place), 409, "LW-0105", "an early commit"
    )
    item = server.wait(story.items.begin_unplanned_failover(*story.place, request), "failover")
    properties = item.properties
    same(
        properties.protection_state,
        "UnplannedFailoverCommitPendingStatesBegin",
        "protectionState after the failover",
    )
    same(properties.active_location, "Recovery", "activeLocation after the failover")
    same(item.id, story.item.id, "the item's id after the failover")
    holds({"Commit", "ChangePit"} <= set(properties.allowed_operations), "commit is allowed")
    job = story.job_of("UnplannedFailover")
    same(job.properties.state, "Succeeded", "the failover job")
    names = [task.name for task in job.properties.tasks]
    holds("VmFailover" in names, f"the job's tasks have the contract's names: {names}")
    step("unplanned failover with shutdown of the source")


def point_is_changed_and_committed(story):
    server = story.server
    running = story.show().properties.failover_recovery_point_id
    other = next(point for point in story.points() if point.id != running)
    request = models.ApplyRecoveryPointInput(
        properties=models.ApplyRecoveryPointInputProperties(
            recovery_point_id=other.id,
            provider_specific_details=models.HyperVReplicaAzureApplyRecoveryPointInput(),
        )
    )
    poller = story.items.begin_apply_recovery_point(*story.place, request)
    item = server.wait(poller, "change of point")
    same(item.properties.failover_recovery_point_id, other.id, "the point after the change")
    origins = [
        point.properties.provider_specific_details["leewardOrigin"] for point in story.points()
    ]
    holds("BeforeChange" in origins, "the running machine's work is kept as a point")
    step("change of recovery point keeps the work")

    item = server.wait(story.items.begin_failover_commit(*story.place), "commit")
    same(item.properties.protection_state, "UnplannedFailoverCommitted", "after the commit")
    holds("Commit" not in item.properties.allowed_operations, "a second commit is not allowed")
    step("commit")


def machine_is_whole(story):
    """Waits until the failed-over machine has all its data: only then it can be replicated."""

    def whole():
        made = story.show().properties.provider_specific_details["leewardInstances"]
        made = [one for one in made if one["purpose"] == "Failover"]
        made = [one for one in made if one["machineState"] == "Running"]
        percents = [one["hydratedPercent"] for one in made]
        return all(percent is not None and percent >= 100 for percent in percents)

    story.server.until("the machine has all its data", whole)


def turned(direction, site):
    """What an item shows that is replicated in a direction, its machine being live at a site."""
    return {"direction": direction, "live": site}


def item_is_turned(item, wanted):
    details = item.properties.provider_specific_details
    same(item.properties["leewardDirection"], wanted["direction"], "leewardDirection")
    same(item.properties.active_location, wanted["live"], "activeLocation")
    same(details["leewardLiveAt"], wanted["live"], "leewardLiveAt")
    ends = {end["site"]: end["run"] for end in details["leewardEnds"]}
    same(ends[wanted["live"]], "Replicate", "what the live end does")
    holds("PlannedFailover" in item.properties.allowed_operations, "a planned failover is allowed")


def machine_is_reprotected(story):
    """F-131 to F-133: the other direction is built up while the machine runs."""
    machine_is_whole(story)
    allowed = story.show().properties.allowed_operations
    holds("ReverseReplicate" in allowed, f"a reprotect is allowed: {allowed}")

    def reverse(direction, details=None):
        return models.ReverseReplicationInput(
            properties=models.ReverseReplicationInputProperties(
                failover_direction=direction, provider_specific_details=details
            )
        )

    refused(
        lambda: story.items.begin_reprotect(*story.place, reverse("PrimaryToRecovery")),
        400,
        "LW-0101",
        "a reprotect in the wrong direction",
    )
    nowhere = models.HyperVReplicaAzureReprotectInput(hv_host_vm_id="no-such-host")
    refused(
        lambda: story.items.begin_reprotect(*story.place, reverse("RecoveryToPrimary", nowhere)),
        404,
        "LW-0103",
        "a reprotect to a host that never joined",
    )
    poller = story.items.begin_reprotect(*story.place, reverse("RecoveryToPrimary"))
    item = story.server.wait(poller, "reprotect")
    same(item.id, story.item.id, "the item's id after the reprotect")
    item = waits_until_protected(story, "the item is Protected in the other direction")
    item_is_turned(item, turned("RecoveryToPrimary", "Recovery"))
    job = story.job_of("ReverseReplication")
    same(job.properties.state, "Succeeded", "the reprotect job")
    names = [task.name for task in job.properties.tasks]
    holds("VmInitiateReverseReplication" in names, f"the tasks have the contract's names: {names}")
    held = [
        point.properties.provider_specific_details["leewardHeldAt"] for point in story.points()
    ]
    holds("Primary" in held, f"there are points at the primary site: {held}")
    step("reprotect: replicated from recovery to primary")


def machine_comes_home(story):
    """F-098, F-108, F-110: in two phases, with "Complete failover" between them."""
    server = story.server
    request = models.PlannedFailoverInput(
        properties=models.PlannedFailoverInputProperties(
            failover_direction="RecoveryToPrimary",
            provider_specific_details=models.HyperVReplicaAzureFailbackProviderInput(
                data_sync_option="ForDownTime", recovery_vm_creation_option="CreateVmIfNotFound"
            ),
        )
    )
    poller = story.items.begin_planned_failover(*story.place, request)

    def waiting():
        job = story.job_of("PlannedFailover")
        holds(job.properties.state not in ("Failed", "Cancelled"), f"job {job.properties.state}")
        return job if job.properties.state == "Suspended" else None

    job = server.until("the planned failover waits", waiting)
    same(job.properties.state_description, "WaitingForFinalizeFailback", "stateDescription")
    same(set(job.properties.allowed_actions), {"Resume", "Cancel"}, "allowedActions")
    item = story.show()
    same(item.properties.protection_state, "WaitingForFinalizeFailback", "protectionState")
    holds("FinalizeFailback" in item.properties.allowed_operations, "completion is allowed")
    same(item.properties.active_location, "Recovery", "activeLocation before the completion")
    step("planned failover home waits for its completion, the machine runs on")

    resume = models.ResumeJobParams(properties=models.ResumeJobParamsProperties(comments="go"))
    jobs = story.client.replication_jobs
    server.wait(jobs.begin_resume(*server.scope, job.name, resume), "resume")
    item = server.wait(poller, "planned failover")
    same(item.properties.protection_state, "PlannedFailoverCommitRequired", "protectionState")
    same(item.properties.active_location, "Primary", "activeLocation after the planned failover")
    same(item.properties.provider_specific_details["leewardLiveAt"], "Primary", "leewardLiveAt")
    same(item.id, story.item.id, "the item's id after the planned failover")
    source = item.properties.provider_specific_details["leewardSourceState"]["state"]
    same(source, "ConfirmedOff", "leewardSourceState: nothing was lost")
    job = story.job_of("PlannedFailover")
    same(job.properties.state, "Succeeded", "the planned failover's job")
    kinds = {
        point.id: point.properties.provider_specific_details["leewardKind"]
        for point in story.points()
    }
    same(kinds[item.properties.failover_recovery_point_id], "Final", "the point it started from")
    item = server.wait(story.items.begin_failover_commit(*story.place), "commit at home")
    same(item.properties.protection_state, "PlannedFailoverStatesBegin", "after the commit at home")
    step("complete failover, and commit: the machine is home")


def machine_is_protected_again(story):
    """The end of the circle is its beginning. By the alias that pairs of regions use."""
    machine_is_whole(story)
    server = story.server
    request = models.SwitchProtectionInput(
        properties=models.SwitchProtectionInputProperties(
            replication_protected_item_name=story.options.item
        )
    )
    containers = story.client.replication_protection_containers
    place = (*server.scope, story.options.fabric, story.container)
    container = server.wait(containers.begin_switch_protection(*place, request), "switchprotection")
    same(container.name, story.container, "what switchprotection answers with")
    item = waits_until_protected(story, "the item is Protected as in the beginning")
    item_is_turned(item, turned("PrimaryToRecovery", "Primary"))
    same(item.id, story.item.id, "the item's id after the circle")
    again = models.ReverseReplicationInput(
        properties=models.ReverseReplicationInputProperties(failover_direction="RecoveryToPrimary")
    )
    refused(
        lambda: story.items.begin_reprotect(*story.place, again),
        409,
        "LW-0105",
        "a reprotect of what is protected",
    )
    step("reprotect: the circle is closed")


def what_is_not_there_says_so(story):
    gone = (*story.place[:-1], "nobody")
    refused(lambda: story.items.get(*gone), 404, "LW-0103", "an item that is not there")
    refused(
        lambda: story.client.replication_jobs.begin_resume(
            *story.server.scope,
            story.job_of("PlannedFailover").name,
            models.ResumeJobParams(properties=models.ResumeJobParamsProperties(comments="go")),
        ),
        409,
        "LW-0105",
        "the resume of a job that is over",
    )
    step("what is not there says so")


def protection_ends(story):
    request = models.DisableProtectionInput(
        properties=models.DisableProtectionInputProperties(
            disable_protection_reason="NotSpecified",
            replication_provider_input=models.DisableProtectionProviderSpecificInput(),
        )
    )
    story.server.wait(story.items.begin_delete(*story.place, request), "disable")
    refused(lambda: story.show(), 404, "LW-0103", "the item after its removal")
    same(story.job_of("DisableProtection").properties.state, "Succeeded", "the disable job")
    step("protection is ended")


def run(server, options):
    options.item = options.item or options.machine
    story = Story(server, options)
    site_is_ready(story)
    policy = relation_is_made(story)
    machine_is_protected(story, policy)
    points_appear(story)
    target_is_set(story)
    test_failover_waits_and_is_cleaned_up(story)
    machine_fails_over(story)
    point_is_changed_and_committed(story)
    machine_is_reprotected(story)
    machine_comes_home(story)
    machine_is_protected_again(story)
    what_is_not_there_says_so(story)
    if options.disable:
        protection_ends(story)


def extend(parser):
    parser.add_argument("--fabric", required=True, help="the site")
    parser.add_argument("--machine", required=True, help="the machine, by its name on its host")
    parser.add_argument("--item", help="name of the protected item; the machine's by default")
    parser.add_argument("--policy", default="conformance")
    parser.add_argument("--interval", type=int, default=5, help="seconds between points")
    parser.add_argument("--key-file", help="where to write the registration key for the host")
    parser.add_argument("--disable", action="store_true", help="end protection at the end")


if __name__ == "__main__":
    sys.exit(sdk.main(__doc__, extend, run))
