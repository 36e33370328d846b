"""What the experiments of the lesson on training share: a prepared mall, the ceilings, and malls that reveal
more than a log would. Hand-written; not part of a lesson."""
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from .data import Mall, Schema, with_parts
from .metrics import report
from .predictor import observable_ceiling
from .preprocess import Categories, EventLog, Histories, Labels, Numbers, Preprocessor, clean, time_split

__all__ = ["VECTOR_NAMES", "prepare", "ceilings", "reveal_items", "along_vectors"]

VECTOR_NAMES = tuple(f"v{k}" for k in range(1, 5))


def prepare(
    mall: Mall, # Whose events are cleaned and split by time
    schema: Schema = Schema(), # Which column means what
    words: int = 50, # How many words of each column a history counts
    users: tuple | None = None, # Only users below these ids in train, valid and test; None: all
) -> tuple: # Spec, [train, valid, test] as batches, the same three as frames
    """Prepare a mall for training: it is cleaned, split, and turned into batches by a preprocessor that is
    fitted on the training rows."""
    log, _ = clean(mall.events)
    frames = time_split(log)
    if users is not None:
        frames = [frame[frame.user_id < limit] for frame, limit in zip(frames, users)]
        log = log[log.user_id < max(users)]
    past, parts = EventLog(log, mall.users, schema), (Categories(), Numbers(), Labels(), Histories(words))
    prep = Preprocessor(schema, parts).fit(frames[0], users=mall.users, items=mall.items)
    return prep.spec, [prep.transform(frame, past) for frame in frames], frames


def ceilings(
    mall: Mall, # Whose truth is known
    rows: pd.DataFrame, # Test rows
) -> dict: # Name of the ceiling: its report, a row per scenario
    """Reports of the two lines that models are compared with: what the log allows, and the truth."""
    lines = {"ceiling: the log": observable_ceiling(mall, rows), "ceiling: the truth": mall.truth(rows)}
    return {name: report(rows.clicked, p, rows.scenario, rows.user_id) for name, p in lines.items()}


def reveal_items(
    mall: Mall, # Changed in place
    vectors: bool = True, # Whether to add the hidden vectors too
) -> Mall: # The same mall
    """Add columns to a mall's items: `pair` of category and brand, and the hidden vectors `v1` to `v4`."""
    items = mall.items.assign(pair=mall.items.category + " " + mall.items.brand)
    hidden = pd.DataFrame(mall.item_vectors, items.index, VECTOR_NAMES)
    mall.items = items.join(hidden) if vectors else items
    return mall


def along_vectors(
    spec, # Of batches whose histories count clicks per pair
    batches: list, # The batches
    mall: Mall, # As reveal_items returned it
) -> tuple: # Spec and batches whose histories are sums along the vectors of the pairs
    """Turn histories that count pairs into sums of clicks along the items' hidden vectors, and of products of
    the vectors."""
    names = [name.partition("=")[2] for name in spec.history_names if name.startswith("liked ")]
    by_pair = mall.items.drop_duplicates("pair").set_index("pair")[list(VECTOR_NAMES)]
    v = torch.tensor(by_pair.reindex(names).fillna(0).to_numpy(np.float32))
    (i, j), n_scenarios = torch.triu_indices(4, 4), len(spec.scenarios)
    # per pair: liked = (clicks - rate·shown)/√(1 + shown), and log(1 + shown); the last "pair" is all items
    def sums(table):
        shown = table[..., len(names):2*len(names)].expm1()
        total = shown[..., -1:]
        pull = (table[..., :len(names)]*(1 + shown).sqrt()) @ v / (1 + total).sqrt()
        products = shown @ (v[:, i]*v[:, j]) / (1 + total)
        return torch.cat([pull, products, total.log1p(), table[..., -n_scenarios:]], 2)
    batches = [with_parts(batch, history_table=sums(batch.history_table)) for batch in batches]
    width, (old,) = batches[0].history_table.shape[-1], spec.of("history")
    return spec.with_features(replace(old, size=width, names=tuple(f"h{k}" for k in range(width)))), batches
