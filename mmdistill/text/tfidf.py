"""An encoder fitted to the training texts themselves, without a model file."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmdistill.errors import ConfigError, DataError
from mmdistill.text.encoder import Encoding, SentenceEncoder, hash_texts

UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
"""Characters of scripts without spaces between words: Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
TOKENS = rf"(?u)[{UNSPACED}]|[^\W{UNSPACED}]+|[^\w\s]"
"""Words, and single characters in scripts without spaces between words."""
MOST_TERMS = 200_000
"""The largest number of words and word pairs; those in the most texts are kept. With 128 numbers each they take 0.2 GB,
of which the SVD holds a few copies. 4,000 texts of 100 words have 300,000 terms, a large corpus tens of millions."""


class TfidfEncoder(SentenceEncoder):
    """TF-IDF of words and word pairs, reduced by SVD and L2-normalised: no model file, any script.

    In scripts without spaces, characters and pairs of characters stand for words. If there are more than
    :data:`MOST_TERMS` words and pairs, those in the most training texts are read, and :attr:`notes` says so.

    Args:
        dim: the number of dimensions (fewer if the training texts span fewer).
        seed: seed of the randomised SVD.
    """

    name = "tfidf"
    cached = False

    def __init__(self, dim: int = 128, seed: int = 0) -> None:
        self.dim = dim
        self.seed = seed
        self._pipeline: Any = None
        self._fitted_on = ""

    def fit(self, texts: Sequence[str]) -> None:
        """Learn vocabulary, document frequencies and singular vectors.

        Raises:
            DataError: texts without words, or with only one distinct word, which span no directions to tell apart.
        """
        from sklearn.decomposition import TruncatedSVD

        vectorizer = _vectorizer()
        try:
            matrix = vectorizer.fit_transform(texts)
        except ValueError as error:  # an empty vocabulary
            raise DataError(f"TF-IDF cannot be learned of these {len(texts):,} texts, which hold no word") from error
        self.notes, count = (), matrix.shape[1]
        if count > MOST_TERMS:
            terms = vectorizer.get_feature_names_out()[_most_common_columns(matrix, MOST_TERMS)]
            del matrix
            vectorizer = _vectorizer(terms)
            matrix = vectorizer.fit_transform(texts)
            self.notes = (f"tfidf reads the {MOST_TERMS:,} words and word pairs that are in most texts, of {count:,}",)
        if matrix.shape[1] < 2:
            raise DataError(
                f"TF-IDF is learned of texts that hold but one word, {vectorizer.get_feature_names_out()[0]!r}"
            )
        dim = min(self.dim, matrix.shape[0], matrix.shape[1])
        svd = TruncatedSVD(dim, random_state=self.seed)
        with np.errstate(divide="ignore", invalid="ignore"):  # the explained-variance ratio of constant texts
            svd.fit(matrix)
        self._pipeline = (vectorizer, svd)
        self._fitted_on = hash_texts(texts) + ":characters" * any(re.search(f"[{UNSPACED}]", text) for text in texts)
        self._fitted_on += f":{MOST_TERMS} terms" * (count > MOST_TERMS)

    def learned(self) -> dict[str, Tensor | str]:
        """Return the fitted state.

        It holds inverse document frequencies ``idf (v,)``, ``components (d, v)``, the v ``terms``, one per line, and
        ``token_pattern``, the regular expression of a word.

        Raises:
            ConfigError: it is not fitted.
        """
        vectorizer, svd = self._require_fitted()
        return {
            "idf": torch.from_numpy(vectorizer.idf_).float(),
            "components": torch.from_numpy(svd.components_).float(),
            "terms": "\n".join(vectorizer.get_feature_names_out()),
            "token_pattern": TOKENS,
        }

    def identity(self) -> str:
        """Return a hash of the training texts with the settings."""
        return f"tfidf:{self._fitted_on}:{self.dim}:{self.seed}"

    def encode(self, texts: Sequence[str]) -> Encoding:
        """Return one unit vector per text; a text of unknown words only is the zero vector.

        Raises:
            ConfigError: it is not fitted.
        """
        vectorizer, svd = self._require_fitted()
        points = torch.from_numpy(svd.transform(vectorizer.transform(texts))).float()
        return Encoding(F.normalize(points, dim=1), 0)

    def _require_fitted(self) -> Any:
        if self._pipeline is None:
            raise ConfigError("the tfidf encoder must be fitted on training texts before it encodes")
        return self._pipeline


def _vectorizer(terms: Any = None) -> Any:
    """Build scikit-learn's TF-IDF of the given words and word pairs; None: of all in the texts."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=TOKENS, vocabulary=terms)


def _most_common_columns(matrix: Any, most: int) -> Any:
    """Return the ``most`` columns of a sparse matrix with the most entries, in order; ties go to the first.

    scikit-learn's ``max_features`` breaks ties by an unstable sort, which differs between machines.
    """
    entries = np.bincount(matrix.indices, minlength=matrix.shape[1])
    return np.sort(np.argsort(-entries, kind="stable")[:most])
