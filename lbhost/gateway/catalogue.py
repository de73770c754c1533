"""The models that are served, with their adapters, and which of them a request is for.

Owns nothing but the list. A request names its model, or an adapter of one, in `model`; one that
names none gets the first that suits what it asks, of those that its API key may use.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from lbhost.errors import (
    InvalidRequestError,
    ModelNotAllowedError,
    ModelNotFoundError,
    NotReadyError,
)
from lbhost.gateway.account import Account
from lbhost.gateway.api.replies import Kind
from lbhost.gateway.prompt import inputs
from lbhost.gateway.prompt.inputs import USES
from lbhost.gateway.served_model import ServedModel, Variant
from lbhost.purpose import ModelKind, Purpose

_LONGEST_NAME = 100
"""Characters of a stranger's name for a model that an error repeats."""

_OF_ANY_KIND = frozenset({Kind.TOKENIZE, Kind.DETOKENIZE})


class Catalogue:
    """All models of a gateway, at least one, the first one first."""

    def __init__(self, models: Sequence[ServedModel], broken: Iterable[str] = ()) -> None:
        """`broken`: names of what should be served, too, and cannot be."""
        self._models = tuple(models)
        self.broken = tuple(broken)
        self._variants = tuple(variant for one in models for variant in one.variants)
        self._by_name = {name: one for one in self._variants for name in one.names}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models)

    def __len__(self) -> int:
        return len(self._models)

    @property
    def only(self) -> ServedModel | None:
        """The one model, if there is but one."""
        return self._models[0] if len(self._models) == 1 and not self.broken else None

    @property
    def only_choice(self) -> Variant | None:
        """The same, if it has no adapters either."""
        return self._variants[0] if self.only and len(self._variants) == 1 else None

    def allowed(self, account: Account | None) -> list[Variant]:
        """Those that an API key may use; None: there are no keys."""
        return [one for one in self._variants if account is None or _may_use(account, one)]

    def check_any(self, account: Account | None) -> None:
        """Raises ModelNotAllowedError: there is none for this API key."""
        if account is None or self.allowed(account):
            return
        if self.only_choice is not None:
            account.check_model(self.only_choice.name)
        raise ModelNotAllowedError("this API key may not use any model here", param="model")

    def named(self, name: str, account: Account | None) -> Variant:
        """The model of a name or an alias, or the one with the adapter of that name.

        Raises:
            ModelNotFoundError: there is none.
            ModelNotAllowedError: not for this API key.
            NotReadyError: it should be served, and cannot be.
        """
        found = self._by_name.get(name)
        if found is None and name in self.broken and (account is None or account.may_use(name)):
            raise NotReadyError(f"model {name!r} cannot be loaded", retry_after_s=5)
        if found is None:
            served = [repr(one.name) for one in self.allowed(account)]
            there = f"; {', '.join(served)} {'are' if len(served) > 1 else 'is'}" if served else ""
            raise ModelNotFoundError(
                f"model {name[:_LONGEST_NAME]!r} is not served here{there}", param="model"
            )
        if account is not None and not _may_use(account, found):
            account.check_model(name)
        return found

    def pick(self, name: str | None, kind: Kind, account: Account | None) -> Variant:
        """The model that a request of a kind is for.

        Args:
            name: what its `model` says; None: nothing.

        Raises:
            ModelNotFoundError, ModelNotAllowedError, NotReadyError: as `named` does.
            InvalidRequestError: it is not a model for that, or there is none.
        """
        if name is not None:
            found = self.named(name, account)
            if not suits(kind, found.purpose):
                raise InvalidRequestError(self._unsuited(found, kind, account), param="model")
            return found
        self.check_any(account)
        some = self.allowed(account)
        suited = [one for one in some if suits(kind, one.purpose)]
        if not suited:
            raise InvalidRequestError(self._unsuited(some[0], kind, account), param="model")
        return suited[0]

    def _unsuited(self, one: Variant, kind: Kind, account: Account | None) -> str:
        others = [repr(m.name) for m in self.allowed(account) if suits(kind, m.purpose)]
        there = f"; here {', '.join(others)} can" if others else ""
        return f"model {one.name!r} cannot be asked that: {USES[one.purpose.kind]}{there}"


def suits(kind: Kind, purpose: Purpose) -> bool:
    """Whether a model for that purpose answers requests of a kind."""
    if kind in _OF_ANY_KIND:
        return True
    return inputs.KINDS.get(kind, ModelKind.CHAT) is purpose.kind


def _may_use(account: Account, one: Variant) -> bool:
    return any(account.may_use(name) for name in one.names)
