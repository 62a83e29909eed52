"""What a benchmark's score depends on besides the model and the questions."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Conditions:
    """How a task was put to a model.

    limit: only that many documents, the first; None: all. num_fewshot: solved questions before each, the task's first
    ones or, with a fewshot_seed, drawn. max_length: tokens per input. chat: whether the run's chat template wrote the
    prompts, solved questions as turns of the conversation.
    """

    max_length: int
    limit: int | None = None
    num_fewshot: int = 0
    fewshot_seed: int | None = None
    chat: bool = False

    def __str__(self) -> str:
        """In words: first 3 documents, 5-shot drawn by seed 1, 512 tokens."""
        return f"{self.asked}, {self.max_length} tokens"

    @property
    def asked(self) -> str:
        """All but the length, in words."""
        documents = "all documents" if self.limit is None else f"first {self.limit} documents"
        drawn = "" if self.fewshot_seed is None else f" drawn by seed {self.fewshot_seed}"
        as_chat = ", as a chat" if self.chat else ""
        return f"{documents}, {self.num_fewshot}-shot{drawn}{as_chat}"
