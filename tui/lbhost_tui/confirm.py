"""The box that asks before work is stopped. Its focus starts on cancel."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from lbhost_tui.actions import Action


class Confirm(ModalScreen[bool]):
    """Dismissed with True when the user wants it."""

    AUTO_FOCUS = "#cancel"
    BINDINGS: ClassVar[list[BindingType]] = [
        ("escape,n,q", "answer(False)", "cancel"),
        ("y", "answer(True)", "yes"),
        ("left,up,h", "app.focus_previous", "left"),
        ("right,down,l", "app.focus_next", "right"),
    ]

    def __init__(self, action: Action) -> None:
        super().__init__()
        self._action = action

    def compose(self) -> ComposeResult:
        """Question, consequence, two buttons."""
        with Vertical(id="confirm"):
            yield Static(self._action.question, id="question", markup=False)
            yield Static(self._action.consequence, id="consequence", markup=False)
            with Horizontal(id="buttons"):
                yield Button(self._action.keep, id="cancel", compact=True)
                yield Button(self._action.verb, id="go", compact=True)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Enter or a click on one of them."""
        self.dismiss(event.button.id == "go")

    def action_answer(self, yes: bool) -> None:
        """Answered by key."""
        self.dismiss(yes)
