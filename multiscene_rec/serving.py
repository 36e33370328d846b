"""Lists on request: questions are checked and made into rows, seen items are left out, and what a model can
compute once is kept. Written by hand; the ideas and the formulas are those of notebook 10, which imports this
module. Its functions are therefore looked up where they are used.
"""
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch

from .checks import unit_interval, whole_number
from .data import Batch
from .fusion import ConcatFusion, MeanFusion, OwnScenario, ScenarioAttention
from .model import BesideOwn, InterestModel, Recommender
from .predictor import InterestPredictor
from .preprocess import (
    Categories,
    Context,
    EventLog,
    Histories,
    Labels,
    Numbers,
    Preprocessor,
    Sequences,
    Vectors,
    Vocabulary,
)
from .train import predict

__all__ = ["question", "item_batch", "Scorer", "InterestScorer", "recommend", "Catalogue"]


# ---------------------------------------------------------------- the question, checked

def _check_pair(model, prep): # both must come from one training: the spec holds the preprocessor's checksum
    if prep.spec is None: raise ValueError("the preprocessor is not fitted: fit it, or load a fitted one")
    if not hasattr(model, "spec") or not hasattr(model, "serving"):
        raise ValueError(
            f"{type(model).__name__} is not a Recommender, which is needed here: subclass Recommender")
    if model.spec != prep.spec:
        raise ValueError("model and preprocessor do not belong together: their specs differ; "
                         "use the pair that was trained together")


def _check_list(k, diversity):
    whole_number("k", k)
    unit_interval("diversity", diversity)


def _task_number(model, task):
    names = [t.name for t in model.spec.tasks]
    if task is not None and task not in names:
        raise ValueError(f"task {task!r} is unknown; the model predicts {', '.join(names)}")
    return 0 if task is None else names.index(task)


def _sorted_log(prep, log): # an EventLog; a frame is sorted now
    if not isinstance(log, EventLog): return EventLog(log, None, prep.schema)
    its, ours = log.schema.required, prep.schema.required
    if its != ours:
        raise ValueError(
            f"the log was made for the columns {', '.join(its)}, the preprocessor for {', '.join(ours)}: "
            "pass EventLog(events, users, prep.schema)")
    return log


def _check_context(prep, log, context): # no column of the item, and every one that is known from nowhere else
    schema = prep.schema
    columns = [c for c in (*schema.categorical, *schema.numeric) if c not in schema.item_columns]
    for c in context:
        if c not in columns:
            known = ", ".join(columns) or "nothing, the schema has no such column"
            raise ValueError(f"context: {c!r} cannot be set for all items; choose from {known}")
    for c in columns:
        if not (c in context or c in log.users or c in prep.items_):
            raise ValueError(
                f"column {c!r} belongs to the moment of the list: give its value, context={{{c!r}: ...}}; "
                "if it describes users, give EventLog(events, users)")


def _checked(prep, log, users, scenario, when, context): # the sorted log, and the moment in seconds
    log = _sorted_log(prep, log)
    if scenario not in prep.scenarios_:
        raise ValueError(
            f"scenario {scenario!r} is unknown; choose from {', '.join(map(str, prep.scenarios_))}")
    log.code([user for user in users if user is not None]) # ids of another kind would all look like newcomers
    _check_context(prep, log, context)
    if when is None and log.last is None:
        raise ValueError("the log has no rows, so it has no last moment: give when, in seconds")
    return log, log.last + 1 if when is None else int(when)


# ---------------------------------------------------------------- rows, and what may be shown

def question(
    prep: Preprocessor, # Fitted
    user, # User id; None for an unknown user
    scenario, # Where the list will be shown
    when: int, # Moment in seconds
    context: dict, # Values of further columns, one for all rows
    positions: np.ndarray, # (m,) positions in prep.items_
) -> pd.DataFrame: # m rows, without labels
    """The rows that ask for some items for one user at one moment."""
    schema = prep.schema
    frame = pd.DataFrame({schema.item: prep.items_[schema.item].to_numpy()[positions]})
    return frame.assign(**{schema.user: user, schema.scenario: scenario, schema.time: when}, **context)


