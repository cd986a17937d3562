import os
from pathlib import Path

import numpy as np
import pytest

from mmdistill.recsys import RankingProtocol, RecsysTask, load_interactions
from mmdistill.recsys.vae import VaeProtocol

ML1M = Path(os.environ.get("MMDISTILL_DATA", "/nonexistent")) / "ml-1m" / "interactions.csv.gz"


def taste_matrix(users=240, items=80, groups=4, seed=0):
    """Users of a few tastes: each likes most of its group's items and a few others; rank about ``groups``."""
    rng = np.random.default_rng(seed)
    taste = rng.dirichlet(np.full(groups, 0.3), size=users)
    appeal = np.full((groups, items), 0.02)
    for group in range(groups):
        appeal[group, group * items // groups : (group + 1) * items // groups] = 0.6
    matrix = (rng.random((users, items)) < taste @ appeal).astype(np.float32)
    matrix[:, :3] = 1  # nobody has fewer than three
    return matrix


@pytest.fixture(scope="session")
def interactions():
    return load_interactions(taste_matrix())


@pytest.fixture
def task(interactions):
    vae = VaeProtocol(hidden=20, latent=5, steps=40, batch=60, checks=2, epochs=1)
    return RecsysTask(interactions, protocol=RankingProtocol(ks=(10,), negatives=20, chunk=100), vae=vae)
