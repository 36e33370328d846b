"""Which column of a log means what. Hand-written; not part of a lesson."""
from dataclasses import dataclass

__all__ = ["Schema"]

_DEFAULT_ITEM_COLUMNS = ("category", "brand", "price", "quality")


@dataclass(frozen=True)
class Schema:
    """Which column of a log means what; `Schema()` names the columns of the mall.

    `item_columns` left at its default is cut down to the columns that `categorical` and `numeric` name.

    Raises: `ValueError` naming the column that is used twice, or that describes an item but is not listed.
    """
    user: str = "user_id" # Column: who
    item: str = "item_id" # Column: what was shown
    scenario: str = "scenario" # Column: where it was shown
    time: str = "timestamp" # Column: when; whole seconds
    label: str | tuple[str, ...] = "clicked" # Column: the answer, 0 to 1; or columns, the click first
    categorical: tuple[str, ...] = ("age_band", "city", "category", "brand") # Columns that hold a kind
    numeric: tuple[str, ...] = ("price", "quality") # Columns of events, users or items that hold a quantity
    item_columns: tuple[str, ...] = _DEFAULT_ITEM_COLUMNS # Those of the two above that describe the item
    history: tuple[str, ...] | None = None # Item columns counted in histories; None: the categorical ones

    def __post_init__(self):
        default_items = self.item_columns == _DEFAULT_ITEM_COLUMNS
        for name in ("categorical", "numeric", "item_columns", "history"):
            if getattr(self, name) is not None: self._set(name, _as_columns(name, getattr(self, name)))
        if not isinstance(self.label, str):
            labels = _as_columns("label", self.label)
            if not labels: raise ValueError("Schema.label: name the column of the answer")
            self._set("label", labels if len(labels) > 1 else labels[0])
        features = self.categorical + self.numeric
        _check_unique(_as_columns("user, item, scenario, time, label", self.required) + features)
        if default_items: self._set("item_columns", tuple(c for c in self.item_columns if c in features))
        _check_features(self, features)

    def _set(self, name, value): object.__setattr__(self, name, value) # The only way in a frozen dataclass

    @property
    def labels(self) -> tuple[str, ...]: # T names; the first is what histories count
        """The columns of the answers, one per task."""
        return (self.label,) if isinstance(self.label, str) else self.label

    @property
    def required(self) -> tuple[str, ...]: # Names, in the order user, item, scenario, time, labels
        """The columns that every log must have."""
        return self.user, self.item, self.scenario, self.time, *self.labels


def _as_columns(name, value): # A tuple of names, from a tuple or list of names
    if isinstance(value, str):
        raise ValueError(f"Schema.{name}: give a tuple of column names, such as ({value!r},), not one string")
    if not isinstance(value, (tuple, list)):
        raise ValueError(f"Schema.{name}: give a tuple of column names, got {value!r}")
    value = tuple(value)
    if not all(isinstance(v, str) and v for v in value):
        raise ValueError(f"Schema.{name}: column names must be non-empty strings, got {value!r}")
    return value


def _check_unique(columns): # Each column has one meaning
    repeated = sorted({c for c in columns if columns.count(c) > 1})
    if repeated:
        raise ValueError(f"Schema: column {repeated[0]!r} is used twice; each column has one meaning")


def _check_features(schema, features): # Item columns are features, and histories count item columns
    for c in schema.item_columns:
        if c not in features:
            raise ValueError(
                f"Schema.item_columns: {c!r} is in neither categorical nor numeric; add it there")
    for c in schema.history or ():
        if c != schema.item and not (c in schema.categorical and c in schema.item_columns):
            raise ValueError(
                f"Schema.history: {c!r} is not a categorical item column; list it in categorical and in "
                "item_columns")
    if schema.history == ():
        raise ValueError("Schema.history: name at least one column, or None for all categorical item columns")
