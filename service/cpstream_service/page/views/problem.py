"""What a page shows that cannot be had: what is wrong with what was asked for, and where to go from there."""

from cpstream_client.contract.bodies import Problem

from ..render import Frame, render

WAITING_S = 2


def page(frame: Frame, problem: Problem) -> bytes:
    """Of a service that is not ready, or is full, the page asks again by itself."""
    return render("problem.html", frame, problem=problem, again_s=WAITING_S if problem.status == 503 else None)
