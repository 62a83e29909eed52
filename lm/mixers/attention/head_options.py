"""Options of routed heads, Mixture-of-Head attention (MoH): which heads of attention a token uses."""

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from ...parts.errors import brief
from ...parts.ranges import DEEPEST, WIDEST, Epsilon
from ...parts.strict import Strict
from ..options import FROM_MODEL


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < WIDEST


def _lists(value: Any, what: Any) -> bool:
    return isinstance(value, list) and len(value) <= WIDEST and all(map(what, value))


def _count(value: Any) -> Any:
    if value is None or _whole(value) or (value and _lists(value, _whole)):
        return value
    raise ValueError(f"a number of heads is wanted, or a list of one per layer, got {brief(value)}")


def _heads(value: Any) -> Any:
    if value is None or _lists(value, _whole) or _lists(value, lambda own: _lists(own, _whole)):
        return value
    raise ValueError(f"heads are wanted, [0, 1] for every layer or [[0, 1], [2, 3]] by layer, got {brief(value)}")


if TYPE_CHECKING:  # a layer finds its own
    Count = int
    Heads = list[int]
else:
    _Number = Annotated[int, Field(ge=0, lt=WIDEST)]
    Count = Annotated[_Number | Annotated[list[_Number], Field(max_length=DEEPEST)] | None, BeforeValidator(_count)]
    Heads = Annotated[list[_Number] | list[list[_Number]] | None, BeforeValidator(_heads)]


class BalanceConfig(Strict):
    """The auxiliary loss `balance`, coef times the mean or sum over layers of sum_i P_i f_i over the routed heads i.

    P_i is the mean over tokens of the router's softmax, f_i the share of tokens that use the head, without a gradient.
    """

    coef: float = Field(default=0.01, ge=0, le=100)
    form: Literal["sum", "scaled"] = "scaled"
    """`sum`: as printed; `scaled`: times the number of routed heads, as the published code has it."""
    reduce: Literal["mean", "sum"] = "mean"
    """Over the layers with routed heads. A layer finds `sum`, and in `coef` its own weight."""
    over: Literal["documents", "micro_batch"] = "documents"
    """`documents`: P and f of each document, and then the mean by its targets, whatever batch it comes in;
    `micro_batch`: of all tokens of a call together, as the published code has it."""


