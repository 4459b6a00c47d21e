"""What to train on, and in which order."""

import dataclasses
from typing import Literal

from jaxlm.core.config import check_choices


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The corpus, its validation part and the order of its examples."""

    path: str | None = None  # a UTF-8 file or a folder of them; none: the bundled plays
    batch_size: int = 32  # sequences a step, over all processes
    val_fraction: float = 0.1  # of the tokens (split=tail) or of the documents (split=document)
    split: Literal["tail", "document"] = "tail"  # the corpus' end, or whole documents by their hash
    document_separator: str | None = None  # splits files into documents; none: one file is one
    invalid_utf8: Literal["error", "replace"] = "error"  # replace: by U+FFFD, as decoders do
    mask_documents: bool = False  # attention and loss stop at the borders of documents
    order: Literal["shuffled", "contiguous"] = "shuffled"  # contiguous: for carried recurrent state

    def __post_init__(self):
        check_choices(self)
        if self.path is not None and not self.path.strip():
            raise ValueError("path must name a file or a folder; none takes the bundled plays")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")
        if not 0 < self.val_fraction < 1:
            raise ValueError(
                f"val_fraction={self.val_fraction} must lie between 0 and 1, both excluded"
            )
        if self.document_separator == "":
            raise ValueError("document_separator must not be empty; none makes one document a file")
