"""Prometheus' text form as a plain map."""

from prometheus_client.parser import text_string_to_metric_families

WORD_LABELS = ("dependency", "reason", "role")


def metrics_of(text: str) -> dict[str, float]:
    """Value by name; where a metric has a label that tells its samples apart, by `name{word}` too."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = sample.value
            for label in WORD_LABELS:
                if label in sample.labels:
                    found[f"{sample.name}{{{sample.labels[label]}}}"] = sample.value
    return found
