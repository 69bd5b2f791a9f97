"""Published experiments from declarative files: methods x seeds, resumable, rendered beside the published figures.

    results = run("benchmarks/paper/synthetic.toml", "benchmarks/paper/results")
    text = report(results)

A file names the data, the protocol, the settings common to all methods, and the methods with their published figures::

    title = "MovieLens-1M, matrix factorization"
    protocol = "benchmark"                  # or "synthetic"
    seeds = [0, 1, 2]
    columns = ["hit@10", "ndcg@10", "pri", "pop_q_at_1"]
    data = {source = "ml-1m", min_item_count = 10}
    settings = {epochs = 20, batch_size = 2048, draws = 3}    # of zerosum_ext.experiments.runs.Method

    [[methods]]
    name = "Zerosum w=.9"
    settings = {loss = "zerosum", weight = 0.9}
    published = {"hit@10" = 0.718, "ndcg@10" = 0.449}

    [[methods]]                             # as many methods as the parameter has values, for a frontier
    name = "PD"
    settings = {loss = "pd"}
    sweep = {"loss_options.gamma" = [0.1, 0.2, 0.4]}

    [[methods]]
    name = "Pos2Neg2 w=.9, mis-paired"
    settings = {loss = "pos2neg2", weight = 0.9}
    pairing = "released"

A cell is one method with one seed. When it is finished, its result becomes a line of the experiment's file of results,
``NAME.jsonl``. It is not run again as long as what it follows from, settings and data, is the same. Methods that differ
only in what is done at inference (``compensation``, the c of ``macr``) and follow each other in the file are trained
once. Their best epoch is that of the model before.

Protocols:

- synthetic: trained on and measured on one and the same matrix [RCS22 section 4.1].
- benchmark [RCS22 section 5]: a random 60/20/20 split (of its own seed). Each user has 100 negatives that he never
  interacted with, shared by validation and test. Popularity counts all interactions. ``leak = true`` draws no training
  negative that is a held-out positive or one of these negatives, as the released code does. ``leak = "positives"``
  draws none that is a held-out positive. ``false``, the honest setting, keeps out training positives alone. Figures are
  those of the last epoch, and those of the best epoch by sampled NDCG@10 in validation. ``split = {kind = "column"}``,
  or other fields of :class:`~zerosum_ext.experiments.runs.SplitRule`, is another split. If it has no validation part,
  a tenth of the training part is taken for it.
- tuned, :mod:`zerosum_ext.experiments.reproduce.tuned`: a ``grid`` of settings for each method, chosen on the
  validation part for its ``goal``. All items are ranked. A method may have fewer ``seeds`` than the file.

``pairing = "released"`` pairs positives as the code that came with [RCS22] does, to show what it changes. There the
second positive of a row is looked up in a table that is sorted by user, at the place that the row has in the file of
interactions. It is then a positive of whoever stands at that place. The file of the synthetic data is in the order of
the items. Those of the other data are in the order of a random split; a random order stands in for it.

"error" is 1 - pairwise accuracy; "hit@10" and "ndcg@10" are the sampled ones, "full/ndcg@10" is over all items.
"""

from zerosum_ext.experiments.reproduce.evidence import Compared, compared
from zerosum_ext.experiments.reproduce.experiment import Cell, Experiment
from zerosum_ext.experiments.reproduce.figures import draw
from zerosum_ext.experiments.reproduce.file import read_experiment
from zerosum_ext.experiments.reproduce.glance import Shown, figures_csv, overview, renew, title_of
from zerosum_ext.experiments.reproduce.glance import draw as draw_together
from zerosum_ext.experiments.reproduce.html import page
from zerosum_ext.experiments.reproduce.results import Results, load
from zerosum_ext.experiments.reproduce.running import run
from zerosum_ext.experiments.reproduce.tables import report

__all__ = [
    "Cell",
    "Compared",
    "Experiment",
    "Results",
    "Shown",
    "compared",
    "draw",
    "draw_together",
    "figures_csv",
    "load",
    "overview",
    "page",
    "read_experiment",
    "renew",
    "report",
    "run",
    "title_of",
]