class HeadsConfig(Strict):
    """Each token uses `active` heads: the `shared` ones always, and those of the rest that its router puts first.

    A list gives one value per layer that has these options, in order of depth.
    """

    router: Literal["moh", "query_norm"] = "moh"
    """`moh`: learned, in two stages, gates weigh the heads; `query_norm`: by the norm of the query before RoPE and any
    norm of it, without parameters, gates are 0 or 1."""
    shared: Count = FROM_MODEL
    """Heads that every token uses; default: about a quarter."""
    active: Count = FROM_MODEL
    """Heads that a token uses, the shared ones among them; default: about three quarters."""
    shared_heads: Heads = FROM_MODEL
    """Which ones are shared, in every layer or by layer; default: the first."""
    route: Literal["heads", "groups"] = "heads"
    """`groups`: the query heads of a key head are used together, so that a step reads fewer keys."""
    straight_through: Literal["selected", "dense"] = "selected"
    """query_norm: whether the gradient of a gate reaches the router from the heads in use, or from all of them, which
    then are all computed in training. The outputs are the same."""
    normalise: Literal["std", "none"] = "std"
    """query_norm: what the norms are divided by before the softmax, their own standard deviation or nothing. Two
    routed heads are not divided: their difference would be the same for every token, without a gradient."""
    norm_eps: Epsilon = 1e-6
    """query_norm: norms with a standard deviation of no more than this are not divided by it."""
    router_dtype: Literal["float32", "model"] = "float32"
    """`model` rounds as the published models do."""
    balance: BalanceConfig = BalanceConfig()
    anneal: float = Field(default=0.0, ge=0, le=1)
    """Share of the training steps in which the heads in use fall evenly from all to `active`; 0: there are no more from
    the start. Measurements in between use as many as the next step."""

    def in_model(self, ordinal: int, peers: int, routed: int, section: str) -> Self:
        """The options of the ordinal-th of `peers` layers that have these, in a model with `routed` layers of routed
        heads. Raises ValueError where a list is not as long as that."""
        own: dict[str, Any] = {}
        for name in ("shared", "active", "shared_heads"):
            value: Any = getattr(self, name)
            if not isinstance(value, list) or (name == "shared_heads" and _lists(value, _whole)):
                continue
            if len(value) != peers:
                raise ValueError(
                    f"{section}.heads.{name}: lists {len(value)} layers, but {peers} have these options; give {peers}, "
                    "or one for all"
                )
            own[name] = value[ordinal]
        if self.balance.reduce == "mean":
            share = {"coef": self.balance.coef / routed, "reduce": "sum"}
            own["balance"] = self.balance.model_copy(update=share)
        return self.model_copy(update=own)

    def resolve(self, n_heads: int, n_kv_heads: int, section: str) -> Self:
        """A copy with every size finished, for one layer. Raises ValueError when they contradict."""
        where = f"{section}.heads"
        self._check_router(where)
        unit = n_heads // n_kv_heads if self.route == "groups" else 1
        shared, active = self._sizes(n_heads, unit)
        for name, value in (("shared", shared), ("active", active)):
            if value > n_heads:
                raise ValueError(f"{where}.{name}: {value} is more than n_heads={n_heads}; use at most {n_heads}")
            if value % unit:
                raise ValueError(
                    f"{where}.{name}: {value} is no multiple of {unit}, the query heads of a key head, which route: "
                    "groups uses together; use a multiple or route: heads"
                )
        if active < shared:
            raise ValueError(f"{where}.active: {active} is below shared={shared}, which it counts; use more")
        if active == shared < n_heads:
            raise ValueError(
                f"{where}.active: {active} counts the shared={shared} and leaves no head to route, the other "
                f"{n_heads - shared} would never be used; use {shared + unit} to {n_heads}"
            )
        if self.router == "moh" and shared == n_heads == 1:
            raise ValueError(f"{where}.shared: 1 is all of n_heads=1, nothing is left to weigh; use 0 or heads: null")
        heads = self._shared_heads(where, shared, n_heads, unit)
        return self.model_copy(update={"shared": shared, "active": active, "shared_heads": heads})

    def _check_router(self, where: str) -> None:
        fields = type(self).model_fields
        for name in ("straight_through", "normalise", "norm_eps"):
            value = getattr(self, name)
            if self.router == "moh" and value != fields[name].default:
                raise ValueError(
                    f"{where}.{name}: {value!r} is an option of router: query_norm; leave it out or use that router"
                )

    def _sizes(self, n_heads: int, unit: int) -> tuple[int, int]:
        """(shared, active), finished where they are left out: a quarter, at least one of several, and three quarters,
        at least one of them routed; in whole units."""
        units = n_heads // unit
        shared, active = self.shared, self.active
        if shared is None and self.shared_heads is not None:
            shared = len(self.shared_heads)
        if shared is None:
            most = units if active is None else active // unit
            shared = unit * max(min(max(1, (units + 2) // 4), most - 1), 0)
        if active is None:
            active = min(max(unit * (units - units // 4), shared + unit), max(n_heads, shared))
        return shared, active

    def _shared_heads(self, where: str, shared: int, n_heads: int, unit: int) -> list[int]:
        if self.shared_heads is None:
            return list(range(shared))
        heads, named = sorted(self.shared_heads), set(self.shared_heads)
        if len(heads) != shared:
            raise ValueError(
                f"{where}.shared_heads: names {len(heads)} heads, but shared={shared}; leave shared out or name as many"
            )
        if len(named) != len(heads) or (heads and heads[-1] >= n_heads):
            raise ValueError(
                f"{where}.shared_heads: {brief(self.shared_heads)}; allowed: heads from 0 to {n_heads - 1}, each once"
            )
        if any(head // unit * unit + i not in named for head in heads for i in range(unit)):
            raise ValueError(
                f"{where}.shared_heads: {brief(heads)} splits a group of {unit} heads, which route: groups uses "
                "together; name whole groups"
            )
        return heads