def item_batch(
    prep: Preprocessor, # Fitted
    frame: pd.DataFrame | None = None, # Rows that may lack columns; None: the items, as a model reads them
    context: dict | None = None, # Values of further columns
) -> Batch: # One row per row of the frame, without anybody's past
    """Rows as a batch, whatever columns they have; a column that is absent counts as missing."""
    schema = prep.schema
    if frame is None:
        frame = prep.items_[[c for c in prep.items_ if c in (*schema.item_columns, schema.item)]]
    blank = {c: None for c in (schema.user, schema.item, *schema.categorical) if c not in frame}
    blank |= {c: np.nan for c in schema.numeric if c not in frame}
    full = frame.assign(**{**blank, **(context or {}), schema.scenario: prep.scenarios_[0], schema.time: 0})
    return prep.transform(full, log=EventLog(pd.DataFrame({c: [] for c in schema.required}), None, schema))


def _seen(prep, log, user, when): # positions of the items that the user was shown before the moment
    item, items = prep.schema.item, prep.items_
    def positions(): # the frame is kept beside them, so that its id is not reused
        return items, Vocabulary(words_=items[item].tolist()).encode(log.events[item]) - 1
    kept = log.kept(("positions", id(items)), positions)[1]
    seen = np.unique(kept[log.rows([user], when)[0]])
    return seen[seen >= 0]


def _candidates(prep, log, user, when, exclude_seen): # positions of the items that may be shown
    positions = np.arange(len(prep.items_))
    if exclude_seen: positions = np.delete(positions, _seen(prep, log, user, when))
    if not len(positions):
        raise ValueError(f"user {user!r} has seen every item; pass exclude_seen=False to show them again")
    return positions


def _picked(score, vectors, k, diversity): # positions on the list; vectors is a function, as they are costly
    from .rank import mmr, top_k
    return top_k(score, k) if diversity == 0 else mmr(score, vectors(), k, diversity)


def _list_frame(items, positions, score): # one row per place: rank, the item's columns, score
    columns = {c: items[c].array[positions] for c in items if c not in ("rank", "score")}
    return pd.DataFrame({"rank": np.arange(1, len(positions) + 1), **columns, "score": score})


# ---------------------------------------------------------------- any model

def _device(model): return next((p.device for p in model.parameters()), torch.device("cpu"))


class Scorer:
    """Scores all items for some users: here by the model's whole forward pass, one user after another.

    Raises: `ValueError` for a model and a preprocessor that do not belong together.
    """
    def __init__(self,
        model: Recommender, # Trained; stays on the device where it is
        prep: Preprocessor, # Fitted; it knows the items
    ):
        _check_pair(model, prep)
        self.model, self.prep, self.device = model, prep, _device(model)

    def scores(self,
        users: list, # U user ids; unknown ones are newcomers
        scenario, # Where the lists will be shown
        log: EventLog, # What has happened so far
        when: int, # Moment in seconds
        context: dict, # Values of further columns that the schema names, one for all
        task: int = 0, # Number of the task whose probability is wanted
    ) -> torch.Tensor: # (U, n) float32 on the CPU, in the order of the preprocessor's items
        """Probabilities of every item."""
        positions = np.arange(len(self.prep.items_))
        out = torch.empty(len(users), len(positions))
        for u, user in enumerate(users):
            rows = question(self.prep, user, scenario, when, context, positions)
            prob = predict(self.model, self.prep.transform(rows, log=log))
            out[u] = prob if prob.ndim == 1 else prob[:, task]
        return out

    def vectors(self) -> torch.Tensor: # (n, m) on the CPU
        """What each item is like, as the model sees it."""
        with torch.inference_mode():
            return self.model.item_vectors(item_batch(self.prep).to(self.device)).cpu()

    def check_device(self) -> None:
        """Refuse a model that has changed its device: what was kept is still on the old one. Raises:
        `ValueError` naming both."""
        if (now := _device(self.model)) != self.device:
            raise ValueError(
                f"the model has moved from {self.device} to {now} since the catalogue was built: "
                "build it again")


# ---------------------------------------------------------------- a shorter way: (10.7) and (10.8)

_PARTED = (MeanFusion, OwnScenario, ConcatFusion, ScenarioAttention, BesideOwn) # fusions that (10.7) knows


