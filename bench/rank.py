"""One list, and lists for many: the catalogue and the plain `recommend` against bare tensor code.

    python -m bench.rank [--device cuda]    100 000 items; attention, d = 32, one head of 64 units
    python -m bench.rank --quick            a small shop, nothing written

The bare code is what nobody can leave out: one user's histories, already tensors, are read once; the item's
share of the first layer and of the questions is there; then attention, the rest of the head, and torch.topk.
It knows no ids, leaves out nothing that was seen, and makes no frame. What the catalogue takes beyond it is
also measured part by part.
"""
import math
import statistics

import torch

from bench.common import in_turn, options, ratio, record
from multiscene_rec import rank
from multiscene_rec.core import pick_device, set_seed
from multiscene_rec.data import toy_mall
from multiscene_rec.model import InterestModel
from multiscene_rec.preprocess import EventLog, Preprocessor


def shop(n_items, n_users, n_events, device):
    """A preprocessor that knows many items, a log, and an untrained model, since the work does not depend on
    what it has learned."""
    mall = toy_mall(n_users=n_users, n_items=n_items, n_events=n_events)
    prep = Preprocessor().fit(mall.events, mall.users, mall.items)
    set_seed(0)
    return prep, EventLog(mall.events, mall.users), InterestModel(prep.spec).eval().to(device)


class Bare:
    """Attention and one head by hand, in plain torch; everything about the items is precomputed, the user's
    batch is given."""
    def __init__(self, model, prep, scenario, block):
        batch = rank.item_batch(prep).to(next(model.parameters()).device)
        self.m, self.t, self.block, self.n = model, prep.scenarios_.index(scenario), block, len(batch)
        e, D, d = model.d_embed, batch.dense.shape[1], model.widths[-1]
        F, columns = batch.fields.shape[1], model.item_columns
        E = model.embed(batch.fields)
        q = E[:, columns].flatten(1)
        head = model.predictors[0]
        W = head.hidden.layers[0].weight
        W_E, self.W_x, self.W_p, self.W_z, self.W_m = W.split([F*e, D, e, d, d], 1)
        W_E = W_E.view(len(W), F, e)
        self.others = [j for j in range(F) if j not in columns]
        self.W_u = W_E[:, self.others].flatten(1)
        # in the mall all dense columns are the item's
        self.kept = q @ W_E[:, columns].flatten(1).T + batch.dense @ self.W_x.T
        self.wanted = model.item_projection(q)
        fuse = model.fuse
        self.asks = (q @ fuse.query.weight[:, :q.shape[1]].T) @ fuse.key.weight.T

    def scores(self, fields, table, present):
        "(n,) log-odds; fields (1, F), table (1, S, H), present (1, S)."
        m, fuse, head, root = self.m, self.m.fuse, self.m.predictors[0], math.sqrt(self.m.widths[-1])
        h = m.extract(table)[0].masked_fill(~present[0].unsqueeze(1), 0)
        values = h @ fuse.value.weight.T
        target = (fuse.target.weight[self.t] @ fuse.query.weight[:, -h.shape[1]:].T) @ fuse.key.weight.T
        constant = torch.where(present.any(), 0, fuse.fallback.weight[0])
        user = m.embed.table(fields)[0, self.others].flatten() @ self.W_u.T + constant @ self.W_z.T
        user = user + m.scenario_embedding.weight[self.t] @ self.W_p.T + head.hidden.layers[0].bias
        keys, offset, into_first = h.T/root, (h @ target)/root, values @ self.W_z.T
        out = []
        for i in range(0, self.n, self.block):
            at = slice(i, i + self.block)
            e = torch.addmm(offset, self.asks[at], keys).masked_fill(~present, torch.finfo(h.dtype).min)
            alpha = e.softmax(1).masked_fill(~present, 0)
            z = torch.addmm(constant, alpha, values)
            x = (self.kept[at] + user).addmm_(alpha, into_first).addmm_(z*self.wanted[at], self.W_m.T)
            out.append(head.out(x.relu_()).squeeze(1))
        return torch.cat(out)

    @torch.inference_mode()
    def __call__(self, *user, k=10):
        "Values and positions of the k best, on the CPU."
        best = self.scores(*user).topk(k)
        return best.values.cpu(), best.indices.cpu()


