"""A detector under Lightning's manual optimisation: two heads on a pyramid of two feature maps."""

import lightning as L
import torch
from torch.nn import functional as F

import gradsurgery as gs


class Detector(L.LightningModule):
    def __init__(self, trunk, boxes, classes):
        super().__init__()
        self.automatic_optimization = False
        self.trunk, self.boxes, self.classes = trunk, boxes, classes
        self.surgery = gs.GradientAggregator("pcgrad", tasks=("boxes", "classes"))

    def training_step(self, batch, batch_idx):
        images, boxes, classes = batch
        optimizer = self.optimizers()
        for_boxes, for_classes = self.surgery.split(self.trunk(images))
        box_loss = F.l1_loss(self.boxes(for_boxes), boxes)
        class_loss = F.cross_entropy(self.classes(for_classes), classes)
        optimizer.zero_grad()
        self.manual_backward(box_loss + class_loss)
        optimizer.step()
        self.log_dict({"boxes": box_loss, "classes": class_loss})

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)