def _parts(model, prep): # whether (10.7) holds: our forward pass, and each column in its own table
    schema, fuse = prep.schema, getattr(model, "fuse", None)
    for name in ("forward", "logits_and_weights", "explain", "item_vectors"):
        if getattr(type(model), name) is not getattr(InterestModel, name): return False
    if {type(head) for head in model.predictors} != {InterestPredictor}: return False
    if fuse is not None and type(fuse) not in _PARTED: return False
    needed = {Categories, Numbers} | ({Histories} if fuse is not None else set())
    known = needed | {Labels, Histories, Vectors, Sequences} # your own part may change what these add
    in_items = {c for c in (*schema.categorical, *schema.numeric) if c in prep.items_}
    return needed <= {type(part) for part in prep.parts} <= known and in_items == set(schema.item_columns)


def _layers(head): # its linear layers, with a ReLU between each two
    return [*getattr(head.hidden, "layers", []), head.out]


def _attention(model): # the attention in a model's fusion, or None
    fuse = getattr(model, "fuse", None)
    return getattr(fuse, "attention", fuse) if isinstance(fuse, (ScenarioAttention, BesideOwn)) else None


def _features(model, fields, dense, scenario): # (B, ·): what the head reads before z, by (8.4)
    e = model.embed(fields).flatten(1)
    return torch.cat([e, dense.to(e.dtype), model.scenario_embedding(scenario)], 1)


def _mix(model, h, present, scenario): # (U, S, d), (U, d): z is the weighted sum of the one, plus the other
    if not hasattr(model, "fuse"): return h.new_zeros(len(h), 0, 0), h.new_zeros(len(h), 0)
    fuse, attention = model.fuse, _attention(model)
    no_query = h.new_zeros(len(h), len(model.item_columns)*model.d_embed)
    if attention is None: return h[:, :0], fuse(h, present, no_query, scenario)[0]
    mixed, constant = attention.value(h), attention.fallback.weight*~present.any(1, keepdim=True)
    if attention is fuse: return mixed, constant
    own, _ = fuse.own(h, present, no_query, scenario)
    return mixed @ fuse.join.weight[:, :h.shape[2]].T, fuse.join(torch.cat([constant, own], 1))


def _histories(prep, log, users, when): # (U, S, H) float32 and present (U, S), as transform makes them
    part = prep.part(Histories)
    context = Context(prep.schema, prep.scenarios_, log.users, prep.items_, log)
    scenario, label, values = part.events(context)
    rows, owner = log.rows(users, when)
    known = scenario[rows] >= 0
    rows, owner, U = rows[known], owner[known], len(users)
    events = owner, log.time[rows], scenario[rows], label[rows], values[rows]
    return tuple(map(torch.from_numpy, part.at(events, np.arange(U), np.full(U, when))))


def _people(prep, log): # every user's own columns, and a last row for unknown users
    schema = prep.schema
    people = log.users[[c for c in log.users if c in (*schema.categorical, *schema.numeric, schema.user)]]
    batch = item_batch(prep, people.reindex(range(len(people) + 1)))
    return pd.Index(people[schema.user]), batch.fields, batch.dense


def _user_columns(prep, log, users, context): # fields (U, F), dense (U, D); the item's columns are not read
    row_of, *tables = log.kept(("people", prep.spec.prep), lambda: _people(prep, log))
    rows = row_of.get_indexer(pd.Index(users))
    columns = [table[rows] for table in tables] # -1, an unknown user, is the last row
    if not context: return columns
    batch = item_batch(prep, pd.DataFrame({prep.schema.user: [None]}), context)
    for table, values, names in zip(columns, (batch.fields, batch.dense),
                                    (list(prep.spec.fields), list(prep.spec.dense))):
        own = [names.index(c) for c in context if c in names]
        table[:, own] = values[:, own]
    return columns


