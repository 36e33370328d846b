"""What can be wrong with a request for a list: what is refused and in which words, and what is no mistake
at all."""
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from multiscene_rec import data, fusion, metrics, model, preprocess, rank, train

wrong = pytest.mark.wrong


@pytest.fixture(scope="module")
def shop():
    "A small mall, its preprocessor, an untrained model and its catalogue."
    mall = data.toy_mall(n_users=40, n_items=30, n_events=1200, seed=4)
    prep = preprocess.Preprocessor().fit(mall.events, mall.users, mall.items)
    torch.manual_seed(0)
    net = model.InterestModel(prep.spec).eval()
    return mall, prep, net, rank.Catalogue(net, prep, log_of(mall))


def log_of(mall, events=None):
    return preprocess.EventLog(mall.events if events is None else events, mall.users)


def makers(shop):
    "The two ways to a list."
    _, prep, net, catalogue = shop
    return [lambda *a, log=catalogue.log, **k: rank.recommend(net, prep, log, *a, **k), catalogue.recommend]


def refused(shop, says, *args, **more):
    for make in makers(shop):
        with pytest.raises(ValueError, match=says): make(*args, **more)


# What is refused

@wrong("scenario … is unknown; choose from …",
       cause="The scenario's name is misspelled, or the training log did not hold it.",
       remedy="Take one of the names in the message, or train on a log that has the scenario.", area="lists")
@pytest.mark.parametrize("scenario", ["roof", "Home", 3, None, ("home",)])
def test_an_unknown_scenario_names_the_known_ones(shop, scenario):
    refused(shop, "scenario .* is unknown; choose from cart, home, live, search", 3, scenario)
    with pytest.raises(ValueError, match="is unknown; choose from cart, home, live, search"):
        shop[3].scores([3], scenario)


@wrong("… must be a whole number of 1 or more, got …",
       cause="A list of no items, or of a broken number of them, was asked for.",
       remedy="Give k as a whole number such as 10.", area="lists")
@pytest.mark.parametrize("k", [0, -1, 1.5, 10., "3", None, True])
def test_k_that_is_no_length(shop, k):
    refused(shop, "k must be a whole number of 1 or more, got ", 3, "home", k=k)
    for measure in (metrics.precision_at_k, metrics.ndcg_at_k):
        with pytest.raises(ValueError, match="k"): measure([1, 0], [.5, .4], [1, 1], k)


@wrong("… must lie between 0 and 1, got …",
       cause="The dial between interest and variety stands beyond its ends.",
       remedy="Give a number from 0, interest alone, to 1, variety alone.", area="lists")
@pytest.mark.parametrize("diversity", [-.1, 1.1, float("nan")])
def test_a_dial_beyond_its_ends(shop, diversity):
    refused(shop, "diversity must lie between 0 and 1, got ", 3, "home", diversity=diversity)


@wrong("user … has seen every item; pass exclude_seen=False to show them again",
       cause="Every item of the shop was shown to this user before.",
       remedy="Pass exclude_seen=False, or add items.", area="lists")
def test_a_user_who_has_seen_everything(shop):
    mall = shop[0]
    shown = dict(user_id=3, item_id=mall.items.item_id, scenario="home", timestamp=10**9, clicked=0)
    log = log_of(mall, pd.DataFrame(shown))
    for lam in (0, .3):
        refused(shop, "user 3 has seen every item; pass exclude_seen=False to show them again", 3, "home",
                log=log, diversity=lam)
    for make in makers(shop): assert len(make(3, "home", log=log, exclude_seen=False)) == 10


def test_an_id_of_another_kind(shop):
    refused(shop, "column 'user_id': these ids are text, those of the log are numbers: convert them", "3",
            "home")
    with pytest.raises(ValueError, match="column 'user_id': these ids are "):
        shop[3].scores(["2", "3"], "home")


@wrong("model and preprocessor do not belong together: their specs differ; use the pair that was trained "
       "together",
       cause="The model was trained with another preprocessor.",
       remedy="Load both from the folder that one training wrote.", area="lists")
@pytest.mark.parametrize("other", [
    lambda spec: spec.with_features(preprocess.Feature("history", "history", 7, "user", tuple("abcdefg"))),
    lambda spec: replace(spec, scenarios=("home",)),
    lambda spec: replace(spec, features=tuple(f for f in spec.features if f.kind != "number")),
    lambda spec: replace(spec, tasks=(preprocess.Task("bought"),)),
    lambda spec: replace(spec, prep="0"*64)])
def test_a_model_and_a_preprocessor_of_two_trainings(shop, other):
    net = model.InterestModel(other(shop[1].spec))
    pair = net, shop[1], shop[3].log
    for ask in (lambda: rank.recommend(*pair, 3, "home"), lambda: rank.Catalogue(*pair)):
        with pytest.raises(ValueError,
            match="model and preprocessor do not belong together: their specs differ; use the pair that was "
                  "trained together"):
            ask()


