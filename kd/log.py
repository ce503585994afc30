"""What a command says while it works: plain lines on stderr, so that stdout holds results alone."""

from rich.console import Console

console = Console(stderr=True, highlight=False)


def say(message: str) -> None:
    """One line to the person at the terminal, or to the job's log."""
    console.print(message, markup=False, soft_wrap=True)
