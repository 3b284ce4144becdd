"""Clients of the official SDKs for a Leeward config server, and how steps are told and checked.

Is not a test: story.py and vault_scenario.py are.
"""

import argparse
import sys
import time

from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.mgmt.recoveryservices import RecoveryServicesClient
from azure.mgmt.recoveryservicessiterecovery import SiteRecoveryManagementClient

SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"


class Mismatch(Exception):
    """The server did not do what the contract says."""


class StaticToken:
    """A credential that always gives the same bearer token."""

    def __init__(self, token):
        self._token = token

    def get_token(self, *_scopes, **_options):
        return AccessToken(self._token, int(time.time()) + 24 * 3600)


def arguments(description):
    """The options that both programs have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--endpoint", required=True, help="https://host:port")
    parser.add_argument("--ca", required=True, help="file with the CA's certificate")
    parser.add_argument("--token-file", required=True, help="file with the bearer token")
    parser.add_argument("--subscription", default=SUBSCRIPTION)
    parser.add_argument("--resource-group", default="leeward")
    parser.add_argument("--vault", default="conformance")
    parser.add_argument("--timeout", type=float, default=300.0, help="longest wait, in seconds")
    return parser


class Server:
    """Both SDK clients, bound to one resource group and vault."""

    def __init__(self, options):
        with open(options.token_file, encoding="utf-8") as file:
            token = file.read().strip()
        self.options = options
        self.scope = (options.resource_group, options.vault)
        self.site_recovery = self._client(SiteRecoveryManagementClient, token)
        self.vaults = self._client(RecoveryServicesClient, token)

    def _client(self, kind, token):
        options = self.options
        return kind(
            StaticToken(token),
            options.subscription,
            base_url=options.endpoint,
            credential_scopes=[options.endpoint + "/.default"],
            connection_verify=options.ca,
            polling_interval=1,
            retry_total=2,
        )

    def with_token(self, token):
        """A site-recovery client with another token."""
        return self._client(SiteRecoveryManagementClient, token)

    @property
    def vault_id(self):
        """Id of the vault, in the one spelling that the server gives out."""
        options = self.options
        return (
            f"/subscriptions/{options.subscription}/resourceGroups/{options.resource_group}"
            f"/providers/Microsoft.RecoveryServices/vaults/{options.vault}"
        )

    def wait(self, poller, what):
        """The result of a long-running operation, within the longest wait."""
        poller.wait(self.options.timeout)
        if not poller.done():
            raise Mismatch(f"{what} has not ended after {self.options.timeout:g} s")
        return poller.result()

    def until(self, what, look):
        """Looks again and again until there is something; returns it."""
        deadline = time.monotonic() + self.options.timeout
        while True:
            found = look()
            if found:
                return found
            if time.monotonic() > deadline:
                raise Mismatch(f"not within {self.options.timeout:g} s: {what}")
            time.sleep(0.5)


def step(text):
    """Tells that a step is done."""
    print(f"ok: {text}", flush=True)


def same(found, wanted, what):
    """Two values must be equal."""
    if found != wanted:
        raise Mismatch(f"{what} is {found!r}, not {wanted!r}")


def holds(condition, what):
    """Something must be so."""
    if not condition:
        raise Mismatch(f"this does not hold: {what}")


def refused(call, status, own_code, what):
    """A call must be refused with this HTTP status and this code of the server's registry."""
    try:
        call()
    except HttpResponseError as error:
        same(error.status_code, status, f"the status of {what}")
        details = error.error.details if error.error else None
        same(details[0].code if details else None, own_code, f"the code of {what}")
        holds(error.error.message, f"{what} says what happened")
        return error
    raise Mismatch(f"{what} was accepted")


def main(description, extend, run):
    """Parses the options, runs, and turns the first mismatch into the exit code."""
    parser = arguments(description)
    extend(parser)
    options = parser.parse_args()
    try:
        run(Server(options), options)
    except Mismatch as mismatch:
        print(f"MISMATCH: {mismatch}", file=sys.stderr)
        return 1
    except HttpResponseError as error:
        code = error.error.code if error.error else "no error body"
        print(f"MISMATCH: unexpected {error.status_code} {code}: {error.message}", file=sys.stderr)
        return 1
    print("all steps are as the contract says", flush=True)
    return 0