def test_a_model_of_one_size_and_other_data(shop):
    "Two shops alike in every number: only the checksum of what was learned tells them apart."
    mall = shop[0]
    other = preprocess.Preprocessor().fit(mall.events, mall.users,
                                          mall.items.assign(price=mall.items.price*2))
    assert replace(other.spec, prep=shop[1].spec.prep) == shop[1].spec
    net = model.InterestModel(other.spec)
    with pytest.raises(ValueError, match="model and preprocessor do not belong together"):
        rank.Catalogue(net, shop[1], shop[3].log)


@wrong("the preprocessor is not fitted: fit it, or load a fitted one",
       cause="A new Preprocessor was passed.", remedy="Call fit, or Preprocessor.load.", area="lists")
def test_a_preprocessor_that_was_not_fitted(shop):
    net, log = shop[2], shop[3].log
    for ask in (lambda prep: rank.recommend(net, prep, log, 3, "home"),
                lambda prep: rank.Catalogue(net, prep, log)):
        with pytest.raises(ValueError,
                           match="the preprocessor is not fitted: fit it, or load a fitted one"):
            ask(preprocess.Preprocessor())


@wrong("context: … cannot be set for all items; choose from …",
       cause="The context names a column that belongs to the items or that the schema does not know.",
       remedy="Leave it out, or take one of the columns in the message.", area="lists")
def test_a_context_that_belongs_to_the_items(shop):
    refused(shop, "context: 'price' cannot be set for all items; choose from age_band, city", 3, "home",
            context={"price": 1})


@wrong("column … belongs to the moment of the list: give its value, context={…: ...}",
       cause="The model reads a column of the moment, such as the hour, and nobody has said what it is now.",
       remedy="Pass its value in context.", area="lists")
def test_a_column_of_the_moment_that_nobody_gives(shop):
    mall = shop[0]
    log = mall.events.assign(hour="day")
    prep = preprocess.Preprocessor(data.Schema(categorical=("hour", "category"), numeric=())).fit(log,
        mall.users, mall.items)
    net, log = model.InterestModel(prep.spec), preprocess.EventLog(log, mall.users, prep.schema)
    catalogue = rank.Catalogue(net, prep, log)
    for make in (lambda **k: rank.recommend(net, prep, log, 3, "home", **k),
                 lambda **k: catalogue.recommend(3, "home", **k)):
        with pytest.raises(ValueError,
            match="column 'hour' belongs to the moment of the list: give its value, context={'hour': ...}"):
            make()
        assert len(make(context={"hour": "day"})) == 10


@wrong("the log has no rows, so it has no last moment: give when, in seconds",
       cause="A list needs a moment, and an empty log has none.",
       remedy="Pass when, in seconds since 1970.", area="lists")
def test_an_empty_log_without_a_moment(shop):
    nothing = log_of(shop[0], shop[0].events[:0])
    refused(shop, "the log has no rows, so it has no last moment: give when, in seconds", 3, "home",
            log=nothing)
    for make in makers(shop): assert len(make(3, "home", log=nothing, when=10**9)) == 10


@wrong("log: there is no column …; the columns are …",
       cause="The log that was passed lacks a column that the schema names.",
       remedy="Rename the column, or name it in the schema.", area="lists")
def test_a_log_without_a_column(shop):
    with pytest.raises(ValueError, match="log: there is no column 'clicked'; the columns are "):
        shop[3].recommend(3, "home", log=shop[0].events.drop(columns="clicked"))


@wrong("the model has moved from … to … since the catalogue was built: build it again",
       cause="The model was moved to another device.",
       remedy="Build a new Catalogue after moving the model.", area="lists")
def test_a_model_that_moved(shop):
    catalogue = rank.Catalogue(shop[2], shop[1], shop[3].log)
    catalogue.scorer.device = torch.device("meta")  # as if it had been built there
    with pytest.raises(ValueError,
                       match="the model has moved from meta to cpu since the catalogue was built: build it "
                             "again"):
        catalogue.recommend(3, "home")


@wrong("the batch does not fit the model's spec: Batch.…: axis …",
       cause="The batch was made by a preprocessor other than the model's.",
       remedy="Transform the rows with the preprocessor that the model was trained with.", area="lists")
def test_a_batch_of_another_preprocessor(shop):
    mall, prep, net, _ = shop
    other = preprocess.Preprocessor(data.Schema(categorical=("category",), numeric=("price",))).fit(
        mall.events, mall.users, mall.items)
    with pytest.raises(ValueError,
                       match="the batch does not fit the model's spec: Batch.fields: axis 'F': expected 5, "
                             "got 2 .*use the preprocessor that the model was trained with"):
        train.predict(net, other.transform(mall.events[:50]))


# What is no mistake

@pytest.mark.parametrize("user", [-1, 10**9, None, float("nan"), np.int64(10**6)])
def test_a_newcomer_gets_a_list(shop, user):
    for make in makers(shop):
        for lam in (0, .3):
            top = make(user, "home", k=30, diversity=lam)
            assert len(top) == 30 and top.score.between(0, 1).all()
    pd.testing.assert_series_equal(makers(shop)[0](user, "home").score, makers(shop)[1](-1, "home").score,
                                   atol=1e-6)


