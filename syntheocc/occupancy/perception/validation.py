"""Scores of held-out frames while a model trains: the loop's `validate`."""

from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

from syntheocc.engine.loading import BadSample
from syntheocc.engine.ranks import Ranks
from syntheocc.occupancy.perception.registry import ModelEntry
from syntheocc.occupancy.perception.scoring import Scoring
from syntheocc.occupancy.perception.settings import EvaluateConfig, TrainConfig
from syntheocc.occupancy.perception.sources import evenly_spread

__all__ = ["Validation"]


class Validation:
    """Called with the number of steps done; the ranks share the frames, and nothing is written.

    Args:
        entry: the model's.
        model: what is trained.
        settings: which frames (`validation_info_path`, or the split val of a data set of scene completion, and of
            them `validation_samples` evenly spread ones), their labels and the mask that mIoU uses.

    Raises:
        ValueError: infos that cannot be read, or labels of another grid than the model's.
    """

    def __init__(self, entry: ModelEntry, model: Any, settings: TrainConfig):
        self.entry, self.model = entry, model
        self.settings = EvaluateConfig(
            dataroot=settings.dataroot,
            info_path=settings.validation_info_path,
            labels=settings.labels,
            labels_root=settings.labels_root,
            **settings.picture_settings(),
            split="val" if settings.is_tree else None,
            sequences=settings.validation_sequences,
            voxel_release=settings.voxel_release,
            depth_root=settings.depth_root,
            mask=settings.label_mask,
            output_dir=settings.output_dir,
        )
        self.settings.use(model.config)
        self.data = entry.test_data(model.config, self.settings)
        number = len(self.data.frames)
        self.chosen = evenly_spread(number, settings.validation_samples or number)
        self.workers = settings.dataloader_num_workers
        self.origins = Scoring(self.settings, model.config).origins(self.data.frames)

    def __call__(self, step: int) -> dict[str, float]:
        """The figures, the same on all ranks."""
        from accelerate.utils import gather_object

        device = next(self.model.parameters()).device
        scoring = Scoring(self.settings, self.model.config, device)
        predictor = self.entry.predictor(self.model, self.settings, self.data)
        share = Ranks.from_environment().share(self.chosen)
        loader = DataLoader(Subset(self.data, share), batch_size=None, num_workers=self.workers)
        unscored = 0
        for index, sample in zip(share, loader, strict=True):
            frame = self.data.frames[index]
            try:
                if isinstance(sample, BadSample):
                    raise ValueError(sample.reason)
                prediction = predictor(self.entry.collate([sample]).to(device))
                scoring.count(frame, self.origins.get(frame.token), {"pred": prediction.semantics[0].cpu().numpy()})
            except ValueError:
                unscored += 1
        parts = gather_object([(scoring.state(), unscored)])
        figures: dict[str, float] = {"validation/unscored": float(sum(number for _, number in parts))}
        if figures["validation/unscored"] < len(self.chosen):
            for result in scoring.results([state for state, _ in parts]).values():
                figures |= {f"validation/{name}": value for name, value in result.items() if "@" not in name}
        torch.cuda.empty_cache()  # evaluation's blocks are of other sizes than training's
        return figures
