"""A view of the runs page of the MLflow UI, with a sweep's attacks in parallel coordinates and their images.

The page reads it from a tag of the experiment, as it does for the views that people share. Runs are sorted by a
metric because the page folds them into their parent otherwise, and its charts leave out what is folded.
"""

from __future__ import annotations

import json
from typing import Any

_TAG = "mlflow.sharedViewState."
_ORDER = "metrics.`adversarial_accuracy`"
_FULL_WIDTH = {"columns": 1, "cardHeight": 480}
_NUMBERS = ["width_in_bits", "adversarial_accuracy"]  # `bits` is no axis: the page drops FP where most are numbers


def tag(run_id: str) -> tuple[str, str]:
    """Name and value of the tag for the runs below a sweep's parent run."""
    charts: list[dict[str, Any]] = [
        {"type": "PARALLEL", "selectedParams": ["attack"], "selectedMetrics": _NUMBERS, "showAllRuns": True},
        {"type": "IMAGE", "imageKeys": ["clean_adversarial_difference"], "step": 0},
    ]
    names = ("Bits and attacks", "Images")
    state = {
        "searchFilter": f"tags.mlflow.parentRunId = '{run_id}' and tags.kind = 'attack'",
        "orderByKey": _ORDER,
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"params.`{name}`" for name in ("model", "bits", "attack", "seed")] + [_ORDER],
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": [
            {**chart, "uuid": name, "metricSectionId": name, "deleted": False, "isGenerated": False}
            for name, chart in zip(names, charts, strict=True)
        ],
        "compareRunSections": [
            {"uuid": name, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": False}
            | _FULL_WIDTH
            for name in names
        ],
        "isAccordionReordered": False,
        "autoRefreshEnabled": False,
        "hideEmptyCharts": False,
        "groupBy": None,
        "useGroupedValuesInCharts": True,
    }
    return f"{_TAG}{run_id}", json.dumps(state)


def link(experiment_id: str, run_id: str) -> str:
    """Where the view is, from any page of the UI."""
    page = f"#/experiments/{experiment_id}/runs"
    return f"{page}?viewStateShareKey={run_id}&compareRunsMode=CHART&workflowType=machine_learning"
