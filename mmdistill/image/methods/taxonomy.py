"""The survey's Table 1: each method's objective, network update, parameterization and labels."""

from mmdistill.registry import Row

META, PERFORMANCE_RIDGE = "performance (meta)", "performance (kernel ridge)"
SINGLE, MULTI, DISTRIBUTION = "single-step parameters", "multi-step parameters", "distribution"
EXPERTS = "trained on T (cached) and on S (unrolled)"

TABLE_1: dict[str, Row] = {
    "dd": Row(META, "trained on S (unrolled)", "raw", "fixed"),
    "addmem": Row(META, "trained on S (unrolled)", "memory and addressing matrices", "learnable"),
    "kip": Row(PERFORMANCE_RIDGE, "not updated", "raw", "learnable"),
    "frepo": Row(PERFORMANCE_RIDGE, "trained on S, a pool", "raw", "learnable"),
    "rfad": Row(PERFORMANCE_RIDGE, "not updated", "raw", "learnable"),
    "dc": Row(SINGLE, "trained on S", "raw", "fixed"),
    "dsa": Row(SINGLE, "trained on S", "DSA", "fixed"),
    "idc": Row(SINGLE, "trained on T", "up-sampling, DSA", "fixed"),
    "edd": Row(SINGLE, "trained on T, perturbed", "up-sampling, DSA", "fixed"),
    "dcc": Row(f"{SINGLE} (variant)", "trained on S", "DSA or raw", "fixed"),
    "egm": Row(f"{SINGLE} (variant)", "trained on S", "raw", "fixed"),
    "mtt": Row(MULTI, EXPERTS, "DSA", "fixed"),
    "ddpp": Row(MULTI, f"{EXPERTS}, pruned", "DSA", "fixed"),
    "haba": Row(MULTI, EXPERTS, "hallucinators and bases, DSA", "fixed"),
    "ftd": Row(MULTI, "trained flat on T (cached) and on S (unrolled)", "DSA", "fixed"),
    "tesla": Row(f"{MULTI} (variant)", "trained on T (cached) and on S", "DSA", "soft"),
    "dm": Row(DISTRIBUTION, "not updated", "DSA", "fixed"),
    "it-gan": Row(DISTRIBUTION, "not updated", "latent codes and a GAN", "fixed"),
    "kfs": Row(DISTRIBUTION, "not updated", "latent codes and decoders", "fixed"),
    "cafe": Row(f"{DISTRIBUTION} (variant)", "trained on S", "raw or DSA", "fixed"),
}
"""Rows by method name, in the survey's order; it does not list methods without a row."""
