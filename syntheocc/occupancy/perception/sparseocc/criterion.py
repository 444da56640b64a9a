"""What SparseOcc learns from: per-voxel losses of every stage and mask losses of every prediction (specs 2.8).

Legend: B samples, K kept voxels, s edge of a stage's voxels in full-resolution voxels, Q queries, M segments,
C classes (free included).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from syntheocc.occupancy.losses import (
    class_balanced_bce,
    frequency_weights,
    geo_scal_loss,
    lovasz_softmax,
    mask_bce,
    mask_dice,
    sem_scal_loss,
    sigmoid_focal_loss,
    weighted_cross_entropy,
)
from syntheocc.occupancy.losses.known import known_entries
from syntheocc.occupancy.perception.sparseocc.config import SparseOccConfig
from syntheocc.occupancy.perception.sparseocc.geometry import gather_labels, painted_voxels
from syntheocc.occupancy.perception.sparseocc.mask_decoder import MaskPrediction
from syntheocc.occupancy.perception.sparseocc.matcher import MatchWeights, hungarian, matching_cost
from syntheocc.occupancy.perception.sparseocc.targets import UNSEEN, SegmentTargets, segment_targets
from syntheocc.occupancy.perception.sparseocc.voxel_decoder import StageOutput
from syntheocc.occupancy.taxonomy import UNKNOWN


class SparseOccCriterion(nn.Module):
    """All losses; their sum is what is minimised.

    Args:
        config: the model's.
        weights: of the mask terms.

    With `across_ranks` (the default) the number of segments is averaged over the processes of a job, which train one
    model in step; processes of one job that each train a model of their own must switch it off.
    """

    class_weights: Tensor | None
    occupied_position: Tensor

    def __init__(self, config: SparseOccConfig, weights: MatchWeights | None = None):
        super().__init__()
        self.config = config
        self.weights = weights or MatchWeights()
        self.across_ranks = True
        free = config.taxonomy.free
        frequencies = config.class_frequencies
        self.register_buffer(
            "class_weights", None if frequencies is None else frequency_weights(frequencies), persistent=False
        )
        # Label -> index among the occupied classes, where the classifiers without a free class have it.
        position = torch.full((256,), UNKNOWN)
        position[list(config.occupied_classes)] = torch.arange(len(config.occupied_classes))
        position[free] = UNKNOWN
        self.register_buffer("occupied_position", position, persistent=False)

    def forward(
        self,
        stages: Sequence[StageOutput],
        predictions: Sequence[MaskPrediction],
        semantics: Tensor,  # [B, X, Y, Z]
        instances: Tensor | None = None,  # [B, X, Y, Z]
    ) -> dict[str, Tensor]:
        """Every term, weighted, and their sum under "loss".

        Args:
            stages: the voxel decoder's outputs.
            predictions: the mask decoder's.
            semantics: uint8 labels, 255 unknown.
            instances: object ids, for a panoptic config.
        """
        losses: dict[str, Tensor] = {}
        for stage in stages:
            for name, value in self.voxel_losses(stage, semantics).items():
                losses[f"{name}_{stage.cell}"] = value
        config = self.config
        targets = [
            segment_targets(
                semantics[i],
                config.taxonomy.free,
                None if instances is None else instances[i],
                config.instance_classes,
                legacy=config.legacy,
            )
            for i in range(semantics.shape[0])
        ]
        kept = self.kept_segments(targets, stages[-1].corners)
        whole = all(len(known) == stages[-1].corners.shape[1] for _, _, known in kept)
        if whole and any(len(classes) for classes, _, _ in kept):
            terms = self.whole_mask_losses(predictions, kept)
        else:
            matched = zip(predictions, self.matches(predictions, kept), strict=True)
            terms = [self.mask_losses(prediction, kept, pairs) for prediction, pairs in matched]
        for index, of_prediction in enumerate(terms):
            for name, value in of_prediction.items():
                losses[f"{name}_{index}"] = value
        losses["loss"] = torch.stack([value.float() for value in losses.values()]).sum()
        return losses

    def voxel_losses(self, stage: StageOutput, semantics: Tensor) -> dict[str, Tensor]:
        """Losses of one stage, each the mean over the samples: its logits, painted on all voxels that it covers."""
        covered = painted_voxels(stage.corners, stage.cell)  # [B, K, s^3, 3]
        labels = gather_labels(semantics, covered, UNKNOWN)
        repeats = covered.shape[2]
        if stage.occupancy_logits is None and not self.config.legacy and not bool((labels == UNKNOWN).any()):
            # All voxels count: all samples in one go, for a step otherwise launches thousands of small kernels.
            logits = stage.class_logits.float().repeat_interleave(repeats, 1)
            return {name: value.mean() for name, value in self._known_losses(logits, labels.flatten(1)).items()}
        terms: list[dict[str, Tensor]] = []
        for i, flat in enumerate(labels.flatten(1)):
            logits = stage.class_logits[i].float().repeat_interleave(repeats, 0)
            if stage.occupancy_logits is None:
                terms.append(self._dense_losses(logits, flat))
            else:
                occupancy = stage.occupancy_logits[i].float().repeat_interleave(repeats, 0)
                terms.append(self._two_head_losses(logits, occupancy, flat))
        return {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}

    def _dense_losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Version 1.1: one classifier of all classes."""
        legacy_lovasz = None
        if self.config.legacy:
            # The published loss keeps unknown voxels in the Lovasz term, where they stand against every class.
            legacy_lovasz = lovasz_softmax(logits.softmax(-1), labels, ignore_index=None)
        losses = self._known_losses(*known_entries(logits, labels, UNKNOWN))
        return losses if legacy_lovasz is None else {**losses, "lovasz": legacy_lovasz}

    def _known_losses(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """The terms on [..., N, C] and [..., N], no label unknown; one number a sample."""
        probabilities, free = logits.softmax(-1), self.config.taxonomy.free
        return {
            "lovasz": lovasz_softmax(probabilities, labels, None),
            "geo_scal": geo_scal_loss(probabilities, labels, free, None),
            "sem_scal": sem_scal_loss(probabilities, labels, None),
            "voxel_class": weighted_cross_entropy(logits, labels, self.class_weights, None),
        }

    def _two_head_losses(self, logits: Tensor, occupancy: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Version 1.0: balanced occupancy, and the class of what is occupied."""
        return {
            "occupancy": class_balanced_bce(occupancy, labels, self.config.taxonomy.free),
            "voxel_class": weighted_cross_entropy(logits, self.occupied_position[labels.long()]),
        }

    def kept_segments(self, targets: Sequence[SegmentTargets], corners: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each sample the segments that have a kept voxel.

        Args:
            targets: segments of the full grid.
            corners: int64 [B, K, 3], the kept voxels.

        Returns:
            for each sample: class indices int64 [M] among the occupied classes, masks float32 [M, K'], and the rows
            of the K' voxels that count, int64.
        """
        kept = []
        for target, voxels in zip(targets, corners, strict=True):
            of_voxel = gather_labels(target.segments[None], voxels[None], UNSEEN)[0]
            rows = (of_voxel != UNSEEN).nonzero().squeeze(1)
            masks = of_voxel[rows] == torch.arange(len(target.classes), device=voxels.device)[:, None]
            present = masks.any(1)
            kept.append((self.occupied_position[target.classes[present]], masks[present].float(), rows))
        return kept

    def matches(
        self, predictions: Sequence[MaskPrediction], kept: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> list[list[tuple[Tensor, Tensor]]]:
        """Of every prediction the matched queries and segments of each sample, int64 [M] each."""
        costs = [
            [
                matching_cost(scores, masks[:, known], classes, segments, self.weights)
                for scores, masks, (classes, segments, known) in zip(
                    prediction.class_logits, prediction.mask_logits, kept, strict=True
                )
            ]
            for prediction in predictions
        ]
        # All costs are on their way before the first of them is waited for.
        return [[hungarian(cost) for cost in of_samples] for of_samples in costs]

    def mask_losses(
        self,
        prediction: MaskPrediction,
        kept: Sequence[tuple[Tensor, Tensor, Tensor]],
        pairs: Sequence[tuple[Tensor, Tensor]] | None = None,
    ) -> dict[str, Tensor]:
        """Losses of one prediction: summed over the matched pairs, divided by the number of segments.

        Args:
            prediction: of a batch.
            kept: see `kept_segments`.
            pairs: see `matches`; matched here when left out.
        """
        pairs = self.matches([prediction], kept)[0] if pairs is None else pairs
        number = self._number(kept, prediction.class_logits.device)
        mask = dice = focal = prediction.class_logits.float().sum() * 0 + prediction.mask_logits.float().sum() * 0
        for i, (classes, segments, known) in enumerate(kept):
            class_logits = prediction.class_logits[i].float()
            mask_logits = prediction.mask_logits[i][:, known].float()
            wanted = torch.zeros_like(class_logits)
            if len(classes):
                rows, columns = pairs[i]
                wanted[rows, classes[columns]] = 1
                mask = mask + mask_bce(mask_logits[rows], segments[columns]).sum()
                dice = dice + mask_dice(mask_logits[rows], segments[columns]).sum()
            focal = focal + sigmoid_focal_loss(class_logits, wanted).sum()
        return self._weighted(mask, dice, focal, number)

    def whole_mask_losses(
        self, predictions: Sequence[MaskPrediction], kept: Sequence[tuple[Tensor, Tensor, Tensor]]
    ) -> list[dict[str, Tensor]]:
        """`mask_losses` of every prediction where all voxels of all samples count, in a few large operations.

        One by one, samples launch thousands of small kernels, for which the device waits. Needs one segment at least.
        """
        counts = [len(classes) for classes, _, _ in kept]
        classes = pad_sequence([classes for classes, _, _ in kept], batch_first=True)  # [B, M]
        segments = pad_sequence([masks for _, masks, _ in kept], batch_first=True)  # [B, M, K]
        class_logits = torch.stack([prediction.class_logits.float() for prediction in predictions])  # [P, B, Q, C]
        mask_logits = torch.stack([prediction.mask_logits.float() for prediction in predictions])  # [P, B, Q, K]
        costs = matching_cost(class_logits, mask_logits, classes, segments, self.weights).cpu()
        losses = []
        for index, of_samples in enumerate(costs):
            # As often as one by one: another rank's samples may not count whole, and the ranks meet here.
            number = self._number(kept, class_logits.device)
            pairs = [hungarian(cost[:, :count]) for cost, count in zip(of_samples, counts, strict=True)]
            sample = torch.arange(len(pairs)).repeat_interleave(torch.tensor([len(rows) for rows, _ in pairs]))
            found = torch.stack([sample, torch.cat([rows for rows, _ in pairs]), torch.cat([m for _, m in pairs])])
            b, q, m = found.to(class_logits.device)
            chosen, wanted = mask_logits[index][b, q], torch.zeros_like(class_logits[index])
            wanted[b, q, classes[b, m]] = 1
            mask, dice = mask_bce(chosen, segments[b, m]).sum(), mask_dice(chosen, segments[b, m]).sum()
            losses.append(self._weighted(mask, dice, sigmoid_focal_loss(class_logits[index], wanted).sum(), number))
        return losses

    def _number(self, kept: Sequence[tuple[Tensor, Tensor, Tensor]], device: torch.device) -> Tensor:
        """What the mask terms are divided by: the number of segments, at least 1."""
        number = torch.tensor(float(sum(len(classes) for classes, _, _ in kept)), device=device)
        return (_mean_over_ranks(number) if self.across_ranks else number).clamp_min(1)

    def _weighted(self, mask: Tensor, dice: Tensor, focal: Tensor, number: Tensor) -> dict[str, Tensor]:
        weights = self.weights
        return {
            "mask": weights.mask * mask / number,
            "dice": weights.dice * dice / number,
            # Weighted twice, as in the published loss.
            "class": weights.focal**2 * focal / number,
        }


def _mean_over_ranks(value: Tensor) -> Tensor:
    # Ranks train in step; outside of training they may hold different numbers of samples, and would wait for ever.
    if torch.is_grad_enabled() and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value = value / torch.distributed.get_world_size()
    return value
