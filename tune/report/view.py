"""MLflow's own table of a search's trials: best first, with its metric and the searched arguments as columns.

MLflow keeps a view that somebody shares as a tag of the experiment, and shows it to who asks for it by its name in the
page's address. The tag's value is the page's state, as JSON; what it does not say is as in a new page.
"""

import json

from mlflow import MlflowClient

from tune.report.comparison import Search

VIEW = "trials"
"""The view's name."""


def share_view(client: MlflowClient, search: Search) -> None:
    """Puts the view of a search in the place of its experiment's last one."""
    greater = search.board.mode == "max"
    state = {
        "searchFilter": f"tags.`mlflow.parentRunId` = '{search.run_id}' and tags.kind = 'trial'",
        "orderByKey": f"metrics.`{search.board.metric}`",
        "orderByAsc": not greater,
        "selectedColumns": [
            "attributes.`Duration`",
            f"metrics.`{search.board.metric}`",
            *(f"params.`{name}`" for name in search.space),
            "tags.`early_stopped`",
            "tags.`reason`",
        ],
    }
    client.set_experiment_tag(search.experiment_id, f"mlflow.sharedViewState.{VIEW}", json.dumps(state))


def view_address(search: Search) -> str:
    """Where the view is: on the search's server, or on the one that ``mlflow ui`` starts."""
    server = search.server or "http://127.0.0.1:5000"
    return f"{server}/#/experiments/{search.experiment_id}/runs?viewStateShareKey={VIEW}"
