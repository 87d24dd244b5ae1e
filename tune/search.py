"""Search training settings: ``python tune/search.py``; ``--help`` explains the options."""

import sys
from collections.abc import Sequence
from functools import partial

from psalm.train.fields import SettingError
from psalm.train.records import RecordsInUse
from tune.opening import open_search
from tune.options import parse_options, refuse
from tune.progress import Progress, announce, create_console
from tune.results import print_results
from tune.tracking.ledger import TrackingError
from tune.trials.resources import this_machine


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything, run the trials, print the answer.

    Returns:
        0 if a trial completed, 1 if none did, 2 for a mistake in what was asked, 128 + its number after a signal.
    """
    options = parse_options(argv)
    machine = this_machine()
    try:
        if options.plan:
            from tune.plan.show import show_plan

            return show_plan(options, machine)
        opened = open_search(options, machine)
    except (SettingError, TrackingError, RecordsInUse) as mistake:
        return refuse(mistake)

    config, folder = opened.config, opened.folder
    console = create_console()
    announce(config, folder, console)
    for note in opened.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    # Ray takes seconds to import: a mistake is told before.
    from ray import tune

    from tune.study.state import SearchState
    from tune.trials.adapters import Decisions, Ends, Jobs
    from tune.trials.cluster import Interrupted, ray_session
    from tune.trials.conductor import Conductor, Overdue, concluded
    from tune.trials.desk import open_desk
    from tune.trials.forking import is_saved
    from tune.trials.keeping import Keeper
    from tune.trials.lane import Lane
    from tune.trials.trial import TrialPlan, trial_name

    plan = TrialPlan(
        folder,
        config.arguments,
        config.resources,
        config.metric,
        config.dependents,
        opened.storage,
        options.checkpoint_budget,
    )
    exit_code = 0
    try:
        state = SearchState(
            config,
            opened.records,
            num_samples=config.num_samples,
            max_failures=options.max_failures,
            earlier=opened.earlier,
            saved=partial(is_saved, plan),
        )
        with (
            concluded(state, opened.tracker, plan) as run,
            Progress(state.board, console) as progress,
            ray_session(options.address, config.resources, machine, polled=True) as session,
        ):
            run.at_once = config.resources.concurrency(session.nodes, config.max_concurrent)
            progress.note(f"Ray is up; {run.at_once} at a time")
            desk = open_desk()
            conductor = Conductor(
                state,
                plan,
                progress,
                opened.tracker,
                opened.limits,
                desk,
                session.interrupted,
                Keeper(plan, options.keep_best),
                run.study_file,
            )
            tune.Tuner(
                tune.with_resources(tune.with_parameters(Lane, plan=plan, desk=desk), plan.own_resources),
                tune_config=tune.TuneConfig(
                    search_alg=Jobs(conductor),
                    scheduler=Decisions(conductor),
                    num_samples=-1,
                    max_concurrent_trials=run.at_once,
                    reuse_actors=True,
                    trial_dirname_creator=trial_name,
                    trial_name_creator=trial_name,
                ),
                run_config=tune.RunConfig(
                    name="ray",
                    storage_path=str(folder),
                    verbose=0,
                    callbacks=[Ends(conductor)],
                    checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # trials have their own
                ),
            ).fit()
            conductor.check()
    except SettingError as mistake:
        return refuse(mistake)
    except Overdue as overdue:
        console.print(str(overdue), style="magenta")
    except Interrupted as interrupt:
        console.print(f"Interrupted by {interrupt}", style="magenta")
        exit_code = interrupt.exit_code
    print_results(state.board, folder, opened.tracker.uri, console)
    if options.log_models:
        from tune.register import log_models

        console.print(log_models(opened.tracker, state.board, folder), markup=False, highlight=False, soft_wrap=True)
    if exit_code == 0 and state.board.trials:
        from tune.compare import report_search  # what draws is needed now, and not before

        with console.status("Drawing the report"):
            line = report_search(opened.tracker.uri, opened.tracker.search_run_id, folder)
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    return exit_code or (0 if state.board.best else 1)


if __name__ == "__main__":
    sys.exit(main())
