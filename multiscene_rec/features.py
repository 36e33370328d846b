"""What a model must know about the data: features, tasks, and the `Spec` that lists them. Hand-written; not
part of a lesson."""
import math
from dataclasses import dataclass, replace

import numpy as np

from .checks import whole_number

__all__ = ["Feature", "Task", "Spec"]

_KINDS, _OF = ("category", "number", "vector", "sequence", "history"), ("item", "user", "context")


@dataclass(frozen=True)
class Feature:
    """One thing that rows say about an item, a user or the moment. Raises: `ValueError` for an unknown kind
    or a size below 1."""
    name: str # Such as brand
    kind: str # category, number, vector, sequence or history
    size: int # Ids of a category with unknown, numbers in a vector or history, events in a sequence
    of: str = "context" # item, user or context
    names: tuple = () # Names of its numbers, if they have any

    def __post_init__(self):
        object.__setattr__(self, "names", tuple(self.names))
        if self.kind not in _KINDS:
            raise ValueError(
                f"feature {self.name!r}: kind {self.kind!r} is unknown; choose from {', '.join(_KINDS)}")
        if self.of not in _OF:
            raise ValueError(
                f"feature {self.name!r}: of {self.of!r} is unknown; choose from {', '.join(_OF)}")
        whole_number(f"feature {self.name!r}: size", self.size)


@dataclass(frozen=True)
class Task:
    """One answer to predict. Raises: `ValueError` for a weight that is not a finite number of 0 or more."""
    name: str = "clicked" # Name of the label's column
    kind: str = "binary" # For any other kind, the model defines its own loss
    weight: float = 1.0 # Weight of its loss in the sum over tasks

    def __post_init__(self):
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"task {self.name!r}: weight must be 0 or more and finite, got {self.weight!r}")


@dataclass(frozen=True)
class Spec:
    """What a model must know about the data: its scenarios, features and tasks.

    Raises: `ValueError` naming what is wrong or appears twice.
    """
    scenarios: tuple # S names, in the order of the codes 0 to S - 1
    features: tuple = () # Features, in the order of Batch.fields and Batch.dense
    tasks: tuple = (Task(),) # Tasks, in the order of the label's columns
    query: tuple = () # Names of the categories that make the query; () takes all that describe the item
    prep: str = "" # Checksum of the fitted preprocessor that made the batches; "" for none

    def __post_init__(self):
        for name in ("scenarios", "features", "tasks", "query"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for what, names in (("scenario", self.scenarios), ("feature", [f.name for f in self.features]),
                            ("task", [t.name for t in self.tasks])):
            if twice := {n for n in names if list(names).count(n) > 1}:
                raise ValueError(f"Spec: {what} {min(twice, key=str)!r} appears twice")
        if not self.scenarios or not self.tasks:
            raise ValueError("Spec: name at least one scenario and one task")
        if unknown := set(self.query) - set(self.fields):
            raise ValueError(f"Spec.query names {min(unknown)!r}, which is not one of its categories")

    def of(self,
        kind: str, # A kind of Feature
        of: str | None = None, # item, user or context; None takes all
    ) -> tuple: # Features
        """The features of one kind, in their order."""
        return tuple(f for f in self.features if f.kind == kind and of in (None, f.of))

    def with_features(self,
        *features: Feature, # Each replaces the one of the same name, or is added at the end
    ) -> "Spec":
        """The same spec with some features replaced or added."""
        by_name = {f.name: f for f in self.features} | {f.name: f for f in features}
        return replace(self, features=tuple(by_name.values()))

    fields = property(lambda self: {f.name: f.size for f in self.of("category")},
                      doc="Name of each categorical field: number of its ids.")
    item_fields = property(lambda self: self.query or tuple(f.name for f in self.of("category", "item")),
                           doc="Names of the fields that make the query.")
    dense = property(lambda self: tuple(f.name for f in self.of("number")),
                     doc="Names of the columns of Batch.dense.")
    item_dense = property(lambda self: tuple(f.name for f in self.of("number", "item")),
                          doc="Names of those that describe the item.")
    history = property(lambda self: sum(f.size for f in self.of("history")), doc="H: numbers in one history.")
    history_names = property(lambda self: sum((f.names for f in self.of("history")), ()), doc="H names.")
    offsets = property(lambda self: tuple(np.cumsum([0, *self.fields.values()])[:-1].tolist()),
                       doc="Where each field begins in the one table of all fields.")
