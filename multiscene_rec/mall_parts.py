"""What a mall needs besides its formulas: goods, visits, prices, dirt. Hand-written; not part of a lesson."""
import numpy as np
import pandas as pd

__all__ = ["check_sizes", "make_items", "make_users", "make_visits", "sale_prices", "cities", "taste_columns",
           "positions", "soil"]

_CATEGORIES = ("shoes", "dresses", "coats", "phones", "laptops", "lamps", "rugs", "games", "books", "snacks",
               "tea", "toys")
_BRANDS = ("Aster", "Birch", "Cedar", "Dune", "Ember", "Fjord", "Grove", "Haze")
_GRADES = ("flimsy", "plain", "simple", "decent", "solid", "fine", "choice", "superb") # poor to good quality
_COLOURS = ("black", "white", "red", "blue", "green", "grey", "yellow", "brown")
_AGES, _CITIES = ("<25", "25-34", "35-54", "55+"), ("north", "south", "coast")
_START, _DAYS = 1_767_225_600, 60 # 2026-01-01 00:00 UTC; days of trade


def check_sizes(
    history: str, # Must be sparse or rich
    **sizes: int, # Name: a number of users, items or events
) -> None:
    """Refuse sizes that no mall can be built from."""
    for name, value in sizes.items():
        if value < 1: raise ValueError(f"{name} must be 1 or more, got {value}")
    if history not in ("sparse", "rich"):
        raise ValueError(f"history must be 'sparse' or 'rich', got {history!r}")


def _names(names, codes): # The name of each code
    return np.array(names, dtype=object)[codes]


# Goods and people

