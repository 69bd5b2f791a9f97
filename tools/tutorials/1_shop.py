# %% [markdown]
# # A shop: from a CSV file to a report and recommendations
#
# You have a file of purchases. This tutorial makes one, and ends with two things: a report of how much a model pushes
# what is popular, and a file with recommendations for every customer. It takes about a minute.
#
# The shop below has 2000 customers and 400 articles. A few articles sell far more than the rest, and every customer has
# a taste of their own.

# %%
import csv
import os
import tempfile

import numpy as np

folder = tempfile.mkdtemp()
rng = np.random.default_rng(0)
customers, articles, groups = 2000, 400, 8
fame = 1 / np.arange(1, articles + 1) ** 1.0  # how well known each article is
group = rng.integers(groups, size=articles)  # what it is: bread, tools, toys, ...
likes = rng.dirichlet(np.full(groups, 0.15), size=customers)  # how much each customer cares for which group

path = os.path.join(folder, "purchases.csv")
with open(path, "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["customer", "article", "day"])
    for customer in range(customers):
        chances = fame * likes[customer, group]
        bought = rng.choice(articles, rng.integers(8, 30), replace=False, p=chances / chances.sum())
        writer.writerows([f"c{customer:04}", f"a{article:03}", int(rng.integers(365))] for article in bought)

with open(path) as file:
    print(file.read(60))

# %% [markdown]
# ## Train and compare
#
# One call reads the file, splits it, trains plain BPR and Zerosum on the same split, measures both, and writes a run
# folder. The command line does the same: `zerosum-ext train purchases.csv --loss zerosum --weight 0.9 --output run`.

# %%
from zerosum_ext import runs

source = runs.DataSource(path, columns={"user": "customer", "item": "article", "timestamp": "day"})
method = runs.Method(loss="zerosum", weight=0.9, embedding_dim=32, epochs=20, lr=5e-3, restore_best=False)
run = runs.train(source, os.path.join(folder, "run"), method, k=(10,), progress=False)

# %% [markdown]
# ## The report
#
# NDCG@10 is the accuracy: higher is better. PopQ@1 asks which of the things that customers like comes first: 0 always the
# most popular one, .5 no preference. uPO is 1 if popularity decides their order, and 0 is ideal. ARP@10 is the mean
# popularity of what is recommended.

# %%
for metric in ("ndcg@10", "pop_q_at_1", "upo", "arp@10", "coverage@10"):
    bpr, zerosum = run.metrics["bpr"][metric], run.metrics["zerosum"][metric]
    print(f"{metric:12}  BPR {bpr:8.3f}   Zerosum {zerosum:8.3f}   difference {zerosum - bpr:+8.3f}")

# %% [markdown]
# Zerosum ranks what a customer likes less by its fame: PopQ@1 rises and uPO falls. That costs accuracy. The lists as a whole
# get no more varied here: ARP does not fall, and fewer articles are shown to anybody. Whether the trade is worth it is for
# the shop to say. The test part is as biased as the sales are, so it does not settle the question.
#
# The run folder also holds figures. This one has the PopQ@1 of single customers, for both models:

# %%
import matplotlib.pyplot as plt

plt.figure(figsize=(9, 4))
plt.imshow(plt.imread(os.path.join(folder, "run", "popq.png")))
plt.axis("off")
plt.show()

# %% [markdown]
# ## Who is recommended what?

# %%
for found in run.recommend(["c0007", "c0042"], 5):
    print(found.user, list(found.items))

# %% [markdown]
# ## Recommendations for everybody, as parquet
#
# On the command line: `zerosum-ext recommend run --all-users --output recommendations.parquet`.

# %%
import pyarrow.parquet

target = os.path.join(folder, "recommendations.parquet")
rows = run.write_recommendations(target, 10)
print(rows, "rows")
print(pyarrow.parquet.read_table(target).slice(0, 3).to_pylist())

# %% [markdown]
# ## What next?
#
# - Is the difference what you want? `--weight auto` finds a weight for a cost in accuracy that you name:
#   [which method, which weight?](../choosing.md)
# - Your file looks different? [Formats and columns](../data.md).
