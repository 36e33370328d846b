"""Learn, teach and use multi-scenario recommendation.

`import multiscene_rec` loads no other module. Each public name below is looked up in its own module at
first use, so that a reader who only needs `multiscene_rec.auc` does not wait for the data and the models.
Hand-written are this file and what teaches nothing: storage, checks, logs, training, checkpoints, contract,
runs. All other modules are exported from the notebook of their name.
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
    "data": ("toy_mall", "Mall", "Schema", "Batch"),
    "logs": ("load_coupons", "load_movielens_100k", "read_log"),
    "preprocess": ("clean", "dedupe", "MinMax", "StandardScore", "Vocabulary", "time_split", "group_split",
                   "EventLog",
                   "Feature", "Task", "Spec", "Part", "Categories", "Numbers", "Labels", "Histories",
                   "Vectors",
                   "Sequences", "Preprocessor"),
    "extractor": ("ReLUExtractor", "FieldEmbedding", "relu_backward"),
    "fusion": ("Fusion", "WeightedFusion", "ScenarioAttention", "MeanFusion", "ConcatFusion", "OwnScenario",
               "softmax_jacobian"),
    "predictor": ("InterestPredictor", "bce_with_logits", "calibration_table", "observable_ceiling"),
    "metrics": ("accuracy", "log_loss", "auc", "gauc", "precision_at_k", "recall_at_k", "hit_rate_at_k",
                "mrr",
                "ndcg_at_k", "catalogue_coverage", "user_coverage", "novelty", "intra_list_diversity",
                "report",
                "bootstrap_interval"),
    "model": ("Recommender", "Explanation", "InterestModel"),
    "train": ("fit", "predict", "evaluate", "compare", "TrainingLog", "Callback", "KeepBest", "Checkpoint",
              "Progress",
              "FiniteCheck"),
    "rank": ("top_k", "mmr", "recommend", "Catalogue"),
    "coupons": (),
    "cli": (),
    "storage": (),
    "checks": (),
    "training": (),
    "checkpoints": (),
    "contract": ("check_recommender",),
    "runs": (),
}
# Name of a model of the package -> the module that defines it; `model.build` imports it when it is first
# asked for.
_MODELS = {"interest": "model"}
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
    from . import (article, checkpoints, checks, cli, contract, core, coupons, data, extractor, fusion, logs,
                   metrics, model, predictor, preprocess, rank, runs, storage, train, training)
    from .article import (build_feature_extractor, build_interest_predictor, build_scenario_fuser,
                          predict_interests, preprocess_data, train_model)
    from .contract import check_recommender
    from .core import check_shape, pick_device, set_seed
    from .data import Batch, Mall, Schema, toy_mall
    from .extractor import FieldEmbedding, ReLUExtractor, relu_backward
    from .fusion import (ConcatFusion, Fusion, MeanFusion, OwnScenario, ScenarioAttention, WeightedFusion,
                         softmax_jacobian)
    from .logs import load_coupons, load_movielens_100k, read_log
    from .metrics import (accuracy, auc, bootstrap_interval, catalogue_coverage, gauc, hit_rate_at_k,
                          intra_list_diversity, log_loss, mrr, ndcg_at_k, novelty, precision_at_k,
                          recall_at_k, report, user_coverage)
    from .model import Explanation, InterestModel, Recommender
    from .predictor import InterestPredictor, bce_with_logits, calibration_table, observable_ceiling
    from .preprocess import (Categories, EventLog, Feature, Histories, Labels, MinMax, Numbers, Part,
                             Preprocessor, Sequences, Spec, StandardScore, Task, Vectors, Vocabulary, clean,
                             dedupe, group_split, time_split)
    from .rank import Catalogue, mmr, recommend, top_k
    from .train import (Callback, Checkpoint, FiniteCheck, KeepBest, Progress, TrainingLog, compare,
                        evaluate, fit, predict)
