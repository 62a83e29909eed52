"""The catalogue among lm-eval's own tasks: any of lm-eval's models can be put to exactly what `hybridlm eval` asks.

A name means, in this order: a task of a folder given by --include_path; one of the catalogue, or a group or suite of
its tasks; one of lm-eval's own. So `piqa` is the catalogue's, whose questions are at hand; lm-eval's is had by the path
of its file. lm-eval's groups and tags keep lm-eval's members.
"""

import logging
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from lm_eval.api.group import Group
from lm_eval.api.task import ConfigurableTask
from lm_eval.config.group import GroupConfig
from lm_eval.tasks import TaskManager
from lm_eval.utils import pattern_match

from ...lm.data.tokenizer import Tokenizer
from ...lm.hf.tokenizers import from_transformers
from ...lm.parts.errors import ConfigError
from ...lm.recipe.data import DataConfig
from ...lm.run import Run
from .catalogue import CATALOGUE, GROUPS, Options, build, expand
from .suites import SUITES

SETS = {name: members for name, members in SUITES.items() if all(m in CATALOGUE or m in GROUPS for m in members)}
"""Suites of tasks alone: needles and positions are not lm-eval's to run."""
NAMES = (*CATALOGUE, *GROUPS, *SETS)

logger = logging.getLogger("lm_eval")


class ModelTokenizer:
    """The tokenizer of the model that --model_args names, read when a task first counts tokens."""

    def __init__(self, arguments: dict[str, Any]):
        self.arguments = arguments

    @cached_property
    def encode_inside(self) -> Callable[[list[str]], list[list[int]]]:
        """See `Tokenizer.encode_inside`. Raises ConfigError when the model's arguments name no tokenizer."""
        if run := self.arguments.get("run"):
            return Run(run).tokenizer().encode_inside
        source = self.arguments.get("tokenizer") or self.arguments.get("pretrained")
        if not source:
            raise ConfigError(
                "model_args: neither run, tokenizer nor pretrained is there, so tokens cannot be counted; give one, or "
                "leave out tasks of a number of tokens"
            )
        from transformers import AutoTokenizer

        return from_transformers(AutoTokenizer.from_pretrained(source)).encode_inside


class CatalogueTasks:
    """What lm-eval's command line asks of its TaskManager. lm-eval's 14,000 files are read when a name is not ours.

    metadata: the model's arguments and --metadata, where `cache` is the folder of the benchmark files; by default the
    one of the run's recipe, or of every recipe that names none. The number of solved questions is lm-eval's
    --num_fewshot; they are a task's first ones.
    """

    def __init__(self, include_path: Any = None, metadata: dict[str, Any] | None = None):
        self.include_path, self.metadata = include_path, metadata or {}
        self.given = TaskManager(include_path=include_path, include_defaults=False, metadata=self.metadata)
        self.task_index = dict(self.given.task_index)

    @cached_property
    def theirs(self) -> TaskManager:
        """The given folder's tasks and lm-eval's own."""
        return TaskManager(include_path=self.include_path, metadata=self.metadata)

    def is_ours(self, name: Any) -> bool:
        """Whether a name means the catalogue's."""
        return name in NAMES and name not in self.given.task_index

    def match_tasks(self, task_list: Iterable[str]) -> list[str]:
        """Names that match the patterns."""
        ours = [name for name in NAMES if self.is_ours(name)]
        matched: dict[str, None] = {}
        for pattern in task_list:
            known = [*ours, *self.given.all_tasks]
            matched.update(dict.fromkeys([pattern] if pattern in known else []))
            if pattern not in known:
                matched.update(dict.fromkeys(pattern_match(pattern, {*known, *self.theirs.all_tasks})))
        return list(matched)

    def load(self, task_list: Any) -> Any:
        """lm-eval's dictionary of tasks and groups. Raises ConfigError and DataError for what cannot be built."""
        asked = task_list if isinstance(task_list, list) else [task_list]
        ours = [one for one in asked if isinstance(one, str) and self.is_ours(one)]
        manager = self.given if all(one in ours or self._is_given(one) for one in asked) else self.theirs
        self.task_index = {name: entry for name, entry in manager.task_index.items() if not self.is_ours(name)}
        built = self._build([task for name in ours for task in SETS.get(name, (name,))]) if ours else {}
        return manager.load([item for one in asked for item in (self._items(one, built) if one in ours else [one])])

    def _is_given(self, one: Any) -> bool:
        """Whether it is a task of the given folder, or written out; a group may name tasks of lm-eval's."""
        return one in self.given.all_subtasks or (isinstance(one, dict) and "group" not in one)

    def _build(self, names: list[str]) -> dict[str, ConfigurableTask]:
        cache = self.metadata.get("cache") or self._recipe_cache()
        options = Options(Path(cache).expanduser(), cast(Tokenizer, ModelTokenizer(self.metadata)))
        logger.info("From hybridlm's catalogue, files in %s: %s", cache, ", ".join(names))
        built = build(names, options)
        for task in built.values():
            task.set_config("num_fewshot", None)  # a number, 0 too, would win over the command line's
        return built

    def _recipe_cache(self) -> str:
        run = self.metadata.get("run")
        return Run(run).recipe.data.cache if run else DataConfig.model_fields["cache"].default

    def _items(self, name: str, built: dict[str, ConfigurableTask]) -> list[Any]:
        """A task, a group, or a suite's tasks."""
        if name not in GROUPS:
            return [built[task] for task in expand(SETS.get(name, (name,)))]
        group = Group.from_config(GroupConfig(name, aggregate_metric_list=[{"metric": "acc"}]))
        for task in GROUPS[name]:
            group.add(built[task])
        return [group]

    def list_all_tasks(self, **kinds: bool) -> str:
        """lm-eval's tables, and one of the catalogue."""
        rows = [f"|{name}|{CATALOGUE[name].about}|" for name in CATALOGUE if self.is_ours(name)]
        sets = [f"|{name}|{', '.join(GROUPS.get(name) or SETS[name])}|" for name in (*GROUPS, *SETS)]
        table = "\n".join(["|hybridlm's catalogue|What|", "|---|---|", *rows, *sets])
        return f"{self.theirs.list_all_tasks(**kinds)}{table}\n"
