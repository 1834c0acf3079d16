"""Results kept on disk, because the tracking store was away when their cells ended, go there."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipelines.claims import BusyError, Claim, hold
from pipelines.errors import InputError
from pipelines.results import Facts, Result, clear, folders, kept
from pipelines.settings import one_line
from pipelines.tracking import Tracker


def deliver(result: Result, tracker: Tracker, claim: Claim | None = None) -> None:
    """Send a result to the store, unless that has it already, and remove it and its checkpoints from the disk.

    What it was made from goes first, if that is kept too. Only for the holder of the cell's lock. A delivery
    that fails or is cut short leaves the result where it is, and an unfinished run that the next one deletes.

    Args:
        claim: the claim that the cell was run under, if it was.

    Raises:
        InputError, BusyError, MlflowException, …: it cannot be sent now.
    """
    facts, work = result.facts, result.folder.parent.parent
    tracker.connect()
    known = tracker.find_result(facts)
    if known is None:
        source, source_run = facts.source
        if source and not source_run and (work / "results" / source).is_dir():
            with hold(work, source):
                waiting = kept(work, source, tracker.uri)
                if waiting is not None:
                    deliver(waiting, tracker)
        if claim is None or not tracker.is_active(claim.run_id):
            claim = tracker.claim(facts, void={facts.run_id})
        try:
            tracker.log_result(claim.run_id, result)
        finally:
            claim.release()
        known = claim.run_id
    elif facts.run_id not in (None, known):
        tracker.discard(str(facts.run_id))
    facts.run_id, result.undelivered = known, ""
    shutil.rmtree(work / "training" / facts.fingerprint, ignore_errors=True)
    result.remove()


def deliver_all(work: Path, uri: str | None = None) -> tuple[list[Facts], dict[str, str]]:
    """Deliver what is kept in a working folder.

    Args:
        uri: deliver there, instead of to the stores that the cells were run for.

    Returns:
        What was delivered, and of the others the reason by name.
    """
    trackers: dict[tuple[str, str], Tracker] = {}
    delivered: list[Facts] = []
    left: dict[str, str] = {}
    for folder in folders(work):
        try:
            with hold(work, folder.name):
                result = Result.read(folder)
                facts = result.facts
                place = (uri or facts.uri, facts.study)
                tracker = trackers.setdefault(place, Tracker(*place))
                if tracker.away is not None:
                    raise InputError(tracker.away)
                deliver(result, tracker)
                delivered.append(facts)
        except FileNotFoundError:
            continue  # somebody else delivered it
        except BusyError as error:
            left[folder.name] = one_line(error)
        except Exception as error:  # whatever it is, the result is safe
            left[folder.name] = one_line(error) or type(error).__name__
    clear(work)
    return delivered, left
