"""The losses of the kernels' tests."""

# The order of csrc/common/losses.h, with parameters that make every term count.
LOSSES = {
    "bpr": (1.5, 0.0, 0.0),
    "zerosum": (0.4, 0.1, 0.0),
    "ipw": (0.0, 0.0, 0.0),
    "pd": (0.0, 0.0, 0.0),
    "pos2neg2": (0.2, 0.1, 0.3),
    "sampled_softmax": (2.0, 0.0, 0.0),
    "bsl": (2.0, 4.0, 0.5),
    "psl_tanh": (2.0, 0.0, 0.0),
    "psl_relu": (2.0, 0.0, 0.0),
    "hardest": (1.0, 0.0, 0.0),
}
IDS = {name: i for i, name in enumerate(LOSSES)}
PAIR = ("bpr", "zerosum", "ipw", "pd")
REDUCTIONS = {"none": 0, "sum": 1, "mean": 2}
