"""What an evaluation asks: every question about every sample, once and in order."""

from dataclasses import dataclass
from typing import Any

from torch.utils.data import Dataset

from psalm.data.dataset import Question, TaskData
from psalm.data.examples import TaskExamples
from psalm.data.samples import Example


@dataclass(frozen=True)
class Asked:
    """One item of an evaluation: a sample, a question about it, and both as an example."""

    item: int
    """Its place in the evaluation."""
    record: Any
    question: Question
    example: Example


class Evaluation(Dataset[Asked]):
    """Every question about every sample once, in order; samples that cannot be read are left out if bad ones are."""

    def __init__(self, examples: TaskExamples) -> None:
        self.examples = examples
        self.items = [
            (index, question) for index in examples.data.good_indices() for question in examples.questions(index)
        ]

    @property
    def task(self) -> str:
        """The task's name."""
        return self.examples.task

    @property
    def data(self) -> TaskData:
        """The samples."""
        return self.examples.data

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Asked:
        index, question = self.items[item]
        record = self.examples.narrowed(self.data.record(index), question)
        return Asked(item, record, question, self.examples.evaluation(record, question))