class InterestScorer(Scorer):
    """The same for an `InterestModel`: what depends on items alone is computed once, what depends on the user
    alone once per list, by (10.7) and (10.8). A model that these do not describe, such as one with your own
    fusion, goes through its whole forward pass.

    Raises: `ValueError` for a model and a preprocessor that do not belong together.
    """
    def __init__(self,
        model: InterestModel, # Trained; stays on the device where it is
        prep: Preprocessor, # Fitted; it knows the items
    ):
        from .rank import column_owners
        super().__init__(model, prep)
        self.split, self.heads = _parts(model, prep), {}
        if not self.split: return
        owners = column_owners(model)
        self.columns = {who: torch.from_numpy(np.flatnonzero(owners == who)).to(self.device)
                        for who in ("item", "user", "z", "interaction")}
        batch, block = item_batch(prep), 2**16
        with torch.inference_mode():
            kept = [self._kept(batch[i:i + block].to(self.device))
                    for i in range(0, max(len(batch), 1), block)]
        self.items = {name: torch.cat([part[name] for part in kept]) for name in kept[0]}

    def _kept(self, batch): # what (10.7) and (10.8) keep of some items
        model = self.model
        features = _features(model, batch.fields, batch.dense, batch.scenario)
        query = model.item_vectors(batch)
        kept = dict(query=query, x=features[:, self.columns["item"]], wanted=query[:, :0])
        if hasattr(model, "fuse"): kept["wanted"] = model.item_projection(query)
        if attention := _attention(model):
            W_item = attention.query.weight[:, :query.shape[1]]
            kept["asks"] = attention.key(query @ W_item.T)
        return kept

    def scores(self, users, scenario, log, when, context, task=0):
        if not self.split: return super().scores(users, scenario, log, when, context, task)
        n, block = len(self.prep.items_), 2**13 if self.device.type == "cpu" else 2**18
        out, together = torch.empty(len(users), n), max(block//max(n, 1), 1)
        with torch.inference_mode():
            for u in range(0, len(users), together):
                logits = self._logits(users[u:u + together], scenario, log, when, context, task)
                for i in range(0, n, block):
                    out[u:u + together, i:i + block] = logits(slice(i, i + block)).float().sigmoid()
        return out

    def vectors(self): return self.items["query"].cpu() if self.split else super().vectors()

    def _head(self, number): # its layers, W_1 in parts, and W_I x_i of all items; made when it is first asked
        if number not in self.heads:
            layers = _layers(self.model.predictors[number])
            W = {who: layers[0].weight[:, columns] for who, columns in self.columns.items()}
            self.heads[number] = layers, W, self.items["x"] @ W["item"].T
        return self.heads[number]

    # A function from a block of items to the (U, m) log-odds of some users
    def _logits(self, users, scenario, log, when, context, task):
        from .rank import first_layer, item_weights
        model, t = self.model, self.prep.scenarios_.index(scenario)
        per_task = len(model.predictors)//len(model.spec.tasks)
        layers, W, item_terms = self._head(task*per_task + (t if per_task > 1 else 0))
        fields, dense = (x.to(self.device) for x in _user_columns(self.prep, log, users, context))
        t = torch.tensor(t, device=self.device).expand(len(users))
        x = _features(model, fields, dense, t)
        user = x[:, self.columns["user"]] @ W["user"].T + layers[0].bias
        h = present = x.new_zeros(len(users), 0, 0)
        if hasattr(model, "fuse"):
            table, present = (x.to(self.device) for x in _histories(self.prep, log, users, when))
            h = model.extract(table.to(x.dtype)).masked_fill(~present.unsqueeze(-1), 0)
        mixed, constant = _mix(model, h, present, t)
        if attention := _attention(model):
            W_scenario = attention.query.weight[:, -h.shape[2]:]
            here = attention.key(W_scenario @ attention.target(t[0]))

        def logits(block):
            item, kept = item_terms[block], {name: x[block] for name, x in self.items.items()}
            if attention: alpha = item_weights(kept["asks"], here, h, present).to(x.dtype)
            else: alpha = x.new_zeros(len(users), len(item), 0)
            out = first_layer(item, user, alpha, mixed, constant, kept["wanted"], W["z"], W["interaction"])
            for layer in layers[1:]: out = layer(out.relu_())
            return out.squeeze(-1)

        return logits


# ---------------------------------------------------------------- lists

def recommend(
    model: Recommender, # Trained
    prep: Preprocessor, # Fitted; it knows the items
    log: EventLog | pd.DataFrame, # What has happened so far
    user_id, # User id; an unknown id gets recommendations without history
    scenario, # Where the list will be shown
    k: int = 10, # Length of the list; shorter where fewer items are left
    exclude_seen: bool = True, # Leave out every item that the user was shown before that moment
    diversity: float = 0.0, # 0 to 1, as in mmr; 0 sorts by interest alone
    when: int | None = None, # Moment of the list in seconds; None is one second after the log's last row
    context: dict | None = None, # Values of further columns that the schema names, one for all items
    task: str | None = None, # Which answer counts, where the model predicts several; None takes the first
) -> pd.DataFrame: # One row per place: rank from 1, the item's id and columns, score (a probability)
    """The list for one user in one scenario; `Catalogue` makes many of them at less cost.

    Raises: `ValueError` for an unknown scenario or task, k below 1, a diversity outside 0 to 1, a user who
    has seen everything, a user id of another type than the log's, a context column that is missing or not
    allowed, an empty log without `when`, or a model and a preprocessor that do not belong together.
    """
    _check_list(k, diversity)
    scorer, context = Scorer(model, prep), dict(context or {})
    log, when = _checked(prep, log, [user_id], scenario, when, context)
    column, positions = _task_number(model, task), _candidates(prep, log, user_id, when, exclude_seen)
    rows = question(prep, user_id, scenario, when, context, positions)
    prob = predict(model, prep.transform(rows, log=log))
    score = (prob if prob.ndim == 1 else prob[:, column]).numpy()
    pick = _picked(score, lambda: scorer.vectors()[positions], k, diversity)
    return _list_frame(prep.items_, positions[pick], score[pick])


class Catalogue:
    """All items read once, for many lists: those of `recommend`, at a fraction of the work.

    It keeps what the model's `serving` computes from the items: build a new one when weights or items have
    changed.

    Raises: `ValueError` for a model and a preprocessor that do not belong together.
    """
    def __init__(self,
        model: Recommender, # Trained; stays on the device where it is
        prep: Preprocessor, # Fitted; it knows the items
        log: EventLog | pd.DataFrame, # What has happened so far; sorted once
    ):
        _check_pair(model, prep)
        self.scorer, self.prep, self.log = model.serving(prep), prep, _sorted_log(prep, log)

    def scores(self,
        users: Iterable, # U user ids; unknown ones are newcomers
        scenario, # Where the lists will be shown
        log: EventLog | pd.DataFrame | None = None, # A newer log; None takes the catalogue's own
        when: int | None = None, # Moment in seconds; None is one second after the log's last row
        context: dict | None = None, # Values of further columns that the schema names, one for all
        task: str | None = None, # Which answer counts, where the model predicts several; None takes the first
    ) -> torch.Tensor: # (U, n) float32 on the CPU: probability of every item, in the order of prep.items_
        """Score all items for some users, in blocks: the result apart, memory does not grow with users or
        items.

        Raises: `ValueError` as `recommend` does, but not for what was seen.
        """
        users, context = list(users), dict(context or {})
        log, when = _checked(self.prep, self.log if log is None else log, users, scenario, when, context)
        self.scorer.check_device()
        number = _task_number(self.scorer.model, task)
        return self.scorer.scores(users, scenario, log, when, context, number)

    def recommend(self,
        user_id, # User id; an unknown id gets recommendations without history
        scenario, # Where the list will be shown
        k: int = 10, # Length of the list; shorter where fewer items are left
        exclude_seen: bool = True, # Leave out every item that the user was shown before that moment
        diversity: float = 0.0, # 0 to 1, as in mmr; 0 sorts by interest alone
        log: EventLog | pd.DataFrame | None = None, # A newer log; None takes the catalogue's own
        when: int | None = None, # Moment of the list in seconds; None is one second after the log's last row
        context: dict | None = None, # Values of further columns that the schema names, one for all items
        task: str | None = None, # Which answer counts, where the model predicts several; None takes the first
    ) -> pd.DataFrame: # One row per place: rank from 1, the item's id and columns, score (a probability)
        """The list for one user in one scenario, as `recommend` makes it. Raises: `ValueError` as `recommend`
        does."""
        _check_list(k, diversity)
        log = self.log if log is None else _sorted_log(self.prep, log)
        score = self.scores([user_id], scenario, log, when, context, task)[0].numpy()
        when = log.last + 1 if when is None else int(when)
        positions = _candidates(self.prep, log, user_id, when, exclude_seen)
        pick = positions[_picked(score[positions], lambda: self.scorer.vectors()[positions], k, diversity)]
        return _list_frame(self.prep.items_, pick, score[pick])
