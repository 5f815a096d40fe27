"""`python -m texture_ad.reporting.workspace TEAM`: a W&B workspace and report in which runs and sweeps are compared.

Needs a key, a server and `pip install "texture_ad[wandb]"`. Runs are grouped by group (the sweep) and job type (the
setting without its seed), as `texture_ad.reporting.loggers.wandb` names them: every line and bar is a mean over seeds.
"""

import argparse

from texture_ad.cli.entry import fail
from texture_ad.errors import UserError

_CURVES = {
    "Stage 1": ("val/auroc", "train/loss", "train/nll", "train/pretext", "train/patch"),
    "Stage 2": ("dictionary/residual",),
}
_RESULTS = (
    "test/image_auroc",
    "test/image_ap",
    "test/image_f1",
    "test/pixel_auroc",
    "test/aupro",
    "test/synthetic_auroc",
    "test/fit_seconds",
    "test/test_seconds_per_image",
)
_MEDIA = ("figures/scores", "figures/roc_pr", "figures/histogram", "figures/tsne", "figures/atoms")


def _sections() -> dict[str, list]:
    """A section's name to its panels."""
    import wandb_workspaces.reports.v2 as wr

    spread = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    sections = {"Results": [wr.BarPlot(title=name, metrics=[name], **spread) for name in _RESULTS]}
    for stage, names in _CURVES.items():
        sections[stage] = [wr.LinePlot(title=n, x="trainer/global_step", y=[n], **spread) for n in names]
    sections["Figures"] = [wr.MediaBrowser(media_keys=[key]) for key in _MEDIA]
    sections["Settings"] = [wr.RunComparer(diff_only="split")]
    return sections


def build_workspace(team: str, project: str):
    """The workspace, not saved yet."""
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=name, panels=panels, is_open=name in ("Results", "Stage 1"))
        for name, panels in _sections().items()
    ]
    runs = ws.RunsetSettings(
        groupby=[ws.Metric("Group"), ws.Metric("JobType")],
        order=[ws.Ordering(ws.Summary("test/image_auroc"), ascending=False)],
    )
    return ws.Workspace(entity=team, project=project, name="Texture anomalies", sections=sections, runset_settings=runs)


def build_report(team: str, project: str, group: str | None):
    """The report, not saved yet; of one sweep where `group` names it."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    filters = [expr.Metric("Group") == group] if group else []
    runs = wr.Runset(
        entity=team, project=project, name=group or "all runs", groupby=["Group", "JobType"], filters=filters
    )
    blocks = [
        wr.P(
            "Every run's data source is in its config as data_source; embedded data are generated and no "
            "benchmark. Settings are chosen by synthetic_auroc, never by a test metric."
        ),
        wr.TableOfContents(),
    ]
    for name, panels in _sections().items():
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=team, project=project, title=f"Texture anomalies: {group or project}", blocks=blocks)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="texture_ad.reporting.workspace", description=__doc__.split("\n\n")[0])
    parser.add_argument("team", help="W&B's entity")
    parser.add_argument("--project", default="texture_ad")
    parser.add_argument("--group", help="a sweep's name; the report is then of this sweep alone")
    options = parser.parse_args(arguments)
    try:
        try:
            import wandb_workspaces  # noqa: F401
        except ModuleNotFoundError as error:
            raise UserError('wandb_workspaces: not installed; pip install "texture_ad[wandb]"') from error
        from texture_ad.reporting.loggers.wandb_server import offline_reason

        reason = offline_reason()
        if reason:
            raise UserError(
                f"W&B: {reason}; this needs a server: wandb login, and WANDB_BASE_URL for a server of yours"
            )
        build_workspace(options.team, options.project).save()
        report = build_report(options.team, options.project, options.group)
        report.save()
        print(f"report   {report.url}")
    except UserError as error:
        fail(error)


if __name__ == "__main__":
    main()