def parts(catalogue, user, scenario):
    "What one list of the catalogue is made of, step by step, each as a function."
    log, when = catalogue.log, catalogue.log.last + 1
    score = catalogue.scores([user], scenario)[0].numpy()
    pick = rank.top_k(score, 10)
    return {"the whole list": lambda: catalogue.recommend(user, scenario),
            "scores of all items": lambda: catalogue.scorer.scores([user], scenario, log, when, {}),
            "the same, with the question checked": lambda: catalogue.scores([user], scenario),
            "the user's rows": lambda: log.rows([user], when),
            "the whole list, seen items too": lambda: catalogue.recommend(user, scenario, exclude_seen=False),
            "top_k, ties in order": lambda: rank.top_k(score, 10),
            "ten rows of the items' frame": lambda: catalogue.prep.items_.iloc[pick]}


def main():
    "The command line."
    args = options(__doc__).parse_args()
    device = pick_device(args.device)
    n_items, many = (5_000, 50) if args.quick else (100_000, 1000)
    sync = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    prep, log, model = shop(n_items, 2000, 10_000 if args.quick else 60_000, device)
    user, scenario = int(log.events.user_id.value_counts().index[100]), "home"
    catalogue = rank.Catalogue(model, prep, log)
    block = 2**13 if device.type == "cpu" else n_items
    with torch.inference_mode(): bare = Bare(model, prep, scenario, block)
    frame = prep.items_[["item_id"]][:1].assign(user_id=user, scenario=scenario, timestamp=log.last + 1)
    batch = prep.transform(frame, log=log).to(device)
    inputs = batch.fields, batch.history_table, batch.present_table
    expected = catalogue.scores([user], scenario)[0]
    with torch.inference_mode():
        torch.testing.assert_close(bare.scores(*inputs).sigmoid().cpu(), expected, atol=1e-5, rtol=1e-5)

    ways = {"bare tensor code": lambda: bare(*inputs),
            "catalogue": lambda: catalogue.recommend(user, scenario)}
    both = {"catalogue": ways["catalogue"],
            "plain recommend": lambda: rank.recommend(model, prep, log, user, scenario)}
    repeats = max(args.repeats, 20) if not args.quick else 3
    quick, slow = in_turn(ways, repeats, sync), in_turn(both, args.repeats, sync)
    rows = []
    for name, seconds, other in (("bare tensor code", quick["bare tensor code"], quick["bare tensor code"]),
                                 ("catalogue", quick["catalogue"], quick["bare tensor code"]),
                                 ("plain recommend", slow["plain recommend"], slow["catalogue"])):
        middle, low, high = ratio(seconds, other)
        against = "catalogue" if name == "plain recommend" else "bare"
        rows.append(dict(way=name, users=1, items=n_items, ms=1000*statistics.median(seconds),
                         against=against, ratio=middle, low=low, high=high))
    for u in (10, many):
        users = log.users.user_id[:u].tolist()
        turns = 1 if u == many else args.repeats
        times = in_turn({"bare": lambda: [bare(*inputs) for _ in range(u)],
                         "scores": lambda: catalogue.scores(users, scenario)}, turns, sync)
        middle, low, high = ratio(times["scores"], times["bare"])
        rows.append(dict(way="catalogue.scores", users=u, items=n_items,
                         ms=1000*statistics.median(times["scores"]), against=f"bare, {u} times",
                         ratio=middle, low=low, high=high))
    for row in rows:
        row |= dict(ms_per_user=row["ms"]/row["users"], items_per_s=row["users"]*row["items"]/row["ms"]*1000)
    record("rank", rows, device.type, write=not args.quick,
           target="catalogue within 1.3 times the bare tensor code")

    with torch.inference_mode(): times = in_turn(parts(catalogue, user, scenario), repeats, sync)
    rows = [dict(part=name, ms=1000*statistics.median(seconds)) for name, seconds in times.items()]
    record("rank-parts", rows, device.type, write=not args.quick)


if __name__ == "__main__":
    main()
