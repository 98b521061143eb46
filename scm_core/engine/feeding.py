"""What Lightning is given to train on."""

from __future__ import annotations

from typing import Any

import lightning

from scm_core.contract.spec import DataModule


class Fed(lightning.LightningDataModule):
    """A data module of the contract, as Lightning knows one.

    The contract asks for no class of Lightning's, so that what draws samples starts without it,
    in half of the time.
    """

    def __init__(self, data: DataModule) -> None:
        super().__init__()
        self.data = data

    def train_dataloader(self) -> Any:
        """Its loader, which Lightning asks for once its processes are joined."""
        return self.data.train_dataloader()
