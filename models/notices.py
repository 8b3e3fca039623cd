"""Lines for a stage's log that are worth saying once in a process, however often their reason recurs."""

_said: set[str] = set()


def say_once(text: str) -> None:
    """Print a line unless this process has printed it before."""
    if text not in _said:
        _said.add(text)
        print(text, flush=True)
