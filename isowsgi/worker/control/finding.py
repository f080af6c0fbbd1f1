"""Which mount a command means, and whether it is one that the command can be about."""

from __future__ import annotations

import difflib

from isowsgi.configuration.values import spellings_of
from isowsgi.shared.controlmessages import Outcome, Refusal
from isowsgi.worker.deployment import Deployment
from isowsgi.worker.supervisor import Supervisor
from isowsgi.worker.tenants import NoTenant, Template


def find_deployment(supervisor: Supervisor, wanted: str) -> Deployment:
    """Return the deployment of the mount with a pattern.

    Raises:
        Refusal: there is none.
    """
    deployments = {mount.pattern: deployment for mount, deployment in supervisor.table.mounts}
    spellings = spellings_of(wanted)
    if (found := next((deployments[each] for each in spellings if each in deployments), None)) is not None:
        return found
    try:
        tenant = next(filter(None, map(supervisor.live.find_tenant, spellings)), None)
    except NoTenant as exc:
        why = f"{exc.template.exists} does not exist for it" if exc.template.exists else "it is no host name of a tenant"
        raise Refusal("unknown-mount", f"{exc.template.pattern} has no tenant {wanted[:200]!r}: {why}") from None
    if tenant is not None:
        return tenant
    near = difflib.get_close_matches(wanted, deployments, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "the patterns are " + ", ".join(map(repr, list(deployments)[:20]))[:2000]
    raise Refusal("unknown-mount", f"no mount {wanted[:200]!r}; {hint}", near=near)


def number_of(deployment: Deployment, wanted: str) -> int:
    """Return the number of the mount with a pattern, one of a deployment's."""
    spellings = spellings_of(wanted)
    return next((member.number for member in deployment.members if member.pattern in spellings), deployment.mount.number)


def refuse_redirect(deployment: Deployment) -> None:
    """Refuse what is about an app where requests are only sent elsewhere.

    Raises:
        Refusal: it is a redirect.
    """
    if deployment.mount.redirect:
        raise Refusal("failed", f"{deployment.mount.pattern} has no app: its requests are sent to {deployment.mount.redirect}")


def refuse_without_app(deployment: Deployment) -> None:
    """Refuse what is about one app where there is none.

    Raises:
        Refusal: a redirect, or a mount that stands for its tenants.
    """
    refuse_redirect(deployment)
    if isinstance(deployment, Template):
        raise Refusal("not-serving", f"{deployment.name} has no app of its own: name one of its tenants, by the host in place of the *")


def outcome_of(deployment: Deployment, outcome: str, text: str) -> Outcome:
    return Outcome(mount=deployment.mount.pattern, outcome=outcome, text=text, generation=deployment.generation)
