"""The losses that the package shows, and their modules: known without loading these."""

# Generated from zerosum_ext/losses/records.py by tools/generate_losses.py: change those, and run it.

LOSSES: dict[str, str] = {
    "BPRLoss": "losses.modules",
    "BSLLoss": "losses.modules",
    "CCLLoss": "losses.modules",
    "HardestLoss": "losses.modules",
    "HingeLoss": "losses.modules",
    "IPWLoss": "losses.modules",
    "Neg2Loss": "losses.modules",
    "PDLoss": "losses.modules",
    "PSLLoss": "losses.modules",
    "Pos2Loss": "losses.modules",
    "Pos2Neg2Loss": "losses.modules",
    "SampledSoftmaxLoss": "losses.modules",
    "ZerosumLoss": "losses.modules",
    "bpr_loss": "losses.functional",
    "bsl_loss": "losses.functional",
    "ccl_loss": "losses.functional",
    "hardest_loss": "losses.functional",
    "hinge_loss": "losses.functional",
    "ipw_loss": "losses.functional",
    "ipw_weights": "losses.functional",
    "macr_loss": "losses.functional",
    "neg2_loss": "losses.functional",
    "pd_loss": "losses.functional",
    "pos2_loss": "losses.functional",
    "pos2neg2_loss": "losses.functional",
    "psl_loss": "losses.functional",
    "sampled_softmax_loss": "losses.functional",
    "zerosum_loss": "losses.functional",
}
