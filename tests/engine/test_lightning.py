"""What is used of Lightning beyond its interface, and the versions that it was seen in."""

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from packaging.specifiers import SpecifierSet

SEEN = SpecifierSet(">=2.5,<2.7")  # look at engine/callbacks.py:Seeding before this grows


class Looking(Callback):
    """Notes, while a batch is trained on, what Seeding sets before the first one."""

    def on_train_start(self, trainer, stage):
        loop = trainer.fit_loop.epoch_loop
        self.restarted = loop.restarted_on_train_batch_end
        self.counts = vars(loop.batch_progress.current).copy()
        self.last = loop.batch_progress.is_last_batch
        iter(trainer.fit_loop._data_fetcher)


class Line(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.line(batch).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_the_version_is_one_that_was_seen():
    assert SEEN.contains(lightning.__version__), f"Lightning {lightning.__version__} is new"


def test_what_seeding_sets_is_there(tmp_path):
    looking, data = Looking(), torch.utils.data.DataLoader(torch.ones(8, 1), batch_size=2)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=3,
        callbacks=[looking],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Line(), data)
    assert not looking.restarted and not looking.last
    assert looking.counts == {"ready": 0, "completed": 0, "started": 0, "processed": 0}
    assert trainer.global_step == 3
