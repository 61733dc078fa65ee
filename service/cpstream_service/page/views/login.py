"""What a browser is shown in place of a page where the service wants a token, which says nothing of the data."""

from ..render import Frame, render


def page(frame: Frame, target: str, refusal: str) -> bytes:
    """target: what to show after the login, below the service's address; refusal: what is wrong with the token given, or ""."""
    return render("login.html", frame, target=target, refusal=refusal)