def test_a_known_user_without_a_history(shop):
    mall = shop[0]
    log = log_of(mall, mall.events[mall.events.user_id != 3])
    for make in makers(shop): assert len(make(3, "home", k=30, log=log)) == 30


def test_a_list_longer_than_the_shop_is_shorter(shop):
    mall = shop[0]
    unseen = len(set(mall.items.item_id) - set(mall.events.item_id[mall.events.user_id == 3]))
    for make in makers(shop):
        for lam in (0, .3):
            assert len(make(3, "home", k=10**6, exclude_seen=False, diversity=lam)) == 30
            assert len(make(3, "home", k=np.int64(500), diversity=lam)) == unseen


def test_an_item_that_nobody_knows_is_scored(shop):
    mall, prep, net, _ = shop
    frame = pd.DataFrame(dict(user_id=3, item_id=[1, 10**6, -5], scenario="home", timestamp=10**9))
    score = train.predict(net, prep.transform(frame, log=shop[3].log))
    assert score.isfinite().all() and abs(score[1] - score[2]) < 1e-6
    # and a log may hold it
    log = log_of(mall, pd.concat([mall.events, frame.assign(clicked=1, timestamp=10**9)]))
    for make in makers(shop):
        assert len(make(3, "home", k=30, log=log, when=10**9 + 1, exclude_seen=False)) == 30


def test_a_row_of_the_log_without_a_user_or_in_an_unknown_scenario_is_nobodys(shop):
    mall = shop[0]
    log = pd.concat([mall.events.astype({"user_id": "float64"}),
                     pd.DataFrame(dict(user_id=[np.nan, 3.], item_id=1, scenario=["home", "roof"],
                                       timestamp=10**6, clicked=1))], ignore_index=True)
    log = log_of(mall, log)
    lists = [make(3, "home", k=30, log=log, exclude_seen=False) for make in makers(shop)]
    np.testing.assert_allclose(lists[0].score, lists[1].score, atol=1e-6)


# Shapes: the axis is named

B, S, D, Q = 4, 3, 5, 6
GOOD = dict(h=torch.zeros(B, S, D), present=torch.ones(B, S, dtype=torch.bool), query=torch.zeros(B, Q),
            scenario=torch.zeros(B, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["own", "mean", "concat", "attention"])
@pytest.mark.parametrize("changed, says", [
    (dict(h=torch.zeros(B, S + 1, D)), "axis 'S': expected 3, got 4"),
    (dict(h=torch.zeros(B, S, D + 1)), "axis 'd': expected 5, got 6"),
    (dict(h=torch.zeros(B, D)), "expected 3 axes"), (dict(present=torch.ones(B + 1, S, dtype=torch.bool)),
                                                     "axis 'B': expected 4, got 5"),
    (dict(present=torch.ones(B, S)), "present must be bool"),
    (dict(query=torch.zeros(B, Q + 1)), "axis 'd_query': expected 6, got 7"),
    (dict(scenario=torch.zeros(B)), "scenario must be int64"),
    (dict(scenario=torch.full((B,), S)), "scenario ids must lie in 0..2, got 3")])
def test_fusions_name_the_axis(kind, changed, says):
    with pytest.raises(ValueError, match=says): fusion.make_fusion(kind, D, S, Q)(**GOOD | changed)


@pytest.mark.parametrize("axis, changed",
    [("d", dict(asks=torch.zeros(7, 6))), ("d", dict(here=torch.zeros(4))),
     ("S", dict(present=torch.ones(2, 4, dtype=torch.bool))),
                                           ("U", dict(present=torch.ones(1, 3, dtype=torch.bool)))])
def test_item_weights_name_the_axis(axis, changed):
    good = dict(asks=torch.zeros(7, 5), here=torch.zeros(5), h=torch.zeros(2, 3, 5),
                present=torch.ones(2, 3, dtype=torch.bool))
    assert rank.item_weights(**good).shape == (2, 7, 3)
    with pytest.raises(ValueError, match=f"axis '{axis}'"): rank.item_weights(**good | changed)


@wrong("top_k: score of row … is nan; it cannot be ranked",
       cause="The model gave a score that is no number: its training diverged.",
       remedy="Train again with a smaller lr, and look at the losses.", area="lists")
def test_scores_that_cannot_be_ranked():
    with pytest.raises(ValueError, match="top_k: score of row 1 is nan; it cannot be ranked"):
        rank.top_k([.5, float("nan")], 1)
    with pytest.raises(ValueError, match=r"top_k: expected one axis of scores, got shape \(2, 2\)"):
        rank.top_k(np.zeros((2, 2)), 1)
    with pytest.raises(ValueError, match="mmr: vectors: axis 'n': expected 2, got 3"):
        rank.mmr([.5, .4], np.eye(3), 1, .5)


def test_metrics_name_what_does_not_fit():
    for ask in (lambda: metrics.auc([0, 1], [.5]), lambda: metrics.auc([[0, 1]], [[.5, .4]]),
                lambda: metrics.gauc([0, 1], [.5, .4], [1]), lambda: metrics.log_loss([0, 1], [.5])):
        with pytest.raises(ValueError, match="axis|axes|length|shape|rows"): ask()
