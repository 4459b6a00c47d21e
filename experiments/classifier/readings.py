"""Names of the models, and what is read from the rows of the study."""

from typing import Any

from jaxlm.core.results import Results
from jaxlm.data.sentiment import CLASSES

BAG = "bag of n-grams"
SCRATCH, PRETRAINED = "from scratch", "pretrained"
LABELS, DISTILLED = "half, labels", "half, distilled"
ALL, NEGATED, PLAIN = "all", "negated", "plain"  # sentences, by the clause of their verdict


def of(results: Results, metric: str, model: str, weighted: bool, **fields: Any) -> Results:
    """Rows of one model, one for each seed."""
    return results.select(metric, model=model, weighted=weighted, **fields)


def models(results: Results) -> list[tuple[str, bool]]:
    """(model, weighted) of all that were trained, the bag first."""
    found = results.select("macro_f1").by("model", "weighted")
    return sorted(
        found, key=lambda key: (BAG, SCRATCH, PRETRAINED, LABELS, DISTILLED).index(key[0])
    )


def rarest(results: Results) -> str:
    counts = results.config["counts"]
    return CLASSES[counts.index(min(counts))]
