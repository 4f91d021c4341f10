"""The two ways in which Kassa says no before anything is stored: a refusal, and a process that will not start."""

from typing import Any


class Refusal(Exception):
    """A definite no: nothing was stored. `api/errors.py` maps its code to an HTTP answer.

    code: stable, for programs; a key of `api.errors.PROBLEMS`.
    detail: one sentence for people, saying what to do next.
    pointer: JSON pointer of the field at fault, such as `/amount`; None where no field is.
    facts: further members of the problem document.
    """

    def __init__(self, code: str, detail: str, *, pointer: str | None = None, **facts: Any) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
        self.pointer = pointer
        self.facts = facts


class NotReady(Exception):
    """The database cannot be served from; the message says what is wrong and what to do."""