def _titles(items): # A title in words; the colour keeps similar items apart
    grade = (items.quality.rank(pct=True)*len(_GRADES) - 1e-9).astype(int).clip(0, len(_GRADES) - 1)
    name = pd.Series(_names(_GRADES, grade), items.index) + " " + items.brand + " " + items.category
    twin = name.groupby(name).cumcount().to_numpy()
    colour = pd.Series(_names(_COLOURS, twin % len(_COLOURS)), items.index)
    round_of_colours = pd.Series(twin//len(_COLOURS) + 1, items.index)
    number = np.where(twin < len(_COLOURS), "", " " + round_of_colours.astype(str))
    return name + ", " + colour + number


def make_items(
    r: np.random.Generator, # Random numbers
    n: int, # Items
    k: int, # Length of an item vector
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]: # Items; vectors (n, k) of length 1; item effects (n,)
    """Goods of twelve categories and eight brands; what they are like depends on both."""
    category, brand = r.integers(len(_CATEGORIES), size=n), r.integers(len(_BRANDS), size=n)
    centre, offset = r.normal(size=(len(_CATEGORIES), k)), r.normal(size=(len(_BRANDS), k))*.5
    vectors = centre[category] + offset[brand]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    quality = r.normal(size=n)
    price = np.round(np.exp(r.normal(3., .8, size=n) + .3*centre[category, 0]), 2)
    popularity = 1 / np.arange(1, n + 1)**.8
    popularity = r.permutation(popularity/popularity.sum())
    items = pd.DataFrame(dict(item_id=np.arange(n), category=_names(_CATEGORIES, category),
                              brand=_names(_BRANDS, brand), price=price, quality=quality,
                              popularity=popularity))
    items.insert(1, "title", _titles(items))
    return items, vectors, .4*quality - .15*(np.log(price) - 3)


def make_users(
    r: np.random.Generator, # Random numbers
    n: int, # Users
    n_tastes: int, # T: browsing, buying, and perhaps private ones
    k: int, # Length of a taste
) -> tuple[pd.DataFrame, np.ndarray]: # user_id and age_band; (n, T, k): the mean tastes of the user's band
    """Users with an age band; the bands differ in what they like on average."""
    age, band_mean = r.integers(len(_AGES), size=n), np.zeros((len(_AGES), n_tastes, k))
    band_mean[:, :2] = r.normal(size=(len(_AGES), 2, k))*.5 # private tastes have mean 0 in every band
    return pd.DataFrame(dict(user_id=np.arange(n), age_band=_names(_AGES, age))), band_mean[age]


def cities(
    r: np.random.Generator, # Random numbers
    n: int, # Users
) -> np.ndarray: # (n,) names
    """A city for each user; nothing depends on it."""
    return _names(_CITIES, r.integers(len(_CITIES), size=n))


def taste_columns(
    tastes: np.ndarray, # (n, T, k)
    scenarios: tuple, # Names; the owners of private tastes
) -> pd.DataFrame: # (n, T*k): browse_1, browse_2, and so on
    """Hidden tastes as columns."""
    n, n_tastes, k = tastes.shape
    owners = ("browse", "buy", *scenarios)[:n_tastes]
    columns = [f"{owner}_{j}" for owner in owners for j in range(1, k + 1)]
    return pd.DataFrame(tastes.reshape(n, -1), columns=columns)


# What happens

def make_visits(
    r: np.random.Generator, # Random numbers
    n_users: int, # Users
    n_events: int, # Rows
    items: pd.DataFrame, # With item_id and popularity
    scenarios: pd.DataFrame, # With share, page and absent, by name
) -> pd.DataFrame: # user_id, item_id, scenario, timestamp, page, position of each row
    """Who visits where and when, and what is shown: popular items more often, whatever a user's taste."""
    n_scenarios, page_size = len(scenarios), scenarios.page.to_numpy(dtype=int)
    share = scenarios.share.to_numpy()/page_size
    share /= share.sum()
    visits_it = r.random((n_users, n_scenarios)) >= scenarios.absent.to_numpy()
    visits_it[:, 0] = True # everyone sees the home feed
    weight = r.gamma(1.5, size=n_users)[:, None]*visits_it*share*r.gamma(4., size=(n_users, n_scenarios))
    weight, n_visits = weight.ravel()/weight.sum(), int(n_events/(share*page_size).sum()*1.2) + 50
    while True:
        visit = r.choice(n_users*n_scenarios, size=n_visits, p=weight)
        if page_size[visit % n_scenarios].sum() >= n_events: break
        n_visits *= 2
    user, scenario = visit//n_scenarios, visit % n_scenarios
    time = np.sort(r.integers(_DAYS*86400, size=n_visits)) + _START
    page, position = _unfold(page_size[scenario], n_events)
    shown = np.searchsorted(np.cumsum(items.popularity.to_numpy()), r.random(n_events))
    return pd.DataFrame(dict(
        user_id=user[page], item_id=items.item_id.to_numpy()[shown.clip(0, len(items) - 1)],
        scenario=_names(list(scenarios.index), scenario[page]), timestamp=time[page], page=page,
        position=position))


def _unfold(page_size, n_events): # Page and position of each item shown, the first n_events of them
    stop = int(np.searchsorted(np.cumsum(page_size), n_events)) + 1
    page_size = page_size[:stop]
    page = np.repeat(np.arange(stop), page_size)[:n_events]
    position = np.arange(page_size.sum()) - np.repeat(np.cumsum(page_size) - page_size, page_size)
    return page, position[:n_events]


def sale_prices(
    r: np.random.Generator, # Random numbers
    items: pd.DataFrame, # With price, in the order of their ids
    events: pd.DataFrame, # With item_id
) -> np.ndarray: # (len(events),) what the item cost at that moment
    """The item's price, reduced two times in five."""
    reduction = r.choice([1., 1., 1., .9, .8], size=len(events))
    return np.round(items.price.to_numpy()[events.item_id.to_numpy()]*reduction, 2)


def positions(
    events: pd.DataFrame, # Rows
    column: str, # Of ids or names
    known, # The ids or names of a table, in its order
) -> np.ndarray: # (len(events),) positions in that table
    """Where each row's id stands in a table. Raises: `ValueError` naming the row of an unknown id."""
    position = pd.Index(known).get_indexer(events[column])
    if (position < 0).any():
        row = int(np.argmax(position < 0))
        raise ValueError(
            f"column {column!r}, row {row}: {events[column].iloc[row]!r} is not in this mall; clean the log "
            "first")
    return position


# Dirt

_DIRT = { # Share of the events
    "duplicate": .01, "resent": .01, "missing id": .006, "price": .004, "time": .004, "scenario": .02}


def soil(
    events: pd.DataFrame, # Clean events of a mall
    seed: int, # Seed of where the dirt falls
) -> tuple[pd.DataFrame, pd.DataFrame]: # The dirty log; row, kind and original event of each bad row
    """The log with dirt, and a list of where it lies."""
    r, n = np.random.default_rng(seed), len(events)
    kinds = np.repeat(list(_DIRT), [round(share*n) for share in _DIRT.values()])
    chosen = pd.DataFrame(dict(original=r.permutation(n)[:len(kinds)], kind=kinds)) # no event is hit twice
    copies = chosen[chosen.kind.isin(("duplicate", "resent"))]
    copied = events.iloc[copies.original].copy()
    copied["timestamp"] += np.where(copies.kind == "resent", r.integers(1, 6, size=len(copies)), 0)
    log = pd.concat([events, copied], ignore_index=True).astype({"user_id": "Int64", "item_id": "Int64"})
    origin = np.concatenate([np.arange(n), copies.original])
    kind = np.concatenate([np.full(n, "", dtype=object), copies.kind.to_numpy(dtype=object)])
    spoiled = chosen.drop(copies.index)
    kind[spoiled.original] = spoiled.kind
    order = np.argsort(log.timestamp.to_numpy(), kind="stable") # a copy comes after its original
    log, origin, kind = log.iloc[order].reset_index(drop=True), origin[order], kind[order]
    for name in list(_DIRT)[2:]: _spoil(log, np.flatnonzero(kind == name), name, r)
    bad = np.flatnonzero(kind != "")
    return log, pd.DataFrame(dict(row=bad, kind=kind[bad], original=origin[bad]))


def _spoil(log, rows, kind, r): # Make one kind of dirt in place
    if kind == "missing id":
        for column, half in (("user_id", rows[::2]), ("item_id", rows[1::2])): log.loc[half, column] = pd.NA
    elif kind == "price":
        log.loc[rows, "price"] = np.choose(r.integers(3, size=len(rows)), [-log.price[rows], 0., 1e9])
    elif kind == "time": # an empty clock, a lost sign, milliseconds, a century too late
        t = log.timestamp[rows].to_numpy()
        log.loc[rows, "timestamp"] = np.choose(r.integers(4, size=len(rows)),
                                               [0*t, -t, 1000*t, t + 100*365*86400])
    elif kind == "scenario":
        name, spelling = log.scenario[rows], r.integers(3, size=len(rows))
        log.loc[rows, "scenario"] = np.select([spelling == 0, spelling == 1],
                                              [name.str.upper(), name.str.title()],
                                              name.str.title().str.swapcase())
