"""Write the PrometheusRule of deploy/kubernetes from the rules of deploy/prometheus; with --check, only tell whether it is stale."""

import sys
import textwrap

import pages

RULES = pages.ROOT / "deploy" / "prometheus" / "alerts.yml"
PAGE = pages.ROOT / "deploy" / "kubernetes" / "monitoring" / "prometheusrule.yaml"

HEAD = """\
# Written by tools/prometheusrule.py from deploy/prometheus/alerts.yml; do not edit here.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: isowsgi
  labels:
    app.kubernetes.io/part-of: isowsgi
spec:
"""


def page() -> str:
    rules = RULES.read_text(encoding="utf-8")
    return HEAD + textwrap.indent(rules[rules.index("groups:") :], "  ")


if __name__ == "__main__":
    sys.exit(pages.run(__doc__, PAGE, page, __file__))
