"""Learn, teach and use multi-scenario recommendation.

`import multiscene_rec` loads no other module. Each public name below is looked up in its own module at
first use, so that a reader who only needs `multiscene_rec.auc` does not wait for the data and the models.
Hand-written are this file and what teaches nothing, named among PLAIN by tools/pages.py. All other modules
are exported from the notebook of their name.
"""
__version__ = "0.1.0"

import importlib
from typing import TYPE_CHECKING

# Module -> the names that `multiscene_rec` itself shows. The order is that of the notebooks.
_MODULES = {
    "article": ("preprocess_data", "build_feature_extractor", "build_scenario_fuser",
                "build_interest_predictor",
                "train_model", "predict_interests"),
    "core": ("set_seed", "pick_device", "check_shape"),
    "data": ("toy_mall", "Mall"),
    "schema": ("Schema",),
    "batch": ("Batch",),
    "mall_parts": (),
    "logs": ("load_coupons", "load_movielens_100k", "read_log"),
    "columns": (),
    "cleaning": ("clean", "dedupe"),
    "preprocess": ("MinMax", "StandardScore", "Vocabulary", "time_split", "group_split"),
    "features": ("Feature", "Task", "Spec"),
    "events": ("EventLog",),
    "parts": ("Part", "Categories", "Numbers", "Labels", "Histories", "Vectors", "Sequences", "Preprocessor"),
    "extractor": ("ReLUExtractor", "FieldEmbedding", "relu_backward"),
    "fusion": ("Fusion", "WeightedFusion", "ScenarioAttention", "MeanFusion", "ConcatFusion", "OwnScenario",
               "softmax_jacobian"),
    "predictor": ("InterestPredictor", "bce_with_logits", "calibration_table", "observable_ceiling"),
    "metrics": ("accuracy", "log_loss", "auc", "gauc", "precision_at_k", "recall_at_k", "hit_rate_at_k",
                "mrr",
                "ndcg_at_k", "catalogue_coverage", "user_coverage", "novelty", "intra_list_diversity",
                "report",
                "bootstrap_interval"),
    "recommender": ("Recommender", "Explanation"),
    "interest": (),
    "counting": (),
    "inspection": (),
    "model": ("InterestModel",),
    "train": ("fit", "predict", "evaluate", "compare", "TrainingLog", "Callback", "KeepBest", "Checkpoint",
              "Progress",
              "FiniteCheck"),
    "rank": ("top_k", "mmr"),
    "coupons": (),
    "commands": (),
    "cli": (),
    "storage": (),
    "checks": (),
    "arrays": (),
    "serving": ("recommend", "Catalogue"),
    "training": (),
    "checkpoints": (),
    "trials": (),
    "contract": ("check_recommender",),
    "runs": (),
}
# Name of a model of the package -> the module that defines it; `model.build` imports it when it is first
# asked for.
_MODELS = {"interest": "model"}
# Name of a part of the package -> the module that defines it, where that is not `parts`.
_PARTS = {"VenueVisits": "coupons", "VenueHistories": "coupons"}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = ["__version__", *_MODULES, *_HOME]


def __getattr__(name):
    "Import the module `name`, or the module that holds it, at first use."
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    "The public names, whether their modules are loaded yet or not."
    return sorted({*globals(), *__all__})


# for editors and type checkers, which do not follow __getattr__; a test compares it with _MODULES
if TYPE_CHECKING:
    from . import (arrays, article, batch, checkpoints, checks, cleaning, cli, columns, commands, contract,
                   core, counting, coupons, data, events, extractor, features, fusion, inspection, interest,
                   logs, mall_parts, metrics, model, parts, predictor, preprocess, rank, recommender, runs,
                   schema, serving, storage, train, training, trials)
    from .article import (build_feature_extractor, build_interest_predictor, build_scenario_fuser,
                          predict_interests, preprocess_data, train_model)
    from .batch import Batch
    from .cleaning import clean, dedupe
    from .contract import check_recommender
    from .core import check_shape, pick_device, set_seed
    from .data import Mall, toy_mall
    from .events import EventLog
    from .extractor import FieldEmbedding, ReLUExtractor, relu_backward
    from .features import Feature, Spec, Task
    from .fusion import (ConcatFusion, Fusion, MeanFusion, OwnScenario, ScenarioAttention, WeightedFusion,
                         softmax_jacobian)
    from .logs import load_coupons, load_movielens_100k, read_log
    from .metrics import (accuracy, auc, bootstrap_interval, catalogue_coverage, gauc, hit_rate_at_k,
                          intra_list_diversity, log_loss, mrr, ndcg_at_k, novelty, precision_at_k,
                          recall_at_k, report, user_coverage)
    from .model import InterestModel
    from .parts import Categories, Histories, Labels, Numbers, Part, Preprocessor, Sequences, Vectors
    from .predictor import InterestPredictor, bce_with_logits, calibration_table, observable_ceiling
    from .preprocess import MinMax, StandardScore, Vocabulary, group_split, time_split
    from .rank import mmr, top_k
    from .recommender import Explanation, Recommender
    from .schema import Schema
    from .serving import Catalogue, recommend
    from .train import (Callback, Checkpoint, FiniteCheck, KeepBest, Progress, TrainingLog, compare,
                        evaluate, fit, predict)
